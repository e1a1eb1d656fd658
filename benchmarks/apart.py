"""Calls in processes of their own: of measurements, which leave nothing in memory for the next, and beside these."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

_T = TypeVar("_T")
_CONTEXT = multiprocessing.get_context("fork")


def call(act: Callable[..., _T], *args: Any, daemon: bool) -> _T:
    """Returns what ``act`` returns in a forked process. Blocks until that has ended.

    Args:
        act: what is called.
        args: with what.
        daemon: whether the process ends with this one. One that does has no processes of its own.

    Raises:
        EOFError: the process died, for want of memory perhaps.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    with receiver:
        with sender:
            process = _CONTEXT.Process(target=_send, args=(sender, act, args), daemon=daemon)
            process.start()
        try:
            found: _T = receiver.recv()
        finally:
            process.join()
            process.close()
    return found


def _send(sender: Connection, act: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sender.send(act(*args))


@contextlib.contextmanager
def beside(act: Callable[[], None], count: int, own_sessions: bool = False) -> Iterator[None]:
    """Runs so many processes beside the block that call ``act`` again and again, and ends them with it.

    Args:
        act: what is called.
        count: of processes.
        own_sessions: whether each is in a session of its own, as other programs are. Linux can share the processors out
            to sessions first, and does so on most desktops.
    """
    args = act, own_sessions, os.getpid()
    processes = [_CONTEXT.Process(target=_repeat, args=args, daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
            process.close()


def _repeat(act: Callable[[], None], own_session: bool, parent: int) -> None:
    if own_session:
        os.setsid()
    while os.getppid() == parent:
        act()
