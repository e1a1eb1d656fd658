"""A Ctrl-C that waits until what it would tear apart is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred(hurry: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Keeps SIGINT's handler from being called until the block has ended.

    The signal's mask would not do: Python calls the handler in the main thread whichever thread the signal reached, and
    libraries have threads of their own. In other threads than the main one no handler is ever called, so there is
    nothing to do.

    Args:
        hurry: called when the signal comes, to make an end of the block soon.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        hurry()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(came[0], None)
