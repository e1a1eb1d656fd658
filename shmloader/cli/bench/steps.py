"""What a loader says of itself behind a loop whose steps take a given time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from shmloader import ShmDataLoader

# For so long the loop runs, and for so many batches: a verdict needs some tens of them.
SECONDS = 1.0
FEWEST_BATCHES = 64
# A pass that is left early would seem to be all start: so much longer the loop runs than until its first batch.
STARTS = 20
_MOST_SECONDS = 30.0


@dataclass(frozen=True)
class Judgement:
    """A loader's verdict.

    Attributes:
        step: seconds that a step of the loop took.
        kind: what limits the loop, in a few words that stay.
        knob: what would help; None: nothing to be changed.
        text: all of it, in words.
        is_kept_busy: whether the loop is the limit, so that nothing would help.
    """

    step: float
    kind: str
    knob: str | None
    text: str
    is_kept_busy: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, for JSON."""
        return {"step_seconds": self.step, "kind": self.kind, "knob": self.knob, "text": self.text}


def judge(make: Callable[[], ShmDataLoader[Any]], step: float) -> Judgement:
    """Runs a loop for about a second, more if starting or batches take long, and returns what the loader says of it.

    Passes follow each other where one is too short. A step sleeps, as one does that waits for a GPU: the processors are
    the workers'. Blocks while the loop runs; the workers have ended when it returns, unless they persist.

    Args:
        make: makes the loader.
        step: seconds that the loop takes for a batch.

    Raises:
        Exception: what the user's dataset raises.
    """
    loader = make()
    began, end = time.perf_counter(), 0.0
    with contextlib.closing(_batches(loader)) as batches:
        for count, _batch in enumerate(batches, 1):
            if count == 1:
                first = time.perf_counter()
                end = first + min(_MOST_SECONDS, max(SECONDS, STARTS * (first - began)))
            if step:
                time.sleep(step)
            if count >= FEWEST_BATCHES and time.perf_counter() >= end:
                break
    verdict = loader.statistics().verdict
    return Judgement(step, verdict.kind.value, verdict.knob, str(verdict), verdict.kind.name == "LOOP_BOUND")


def _batches(loader: ShmDataLoader[Any]) -> Generator[Any, None, None]:
    """Yields the batches of one pass behind the other, until one has none."""
    is_empty = False
    while not is_empty:
        is_empty = True
        for batch in loader:
            is_empty = False
            yield batch
