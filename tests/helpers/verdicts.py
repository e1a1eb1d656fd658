"""Verdicts of real passes, on a machine that does other things too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmloader.observe.kinds import Kind

ATTEMPTS = 30


def told(kind: Kind | tuple[Kind, ...], figures: Callable[[], Any], knob: str | None = None) -> Any:
    """Returns figures with a verdict of this kind and knob; fails with the table where many passes have none.

    What else the machine does may be what limits a pass, and the verdict is right to say so then: it is made again.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    for _ in range(ATTEMPTS):
        found = figures()
        if found.verdict.kind in kinds and knob in (None, found.verdict.knob):
            return found
    raise AssertionError(f"{kind} and {knob} expected\n{found}")
