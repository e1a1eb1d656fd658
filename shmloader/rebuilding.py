"""What frameworks do that build a loader anew from one of this library: some keep its class, and some do not.

No framework is imported here. Those that do not keep the class are seen by who reads an attribute that every copy
needs. torch's iterator reads it once, as it is made.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from . import callers
from .errors import RebuiltWarning

# Module and function that build torch's class from a loader, and what to call instead.
_REBUILDERS = {
    ("accelerate.data_loader", "prepare_data_loader"): (
        "Accelerate's prepare",
        "shmloader.integrations.accelerate.prepare(accelerator, ...)",
    ),
    ("accelerate.data_loader", "skip_first_batches"): (
        "Accelerate's skip_first_batches",
        "shmloader.integrations.accelerate.skip_first_batches(loader, ...)",
    ),
    **{
        (module, "with_sampler"): (
            "Ray Train's prepare_data_loader",
            "shmloader.integrations.ray.prepare_data_loader(loader)",
        )
        for module in ("ray.train.torch.train_loop_utils", "ray.train.v2.torch.train_loop_utils")
    },
}
# What is between such a function and the attribute: a comprehension, and a wrapper that hands the reading on.
_DEPTH = 4

# What Lightning applies to a loader that it has built: functions, and their arguments behind the loader.
LIGHTNINGS_RECORD = "__pl_attrs_record"

_told: set[str] = set()
_expected = threading.local()


class Watched:
    """An attribute of a loader that notes who reads it. It lies where it would otherwise, in the loader's dict.

    Args:
        name: its name.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, loader: Any, owner: Any = None) -> Any:
        """Returns its value, and warns if a framework reads it that will not keep the loader's class."""
        if loader is None:
            return self
        try:
            value = vars(loader)[self._name]
        except KeyError:
            raise AttributeError(f"{type(loader).__name__!r} object has no attribute {self._name!r}") from None
        _look_who_reads(loader)
        return value

    def __set__(self, loader: Any, value: Any) -> None:
        """Sets it."""
        vars(loader)[self._name] = value


@contextmanager
def expected() -> Iterator[None]:
    """Says nothing of loaders that this thread has built anew meanwhile: whoever enters this puts ours in place."""
    before = getattr(_expected, "is_so", False)
    _expected.is_so = True
    try:
        yield
    finally:
        _expected.is_so = before


def _look_who_reads(loader: Any) -> None:
    frame = sys._getframe(2)
    for _ in range(_DEPTH):
        if (found := _REBUILDERS.get((frame.f_globals.get("__name__", ""), frame.f_code.co_name))) is not None:
            return _tell(loader, *found)
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def _tell(loader: Any, who: str, instead: str) -> None:
    if who in _told or getattr(_expected, "is_so", False) or _is_patched():
        return
    _told.add(who)
    warnings.warn(
        f"{who} builds a loader of torch's class in place of this {type(loader).__name__}, with torch's arguments "
        f"only, so that batches do not come from this library; use {instead}",
        RebuiltWarning,
        stacklevel=callers.stacklevel("accelerate", "ray"),
    )


def _is_patched() -> bool:
    """Whether loaders of torch's class have our workers anyway."""
    return DataLoader.__iter__.__module__.startswith("shmloader.")


class Record:
    """What Lightning finds on a loader as its record of attributes that were set: the arguments that are ours.

    Lightning builds a loader from the names in its class's signature. Where that has ``**kwargs`` it adds torch's
    names, and drops ours. What is in the record is done to the loader that it has built. To change the signature of
    such a class instead, so that ours are in it, would pass an argument twice where the class sets it itself.

    It is no data descriptor: what Lightning notes on a loader comes first, and begins as a copy of this.

    Args:
        names: the attributes that are carried over.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def __get__(self, loader: Any, owner: Any = None) -> Any:
        """Returns the record, with the values as they are now."""
        if loader is None:
            return self
        own = {name: vars(loader)[name] for name in self._names if name in vars(loader)}
        return [((own,), _carry_over)]


def _carry_over(rebuilt: Any, own: dict[str, Any]) -> None:
    """Gives a loader the arguments of the one from which it was built. One of another class stays as it is."""
    if own.keys() <= vars(rebuilt).keys():
        vars(rebuilt).update(own)
