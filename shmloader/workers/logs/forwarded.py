"""The parent's side of workers' logging: it reads their rings, and hands the records to the loggers here.

There is no thread. Records are handed over in the thread that iterates: before `next` returns or raises, while it waits
(a record wakes it), and when workers have ended. So what a worker said while it made a batch is there before the
batch, and what it said before it died is there before the error. While the loop does not call `next`, records wait in
the rings; what does not fit is dropped by the worker, and how much that was is said with the next ones.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import operator
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any

from shmloader import interrupts
from shmloader.words import Words

from .handler import RING_BYTES, LogOutlet, LogSettings
from .records import unpacked
from .ring import LogRing

_logger = logging.getLogger("shmloader")
_BELL_BYTES = 8


class ForwardedLogs:
    """The rings of all workers of one iterator. Used in the parent.

    Args:
        num_workers: how many there are.
        words: of whom the workers belong to.

    Attributes:
        bell_fd: becomes readable when a worker has written a record.
    """

    def __init__(self, num_workers: int, words: Words) -> None:
        self._words = words
        self._memory_fd = os.memfd_create("shmloader-logs", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._memory_fd, max(1, num_workers) * RING_BYTES)
            memory = memoryview(mmap.mmap(self._memory_fd, max(1, num_workers) * RING_BYTES))
            self.bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            os.close(self._memory_fd)
            raise
        self._rings = [LogRing(memory[i * RING_BYTES : (i + 1) * RING_BYTES]) for i in range(num_workers)]
        self._told = [0] * num_workers  # how many dropped records were told of
        # Records that were read and not handed over, and when they were made: an interrupt may come in between.
        self._read: deque[tuple[float, logging.LogRecord]] = deque()
        self._in_turn = threading.Lock()  # nobody waits for it

    def outlet(self, worker: int, is_forked: bool) -> LogOutlet:
        """Returns what a worker is given, which goes on behind what its predecessor has written."""
        settings = None if is_forked else LogSettings.of_this_process()
        return LogOutlet(worker, self._memory_fd, self.bell_fd, settings)

    def hear(self) -> None:
        """Hands over the records that are there, of all workers in the order in which they were made.

        Does nothing where a handler calls it, or where another thread is in it already.
        """
        if self._memory_fd < 0:
            return
        with contextlib.suppress(BlockingIOError):
            os.read(self.bell_fd, _BELL_BYTES)
        if not (self._read or any(self._has_news(worker) for worker in range(len(self._rings)))):
            return
        is_in_turn = False
        try:
            # An interrupt would leave the lock to nobody, and what was read and not noted: it is in no ring any more.
            with interrupts.AllDeferred():
                if is_in_turn := self._in_turn.acquire(blocking=False):
                    self._take()
            if is_in_turn:
                while self._read:
                    with _errors_printed():
                        _handle(self._read.popleft()[1])
                self._tell_of_the_dropped()
        finally:
            if is_in_turn:
                self._in_turn.release()

    def _has_news(self, worker: int) -> bool:
        ring = self._rings[worker]
        return ring.has_any or ring.dropped != self._told[worker]

    def _take(self) -> None:
        for worker, ring in enumerate(self._rings):
            latest = 0.0
            for data in ring.take():
                with _errors_printed():
                    record = unpacked(data)
                    record.shmloader_worker = worker  # for formatters
                    latest = _time_behind(latest, record)
                    self._read.append((latest, record))
        self._read = deque(sorted(self._read, key=operator.itemgetter(0)))

    def _tell_of_the_dropped(self) -> None:
        for worker, ring in enumerate(self._rings):
            new = ring.dropped - self._told[worker]
            if new:
                self._told[worker] += new
                many = "record was" if new == 1 else "records were"
                with _errors_printed():
                    _logger.warning(
                        "%d log %s lost of worker %d of this %s: there was no room for more until the loop took a %s",
                        *(new, many, worker, self._words.owner, self._words.made),
                    )

    def close(self) -> None:
        """Hands over what is there, after the workers have ended, and gives the memory back. Safe to call again."""
        if self._memory_fd < 0:
            return
        try:
            self.hear()
        finally:  # a signal's handler may raise within a handler of records
            memory_fd, self._memory_fd = self._memory_fd, -1
            os.close(memory_fd)
            os.close(self.bell_fd)
            self._rings = []  # and with them their mapping, when nobody reads it any more


def _time_behind(latest: float, record: logging.LogRecord) -> float:
    """Returns when a record was made, as far as its place among its worker's goes.

    What a worker has said comes in its order, whatever time a record bears: a clock may be set, and a program may give
    loggers records that it has read somewhere.
    """
    made: Any = record.created
    return max(latest, made) if isinstance(made, (int, float)) else latest


def _handle(record: logging.LogRecord) -> None:
    """Gives a record to the logger of its name, as if it had been made here."""
    logger = logging.getLogger(record.name if record.name != "root" else None)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


@contextlib.contextmanager
def _errors_printed() -> Iterator[None]:
    """Prints what a handler, a filter or a record's factory raises, as `logging.Handler.handleError` does."""
    try:
        yield
    except Exception:
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc(file=sys.stderr)
