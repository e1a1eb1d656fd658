"""Measures what it costs to seed for each sample: a call by itself, and samples through a loader.

The samples are as cheap as they can be, and one worker makes them while the loop does nothing else, so that what is
added to a sample's time is all that is seen. The loaders keep their worker for all rounds.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure
from shmloader.cli.bench.measure import interleave
from shmloader.cli.console import positive, shown
from shmloader.workers.states import generators, seeding

from .output import Found, as_dicts, markdown

_BATCH_SIZE = 64
_CALL = "one call that seeds"
_LOADERS = ("worker", "sample")

# Rounds that are not counted.
_WARM_UP = 1


class Numbers(Dataset[int]):
    """Samples that cost nothing.

    Args:
        length: how many.
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


@dataclass(frozen=True)
class Seeding(Found):
    """What was measured.

    Attributes:
        seconds: of one sample, by what was done for it.
    """

    seconds: dict[str, Figure]

    @property
    def added(self) -> Figure:
        """What ``seeding="sample"`` adds to a sample's time, round by round."""
        pairs = zip(*(self.seconds[_row(name)].rounds for name in _LOADERS), strict=True)
        return figure([sample - worker for worker, sample in pairs])

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {"seconds": as_dicts(self.seconds), "added": self.added.as_dict()}

    def lines(self) -> list[str]:
        """Returns a table."""
        rows = [(name, found.text(duration)) for name, found in (*self.seconds.items(), ("added", self.added))]
        return markdown(("a sample", "time"), rows)


def _row(name: str) -> str:
    return f'through a loader, seeding="{name}"'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--rounds", type=positive, default=15, metavar="N", help="default: 15")
    parser.add_argument("--samples", type=positive, default=50_000, metavar="N", help="of a round; default: 50000")


def measure(args: argparse.Namespace) -> Seeding:
    """Measures. Blocks for some seconds; no process is left."""
    rounds = _WARM_UP + args.rounds
    with shown((1 + len(_LOADERS)) * rounds) as progress:
        progress.begin("seeding")
        turns = [functools.partial(_seconds_a_call, args.samples)]
        turns += [functools.partial(_seconds_a_sample, _loader(name, args.samples)) for name in _LOADERS]
        took = interleave(turns, rounds, progress.step)
    names = [_CALL, *map(_row, _LOADERS)]
    return Seeding({name: figure(taken[_WARM_UP:]) for name, taken in zip(names, took, strict=True)})


def _loader(seeding: str, samples: int) -> ShmDataLoader[int]:
    return ShmDataLoader(
        Numbers(samples), batch_size=_BATCH_SIZE, num_workers=1, persistent_workers=True, seeding=seeding
    )


def _seconds_a_call(count: int) -> float:
    seed = seeding.SampleSeeder(1, 0)
    with generators.kept():
        start = time.perf_counter()
        for index in range(count):
            seed(index)
        return (time.perf_counter() - start) / count


def _seconds_a_sample(loader: ShmDataLoader[int]) -> float:
    count = 0
    start = time.perf_counter()
    for batch in loader:
        count += len(batch)
    return (time.perf_counter() - start) / count
