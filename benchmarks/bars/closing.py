"""What giving memory back takes: a loader's end, beside processes that shared as much memory and nothing else."""

from __future__ import annotations

import functools
import mmap
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.cells import CELLS, Cell
from benchmarks.edges import close, loader_of
from benchmarks.output import as_dicts, markdown
from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, size
from shmloader.cli.bench.measure import interleave

OURS, BARE = "ours", "processes that share none"
SHARED, EARLY = "processes that share as much memory", "the same, where it is given back before they end"

_CONTEXT = multiprocessing.get_context("fork")
_WARM_UP = 1


@dataclass(frozen=True)
class Closing:
    """What was measured of one cell.

    Attributes:
        nbytes: what the pool's slots take.
        seconds: until all is gone, by contestant.
    """

    nbytes: int
    seconds: dict[str, Figure]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {"bytes": self.nbytes, "seconds": as_dicts(self.seconds)}

    def lines(self) -> list[str]:
        """Returns a table."""
        rows = [(name, took.text(duration)) for name, took in self.seconds.items()]
        return markdown((f"the end of two processes, {size(self.nbytes)}", "takes"), rows)


def measure(rounds: int, done: Callable[[], None] = lambda: None, *, cell: Cell | None = None) -> Closing:
    """Measures. Blocks for some tenths of a second a round; no process is left.

    Args:
        rounds: how many are counted.
        done: called after each contestant's turn.
        cell: whose batches the loader has; None: ``rgb224``.
    """
    cell = cell or next(each for each in CELLS if each.name == "rgb224")
    dataset = cell.dataset()
    make: Callable[[], Any] = functools.partial(loader_of, cell, dataset, 2, ShmDataLoader, True)
    loader = make()
    for _batch in loader:
        pass
    nbytes = loader.statistics().resident_bytes
    del loader, _batch
    turns: dict[str, Callable[[], float]] = {
        OURS: functools.partial(close, make),
        SHARED: functools.partial(end_of_processes, 2, nbytes),
        EARLY: functools.partial(end_of_processes, 2, nbytes, early=True),
        BARE: functools.partial(end_of_processes, 2, 0),
    }
    took = interleave(list(turns.values()), _WARM_UP + rounds, done)
    return Closing(nbytes, {name: figure(each[_WARM_UP:]) for name, each in zip(turns, took, strict=True)})


def turns(rounds: int) -> int:
    """Returns how often `measure` calls ``done``."""
    return 4 * (_WARM_UP + rounds)


def end_of_processes(count: int, nbytes: int, *, early: bool = False) -> float:
    """Returns the seconds that so many processes take to end, and the memory that they shared to be given back.

    Args:
        count: of processes.
        nbytes: of memory that this process and all of them have written to.
        early: whether this process gives the memory back while the others have it.
    """
    memory = mmap.mmap(-1, nbytes) if nbytes else None
    _touch(memory)
    told, telling = os.pipe()
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    processes = [_CONTEXT.Process(target=_wait, args=(told, telling, sender, memory)) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            receiver.recv_bytes()
        start = time.perf_counter()
        if memory is not None and early:
            memory.madvise(mmap.MADV_REMOVE)
        os.close(telling)
        for process in processes:
            process.join()
        if memory is not None and not early:
            memory.madvise(mmap.MADV_REMOVE)
        seconds = time.perf_counter() - start
    finally:
        os.close(told)
        receiver.close()
        sender.close()
    for process in processes:
        process.close()
    if memory is not None:
        memory.close()
    return seconds


def _touch(memory: mmap.mmap | None) -> None:
    if memory is not None:
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1


def _wait(told: int, telling: int, sender: Connection, memory: mmap.mmap | None) -> None:
    os.close(telling)
    _touch(memory)
    sender.send_bytes(b"x")
    os.read(told, 1)
    os._exit(0)  # as quickly as can be
