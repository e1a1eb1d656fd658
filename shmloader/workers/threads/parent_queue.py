"""The queue on which threads of the parent's own process tell it of tokens, and of workers that have ended.

It is to workers that have no pipe what the pipe and the process descriptors are to others: the one place where the
parent waits.
"""

from __future__ import annotations

import contextlib
import queue
import weakref
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from shmloader import deadlines
from shmloader.workers.interface import SilenceError
from shmloader.workers.wire import Fields, Token


class _Sign(Enum):
    """What comes to the parent beside tokens and the ends of workers."""

    WAKE = "a wait ends"
    CLOSED = "another thread has stopped the workers"


class Ended(Protocol):
    """A worker that has ended.

    Attributes:
        number: its number.
        is_leaving: whether it was told that no job will follow, so that its end is no news.
    """

    number: int
    is_leaving: bool


class ParentQueue:
    """What comes to the parent of one iterator's workers. One thread waits; any may put."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[Token | weakref.ref[Ended] | _Sign] = queue.SimpleQueue()
        self._tokens: list[Token] = []
        self._dead: list[int] = []
        self._is_woken = False

    def write(self, token: Fields) -> None:
        """Puts a token. Does not block."""
        self._news.put(Token._make(token))

    def end(self, worker: Ended) -> None:
        """Puts that a worker has ended, behind its last token. Does not block.

        The worker is not held: what is put last is read by nobody, and a worker has this queue.
        """
        self._news.put(weakref.ref(worker))

    def wake(self) -> None:
        """Ends a wait: the one that is under way, or else the next. Does not block; safe in signal handlers too."""
        self._news.put(_Sign.WAKE)

    def close(self) -> None:
        """Has whoever waits in another thread raise. Does not block."""
        self._news.put(_Sign.CLOSED)

    def wait(self, timeout: float | None, look: Callable[[], object] = lambda: None) -> tuple[list[Token], list[int]]:
        """Waits for workers; see `ProcessWorkers.wait`.

        Blocks until a token is there or a worker has ended, ``timeout`` seconds at most (None: for ever).

        Args:
            timeout: seconds.
            look: called about once a second while nothing comes.

        Raises:
            SilenceError: nothing came in time.
            RuntimeError: another thread has stopped the workers meanwhile.
        """
        deadline = deadlines.after(timeout)
        while not (tokens := self.read()) and not self._dead and not self._is_woken:
            self._sort(self._next(deadline, look))
        self._is_woken = False
        if tokens:
            return tokens, []
        # One at a time: a warning of its replacement may be an error, and then the others would not be heard of.
        dead, self._dead = self._dead[:1], self._dead[1:]
        return [], dead

    def read(self) -> list[Token]:
        """Returns the tokens that are there. Does not block; `wait` tells of workers that have ended."""
        for _ in range(self._news.qsize()):
            self._sort(self._news.get())
        tokens, self._tokens = self._tokens, []
        return tokens

    def _next(self, deadline: float | None, look: Callable[[], object]) -> Token | weakref.ref[Ended] | _Sign:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._news.get(timeout=deadlines.next_part(deadline))
            if deadlines.is_over(deadline):
                raise SilenceError
            look()

    def _sort(self, news: Token | weakref.ref[Ended] | _Sign) -> None:
        if isinstance(news, Token):
            self._tokens.append(news)
        elif news is _Sign.WAKE:
            self._is_woken = True
        elif news is _Sign.CLOSED:
            raise RuntimeError("this iterator of ShmDataLoader was closed by another thread")
        elif not isinstance(news, _Sign) and (worker := news()) is not None and not worker.is_leaving:
            self._dead.append(worker.number)
