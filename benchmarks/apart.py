"""Calls in processes of their own, where one measurement leaves nothing in memory for the next."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
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
