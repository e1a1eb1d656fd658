"""What a loader says of itself behind a loop whose steps take a given time."""

from __future__ import annotations

import time
from collections.abc import Callable
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
    began, left = time.perf_counter(), FEWEST_BATCHES
    while (count := _run(loader, step, left)) and (count < left or time.perf_counter() - began < SECONDS):
        left -= count
    verdict = loader.statistics().verdict
    return Judgement(step, verdict.kind.value, verdict.knob, str(verdict), verdict.kind.name == "LOOP_BOUND")


def _run(loader: ShmDataLoader[Any], step: float, fewest: int) -> int:
    """Runs a pass, which is left when it has been long enough, and returns how many batches it had.

    The verdict is of the last pass: one that has just begun would seem to be all start, and the whole of one is what it
    is.
    """
    count, began, end = 0, time.perf_counter(), 0.0
    batches = iter(loader)
    for count, _batch in enumerate(batches, 1):
        if count == 1:
            first = time.perf_counter()
            end = first + min(_MOST_SECONDS, max(SECONDS, STARTS * (first - began)))
        if step:
            time.sleep(step)
        if count >= fewest and time.perf_counter() >= end:
            break
    return count
