"""The limit: what the same processes could do if there were no loader.

Each process makes its share of the batches with the same dataset, into memory of its own that it uses again for every
batch, as cheaply as numpy can: no indices come, no batches go, nobody waits. A loader has to do all that as well, and
cannot be faster.

The memory is of the kind that a loader needs, shared between processes, and each process writes to as many buffers in
turn as a loader has batches of it: those that it loads ahead, and one that the loop has. One buffer would stay in the
processor's caches where it fits, which no loader can do whose batches are not gone before the next one is made.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from shmloader.cli.bench.measure import Round

from .cells import PREFETCH_FACTOR, Cell, Collate

_BUFFERS = PREFETCH_FACTOR + 1

_Fill = Callable[[Any], None]


class Limit:
    """Processes that fill memory when told to. They start here, by fork, and wait until `run`.

    Args:
        work: for each process an endless iterator, whose ``next`` makes one batch in it.
    """

    def __init__(self, work: Iterable[Iterator[object]]) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes = []
        for each in work:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, [*self._pipes, ours], each), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, seconds: float) -> Round:
        """Lets all processes work for ``seconds``, which start together, and blocks meanwhile.

        Returns:
            The batches of all of them. Its wall is the time that these take at the processes' rates added up, so
            that no process works alone while another has finished.

        Raises:
            EOFError: a process has ended.
        """
        for pipe in self._pipes:
            pipe.send(seconds)  # they start when they have read it, within microseconds of each other
        reports: list[tuple[int, float]] = [pipe.recv() for pipe in self._pipes]
        batches = sum(count for count, _ in reports)
        return Round(batches, wall=batches / sum(count / elapsed for count, elapsed in reports))

    def close(self) -> None:
        """Ends the processes, and blocks until they have ended."""
        for pipe in self._pipes:
            # Closing it is not enough: workers that were forked meanwhile have it open too.
            pipe.send(None)
            pipe.close()
        for process in self._processes:
            process.join()
            process.close()


def _serve(pipe: Connection, close_first: list[Connection], work: Iterator[object]) -> None:
    """Works when told to, until told to end. Runs in a process of its own, which ends with the parent too."""
    for other in close_first:
        other.close()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while (seconds := pipe.recv()) is not None:
            pipe.send(_work(work, seconds))


def _work(work: Iterator[object], seconds: float) -> tuple[int, float]:
    """Makes batches for ``seconds``, at least one, and returns how many, and the time that they took."""
    start = time.perf_counter()
    elapsed, count = 0.0, 0
    while not count or elapsed < seconds:
        next(work)
        count += 1
        elapsed = time.perf_counter() - start
    return count, elapsed


def shared(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Returns an array in memory that forked processes share, already resident."""
    array = np.ndarray(shape, dtype, mmap.mmap(-1, max(1, math.prod(shape) * dtype.itemsize)))
    array[...] = 0
    return array


# -- the limit of a cell ---------------------------------------------------------------------------------------------


def limit_of(cell: Cell, num_workers: int) -> Limit:
    """Returns so many processes that make a cell's batches."""
    return Limit(work_of(cell, num_workers))


def work_of(cell: Cell, num_workers: int) -> list[Iterator[None]]:
    """Returns for each of so many processes what makes its share of a cell's batches, one at each ``next``.

    The memory that is filled is made here, so that processes which are forked afterwards share it with this one.
    """
    dataset = cell.source()
    work = []
    for number in range(num_workers):
        fills = [_filler(cell, dataset) for _ in range(_BUFFERS)]
        work.append(_batches(dataset, fills, _shares(cell.batch_size, number, num_workers)))
    return work


def _batches(dataset: Any, fills: list[_Fill], batches: Iterator[range]) -> Iterator[None]:
    for fill, indices in zip(itertools.cycle(fills), batches, strict=False):
        fill([dataset[index] for index in indices])
        yield


def _shares(batch_size: int, number: int, workers: int) -> Iterator[range]:
    """Yields the indices of every ``workers``-th batch."""
    while True:
        yield range(number * batch_size, (number + 1) * batch_size)
        number += workers


def _filler(cell: Cell, dataset: Any) -> _Fill:
    return _collating(cell.collate) if cell.collate is not None else _filling(dataset[0], cell.batch_size)


def _filling(sample: Any, batch_size: int) -> _Fill:
    """Returns a function that puts samples like ``sample`` side by side in one reused buffer for each field."""
    if isinstance(sample, Mapping):
        return _filling_fields({key: _filling(part, batch_size) for key, part in sample.items()})
    if isinstance(sample, tuple):
        return _filling_columns([_filling(part, batch_size) for part in sample])
    if isinstance(sample, np.ndarray):
        return _joining(shared((batch_size * sample.shape[0], *sample.shape[1:]), sample.dtype))
    return _numbering(shared((batch_size,), np.dtype(type(sample))))


def _joining(buffer: np.ndarray[Any, Any]) -> _Fill:
    def fill(arrays: Any) -> None:
        # Along the first axis, which costs half of what np.stack does and moves the same bytes.
        np.concatenate(arrays, out=buffer)

    return fill


def _numbering(buffer: np.ndarray[Any, Any]) -> _Fill:
    def fill(numbers: Any) -> None:
        buffer[:] = numbers

    return fill


def _filling_columns(fills: list[_Fill]) -> _Fill:
    def fill(samples: Any) -> None:
        for fill_column, column in zip(fills, zip(*samples, strict=True), strict=True):
            fill_column(column)

    return fill


def _filling_fields(fills: dict[Any, _Fill]) -> _Fill:
    def fill(samples: Any) -> None:
        for key, fill_field in fills.items():
            fill_field([sample[key] for sample in samples])

    return fill


def _collating(collate: Collate) -> _Fill:
    """Returns a function that collates, and copies the tensor that it gets into a reused buffer."""
    buffer = torch.zeros(0)

    def fill(samples: Any) -> None:
        nonlocal buffer
        batch = collate(samples)
        if buffer.numel() < batch.numel():
            buffer = torch.zeros(2 * batch.numel(), dtype=batch.dtype)
        buffer[: batch.numel()].view(batch.shape).copy_(batch)

    return fill
