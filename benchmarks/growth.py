"""Measures how the cost of a batch grows with what there is more of.

With the length of the dataset, the slots of the pool and the number of passes it should not; with the tensors of a
batch it should in a straight line; and workers that wait for something else than a processor should make so many times
the batches of one.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, ratio
from shmloader.cli.bench.measure import Round, Track, calibrate, interleave
from shmloader.cli.bench.memory import look_ahead
from shmloader.cli.console import positive, shown

from .output import Found, Labels, as_dicts, curves, markdown, micros, some_of

_TIME, _CPU = "time a batch", "main process's processor time a batch"
_BATCH_SIZE = 8
_WAIT_SECONDS = 5e-3
_WAITING_BATCH_SIZE = 4

# Samples for as long as anybody measures.
_MANY = 10**9
_PASS_BATCHES = 1000

# Rounds that are not counted.
_WARM_UP = 1

_SMALL = np.zeros(64, np.uint8)

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
        time.sleep(_WAIT_SECONDS)
        return super().__getitem__(index)


@dataclass(frozen=True)
class Axis:
    """Something that grows.

    Attributes:
        name: what the command line calls it.
        counts: what there is more and more of.
        shape: what the cost of a batch is to look like: it stays flat, or grows in a straight line, or the throughput
            grows in proportion.
        places: how many there are.
        measure: returns the rounds at each of the places, given how many, and about how many seconds each is to take.
    """

    name: str
    counts: str
    shape: Literal["flat", "linear", "proportional"]
    places: tuple[int, ...]
    measure: _Measure


# -- measuring -------------------------------------------------------------------------------------------------------


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
    loaders = [_loader(Same(_PASS_BATCHES * _BATCH_SIZE, _SMALL)) for _ in range(rounds)]
    # All that a `Track` times of a pass; so each of its runs is one.
    timed = _PASS_BATCHES - 4 * look_ahead(loaders[0])
    turns = [functools.partial(Track(loader).run, timed) for loader in loaders]
    took = interleave(turns, places[-1])
    return {
        last: [taken for passes in took for taken in passes[before:last]]
        for before, last in itertools.pairwise((0, *places))
    }


def _loader(dataset: Dataset[Any], batch_size: int = _BATCH_SIZE, **arguments: Any) -> ShmDataLoader[Any]:
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
    return _loader(Waiting(_MANY, _SMALL), _WAITING_BATCH_SIZE, num_workers=count)


def _powers(base: int, first: int, last: int) -> tuple[int, ...]:
    return tuple(base**exponent for exponent in range(first, last + 1))


AXES = (
    Axis("length", "samples in the dataset", "flat", _powers(10, 3, 8), _side_by_side(_of_length)),
    Axis("slots", "slots of the pool", "flat", (3, *_powers(2, 3, 10)), _side_by_side(_with_slots)),
    Axis("passes", "passes with the same workers", "flat", (1, 3, 10, 30, 100), _pass_by_pass),
    Axis("tensors", "tensors in a batch", "linear", _powers(2, 0, 8), _side_by_side(_with_tensors)),
    Axis("workers", "workers", "proportional", _powers(2, 0, 6), _side_by_side(_with_workers)),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    names = ", ".join(axis.name for axis in AXES)
    add("--axes", type=some_of("axis", AXES), default=AXES, metavar="A,B", help=f"of {names}; default: all")
    add("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    add("--milliseconds", type=positive, default=250, metavar="N", help="about how long each takes; default: 250")


def measure(args: argparse.Namespace) -> Growth:
    """Measures along all axes. Blocks for some minutes; no process is left."""
    found = []
    with warnings.catch_warnings(), shown(len(args.axes)) as progress:
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, which is the point
        for axis in args.axes:
            progress.begin(axis.name)
            found.append(AxisGrowth(axis, axis.measure(axis.places, args.rounds, args.milliseconds / 1e3)))
            progress.step()
    return Growth(found)


# -- what is said of it ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A straight line through medians by least squares: its value at 0, its rise, the share of variance it explains."""

    intercept: float
    slope: float
    r_squared: float


def fit(curve: Mapping[int, Figure]) -> Line:
    """Fits a straight line.

    Raises:
        StatisticsError: there are fewer than two places, or all medians are the same.
    """
    places, medians = list(curve), [found.median for found in curve.values()]
    slope, intercept = statistics.linear_regression(places, medians)
    return Line(intercept, slope, statistics.correlation(places, medians) ** 2)


@dataclass(frozen=True)
class AxisGrowth:
    """What was measured along one axis."""

    axis: Axis
    rounds: Rounds

    @property
    def curves(self) -> dict[str, dict[int, Figure]]:
        """Seconds a batch at each place: in all, and of the main process's processor time."""
        return {
            _TIME: {place: figure([took.per_batch for took in taken]) for place, taken in self.rounds.items()},
            _CPU: {place: figure([took.cpu_per_batch for took in taken]) for place, taken in self.rounds.items()},
        }

    @property
    def shares(self) -> dict[int, Figure]:
        """The throughput at each place as a share of so many times the throughput of one."""
        alone = [took.per_batch for took in self.rounds[1]]
        return {
            place: ratio([wall / place for wall in alone], [took.per_batch for took in taken])
            for place, taken in self.rounds.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        times, cpu = map(as_dicts, self.curves.values())
        return {"counts": self.axis.counts, "seconds_per_batch": times, "consumer_cpu_seconds_per_batch": cpu}

    def table(self) -> list[str]:
        """Returns the figures at each place."""
        columns = {
            head: [micros(found) for found in curve.values()]
            for head, curve in zip(("us/batch", "CPU us/batch"), self.curves.values(), strict=True)
        }
        if self.axis.shape == "proportional":
            columns["share of linear"] = [found.text(lambda value: f"{value:.2f}") for found in self.shares.values()]
        rows = zip((f"{place:,}" for place in self.rounds), *columns.values(), strict=True)
        return markdown((self.axis.counts, *columns), rows)

    def summary(self) -> list[str]:
        """Returns in a line or two how far the growth is what it is to be."""
        first, last = (f"{place:,}" for place in (min(self.rounds), max(self.rounds)))
        if self.axis.shape == "flat":
            medians = [found.median for found in self.curves[_TIME].values()]
            spread = max(medians) / min(medians)
            found = f"from {first} to {last}: the dearest is {spread:.2f} times the cheapest"
            return [f"- {_TIME} by {self.axis.counts}, {found}"]
        if self.axis.shape == "linear":
            fits = {what: fit(curve) for what, curve in self.curves.items()}
            return [
                f"- {what} by {self.axis.counts}, from {first} to {last}: {_signed(line.intercept)} and "
                f"{_signed(line.slope)} each, R^2 {line.r_squared:.4f}"
                for what, line in fits.items()
            ]
        waiting = f"where each of a batch's {_WAITING_BATCH_SIZE} samples waits {_WAIT_SECONDS * 1e3:g} ms"
        share = self.shares[max(self.rounds)].median
        return [f"- throughput by {self.axis.counts}, {waiting}: {share:.2f} of {last} times what one makes"]

    def draw(self, path: Path, notes: Sequence[str]) -> None:
        """Draws the curves, with what they are to be like."""
        if self.axis.shape == "proportional":
            labels = Labels(f"Throughput by {self.axis.counts}", notes, "batches a second", self.axis.counts)
            rates = {place: figure([1 / took.per_batch for took in taken]) for place, taken in self.rounds.items()}
            ideal = {place: place * rates[1].median for place in rates}
            curves(path, labels, {"shmloader": rates}, {"so many times one worker's": ideal}, log_values=True)
            return
        labels = Labels(f"Cost of a batch by {self.axis.counts}", notes, "microseconds", self.axis.counts)
        found = {what: {place: one.scaled(1e6) for place, one in curve.items()} for what, curve in self.curves.items()}
        fits = map(fit, found.values()) if self.axis.shape == "linear" else ()
        lines = {
            f"{line.intercept:.1f} + {line.slope:.2f} each": {
                place: line.intercept + line.slope * place for place in self.rounds
            }
            for line in fits
        }
        curves(path, labels, found, lines, log_values=self.axis.shape == "linear")


@dataclass(frozen=True)
class Growth(Found):
    """What was measured along all axes."""

    axes: list[AxisGrowth]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {"axes": {found.axis.name: found.as_dict() for found in self.axes}}

    def lines(self) -> list[str]:
        """Returns a table for each axis, and behind them what they show."""
        tables = [line for found in self.axes for line in (*found.table(), "")]
        return tables + [line for found in self.axes for line in found.summary()]

    def draw(self, folder: Path, notes: Sequence[str]) -> None:
        """Draws a chart for each axis."""
        for found in self.axes:
            found.draw(folder / f"growth-{found.axis.name}.png", notes)


def _signed(seconds: float) -> str:
    return duration(seconds) if seconds >= 0 else f"-{duration(-seconds)}"
