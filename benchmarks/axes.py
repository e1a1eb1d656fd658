"""What grows, one thing at a time, and the cost of a batch as it does."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, figure, ratio
from shmloader.cli.bench.measure import Round, Track, calibrate, interleave
from shmloader.cli.bench.memory import look_ahead

BATCH_SIZE = 8
WAIT_SECONDS = 5e-3
WAITING_BATCH_SIZE = 4

# Samples for as long as anybody measures.
_MANY = 10**9
_PASS_BATCHES = 1000

# Rounds that are not counted.
_WARM_UP = 1

Rounds = dict[int, list[Round]]

_Measure = Callable[[tuple[int, ...], int, float], Rounds]


class Same(Dataset[Any]):
    """So many times the same sample."""

    def __init__(self, length: int, sample: Any) -> None:
        self._length = length
        self._sample = sample

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._sample


class Waiting(Same):
    """The same, each after a wait that takes no processor time, as for a network or a disk."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(WAIT_SECONDS)
        return super().__getitem__(index)


@dataclass(frozen=True)
class Axis:
    """Something that grows.

    Attributes:
        name: what the command line calls it.
        counts: what there is more and more of.
        law: what is to hold of the cost of a batch: it stays flat, or grows in a straight line, or shrinks in
            proportion.
        places: how many there are.
        measure: returns the rounds at each of the places, given how many, and about how many seconds each is to take.
    """

    name: str
    counts: str
    law: Literal["flat", "linear", "proportional"]
    places: tuple[int, ...]
    measure: _Measure


def times(rounds: Rounds) -> dict[int, Figure]:
    """Returns the seconds a batch at each place."""
    return {place: figure([took.per_batch for took in taken]) for place, taken in rounds.items()}


def cpu(rounds: Rounds) -> dict[int, Figure]:
    """Returns the main process's processor time a batch at each place."""
    return {place: figure([took.cpu_per_batch for took in taken]) for place, taken in rounds.items()}


def shares(rounds: Rounds) -> dict[int, Figure]:
    """Returns the throughput at each place as a share of so many times the throughput of one."""
    alone = [took.per_batch for took in rounds[1]]
    return {
        place: ratio([wall / place for wall in alone], [took.per_batch for took in taken])
        for place, taken in rounds.items()
    }


def _side_by_side(make: Callable[[int], ShmDataLoader[Any]]) -> _Measure:
    """Returns how to measure with a loader for each place, all of them side by side."""

    def measure(places: tuple[int, ...], rounds: int, seconds: float) -> Rounds:
        tracks = [Track(make(place)) for place in places]
        for track in tracks:
            track.run(1)  # starting many workers takes longer than a round, and would be taken for one
        turns = [functools.partial(track.run, calibrate(track, seconds)) for track in tracks]
        took = interleave(turns, _WARM_UP + rounds)
        return {place: taken[_WARM_UP:] for place, taken in zip(places, took, strict=True)}

    return measure


def _pass_by_pass(places: tuple[int, ...], rounds: int, seconds: float) -> Rounds:
    """Runs as many loaders as there are to be rounds, a pass of each in turn; ``seconds`` do not matter.

    Passes come one after the other, so a place has all passes since the place before it: what else the machine does
    is then in all of them.
    """
    loaders = [_loader(Same(_PASS_BATCHES * BATCH_SIZE, _SMALL)) for _ in range(rounds)]
    # All that a `Track` times of a pass; so each of its runs is one.
    timed = _PASS_BATCHES - 4 * look_ahead(loaders[0])
    turns = [functools.partial(Track(loader).run, timed) for loader in loaders]
    took = interleave(turns, places[-1])
    return {
        last: [taken for passes in took for taken in passes[before:last]]
        for before, last in itertools.pairwise((0, *places))
    }


_SMALL = np.zeros(64, np.uint8)


def _loader(dataset: Dataset[Any], batch_size: int = BATCH_SIZE, **arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(dataset, batch_size, **{"num_workers": 2, "persistent_workers": True, **arguments})


def _of_length(length: int) -> ShmDataLoader[Any]:
    return _loader(Same(length, _SMALL))


def _with_slots(slots: int) -> ShmDataLoader[Any]:
    # One worker that loads one batch ahead is what three slots are enough for.
    return _loader(Same(_MANY, _SMALL), num_workers=1, prefetch_factor=1, num_slots=slots)


def _with_tensors(count: int) -> ShmDataLoader[Any]:
    row = np.zeros(4, np.float32)
    return _loader(Same(_MANY, {f"field{number}": row for number in range(count)}))


def _with_workers(count: int) -> ShmDataLoader[Any]:
    return _loader(Waiting(_MANY, _SMALL), WAITING_BATCH_SIZE, num_workers=count)


def _powers(base: int, first: int, last: int) -> tuple[int, ...]:
    return tuple(base**exponent for exponent in range(first, last + 1))


AXES = (
    Axis("length", "samples in the dataset", "flat", _powers(10, 3, 8), _side_by_side(_of_length)),
    Axis("slots", "slots of the pool", "flat", (3, *_powers(2, 3, 10)), _side_by_side(_with_slots)),
    Axis("passes", "passes with the same workers", "flat", (1, 3, 10, 30, 100), _pass_by_pass),
    Axis("tensors", "tensors in a batch", "linear", _powers(2, 0, 8), _side_by_side(_with_tensors)),
    Axis("workers", "workers", "proportional", _powers(2, 0, 6), _side_by_side(_with_workers)),
)
