"""Processes that run when told to, and stand still in between, with all that they have started.

Some libraries have threads and processes that go on loading, or look for something to do all the time. Beside another
contestant that would be measured with it, and in our process even be counted as its processor time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class StoppedProcess(Generic[_T]):
    """A process that takes a turn when told to. It starts here, gets ready, and is stopped.

    Args:
        prepare: gets ready, in the process, and returns what takes a turn. It and ``args`` are pickled.
        args: what it is called with.

    Raises:
        EOFError: it has ended; it has printed why.
    """

    def __init__(self, prepare: Callable[..., Callable[[], _T]], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")  # which leaves it nothing of ours, threads least of all
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, args))
        self._process.start()
        theirs.close()
        try:
            self._pipe.recv()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def run(self) -> _T:
        """Lets it take a turn, and returns what that returned. Blocks meanwhile.

        Raises:
            EOFError: it has ended; it has printed why.
        """
        self._signal(signal.SIGCONT)
        self._pipe.send(True)
        took: _T = self._pipe.recv()
        self._signal(signal.SIGSTOP)
        return took

    def close(self) -> None:
        """Ends it and all that it has started, and blocks until it has ended."""
        self._signal(signal.SIGKILL)
        self._process.join()
        self._process.close()
        self._pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # it has no group yet, or has ended
            self._process.kill()


def _serve(pipe: Connection, prepare: Callable[..., Callable[[], Any]], args: tuple[Any, ...]) -> None:
    os.setsid()  # what it starts gets its signals
    turn = prepare(*args)
    pipe.send(True)
    while pipe.recv():
        pipe.send(turn())
