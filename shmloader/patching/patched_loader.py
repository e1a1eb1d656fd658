"""What stands beside a loader of torch's class, and has what a `ShmDataLoader` has beyond it.

A loader of torch's class stays what it is: nothing refers to another object, so it is found wherever it was put, and
has the class and the attributes that it had. But where torch's loader would make its iterator, the `PatchedLoader`
beside it makes one. It is a `ShmDataLoader` with the other's arguments, and has what passes leave to each other:
memory, figures, and who watches.

It is in the loader's own ``__dict__``. A table of ours would hold it, and by its arguments the loader too: a collate
function is often the loader's method. So each is garbage when the other is. A copy of a loader, or one that was
pickled, has none, and gets its own.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from shmloader.loader import ShmDataLoader
from shmloader.passes.iterator import ShmIterator
from shmloader.torch_private import (
    KEPT_ITERATOR,
    BaseIterator,
    a_loader,
    auto_collates,
    forget_iterator,
    index_sampler_of,
    kept_iterator,
)

_KEY = "_shmloader"


@functools.cache
def _torchs() -> dict[str, Any]:
    """Returns what torch's constructor puts into a loader, but for the iterator that it keeps."""
    return {name: one for name, one in vars(a_loader(DataLoader)).items() if name != KEPT_ITERATOR}


class _Unmade(DataLoader[Any]):
    """Has the attributes of a loader, of which none is to last. It comes between our class and torch's.

    torch's constructor is not called: a program may have replaced it by one that counts loaders, or refuses some.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self).update(_torchs(), **{KEPT_ITERATOR: None})


class PatchedLoader(ShmDataLoader[Any], _Unmade):
    """Loads for a loader of torch's class, while `patch` is on. What is its own has the default that it has there.

    Args:
        loader: that one; it is not held.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        nothing: Any = ()  # what torch's class has in it is the other's
        super().__init__(nothing)
        self._of = weakref.ref(loader)

    # Derived classes of torch's may have another idea of these three.
    _reader: Any = None
    _collates = True
    _context: Any = None

    _of: Callable[[], DataLoader[Any] | None] = staticmethod(lambda: None)  # until there is one

    @property
    def loader(self) -> DataLoader[Any] | None:
        """The loader of torch's class, or None if it is gone."""
        return self._of()

    def begin(self) -> BaseIterator:
        """Begins a pass with a new iterator, as `ShmDataLoader.__iter__` does."""
        iterator: BaseIterator = self._measured(self._get_iterator)
        return iterator

    def again(self, loader: DataLoader[Any], begin: Callable[[DataLoader[Any]], Any]) -> Any:
        """Has persistent workers begin another pass, or has new ones begin it if those are gone.

        Args:
            loader: the one that it is beside.
            begin: torch's way to begin a pass.
        """
        if not kept_iterator(loader).can_resume:
            forget_iterator(loader)
            return begin(loader)  # which asks for an iterator
        return self._measured(functools.partial(begin, loader))

    def _measured(self, begin: Callable[[], Any]) -> Any:
        meters = self._lifetime.meters
        began = meters.begin_pass()
        try:
            iterator = begin()
        finally:
            meters.end_begin(began)
        self._lifetime.epochs.next += 1
        return iterator

    def take(self, loader: DataLoader[Any]) -> None:
        """Takes the arguments as they are now: torch lets them be changed between passes."""
        # By asking for them, as torch's iterator does: a derived class may answer by a property. And not by setting
        # attributes, some of which torch does not let be set again. What is missing is nothing of torch's: others, who
        # replace its constructor, put in more.
        vars(self).update({name: getattr(loader, name) for name in _torchs() if hasattr(loader, name)})
        self._reader, self._collates = index_sampler_of(loader), auto_collates(loader)
        self._context = loader.multiprocessing_context

    @property
    def _index_sampler(self) -> Any:
        return self._reader

    @property
    def _auto_collation(self) -> bool:
        return self._collates

    @property
    def multiprocessing_context(self) -> Any:
        """What the loader says of it."""
        return self._context

    @multiprocessing_context.setter
    def multiprocessing_context(self, context: Any) -> None:
        self._context = context

    def check_worker_number_rationality(self) -> None:
        """Warns of more workers than processors, as the loader's own class does."""
        loader = self._of()
        if loader is not None:
            loader.check_worker_number_rationality()

    def __reduce__(self) -> Any:
        raise TypeError("what stands beside a loader of torch's class cannot be copied; copy that loader")


class _Beside:
    """Holds a `PatchedLoader`. What is copied or pickled of it is False, which needs no import of ours.

    Args:
        loader: beside which it is.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = weakref.ref(loader)
        self.patched = PatchedLoader(loader)

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, ()


def beside(loader: DataLoader[Any]) -> PatchedLoader:
    """Returns what stands beside a loader of torch's class, with its arguments; made now if there is nothing yet."""
    found = vars(loader).get(_KEY)
    if not isinstance(found, _Beside) or found.loader() is not loader:  # the other's, of which this is a shallow copy
        found = vars(loader)[_KEY] = _Beside(loader)
    found.patched.take(loader)
    return found.patched


def has_workers_of_ours(loader: DataLoader[Any]) -> bool:
    """Whether a loader of torch's class has persistent workers, and they are ours."""
    return loader.persistent_workers and loader.num_workers > 0 and isinstance(kept_iterator(loader), ShmIterator)
