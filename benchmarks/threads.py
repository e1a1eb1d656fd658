"""Times worker threads against plain threads, worker processes, torch's and other libraries', and how they scale.

Threads share the interpreter lock, so what samples do decides: the cells are samples that wait for 5 ms, as for a disk
or a network, JPEG pictures, whose decoder releases the lock, and small arrays, which only Python moves. Each is loaded
with one worker and with more. Plain threads, with no loader around them, say what is lost to the lock by the samples
themselves. What threads are sure to be quicker at is the first batch of a new loader.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, ratio, times
from shmloader.cli.bench.measure import Track, interleave
from shmloader.cli.console import positive, shown

from .bare_threads import BareThreads
from .cells import CELLS, WAITING, Cell
from .contest import SECONDS, WARM_UP, add_options_of_contests, contest, installed
from .output import Found, as_dicts, markdown
from .peers import Peer

_CELLS = [WAITING, *(cell for cell in CELLS if cell.name in ("jpeg224", "gray28"))]
_FIRST_LENGTH = 64

_LOADERS: Mapping[str, Callable[..., Any]] = {
    "threads": functools.partial(ShmDataLoader, worker_type="thread"),
    "bare threads": BareThreads,
    "processes": ShmDataLoader,
    "stock": DataLoader,
}
_OTHERS = [name for name in _LOADERS if name != "threads"]


@dataclass(frozen=True)
class CellThreads:
    """What was measured of one cell with so many workers.

    Attributes:
        cell: its name.
        num_workers: how many workers each has.
        seconds: a batch's time, by contestant.
    """

    cell: str
    num_workers: int
    seconds: dict[str, Figure]

    @property
    def to_threads(self) -> dict[str, Figure]:
        """Each other's time over that of our threads."""
        ours = self.seconds["threads"].rounds
        return {name: ratio(took.rounds, ours) for name, took in self.seconds.items() if name != "threads"}

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "cell": self.cell,
            "num_workers": self.num_workers,
            "seconds_per_batch": as_dicts(self.seconds),
            "to_threads": as_dicts(self.to_threads),
        }


@dataclass(frozen=True)
class Threads(Found):
    """What was measured of all cells, and of first batches, by loader."""

    cells: list[CellThreads]
    first: dict[str, Figure]
    peers: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {"cells": [found.as_dict() for found in self.cells], "first_batch_seconds": as_dicts(self.first)}

    def lines(self) -> list[str]:
        """Returns a table of the cells, and one of first batches."""
        others = [*_OTHERS, *self.peers]
        head = ("cell", "workers", "threads", *(f"{name} / threads" for name in others), "threads: 1 / n workers")
        first = [(name, took.text(duration)) for name, took in self.first.items()]
        return [
            *markdown(head, (self._row(found, others) for found in self.cells)),
            "",
            *markdown(("workers", "first batch of a new loader"), first),
        ]

    def _row(self, found: CellThreads, others: Sequence[str]) -> tuple[str, ...]:
        ratios = found.to_threads
        compared = [ratios[name].text(times) if name in ratios else "no way to load it" for name in others]
        (one,) = (each for each in self.cells if each.cell == found.cell and each.num_workers == 1)
        gain = ratio(one.seconds["threads"].rounds, found.seconds["threads"].rounds)
        return found.cell, str(found.num_workers), found.seconds["threads"].text(duration), *compared, gain.text(times)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_options_of_contests(parser, _CELLS)
    parser.add_argument("--num-workers", type=positive, default=2, metavar="N", help="beside one; default: 2")


def measure(args: argparse.Namespace) -> Threads:
    """Measures all cells. Blocks for about half a second a contestant and round; no process is left."""
    peers = installed(args.peers)
    counts = sorted({1, args.num_workers})
    turns = len(args.cells) * len(counts) * (len(_LOADERS) + len(peers)) + len(_LOADERS)
    found = []
    with shown(turns * (WARM_UP + args.rounds)) as progress:
        for cell in args.cells:
            for count in counts:
                progress.begin(f"{cell.name}, {count}")
                found.append(run_cell(cell, count, args.rounds, peers=peers, done=progress.step))
        progress.begin("first batch")
        first = first_batches(args.num_workers, args.rounds, progress.step)
    return Threads(found, first, [peer.name for peer in peers])


def run_cell(
    cell: Cell,
    num_workers: int,
    rounds: int,
    *,
    seconds: float = SECONDS,
    peers: Sequence[Peer] = (),
    done: Callable[[], None] = lambda: None,
) -> CellThreads:
    """Measures one cell with so many workers. Blocks meanwhile; no process is left.

    Args:
        cell: what to load.
        num_workers: of each contestant.
        rounds: how many rounds are counted.
        seconds: about how long a contestant's turn takes.
        peers: other libraries; those that have no way to load the cell are left out.
        done: called after each turn.
    """
    found = contest(cell, _LOADERS, num_workers, rounds, seconds=seconds, peers=peers, done=done)
    seconds_a_batch = {name: figure([took.per_batch for took in all_rounds]) for name, all_rounds in found.items()}
    return CellThreads(cell.name, num_workers, seconds_a_batch)


class _Trivial(Dataset[int]):
    def __len__(self) -> int:
        return _FIRST_LENGTH

    def __getitem__(self, index: int) -> int:
        return index


def first_batches(num_workers: int, rounds: int, done: Callable[[], None] = lambda: None) -> dict[str, Figure]:
    """Returns the seconds from `iter` of a new loader of numbers to its first batch, by loader.

    Each round is the median of some loaders, since one takes about as long as other programs take a processor away.
    """

    def once(make: Callable[..., DataLoader[Any]]) -> float:
        loaders = [make(_Trivial(), 4, num_workers=num_workers) for _ in range(5)]
        return sorted(Track(loader).run(1).first_batches[0] for loader in loaders)[2]

    contestants = [functools.partial(once, make) for make in _LOADERS.values()]
    took = interleave(contestants, WARM_UP + rounds, done)
    return {name: figure(all_rounds[WARM_UP:]) for name, all_rounds in zip(_LOADERS, took, strict=True)}
