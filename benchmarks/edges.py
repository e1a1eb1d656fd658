"""Measures the beginning and the end of passes, and the memory of a loader.

None of that is in the time of a batch:

- The first batch of a new loader, against the bare cost of starting as many processes.
- What lies between the last batch of a pass and the first of the next, with workers that stay and with new ones.
- Closing a loader whose workers have nothing to do.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, ratio, size, times
from shmloader.cli.bench.measure import Track, interleave
from shmloader.cli.bench.memory import Memory, growth
from shmloader.cli.console import positive, shown

from .cells import CELLS, Cell, Stream
from .output import Found, as_dicts, markdown, some_of

FIRST, STAY, NEW, CLOSE = "first batch", "next pass, workers stay", "next pass, new workers", "close, workers idle"

# Streams end when they like, and not where a pass is to end.
_CELLS = [cell for cell in CELLS if cell.arrange is not Stream]
_DEFAULT = "gray28,rgb224"

# Of a pass: enough to look at its beginning, its end and its memory.
_PASS_BATCHES = 32

# Rounds that are not counted.
_WARM_UP = 1

# How both loaders start their workers here, and how the bare processes are started.
_CONTEXT = multiprocessing.get_context("fork")

_LOADERS: Mapping[str, Callable[..., DataLoader[Any]]] = {"ours": ShmDataLoader, "stock": DataLoader}
_Make = Callable[[], "DataLoader[Any]"]


@dataclass(frozen=True)
class CellEdges:
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

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "cell": self.cell,
            "seconds": {edge: as_dicts(took) for edge, took in self.seconds.items()},
            "stock_to_ours": as_dicts(self.to_stock),
            "first_batch_to_bare": self.to_bare.as_dict(),
            "memory_bytes": {name: found and asdict(found) for name, found in self.memory.items()},
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        rows = [
            (edge, took["ours"].text(duration), took["stock"].text(duration), self.to_stock[edge].text(times))
            for edge, took in self.seconds.items()
        ]
        rows += [
            ("processes alone", self.seconds[FIRST]["bare"].text(duration), "", ""),
            ("first batch / processes alone", self.to_bare.text(times), "", ""),
            self._memory_row("memory added (PSS)", lambda memory: memory.pss),
            self._memory_row("shared memory in transit", lambda memory: memory.in_transit),
        ]
        return markdown((self.cell, "ours", "stock", "stock / ours"), rows)

    def _memory_row(self, what: str, pick: Callable[[Memory], int]) -> tuple[str, str, str, str]:
        ours, stock = (
            "not known" if memory is None else size(pick(memory))
            for memory in (self.memory["ours"], self.memory["stock"])
        )
        return what, ours, stock, ""


@dataclass(frozen=True)
class Edges(Found):
    """What was measured of all cells."""

    cells: list[CellEdges]
    num_workers: int

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {"num_workers": self.num_workers, "cells": [found.as_dict() for found in self.cells]}

    def lines(self) -> list[str]:
        """Returns a table for each cell."""
        return [line for found in self.cells for line in (*found.lines(), "")][:-1]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    names = ", ".join(cell.name for cell in _CELLS)
    parser.add_argument(
        "--cells",
        type=some_of("cell whose passes end", _CELLS),
        default=_DEFAULT,
        metavar="A,B",
        help=f"of {names}; default: {_DEFAULT}",
    )
    parser.add_argument("--rounds", type=positive, default=11, metavar="N", help="default: 11")
    parser.add_argument("--num-workers", type=positive, default=2, metavar="N", help="default: 2")


def measure(args: argparse.Namespace) -> Edges:
    """Measures all cells. Blocks for about half a minute a cell; no process is left."""
    found = []
    with shown(len(args.cells) * turns(args.rounds)) as progress:
        for cell in args.cells:
            progress.begin(cell.name)
            found.append(measure_cell(cell, args.num_workers, args.rounds, progress.step))
    return Edges(found, args.num_workers)


def measure_cell(cell: Cell, num_workers: int, rounds: int, done: Callable[[], None] = lambda: None) -> CellEdges:
    """Measures one cell, which is to be read by index. Blocks meanwhile; no process is left.

    Args:
        cell: what to load.
        num_workers: worker processes of either loader, and bare processes.
        rounds: how many rounds are counted.
        done: called after each contestant's turn; `turns` says how often.
    """
    dataset = cell.dataset()  # one for all, since a fork takes the longer the more memory there is
    loader = functools.partial(loader_of, cell, dataset, num_workers)
    contestants: dict[tuple[str, str], Callable[[], float]] = {
        (FIRST, "bare"): functools.partial(bare, dataset, num_workers)
    }
    for name, kind in _LOADERS.items():
        for edge, (take, stay) in _EDGES.items():
            contestants[edge, name] = functools.partial(take, functools.partial(loader, kind, stay))
    took = interleave(list(contestants.values()), _WARM_UP + rounds, done)
    seconds: dict[str, dict[str, Figure]] = {edge: {} for edge in _EDGES}
    for (edge, name), values in zip(contestants, took, strict=True):
        seconds[edge][name] = figure(values[_WARM_UP:])
    memory = {name: growth(functools.partial(loader, kind, False)) for name, kind in _LOADERS.items()}
    return CellEdges(cell.name, seconds, memory)


def turns(rounds: int) -> int:
    """Returns how often `measure_cell` calls ``done``."""
    return (1 + len(_LOADERS) * len(_EDGES)) * (_WARM_UP + rounds)


def loader_of(
    cell: Cell, dataset: Dataset[Any], num_workers: int, kind: Callable[..., DataLoader[Any]], stay: bool
) -> DataLoader[Any]:
    """Returns a loader whose passes have so few batches that both their ends show.

    Args:
        cell: what it loads.
        dataset: the cell's.
        num_workers: worker processes.
        kind: its class.
        stay: whether they stay from pass to pass.
    """
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
