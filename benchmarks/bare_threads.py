"""Plain threads that read samples into arrays, and no loader: what threads are good for with such samples.

The interpreter lock belongs to one thread at a time, so two threads make less than twice as many samples as one,
whatever hands the batches on. A loader on threads can be measured against this, which does next to nothing but read
and copy.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from .cells import PREFETCH_FACTOR

_Arrays = list[Any]  # one for each part of a sample, of shape (batch, ...); none before the first batch


class BareThreads:
    """Loads a map-style dataset of tuples of arrays and numbers, or of one of either, in order.

    A batch is a list of arrays, which the thread that made it writes again after the next step. There are as many of
    them as may be under way, and no memory is new after the first few. Iterating starts the threads. They end with the
    iterator.

    Args:
        dataset: what to load; also read by several threads at a time.
        batch_size: samples a batch; a last smaller one is dropped.
        num_workers: how many threads, which take turns.
        sampler: None: samples come in order.
        collate_fn: None: there is one way to make batches.
    """

    prefetch_factor = PREFETCH_FACTOR

    def __init__(
        self, dataset: Any, batch_size: int, *, num_workers: int, sampler: None = None, collate_fn: None = None
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self._dataset) // self._batch_size

    def __iter__(self) -> Iterator[_Arrays]:
        workers = [_Worker(self._dataset, self._batches(number)) for number in range(self.num_workers)]
        with contextlib.ExitStack() as stack:
            for worker in workers:
                worker.thread.start()
                stack.callback(worker.end)
            for number in range(len(self)):
                worker = workers[number % self.num_workers]
                batch = worker.take()
                yield batch
                worker.free.put(batch)

    def _batches(self, first: int) -> Iterator[range]:
        size = self._batch_size
        return (range(number * size, (number + 1) * size) for number in range(first, len(self), self.num_workers))


class _Worker:
    """One thread.

    Args:
        dataset: what it reads.
        batches: the indices of each of its batches.

    Attributes:
        thread: not started yet.
        free: arrays that may be written to.
    """

    def __init__(self, dataset: Any, batches: Iterable[Sequence[int]]) -> None:
        self._dataset = dataset
        self._batches = batches
        self._is_stopped = False
        self._made: SimpleQueue[_Arrays | Exception] = SimpleQueue()
        self.free: SimpleQueue[_Arrays | None] = SimpleQueue()
        for _ in range(PREFETCH_FACTOR + 1):  # and the one that is in the loop's hands
            self.free.put([])
        self.thread = threading.Thread(target=self._run, daemon=True)

    def take(self) -> _Arrays:
        """Returns the next batch. Blocks until it is made.

        Raises:
            Exception: what reading it raised.
        """
        made = self._made.get()
        if isinstance(made, Exception):
            raise made
        return made

    def end(self) -> None:
        """Ends the thread. Blocks until it has made the batch that it is at."""
        self._is_stopped = True
        self.free.put(None)
        self.thread.join()

    def _run(self) -> None:
        try:
            for indices in self._batches:
                out = self.free.get()
                if out is None or self._is_stopped:
                    return
                _write([self._dataset[index] for index in indices], out)
                self._made.put(out)
        except Exception as error:
            self._made.put(error)


def _write(samples: list[Any], out: _Arrays) -> None:
    """Copies samples into ``out``, which gets its arrays where it has none."""
    columns = list(zip(*samples, strict=True)) if isinstance(samples[0], tuple) else [samples]
    if not out:
        out.extend(np.stack(column) for column in columns)
    for array, column in zip(out, columns, strict=True):
        if array.ndim > 1:
            np.stack(column, out=array)
        else:
            array[:] = column
