"""A Ctrl-C that waits until what it would tear apart is done, and that no destructor swallows."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred(hurry: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Delays the call of SIGINT's handler until the block has ended.

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


def at_drop(act: Callable[[], object]) -> Generator[None]:
    """Returns an object; once nobody refers to it any more, ``act`` is called, in whichever thread dropped it.

    Not in a forked process, and not at the interpreter's end, when modules may be gone. It may be called twice, where
    a Ctrl-C comes in the way.

    An exception that leaves a destructor is printed and forgotten, and so would be the KeyboardInterrupt of a Ctrl-C
    that comes while one runs. ``__del__`` cannot prevent that: Python looks for signals before its first line. A
    generator that is closed goes on in its handler, without such a look.
    """
    generator = _suspended(act)
    next(generator)
    return generator


def _suspended(act: Callable[[], object]) -> Generator[None]:
    owner, getpid, is_finalizing = os.getpid(), os.getpid, sys.is_finalizing

    def act_if_due() -> None:
        if not is_finalizing() and getpid() == owner:
            act()

    try:
        yield
    except GeneratorExit:
        try:
            act_if_due()
        except KeyboardInterrupt:
            act_if_due()
            # Raised again from another thread, which runs when this one is out of here.
            _thread.start_new_thread(_thread.interrupt_main, ())
