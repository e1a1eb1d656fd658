"""Time and processor time of batches in steady state.

How a round is measured. A `Track` steps a loader as a plain ``for`` loop does, which drops each batch when it has the
next one. The clock runs over whole batches and only in steady state:

- starting workers is not in it; the time from ``iter()`` to the first batch is a figure of its own;
- the batches behind it are not in it either: until a pass has made four times as many as are under way at once, or
  half of its batches if it is short, the workers are still getting into step;
- where a round goes on in the middle of a pass, twice as many as are under way are not in it: the workers have had
  time to load ahead;
- the end of a pass is not in it: the clock stops at the last batch, before the loader is asked for one more. Where
  the length of a pass is not known, the first one that ends is not counted, and tells it.

A round that a pass is too short for goes on in the next pass. Batches tend to come in bunches, one of each worker, so
the clock starts and stops at multiples of the number of workers; in short passes that matters.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shmloader.cli.console import UsageError

from .memory import Loader, look_ahead

# Unless the user says how many batches a round has: at least so many, whatever time that takes.
FEWEST_BATCHES = 10

_Taken = TypeVar("_Taken")


@dataclass
class Round:
    """What one round of one loader took.

    Attributes:
        batches: how many were timed.
        wall: seconds that these took.
        cpu: seconds of processor time that this process spent meanwhile, all its threads together.
        first_batches: seconds from ``iter()`` to the first batch, for each pass that began in the round.
    """

    batches: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    first_batches: list[float] = field(default_factory=list)

    @property
    def per_batch(self) -> float:
        """Seconds a batch."""
        return self.wall / self.batches

    @property
    def cpu_per_batch(self) -> float:
        """Seconds of this process's processor time a batch."""
        return self.cpu / self.batches


class Track:
    """Steps a loader, pass after pass, and times it.

    Args:
        loader: torch's or ours, or what has as much of their interface. Its workers start with the first round.

    Raises:
        UsageError: the loader's passes are too short to time.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._look_ahead = look_ahead(loader)
        self._bunch = max(1, loader.num_workers)
        self._length = _length(loader)
        self._iterator: Iterator[Any] = iter(())
        self._taken = self._length
        self._check_length()

    def run(self, batches: int) -> Round:
        """Times ``batches`` batches in steady state, or a few more to have as many of each worker.

        Blocks while they, and those around them, are loaded.

        Raises:
            UsageError: the loader's passes are too short to time.
            Exception: what the user's dataset raises.
        """
        took = Round()
        batches = -(-batches // self._bunch) * self._bunch
        self._skip(2 * self._look_ahead)
        while took.batches < batches:
            if self._left < self._bunch:
                self._begin(took)
            self._time(took, batches - took.batches)
        return took

    def stop(self) -> None:
        """Ends the pass. Blocks until the workers have ended, unless they persist."""
        self._iterator = iter(())
        self._taken = self._length

    @property
    def _left(self) -> int:
        """How many batches the pass still has, as far as is known."""
        return self._length - self._taken

    def _check_length(self) -> None:
        if self._length < 2 * self._bunch:
            raise UsageError(f"a pass has {self._length} batches; timing takes {2 * self._bunch} at least")

    def _begin(self, took: Round) -> None:
        """Begins a pass, and steps it into steady state."""
        self._check_length()  # a pass that has ended may have told it
        self.stop()
        start = time.perf_counter()
        self._iterator = iter(self._loader)
        self._taken = 0
        if self._step(1):
            took.first_batches.append(time.perf_counter() - start)
        settled = min(4 * self._look_ahead, self._length // 2) // self._bunch * self._bunch
        self._skip(settled - self._taken)

    def _skip(self, count: int) -> None:
        self._step(min(count, self._left))

    def _time(self, took: Round, count: int) -> None:
        """Times up to ``count`` batches of the pass; none, if it ends unexpectedly."""
        count = min(count, self._left // self._bunch * self._bunch)
        wall, cpu = time.perf_counter(), time.process_time()
        done = self._step(count)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if done == count:
            took.batches += count
            took.wall += wall
            took.cpu += cpu

    def _step(self, count: int) -> int:
        """Takes ``count`` batches, or as many as the pass still has, and returns how many."""
        done = 0
        for done, _batch in enumerate(itertools.islice(self._iterator, count), 1):  # noqa: B007
            pass
        self._taken += done
        if done < count:
            self._length = self._taken
            self.stop()
        return done


def _length(loader: Loader) -> int:
    """Returns the batches of a pass, or as good as infinitely many where that is not known before its end."""
    try:
        return len(loader)  # type: ignore[arg-type]  # without a length it is not known either
    except TypeError:
        return sys.maxsize


def calibrate(track: Track, seconds: float) -> int:
    """Returns how many batches make a round of about ``seconds``, `FEWEST_BATCHES` at least.

    What is not timed counts, so that a round of short passes does not take for ever. Blocks for up to twice as long.

    Raises:
        UsageError, Exception: see `Track.run`.
    """
    batches = FEWEST_BATCHES
    while True:
        start = time.perf_counter()
        track.run(batches)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 4:
            return max(FEWEST_BATCHES, round(seconds / elapsed * batches))
        batches *= 4


def interleave(
    contestants: Sequence[Callable[[], _Taken]], rounds: int, done: Callable[[], None] = lambda: None
) -> list[list[_Taken]]:
    """Runs all contestants once a round, so that what else the machine does strikes all alike.

    Who goes first changes from round to round. Blocks until all is done.

    Args:
        contestants: each runs one round of its own, and returns what it took.
        rounds: how many.
        done: called after each contestant's turn.

    Returns:
        For each contestant its rounds.
    """
    results: list[list[_Taken]] = [[] for _ in contestants]
    for number in range(rounds):
        for turn in range(len(contestants)):
            index = (number + turn) % len(contestants)
            gc.collect()  # nobody is to pay for the garbage of another
            results[index].append(contestants[index]())
            done()
    return results
