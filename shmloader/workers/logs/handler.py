"""Logging in a worker process whose records go to the loop's process.

One handler, at the root and at each logger that does not pass on to it, writes records to the worker's ring. It takes
the place of those that a forked worker has inherited: each record is handled once, by the parent. The parent's loggers
filter as well, so the inherited filters are taken out too. What `worker_init_fn` adds stays, and handles as ever.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

from shmloader import process_exit

from .records import packed
from .ring import LogRing

RING_BYTES = 1 << 20  # a multiple of pages; some thousands of records
_BELL = (1).to_bytes(8, sys.byteorder)


@dataclass(frozen=True)
class LogSettings:
    """How logging is set up in the parent, as far as a worker that is not forked has to know.

    Attributes:
        levels: those of all loggers that have any, by name; "" is the root.
        muted: the names of loggers that are disabled.
        disabled_to: what `logging.disable` was told.
        has_warnings: whether `logging.captureWarnings` is on.
    """

    levels: dict[str, int]
    muted: tuple[str, ...]
    disabled_to: int
    has_warnings: bool

    @classmethod
    def of_this_process(cls) -> LogSettings:
        """Returns how it is here."""
        every = dict(_all_loggers())
        return cls(
            levels={name: logger.level for name, logger in every.items() if logger.level or not name},
            muted=tuple(name for name, logger in every.items() if logger.disabled),
            disabled_to=logging.root.manager.disable,
            has_warnings=getattr(warnings.showwarning, "__module__", "") == "logging",
        )

    def apply(self) -> None:
        """Has it be so in this process."""
        for name, level in self.levels.items():
            logging.getLogger(name or None).setLevel(level)
        for name in self.muted:
            logging.getLogger(name or None).disabled = True
        logging.disable(self.disabled_to)
        if self.has_warnings:
            logging.captureWarnings(True)


def _all_loggers() -> Iterator[tuple[str, logging.Logger]]:
    yield "", logging.root
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):  # and no place holder
            yield name, logger


@dataclass(frozen=True)
class LogOutlet:
    """Where a worker's records go. It can be handed to a process that is being started, whatever the start method.

    Attributes:
        worker: the number of the worker.
        memory_fd: the descriptor of the rings' memory, where ring i lies at i times `RING_BYTES`.
        bell_fd: an eventfd that ends the parent's wait.
        settings: how logging is set up; None: as it is, in a forked process.
    """

    worker: int
    memory_fd: int
    bell_fd: int
    settings: LogSettings | None = None

    def install(self) -> None:
        """Has this process's records go there. Called in the worker, before any code of the user's."""
        memory = mmap.mmap(self.memory_fd, RING_BYTES, offset=self.worker * RING_BYTES)
        inherited: list[_Inherited] = []
        if self.settings is None:
            inherited = _take_out_what_was_inherited()
        else:
            self.settings.apply()
        handler = RingHandler(LogRing(memoryview(memory)), self.bell_fd)
        for name, logger in _all_loggers():
            if not (name and logger.propagate):
                logger.addHandler(handler)
        give_back = functools.partial(_give_back_in_child, handler, inherited)  # which holds them for the worker's life
        process_exit.in_child(process_exit.InChild.STOP_WRITING, give_back)

    def __reduce__(self) -> tuple[Callable[..., LogOutlet], tuple[Any, ...]]:
        return _adopt, (self.worker, reduction.DupFd(self.memory_fd), reduction.DupFd(self.bell_fd), self.settings)


def _adopt(worker: int, memory: Any, bell: Any, settings: LogSettings | None) -> LogOutlet:
    return LogOutlet(worker, memory.detach(), bell.detach(), settings)


@dataclass(frozen=True)
class _Inherited:
    """What a logger had in the parent."""

    logger: logging.Logger
    handlers: list[logging.Handler]
    filters: list[Any]


def _take_out_what_was_inherited() -> list[_Inherited]:
    """Takes handlers and filters out of all loggers, and returns them.

    The handlers are not closed, and have to be held: a file would write what it has in its buffer, which is the
    parent's to write.
    """
    found = [_Inherited(logger, logger.handlers, logger.filters) for _, logger in _all_loggers()]
    for one in found:
        one.logger.handlers = []
        one.logger.filters = []
    return found


def _give_back_in_child(handler: RingHandler, inherited: list[_Inherited]) -> None:
    """Has a process that user code forks from a worker log as one does that is forked from the parent.

    The ring has one writer. Loggers that do not lead to it any more were set up anew in the worker, and stay as they
    are.
    """
    ours = [one for one in inherited if _leads_to(handler, one.logger)]
    for _, logger in _all_loggers():
        logger.handlers = [one for one in logger.handlers if one is not handler]
    for one in ours:
        one.logger.handlers = [*one.handlers, *one.logger.handlers]
        one.logger.filters = [*one.filters, *one.logger.filters]


def _leads_to(handler: logging.Handler, logger: logging.Logger) -> bool:
    while handler not in logger.handlers:
        if logger.parent is None or not logger.propagate:
            return False
        logger = logger.parent
    return True


class RingHandler(logging.Handler):
    """Writes records to a ring. Blocks for nobody: what does not fit is dropped, and counted.

    Args:
        ring: where to. It has one writer: in a process that is forked from this one nothing is written.
        bell_fd: an eventfd that is written to behind each record.
    """

    def __init__(self, ring: LogRing, bell_fd: int) -> None:
        super().__init__()
        self._ring = ring
        self._bell_fd = bell_fd
        self._pid = os.getpid()
        self._is_busy = False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record. One thread at a time is in here, see `logging.Handler.handle`."""
        if os.getpid() != self._pid:  # where user code has kept the handler, and uses it itself
            return
        try:
            data = packed(record)
        except Exception:
            self.handleError(record)
            return
        if self._is_busy:  # a signal's handler that logs, in the middle of what follows
            self._ring.drop()
            return
        self._is_busy = True
        try:
            self._ring.put(data)
        finally:
            self._is_busy = False
        with contextlib.suppress(OSError):  # nobody has looked for very long, or code of the user's has closed it
            os.write(self._bell_fd, _BELL)
