"""What takes the place of torch's functions where a loader begins a pass, and decides which loaders get our workers.

There are three such functions. ``DataLoader.__iter__`` and ``DataLoader._get_iterator`` are reached by every class that
leaves them as they are, or calls them by ``super()``. A class that makes iterators of torch's kind in another way, or
of a kind of its own, is seen where the common base of these is made: it keeps what it makes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from shmloader import callers
from shmloader.errors import StockLoaderWarning
from shmloader.loader import ShmDataLoader
from shmloader.passes.iterator import ShmIterator
from shmloader.torch_private import ITERATOR_MAKER, ITERATOR_SEAM, OWN_ITERATOR_SEAM, PASS_SEAM, InProcessIterator

from .patched_loader import beside, has_workers_of_ours
from .record import On, record
from .seams import Seam, Seams

_IsOn = Callable[[], bool]
_OURS = "shmloader."
_warned: set[str] = set()  # classes of loaders


def take_over() -> Seams:
    """Replaces torch's functions, and returns what puts them back."""
    return Seams(Seam(*PASS_SEAM, _pass), Seam(*ITERATOR_SEAM, _iterator), Seam(*OWN_ITERATOR_SEAM, _own_iterator))


def _pass(begin: Callable[..., Any], is_on: _IsOn) -> Callable[..., Any]:
    def __iter__(self: DataLoader[Any]) -> Any:  # noqa: N807 - what it is called in torch's class
        if not is_on():
            return begin(self)
        if isinstance(self, ShmDataLoader):
            return _noted(self, self, lambda: begin(self))
        if has_workers_of_ours(self):
            patched = beside(self)
            return _noted(self, patched, lambda: patched.again(self, begin))
        return begin(self)

    return __iter__


def _iterator(make: Callable[..., Any], is_on: _IsOn) -> Callable[..., Any]:
    def _get_iterator(self: DataLoader[Any]) -> Any:
        if not is_on() or isinstance(self, ShmDataLoader):
            return make(self)
        patched = beside(self)
        return _noted(self, patched, patched.begin)

    return _get_iterator


def _own_iterator(make: Callable[..., Any], is_on: _IsOn) -> Callable[..., Any]:
    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if is_on() and not (isinstance(loader, ShmDataLoader) or type(self).__module__.startswith(_OURS)):
            _note_own(loader)
        make(self, loader, *args, **kwargs)

    return __init__


def _noted(loader: DataLoader[Any], ours: ShmDataLoader[Any], begin: Callable[[], Any]) -> Any:
    """Begins a pass, and notes what it has come to run on."""
    entry = record.begins(loader, ours)
    iterator = begin()
    if isinstance(iterator, ShmIterator):
        entry.note(On.OURS)
    elif isinstance(iterator, InProcessIterator):
        entry.note(On.IN_PROCESS, "num_workers=0")
    else:
        entry.note(On.STOCK, "see FallbackWarning")
    return iterator


def _note_own(loader: Any) -> None:
    """Notes a loader whose class makes torch's iterator, or one derived from it, by itself.

    Warns:
        StockLoaderWarning: once for each class, if it has workers.
    """
    entry = record.begins(loader)
    if not getattr(loader, "num_workers", 0):
        entry.note(On.IN_PROCESS, "num_workers=0")
        return
    reason = _reason(type(loader))
    entry.note(On.STOCK, reason)
    name = f"{type(loader).__module__}.{type(loader).__qualname__}"
    if name not in _warned:
        _warned.add(name)
        text = f"{name} loads with torch's own workers under shmloader.patch(): {reason}"
        warnings.warn(text, StockLoaderWarning, stacklevel=callers.stacklevel())


def _reason(kind: type) -> str:
    for one in kind.__mro__:
        for name in (ITERATOR_MAKER, "__iter__"):
            if name in vars(one):
                return f"{one.__qualname__}.{name} makes an iterator by itself"
    return "something makes an iterator for it by itself"
