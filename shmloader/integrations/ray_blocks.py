"""A Ray Dataset's blocks as an iterable of chunks, for the workers of a loader.

Only a process that is connected to Ray can read blocks. A worker that is forked has the connection's memory, and none
of its threads: a call would wait for ever. One that is spawned has no connection, and one of its own would be another
job of the cluster, which reads the dataset once more. So both are refused, and threads of the connected process read.

Threads share one stream. It belongs to a pass of an iterator: `workers.threads.crews` tells the threads of one
iterator from those of another, and each thread begins each pass once. A stream is kept until all of them have begun
that pass, since one that begins when the others have read everything must get nothing.

Rejected: to deal blocks to workers in turn, so that who gets which does not depend on time. Blocks differ in length,
and those that a worker is dealt and does not ask for would pile up without bound.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import context
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from shmloader.workers.threads import crews

from . import needed

_USE_THREADS = "use worker_type='thread', whose workers read blocks in the process that is connected to Ray"


class Blocks:
    """The blocks, as dicts of arrays. Each iteration reads the dataset, or this worker's stream, anew.

    A copy that `copy.deepcopy` makes, as each worker thread gets one, reads the same streams.

    Args:
        sources: what Ray iterates over; one, or one for each worker.
        options: what Ray's ``iter_batches`` is given.
    """

    def __init__(self, sources: Sequence[Any], options: Mapping[str, Any]) -> None:
        self._sources = sources
        self._options = options
        self._process = os.getpid()
        self._streams = _SharedStreams()

    def __deepcopy__(self, memo: dict[int, Any]) -> Blocks:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if context.get_spawning_popen() is not None:
            raise RuntimeError(f"a Ray Dataset cannot be sent to a worker process that is spawned; {_USE_THREADS}")
        return self._sources, self._options

    def __setstate__(self, state: tuple[Sequence[Any], Mapping[str, Any]]) -> None:
        Blocks.__init__(self, *state)

    def __iter__(self) -> Iterator[Any]:
        """Begins to read. Does not block; ``next`` does, until Ray has a block.

        Raises:
            RuntimeError: this worker cannot read it.
        """
        if os.getpid() != self._process:
            raise RuntimeError(f"a forked worker process cannot read a Ray Dataset; {_USE_THREADS}")
        if not needed.module("ray", "ray").is_initialized():
            raise RuntimeError("this process is not connected to Ray, so that it cannot read a Ray Dataset")
        info = get_worker_info()
        count = 1 if info is None else info.num_workers
        if len(self._sources) not in (1, count):
            raise RuntimeError(
                f"there are {len(self._sources)} streams of a Ray Dataset, and they would be read by {count}; with "
                "worker_type='thread', set num_workers to the number of streams"
            )
        if info is None:
            return self._read(0, is_copied=True)
        return self._for_worker(info.id, count)

    def _for_worker(self, worker: int, count: int) -> Iterator[Any]:
        crew = crews.of_this_thread()
        is_own = len(self._sources) == count
        if crew is not None:
            return self._streams.of(crew, self, worker, 1 if is_own else count, self._read(worker if is_own else 0))
        if is_own:
            return self._read(worker)
        raise RuntimeError(
            f"num_workers={count} worker processes cannot share one stream of a Ray Dataset; give chunks() a list of "
            "as many streams, as dataset.streaming_split makes one, or use worker_type='thread'"
        )

    def _read(self, number: int, is_copied: bool = False) -> Iterator[Any]:
        """Yields the blocks of a stream.

        Args:
            number: which stream.
            is_copied: whether arrays are copied that are read-only views of Ray's memory. Rows of them would keep it,
                and a tensor that torch makes of one ends the process where it is written to.
        """
        source = self._sources[number]
        for block in source.iter_batches(batch_format="numpy", **self._options):
            yield {name: _writable(column) for name, column in block.items()} if is_copied else block
            del block  # Ray may free it while the next one is made


def _writable(column: Any) -> Any:
    return column if column.flags.writeable else np.array(column)


class _SharedStreams:
    """The streams of all iterators that read the same dataset."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._crews: weakref.WeakKeyDictionary[Any, _Crew] = weakref.WeakKeyDictionary()

    def of(self, crew: Any, reader: Blocks, worker: int, sharers: int, blocks: Iterator[Any]) -> Iterator[Any]:
        """Returns the stream that a worker thread reads in the pass that it begins.

        Args:
            crew: what the threads of its iterator have in common.
            reader: the worker's copy of the dataset's blocks.
            worker: its number.
            sharers: how many threads read this stream.
            blocks: the stream, where it is the first of them to begin.

        Raises:
            RuntimeError: the worker has taken another one's place.
        """
        with self._lock:
            found = self._crews.setdefault(crew, _Crew())
            if found.readers.setdefault(worker, reader) is not reader:
                raise RuntimeError(
                    f"worker {worker} was replaced, and the Ray Dataset's blocks that were read before are gone; begin "
                    "a new pass, or set worker_restarts=0"
                )
            return blocks if sharers == 1 else found.begin(worker, sharers, blocks)


class _Crew:
    """What the threads of one iterator have begun.

    Attributes:
        readers: their copies of the blocks, by worker.
    """

    def __init__(self) -> None:
        self.readers: dict[int, Blocks] = {}
        self._begun: dict[int, int] = {}
        self._streams: dict[int, tuple[_SharedStream, int]] = {}  # by pass, and how many have begun it

    def begin(self, worker: int, sharers: int, blocks: Iterator[Any]) -> Iterator[Any]:
        number = self._begun.get(worker, 0)
        self._begun[worker] = number + 1
        stream, have_begun = self._streams.pop(number, (_SharedStream(blocks), 0))
        if have_begun + 1 < sharers:
            self._streams[number] = stream, have_begun + 1
        return stream


class _SharedStream(Iterator[Any]):
    """Blocks for several threads: each goes to the one that asks first."""

    def __init__(self, blocks: Iterator[Any]) -> None:
        self._lock = threading.Lock()  # generators cannot be asked by two threads at a time
        self._blocks = blocks

    def __next__(self) -> Any:
        with self._lock:
            return next(self._blocks)
