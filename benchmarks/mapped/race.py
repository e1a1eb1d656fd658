"""The contest: who loads most rows a second."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import WARM_UP
from benchmarks.limit import Limit, shared
from benchmarks.output import Found, Labels, as_dicts, dots, markdown, micros
from shmloader.cli.bench.figures import Figure, figure, ratio, size, times
from shmloader.cli.bench.measure import Round, Track, calibrate, interleave
from shmloader.cli.console import positive, shown

from .contestants import CONTESTANTS, STOCK, Contestant
from .datasets import EndlessBatches
from .sources import Map

LIMIT = "no loader"

_BUFFERS = 3


@dataclass(frozen=True)
class Field:
    """What is loaded.

    Attributes:
        name: of the command, and of the chart's file.
        title: the chart's.
        unit: what is counted.
        batch_size: rows a batch.
        units: how many units a batch has.
    """

    name: str
    title: str
    unit: str
    batch_size: int
    units: int


@dataclass(frozen=True)
class MappedRace(Found):
    """What was measured.

    Attributes:
        field: what was loaded.
        length: how many rows there are.
        nbytes: of all rows.
        rounds: by contestant.
    """

    field: Field
    length: int
    nbytes: int
    rounds: dict[str, list[Round]]

    def rates(self) -> dict[str, Figure]:
        """Returns units a second, by contestant."""
        return {name: figure([self.field.units / one.per_batch for one in took]) for name, took in self.rounds.items()}

    def over(self, name: str, other: str) -> Figure:
        """Returns how many times as fast as another a contestant is."""
        above, below = ([took.per_batch for took in self.rounds[each]] for each in (other, name))
        return ratio(above, below)

    def cpu(self) -> dict[str, Figure]:
        """Returns seconds of the main process's processor time a batch, by loader."""
        return {
            name: figure([one.cpu_per_batch for one in took]) for name, took in self.rounds.items() if name != LIMIT
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "rows": self.length,
            "bytes": self.nbytes,
            "batch_size": self.field.batch_size,
            f"{self.field.unit}_per_second": as_dicts(self.rates()),
            "consumer_cpu_seconds_per_batch": as_dicts(self.cpu()),
            "over_stock": {name: self.over(name, STOCK).as_dict() for name in self.rounds},
            "share_of_limit": {name: self.over(name, LIMIT).as_dict() for name in self.rounds},
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        what = f"{self.length:,} rows, {size(self.nbytes)}"
        head = (what, f"{self.field.unit}/s", f"over {STOCK}", "share of the limit", "CPU a batch, us")
        return markdown(head, map(self._row, self.rounds))

    def _row(self, name: str) -> tuple[str, ...]:
        found = self.cpu().get(name)
        return (
            name,
            self.rates()[name].text(_short),
            self.over(name, STOCK).text(times),
            f"{self.over(name, LIMIT).median:.2f}",
            "" if found is None else micros(found),
        )

    def draw(self, folder: Path, notes: Sequence[str]) -> None:
        """Draws the units a second, by contestant."""
        labels = Labels(self.field.title, notes, f"{self.field.unit} a second, logarithmic")
        rates = dict(sorted(self.rates().items(), key=lambda item: item[1].median))
        ours = {name: rate for name, rate in rates.items() if name.startswith("ours")}
        rest = {name: rate for name, rate in rates.items() if name not in ours}
        dots(folder / f"{self.field.name}.png", labels, {"shmloader": ours, "others": rest})


def _short(rate: float) -> str:
    """Writes millions with three digits."""
    millions = rate / 1e6
    return f"{millions:,.{2 if millions < 10 else 1 if millions < 100 else 0}f} M"


def add_options_of_races(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a contest."""
    add = parser.add_argument
    add("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    add("--num-workers", type=positive, default=2, metavar="N", help="of each contestant; default: 2")
    add("--seconds", type=float, default=0.5, metavar="S", help="about how long a turn takes; default: 0.5")


def race(field: Field, arrays: Sequence[Map], args: argparse.Namespace) -> MappedRace:
    """Lets all contestants load rows of ``arrays`` in turns. Blocks until all is done; no process is left."""
    with shown((len(CONTESTANTS) + 1) * (WARM_UP + args.rounds)) as progress:
        progress.begin(field.name)
        rounds = run(field, arrays, args.num_workers, args.rounds, args.seconds, progress.step)
    return MappedRace(field, len(arrays[0]), sum(array.nbytes for array in arrays), rounds)


def run(
    field: Field,
    arrays: Sequence[Map],
    num_workers: int,
    rounds: int,
    seconds: float,
    done: Callable[[], None] = lambda: None,
    contestants: Sequence[Contestant] = CONTESTANTS,
) -> dict[str, list[Round]]:
    """Returns the rounds of all contestants, by name. Blocks while they run; no process is left.

    Args:
        field: what is loaded.
        arrays: what rows are of.
        num_workers: processes of each.
        rounds: how many are counted.
        seconds: about how long a turn takes.
        done: called after each turn.
        contestants: who loads, beside the limit.
    """
    with contextlib.ExitStack() as stack:
        limit = stack.enter_context(contextlib.closing(_limit(arrays, field.batch_size, num_workers)))
        turns: dict[str, Callable[[], Round]] = {LIMIT: functools.partial(limit.run, seconds)}
        for each in contestants:
            track = Track(each.load(arrays, field.batch_size, num_workers))
            stack.callback(track.stop)
            turns[each.name] = functools.partial(track.run, calibrate(track, seconds))
        took = interleave(list(turns.values()), WARM_UP + rounds, done)
    by_name = {name: each[WARM_UP:] for name, each in zip(turns, took, strict=True)}
    return {each.name: by_name[each.name] for each in contestants} | {LIMIT: by_name[LIMIT]}


def _limit(arrays: Sequence[Map], batch_size: int, num_workers: int) -> Limit:
    return Limit([_batches(arrays, batch_size) for _ in range(num_workers)])


def _batches(arrays: Sequence[Map], batch_size: int) -> Iterator[None]:
    """Copies batches of rows into memory that is used again, in an order of its own."""
    places = [[shared((batch_size, *array.shape[1:]), array.dtype) for array in arrays] for _ in range(_BUFFERS)]
    order = EndlessBatches(len(arrays[0]), batch_size)
    for place, indices in zip(itertools.cycle(places), order, strict=False):
        for array, out in zip(arrays, place, strict=True):
            np.take(array, indices, 0, out, "clip")
        yield
