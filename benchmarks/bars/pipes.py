"""The least that a loader can be: batches in order, through shared memory, with nothing but pipes between processes.

Processes fill memory that they use again, as those of `limit` do. But here each batch is asked for by a byte, announced
by a byte, and taken in its turn, as a loop takes batches. There are no indices, no tensors, no leases, no errors, and
no way out where a process dies. What a loader takes beyond this is the loader; what this takes beyond the limit is that
three processes have to wake each other.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.cells import PREFETCH_FACTOR, Cell
from benchmarks.limit import work_of

_CONTEXT = multiprocessing.get_context("fork")


class Pipes:
    """Processes that make a cell's batches when they are asked to. They start here, by fork.

    It has as much of a loader's interface as timing needs.

    Args:
        cell: what they make.
        num_workers: how many.
    """

    prefetch_factor = PREFETCH_FACTOR

    def __init__(self, cell: Cell, num_workers: int) -> None:
        self.num_workers = num_workers
        self._asking: list[int] = []
        self._hearing: list[int] = []
        self._processes = []
        for work in work_of(cell, num_workers):
            asked, asking = os.pipe()
            hearing, telling = os.pipe()
            process = _CONTEXT.Process(
                target=_serve, args=(asked, telling, [asking, hearing, *self._asking], work), daemon=True
            )
            process.start()
            os.close(asked)
            os.close(telling)
            self._asking.append(asking)
            self._hearing.append(hearing)
            self._processes.append(process)
        for asking in self._asking:
            os.write(asking, bytes(PREFETCH_FACTOR))

    def __iter__(self) -> Iterator[None]:
        """Yields when a batch is there, worker by worker, and asks for the one that comes in its place."""
        while True:
            for asking, hearing in zip(self._asking, self._hearing, strict=True):
                os.read(hearing, 1)
                os.write(asking, b"\0")
                yield

    def close(self) -> None:
        """Ends the processes, and blocks until they have ended."""
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        for fd in (*self._asking, *self._hearing):
            os.close(fd)


def _serve(asked: int, telling: int, close_first: list[int], work: Iterator[Any]) -> None:
    """Makes a batch for each byte that comes, until there is nobody to ask. Runs in a process of its own."""
    for fd in close_first:
        os.close(fd)
    torch.set_num_threads(1)
    while os.read(asked, 1):
        next(work)
        os.write(telling, b"\0")
