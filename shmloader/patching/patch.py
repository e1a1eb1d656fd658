"""`patch`: loaders of torch's class, whoever makes them and by whatever name, have our workers."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType

from shmloader import callers, interrupts, process_exit, requirements, torch_private
from shmloader.errors import FallbackWarning
from shmloader.process_exit import InChild

from .record import Ran, record
from .seams import Seams
from .takeover import take_over


def patch() -> Patch:
    """Has torch's `DataLoader` load with our workers from here on, in code that was imported before or will be after.

    For code that cannot be changed to make a `ShmDataLoader`: frameworks, libraries, scripts. Nothing is rebound, so it
    does not matter by which name, from where, or when the class was imported. It stays the class that it is, and so do
    classes derived from it; `isinstance`, pickles and ``type(loader) is DataLoader`` find what they found before. What
    is replaced is the place in torch's class where a pass begins. A loader's passes that begin from now on have our
    workers; batches, their order, random streams and errors are the same bit for bit. What
    `ShmDataLoader` has beyond torch's arguments has its default.

    For example:

        shmloader.patch()
        train()  # which makes loaders, or has made some already

        with shmloader.patch():
            validate()

    As a context manager it ends with the block, and else by `Patch.undo`, or never. Blocks and calls may be nested, and
    used by several threads: torch's own workers are back when all have ended. What is under way then goes on: an
    iterator to its end, and persistent workers of ours for as long as their loader lives.

    Loaders with ``num_workers=0`` load in the process of the loop as ever. A class that makes workers of its own keeps
    them, be it derived from torch's or not; where these are torch's, a `StockLoaderWarning` says so. A class that
    overrides ``__iter__`` or ``_get_iterator`` and calls torch's has ours.

    `live_loaders` has what stands for a loader that has workers now: it has `ShmDataLoader.statistics`, ``trace``,
    ``pause`` and ``resume``, and the loader itself as ``loader``. `Patch.ran` says which loaders ran on what.

    Does not block. Of processes that are started, forked ones are patched as this one is, and others are not.

    Returns:
        What undoes it, which is a context manager too.

    Warns:
        FallbackWarning: this platform or torch lacks what our workers are made of. Nothing is changed then.
        StockLoaderWarning: later, once for each class of loaders; it makes torch's workers itself, and keeps them.
    """
    if lack := _lack():
        text = f"{lack}, so shmloader.patch() changes nothing"
        warnings.warn(text, FallbackWarning, stacklevel=callers.stacklevel())
    return Patch(is_needed=not lack)


class Patch:
    """What `patch` returns. It is on when it is made.

    Args:
        is_needed: whether torch's functions are to be replaced.
    """

    def __init__(self, is_needed: bool = True) -> None:
        self._is_on = is_needed
        if is_needed:
            _begin()

    @property
    def ran(self) -> tuple[Ran, ...]:
        """Which loaders of this process have begun passes on what, while any `patch` was on; of very many, the last."""
        return record.all()

    def undo(self) -> None:
        """Ends it. From any thread; safe to call again. torch's own workers are back if no other one is on."""
        with interrupts.AllDeferred(), _lock:
            was_on, self._is_on = self._is_on, False
            if was_on:
                _end()

    def __enter__(self) -> Patch:  # noqa: PYI034 - Python 3.10 has no Self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()


_lock = threading.RLock()  # a handler of signals may come in between
_count = 0  # of those that are on
_seams: Seams | None = None


def _begin() -> None:
    global _count, _seams
    with interrupts.AllDeferred(), _lock:
        _count += 1
        if _seams is None:
            _seams = take_over()


def _end() -> None:
    global _count, _seams
    _count -= 1
    if _count == 0 and _seams is not None:
        _seams.remove()
        _seams = None


def _lack() -> str:
    with interrupts.AllDeferred():  # what a signal's handler raises would be taken for a lack
        return torch_private.difference() or requirements.lack()


def _renew_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have had it


process_exit.in_child(InChild.DISOWN_PASSES, _renew_in_child)
