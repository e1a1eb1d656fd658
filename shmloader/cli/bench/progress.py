"""A progress bar on stderr, where tqdm is installed and stderr is a terminal; nothing otherwise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


class Progress:
    """Counts the steps of a longer work.

    Args:
        bar: tqdm's, or None to show nothing.
    """

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def begin(self, what: str) -> None:
        """Says what the next step is about."""
        if self._bar is not None:
            self._bar.set_description(what)

    def step(self) -> None:
        """Counts one step."""
        if self._bar is not None:
            self._bar.update()


@contextlib.contextmanager
def shown(steps: int) -> Iterator[Progress]:
    """Shows a bar of ``steps`` steps while the block runs, and removes it then."""
    bar = _bar(steps)
    try:
        yield Progress(bar)
    finally:
        if bar is not None:
            bar.close()


def _bar(steps: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    # tqdm's monitor is a thread, and would take processor time from what is measured.
    tqdm.monitor_interval = 0
    return tqdm(total=steps, file=sys.stderr, leave=False, dynamic_ncols=True)
