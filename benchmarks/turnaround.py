"""What is not in the time of a batch: how passes begin, follow each other and end, and what memory a loader takes.

- The first batch of a new loader, against the bare cost of starting as many processes.
- What lies between the last batch of a pass and the first of the next, with workers that stay and with new ones.
- Closing a loader whose workers have nothing to do.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, figure, ratio
from shmloader.cli.bench.measure import Track, interleave
from shmloader.cli.bench.memory import Memory, growth

from .cells import Cell

# The edges.
FIRST, STAY, NEW, CLOSE = "first batch", "next pass, workers stay", "next pass, new workers", "close, workers idle"

# What ours is to take at most, in seconds.
BARS = {STAY: 1e-3, CLOSE: 20e-3}

# Of a pass: enough to look at its beginning, its end and its memory.
_PASS_BATCHES = 32

# Rounds that are not counted.
_WARM_UP = 1

# How both loaders start their workers here, and how the bare processes are started.
_CONTEXT = multiprocessing.get_context("fork")

_Make = Callable[[], "DataLoader[Any]"]


@dataclass(frozen=True)
class Found:
    """What was measured of one cell.

    Attributes:
        cell: its name.
        seconds: what each edge took, by contestant: "ours", "stock", and for the first batch "bare".
        memory: what either loader adds to the memory of the process tree; None where the kernel does not say.
    """

    cell: str
    seconds: dict[str, dict[str, Figure]]
    memory: dict[str, Memory | None]

    @property
    def to_stock(self) -> dict[str, Figure]:
        """Stock's time over ours, by edge."""
        return {edge: ratio(took["stock"].rounds, took["ours"].rounds) for edge, took in self.seconds.items()}

    @property
    def to_bare(self) -> Figure:
        """Our time to the first batch over what the processes alone take."""
        took = self.seconds[FIRST]
        return ratio(took["ours"].rounds, took["bare"].rounds)

    @property
    def holds(self) -> dict[str, bool]:
        """Whether ours keeps to the bar, of the edges that have one."""
        return {edge: self.seconds[edge]["ours"].median <= most for edge, most in BARS.items()}

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "cell": self.cell,
            "seconds": {
                edge: {name: found.as_dict() for name, found in took.items()} for edge, took in self.seconds.items()
            },
            "stock_to_ours": {edge: found.as_dict() for edge, found in self.to_stock.items()},
            "first_batch_to_bare": self.to_bare.as_dict(),
            "memory_bytes": {name: found and asdict(found) for name, found in self.memory.items()},
            "holds": self.holds,
        }


def measure(cell: Cell, num_workers: int, rounds: int, done: Callable[[], None] = lambda: None) -> Found:
    """Measures one cell, which is to be read by index. Blocks meanwhile; no process is left.

    Args:
        cell: what to load.
        num_workers: worker processes of either loader, and bare processes.
        rounds: how many rounds are counted.
        done: called after each contestant's turn; `turns` says how often.
    """
    dataset = cell.dataset()  # one for all, since a fork takes the longer the more memory there is
    loader = functools.partial(_loader, cell, dataset, num_workers)
    turns: dict[tuple[str, str], Callable[[], float]] = {(FIRST, "bare"): functools.partial(bare, dataset, num_workers)}
    for name, kind in (("ours", ShmDataLoader), ("stock", DataLoader)):
        for edge, (take, stay) in _EDGES.items():
            turns[edge, name] = functools.partial(take, functools.partial(loader, kind, stay))
    took = interleave(list(turns.values()), _WARM_UP + rounds, done)
    seconds: dict[str, dict[str, Figure]] = {edge: {} for edge in _EDGES}
    for (edge, name), values in zip(turns, took, strict=True):
        seconds[edge][name] = figure(values[_WARM_UP:])
    memory = {
        name: growth(functools.partial(loader, kind, False))
        for name, kind in (("ours", ShmDataLoader), ("stock", DataLoader))
    }
    return Found(cell.name, seconds, memory)


def turns(rounds: int) -> int:
    """Returns how often `measure` calls ``done``."""
    return (1 + 2 * len(_EDGES)) * (_WARM_UP + rounds)


def _loader(
    cell: Cell, dataset: Dataset[Any], num_workers: int, kind: Callable[..., DataLoader[Any]], stay: bool
) -> DataLoader[Any]:
    return kind(
        dataset,
        cell.batch_size,
        sampler=range(_PASS_BATCHES * cell.batch_size),
        num_workers=num_workers,
        collate_fn=cell.collate,
        multiprocessing_context=_CONTEXT,
        persistent_workers=stay,
    )


def bare(dataset: Dataset[Any], count: int) -> float:
    """Returns the seconds until so many processes that get the dataset have started and sent a byte."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    with receiver, sender:
        processes = [_CONTEXT.Process(target=_send_a_byte, args=(sender, dataset), daemon=True) for _ in range(count)]
        start = time.perf_counter()
        for process in processes:
            process.start()
        for _ in processes:
            receiver.recv_bytes()
        seconds = time.perf_counter() - start
    for process in processes:
        process.join()
        process.close()
    return seconds


def _send_a_byte(sender: Connection, dataset: Dataset[Any]) -> None:
    sender.send_bytes(b"x")


def first_batch(make: _Make) -> float:
    """Returns the seconds from `iter` of a new loader to its first batch."""
    return Track(make()).run(1).first_batches[0]


def next_pass(make: _Make) -> float:
    """Returns the seconds from the last batch of a pass to the first one of the next."""
    loader = make()
    iterator = iter(loader)
    for _batch in itertools.islice(iterator, len(loader)):
        pass
    start = time.perf_counter()
    next(iterator, None)
    del iterator, _batch  # as a loop does when it ends
    next(iter(loader))
    return time.perf_counter() - start


def close(make: _Make) -> float:
    """Returns the seconds that dropping a loader takes once its workers have made all batches of a pass, and stay."""
    loader = make()
    for _batch in loader:
        pass
    del _batch
    start = time.perf_counter()
    del loader
    return time.perf_counter() - start


# By name: how it is measured, and whether the workers stay from pass to pass.
_EDGES = {FIRST: (first_batch, False), STAY: (next_pass, True), NEW: (next_pass, False), CLOSE: (close, True)}
