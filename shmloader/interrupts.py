"""Signals that wait until what their handlers would tear apart is done, and a Ctrl-C that no destructor swallows."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from types import FrameType, TracebackType
from typing import Any

from . import process_exit
from .process_exit import InChild

# The functions of `signal` make an enum of each handler, which takes ten times as long.
_get_handler: Callable[[int], Any] = _signal.getsignal
_set_handler: Callable[[int, Any], Any] = _signal.signal
_SIGINT = int(signal.SIGINT)
_NUMBERS = sorted(int(number) for number in signal.valid_signals())


@contextlib.contextmanager
def deferred(hurry: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Delays the call of SIGINT's handler until the block has ended.

    The signal's mask would not do: Python calls the handler in the main thread whichever thread the signal reached, and
    libraries have threads of their own. In other threads than the main one no handler is ever called, so there is
    nothing to do.

    Args:
        hurry: called when the signal comes, to make an end of the block soon.
    """
    handler = _get_handler(_SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    note = _Note(handler, hurry)
    try:
        _set_handler(_SIGINT, note)  # upon which another signal's handler may raise
        yield
    finally:
        _set_handler(_SIGINT, handler)
        if note.came:
            handler(note.came[0], None)


class _Note:
    """What SIGINT's handler is within `deferred`."""

    def __init__(self, handler: Callable[[int, FrameType | None], object], hurry: Callable[[], object]) -> None:
        self.handler = handler
        self.came: list[int] = []
        self._hurry = hurry

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.came.append(signum)
        self._hurry()


class Undeferred:
    """A context in which a Ctrl-C raises at once, though it may lie within `deferred` or `AllDeferred`.

    For code of the user's that may take minutes, such as the pickling of a dataset. A Ctrl-C that came before raises
    first. Elsewhere, and in other threads than the main one, it changes nothing.

    It is no generator: one that a Ctrl-C has left suspended would go on when it is collected, and set a handler then
    whose block has ended. Where `__exit__` is cut off, the blocks around it restore what was before them.
    """

    def __init__(self) -> None:
        self._found: Any = None

    def __enter__(self) -> None:
        found = handler = _get_handler(_SIGINT)
        noted: list[list[int]] = []
        while (outer := _behind(handler)) is not None:
            handler, came = outer
            noted.append(came)
        if not noted or threading.current_thread() is not threading.main_thread():
            return
        try:
            _set_handler(_SIGINT, handler)
            if any(_SIGINT in came for came in noted):
                for came in noted:
                    came[:] = [number for number in came if number != _SIGINT]
                handler(_SIGINT, None)
            self._found = found
        except BaseException:
            _put_back(found)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._found is not None:
            _put_back(self._found)


def _behind(handler: Any) -> tuple[Any, list[int]] | None:
    """Returns what a handler of ours has replaced, and the list of signals that came; None: it is not ours."""
    if isinstance(handler, _Note):
        return handler.handler, handler.came
    block = getattr(handler, "__self__", None)
    return (block._handlers[_SIGINT], block._came) if isinstance(block, AllDeferred) else None


def _put_back(handler: Any) -> None:
    """Sets SIGINT's handler, also where another signal comes, whose handler raises before."""
    try:
        _set_handler(_SIGINT, handler)
    except BaseException:
        _set_handler(_SIGINT, handler)
        raise


class AllDeferred:
    """A context in which no signal handler of Python's runs: they are called when it has ended, and may raise then.

    It is `deferred` for all signals, for what an alarm of the user's must not tear apart either, and must not run
    into. Each block takes a few microseconds. In other threads than the main one no handler is ever called, so there is
    nothing to do. A process that is forked within the block, as a worker is, has the handlers back at once.

    Args:
        hurry: called within the handler of any signal that comes, to make an end of the block soon.
    """

    def __init__(self, hurry: Callable[[], object] = lambda: None) -> None:
        self._hurry = hurry
        self._owner_pid = 0
        self._handlers: dict[int, Any] = {}
        self._came: list[int] = []

    def __enter__(self) -> list[int]:
        """Returns the list of signals that came, as it grows."""
        if threading.current_thread() is threading.main_thread():
            self._owner_pid = os.getpid()
            found = [(number, handler) for number in _NUMBERS if callable(handler := _get_handler(number))]
            try:
                for number, handler in found:
                    self._handlers[number] = handler
                    _set_handler(number, self._note)
            except BaseException as error:  # of one that is not replaced yet
                self.__exit__(type(error), error, error.__traceback__)  # others may have come already
                raise
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner_pid:  # a signal to a child that has not got its handlers back yet
            self._handlers[number](number, frame)
            return
        self._came.append(number)
        self._hurry()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        handlers = dict(self._handlers)
        try:
            self._restore()
        finally:
            _call_each(handlers, self._came)  # to which signals may have been added meanwhile

    def _restore(self) -> None:
        # A handler that is restored may be called at once, before the next one is, and raise.
        try:
            while self._handlers:
                number, handler = next(iter(self._handlers.items()))
                _set_handler(number, handler)
                del self._handlers[number]
        finally:
            if self._handlers:
                self._restore()


def _restore_in_child() -> None:
    # Blocks are found by their handlers. A list of those that are under way would keep one that a signal has cut off.
    blocks: set[AllDeferred] = set()
    for number in _NUMBERS:
        handler = found = _get_handler(number)
        while isinstance(block := getattr(handler, "__self__", None), AllDeferred):
            blocks.add(block)
            handler = block._handlers[number]
        if handler is not found:
            _set_handler(number, handler)
    for block in blocks:
        block._handlers.clear()
        block._came.clear()  # the parent's


process_exit.in_child(InChild.RESTORE_HANDLERS, _restore_in_child)


def _call_each(handlers: dict[int, Any], numbers: list[int]) -> None:
    """Calls the handlers of all signals, also where one raises, and empties the list.

    Not by an `ExitStack`, whose frame and exception refer to each other: what the interrupted frames have would stay
    until the next garbage collection.
    """
    try:
        while numbers:
            number = numbers.pop(0)
            handlers[number](number, None)
    finally:
        if numbers:
            _call_each(handlers, numbers)


def at_drop(act: Callable[[], object]) -> Generator[None]:
    """Returns an object; once nobody refers to it any more, ``act`` is called, in whichever thread dropped it.

    Not in a forked process, and not at the interpreter's end, when modules may be gone. It may be called twice, where
    a signal comes in the way; while it runs, handlers wait.

    An exception that leaves a destructor is printed and forgotten, and so would be the KeyboardInterrupt of a Ctrl-C
    that comes while one runs, and the SystemExit of a handler of SIGTERM. ``__del__`` cannot prevent that: Python looks
    for signals before its first line. A generator that is closed goes on in its handler, without such a look. Those
    two, which may come anywhere, the main thread raises when it is out of there. Others may be an alarm's, which only
    the block that set it expects: they are printed, as Python does it.
    """
    generator = _suspended(act)
    next(generator)
    return generator


def closed_at_drop(fd: int, unmap: Callable[[], object] | None = None) -> Generator[None]:
    """Returns an object; once nobody refers to it any more, a descriptor is closed, ``unmap`` called before.

    As `at_drop`, but a forked child closes its own too, and so does the interpreter's end. What handlers raise comes
    behind both.

    Args:
        fd: the descriptor, which is the object's from now on.
        unmap: a function of C, in which no handler runs.
    """
    generator = _closing(fd, unmap)
    next(generator)
    return generator


def _closing(fd: int, unmap: Callable[[], object] | None) -> Generator[None]:
    # When the interpreter ends, modules may be empty.
    close, put_off = os.close, raise_later
    try:
        yield
    except GeneratorExit:
        try:
            try:
                if unmap is not None:
                    unmap()
            finally:  # handlers are called behind either call, and not between an exception and this
                close(fd)
        except (KeyboardInterrupt, SystemExit) as error:
            put_off(error)


def _suspended(act: Callable[[], object]) -> Generator[None]:
    owner, getpid, is_finalizing = os.getpid(), os.getpid, sys.is_finalizing

    def act_if_due() -> None:
        if not is_finalizing() and getpid() == owner:
            with AllDeferred():
                act()

    try:
        yield
    except GeneratorExit:
        try:
            act_if_due()
        except (KeyboardInterrupt, SystemExit) as error:  # of a signal's handler, perhaps before the first act
            try:
                act_if_due()
            finally:
                raise_later(error)
        except BaseException:
            act_if_due()
            raise


def raise_later(error: BaseException) -> None:
    """Has the main thread raise what a handler has raised, when it has left the destructor, or the hook, that it is in.

    Another thread interrupts it, which runs no sooner. For that one time SIGINT has a handler of ours: the user's own
    may take a second call for a second Ctrl-C, and is not called where SIGINT is ignored. A real signal is sent:
    `_thread.interrupt_main` would leave the main thread in a system call that it has begun meanwhile.
    """
    handler = _get_handler(_SIGINT)
    if isinstance(handler, _RaisesOnce):
        if handler.left:
            return  # an earlier one is about to end the program
        handler = handler.replaced
    if handler is None or threading.current_thread() is not threading.main_thread():
        raise error  # a handler of C's could not be put back; in other threads there are none
    if isinstance(error.__context__, GeneratorExit):
        error.__context__ = None  # which says nothing to the user
    _set_handler(_SIGINT, _RaisesOnce(error.with_traceback(None), handler))
    try:
        _thread.start_new_thread(signal.pthread_kill, (threading.get_ident(), _SIGINT))
    except RuntimeError:  # the system has no more threads
        _put_back(handler)
        raise error from None


class _RaisesOnce:
    """SIGINT's handler until it has raised an exception. From then on it is what it has replaced.

    For it may be put back: a block that waits with signals, or code of the user's, that found it sets it again at its
    end, though it has been called meanwhile. A Ctrl-C must be one then.

    Attributes:
        left: the exception; empty: it was raised.
        replaced: the handler before.
    """

    def __init__(self, error: BaseException, replaced: Any) -> None:
        self.left = [error]
        self.replaced = replaced

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        try:
            _put_back(self.replaced)
        finally:
            if self.left:
                raise self.left.pop()  # so that no frame holds it, which it would hold
        if callable(self.replaced):
            self.replaced(signum, frame)
        elif self.replaced == signal.SIG_DFL:
            os.kill(os.getpid(), signum)
