"""What the processes that share a cache count: hits and misses, and what is known of each sample.

A memfd that they all have: a byte for each sample, and behind these a line for each thread that has counted. A line has
one writer, so no count is lost; a thread gets its line by appending it, which the kernel does for one at a time. Lines
stay when their threads are gone.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable
from enum import IntEnum
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np

from shmloader import interrupts
from shmloader.batches.tensors import Array

_LINE = struct.Struct("<qqq")  # what it is of, hits, misses
_COUNTS, _CLAIM = 1, 2

# Read at a time.
_PIECE = 1 << 26


class Mark(IntEnum):
    """What is known of a sample."""

    NOTHING = 0
    SOUND = 1  # its record was written or checked by one of these processes
    NO_ROOM = 2  # it was read, and there was no room to keep it


class Counts(NamedTuple):
    """Sums over all threads of all processes."""

    hits: int
    misses: int


class Tally:
    """Counts and marks. Any number of processes and threads may use it at once.

    Args:
        length: how many samples there are.

    Raises:
        OSError: no descriptor is left, or a limit on file sizes is lower than ``length``.
    """

    def __init__(self, length: int) -> None:
        fd = os.memfd_create("shmloader-tally", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, length)
        except OSError as error:
            os.close(fd)
            raise OSError(error.errno, f"CachedDataset cannot count {length} samples: {error.strerror}") from error
        self._have(fd, length)

    def _have(self, fd: int, length: int) -> None:
        self._fd = fd
        self._at_drop = interrupts.closed_at_drop(fd)
        self._length = length
        self._mine = threading.local()

    def mark(self, index: int, mark: Mark) -> None:
        """Sets what is known of a sample."""
        os.pwrite(self._fd, bytes((mark,)), index)

    def is_sound(self, index: int) -> bool:
        """Whether the record of a sample needs no check."""
        return os.pread(self._fd, 1, index) == b"\1"

    def marked(self, mark: Mark) -> Array:
        """Returns for each sample whether that is known of it. Reads a byte a sample."""
        marks: Array = np.frombuffer(self._read(0, self._length), np.uint8)
        return np.asarray(marks == mark)

    def add(self, hits: int, misses: int) -> None:
        """Counts for this thread."""
        line = getattr(self._mine, "line", None)
        if line is None or line.pid != os.getpid():
            line = self._mine.line = _Line(os.getpid())
        line.hits += hits
        line.misses += misses
        if line.offset < 0:
            offset = self._append(_LINE.pack(_COUNTS, 0, 0))
            if offset is None:
                return  # it is added with the next ones
            line.offset = offset
        try:
            self._write(line)
        except OSError:
            if self._can_write(line):
                raise  # a signal's handler raised it

    def _write(self, line: _Line) -> None:
        os.pwrite(self._fd, _LINE.pack(_COUNTS, line.hits, line.misses), line.offset)

    def _can_write(self, line: _Line) -> bool:
        try:
            self._write(line)
        except OSError:
            return False
        return True

    def counts(self) -> Counts:
        """Returns the sums."""
        lines = [line for line in self._lines() if line[0] == _COUNTS]
        return Counts(sum(hits for _, hits, _ in lines), sum(misses for _, _, misses in lines))

    def is_first_to_claim(self) -> bool:
        """Whether this is the first call of all processes; True too where no descriptor is left to find out."""
        offset = self._append(_LINE.pack(_CLAIM, 0, 0))
        if offset is None:
            return True
        before = (offset - self._length) // _LINE.size
        return all(kind != _CLAIM for kind, _, _ in self._lines()[:before])

    def _append(self, line: bytes) -> int | None:
        """Appends a line, and returns where it begins; None where no descriptor is left, or the file may not grow."""
        # Until the descriptor is closed. What handlers raise comes behind the block: it may be an OSError too.
        with interrupts.AllDeferred(), contextlib.suppress(OSError):
            log = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(log, line)
                return os.lseek(log, 0, os.SEEK_CUR) - len(line)
            finally:
                os.close(log)
        return None

    def _lines(self) -> list[tuple[int, int, int]]:
        data = self._read(self._length, os.fstat(self._fd).st_size - self._length)
        whole = len(data) // _LINE.size * _LINE.size
        return [(kind, hits, misses) for kind, hits, misses in _LINE.iter_unpack(data[:whole])]

    def _read(self, offset: int, nbytes: int) -> bytes:
        pieces = range(offset, offset + nbytes, _PIECE)
        return b"".join(os.pread(self._fd, min(_PIECE, offset + nbytes - start), start) for start in pieces)

    def __deepcopy__(self, memo: Any) -> Tally:
        return self

    def __reduce__(self) -> tuple[Callable[..., Tally], tuple[Any, ...]]:
        return Tally, (self._length,)


class _Line:
    """What a thread has counted. A forked process finds its parent's, and begins another."""

    __slots__ = ("hits", "misses", "offset", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.offset = -1
        self.hits = self.misses = 0


def _reduce(tally: Tally) -> tuple[Any, ...]:
    return _attached, (reduction.DupFd(tally._fd), tally._length)


def _attached(duplicate: Any, length: int) -> Tally:
    tally = Tally.__new__(Tally)
    tally._have(duplicate.detach(), length)
    return tally


reduction.ForkingPickler.register(Tally, _reduce)
