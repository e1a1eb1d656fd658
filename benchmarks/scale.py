"""Measures many workers on one machine: descriptors, memory, start, and the main process's processor time.

A batch is one sample, which waits for 100 ms and takes no processor time meanwhile, as one does that comes from a
network. So a machine of a few processors can have as many workers as a large one. What is measured is what many workers
cost the main process, and not what they make: where samples take processor time, the processors are the bound.

Behind that: as many ranks as one machine may have, each with a loader of its own, all at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench import memory
from shmloader.cli.bench.figures import Figure, duration, figure, size
from shmloader.cli.console import positive, shown

from .apart import call
from .output import Found, markdown

WAIT_SECONDS = 0.1

_LENGTH = 1 << 40
_TIMED = 4  # batches of each worker
_MEETINGS = 4  # of ranks: before they start, are timed, are looked at, and end
_CONTEXT = multiprocessing.get_context("fork")
_SAMPLE = np.zeros(1024, np.float32)

_LOADERS: Mapping[str, Callable[..., DataLoader[Any]]] = {"ours": ShmDataLoader, "torch's": DataLoader}


class Waiting(Dataset[Any]):
    """Samples that wait."""

    def __len__(self) -> int:
        return _LENGTH

    def __getitem__(self, index: int) -> Any:
        time.sleep(WAIT_SECONDS)
        return _SAMPLE


@dataclass(frozen=True)
class Round:
    """What a loader with many workers took.

    Attributes:
        first: seconds from ``iter()`` to the first batch, of which `WAIT_SECONDS` are the batch's own.
        descriptors: that the main process has more than before.
        added: bytes that it and its workers have more than before; 0 where the kernel does not say.
        per_batch: seconds.
        cpu: seconds of the main process's processor time a batch.
        close: seconds until all workers have ended.
    """

    first: float
    descriptors: int
    added: int
    per_batch: float
    cpu: float
    close: float


@dataclass(frozen=True)
class Scale(Found):
    """What was measured.

    Attributes:
        alone: the rounds by loader and number of workers.
        ranks: the rounds by loader; in each, what every rank took.
        num_ranks: how many ranks there were.
        rank_workers: how many workers each had.
    """

    alone: dict[tuple[str, int], list[Round]]
    ranks: dict[str, list[list[Round]]]
    num_ranks: int
    rank_workers: int

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "wait_seconds": WAIT_SECONDS,
            "alone": [
                {"loader": name, "workers": count, "rounds": list(map(asdict, took))}
                for (name, count), took in self.alone.items()
            ],
            "num_ranks": self.num_ranks,
            "rank_workers": self.rank_workers,
            "ranks": {name: [list(map(asdict, took)) for took in rounds] for name, rounds in self.ranks.items()},
        }

    def lines(self) -> list[str]:
        """Returns a table of one loader, and one of many ranks."""
        shares = {key: figure([_share(one, key[1]) for one in took]) for key, took in self.alone.items()}
        alone = [(f"{count:,}", name, *_cells(took, shares[name, count])) for (name, count), took in self.alone.items()]
        joined = {name: [_joined(ranks) for ranks in rounds] for name, rounds in self.ranks.items()}
        together = [
            (f"{self.num_ranks} x {self.rank_workers}", name, *_cells(took, self._share_of_ranks(name)))
            for name, took in joined.items()
        ]
        columns = ("loader", "first batch", "descriptors", "memory added", "CPU a batch", "of linear", "end")
        return [
            *markdown(("workers", *columns), alone),
            "",
            *markdown(("ranks x workers", *columns), together),
        ]

    def _share_of_ranks(self, name: str) -> Figure:
        return figure([sum(_share(one, self.rank_workers) for one in took) / len(took) for took in self.ranks[name]])


def _share(took: Round, workers: int) -> float:
    """Returns how much of so many workers' throughput there was."""
    return WAIT_SECONDS / workers / took.per_batch


def _joined(ranks: Sequence[Round]) -> Round:
    """Sums up the ranks of a round: the slowest start and end, one rank's descriptors and time, and all memory."""
    return Round(
        max(one.first for one in ranks),
        max(one.descriptors for one in ranks),
        sum(one.added for one in ranks),
        figure([one.per_batch for one in ranks]).median,
        figure([one.cpu for one in ranks]).median,
        max(one.close for one in ranks),
    )


def _cells(took: Sequence[Round], share: Figure) -> tuple[str, ...]:
    return (
        figure([one.first for one in took]).text(duration),
        f"{max(one.descriptors for one in took):,}",
        size(figure([one.added for one in took]).median),
        figure([one.cpu for one in took]).text(duration),
        share.text(lambda value: f"{value:.2f}"),
        figure([one.close for one in took]).text(duration),
    )


def _counts(text: str) -> list[int]:
    return [positive(each) for each in text.split(",")]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    default = [1, 4, 16, 64, 128, 256]
    add("--workers", type=_counts, default=default, metavar="N,M", help="of one loader; default: 1,4,16,64,128,256")
    add("--ranks", type=positive, default=8, metavar="N", help="default: 8")
    add("--rank-workers", type=positive, default=16, metavar="N", help="of each rank; default: 16")
    add("--rounds", type=positive, default=3, metavar="N", help="default: 3")


def measure(args: argparse.Namespace) -> Scale:
    """Measures, each loader in a process of its own. Blocks for some minutes; no process is left."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    alone: dict[tuple[str, int], list[Round]] = {
        (name, count): [] for count, name in itertools.product(args.workers, _LOADERS)
    }
    ranks: dict[str, list[list[Round]]] = {name: [] for name in _LOADERS}
    with shown(args.rounds * (len(alone) + len(ranks))) as progress:
        progress.begin("workers")
        for _ in range(args.rounds):
            for (name, count), took in alone.items():
                took.append(call(one_round, name, count, daemon=False))
                progress.step()
            for name, rounds in ranks.items():
                rounds.append(run_ranks(name, args.ranks, args.rank_workers))
                progress.step()
    return Scale(alone, ranks, args.ranks, args.rank_workers)


def one_round(name: str, workers: int, meet: Callable[[], object] = lambda: None) -> Round:
    """Runs a loader with so many workers. Blocks for about a second more than its start takes; no process is left.

    Args:
        name: of the loader.
        workers: how many.
        meet: called before each part, where others run at the same time.
    """
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are processors, on purpose
    descriptors, before = _descriptors(), memory.now()
    meet()
    start = time.perf_counter()
    iterator = iter(_LOADERS[name](Waiting(), 1, num_workers=workers))
    next(iterator)
    first = time.perf_counter() - start
    meet()
    for _ in itertools.islice(iterator, 3 * workers):  # what was loaded ahead meanwhile, and some more
        pass
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in itertools.islice(iterator, _TIMED * workers):
        pass
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    descriptors = _descriptors() - descriptors
    meet()
    after = memory.now()
    added = 0 if before is None or after is None else after.since(before).total
    meet()
    start = time.perf_counter()
    del iterator
    close = time.perf_counter() - start
    return Round(first, descriptors, added, wall / (_TIMED * workers), cpu / (_TIMED * workers), close)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - with its own, each time


def run_ranks(name: str, ranks: int, workers: int) -> list[Round]:
    """Runs so many loaders at the same time, each in a process of its own, and returns what each took.

    Raises:
        EOFError: a rank has died.
    """
    pipes: list[Connection] = []
    processes = []
    try:
        for _ in range(ranks):
            ours, theirs = _CONTEXT.Pipe()
            pipes.append(ours)
            process = _CONTEXT.Process(target=_rank, args=(theirs, list(pipes), name, workers))
            process.start()
            theirs.close()
            processes.append(process)
        for _ in range(_MEETINGS):
            for pipe in pipes:
                pipe.recv()
            for pipe in pipes:
                pipe.send(None)
        return [pipe.recv() for pipe in pipes]
    finally:
        for pipe in pipes:
            pipe.close()  # which ends those that wait for the others
        for process in processes:
            process.join()
            process.close()


def _rank(pipe: Connection, close_first: list[Connection], name: str, workers: int) -> None:
    for other in close_first:
        other.close()

    def meet() -> None:
        pipe.send(None)
        pipe.recv()

    with contextlib.suppress(EOFError, OSError):  # another rank has died
        pipe.send(one_round(name, workers, meet))
