"""Where loaders were made, and which of them a framework has made of another one."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from shmloader import callers
from shmloader.loader import ShmDataLoader
from shmloader.patching.record import Entry, record
from shmloader.patching.seams import Seam, Seams

# Of more, those made first are forgotten.
_MOST = 1000
_INSTALLED = "site-packages", "dist-packages"


@dataclass(frozen=True)
class _Birth:
    """Where a loader was made.

    Attributes:
        loader: a weak reference to it.
        kind: its class, with its module.
        place: the file and the line.
        framework: the module that made it of another loader's dataset; empty: it is no framework's.
        origin: that other loader's birth.
    """

    loader: weakref.ref[Any]
    kind: str
    place: str
    framework: str = ""
    origin: _Birth | None = None


class Births:
    """The loaders that were made since this was. None is held."""

    def __init__(self) -> None:
        self._births: deque[_Birth] = deque(maxlen=_MOST)

    def watch(self) -> Seams:
        """Has all loaders noted that are made from now on, and what is known of them told in the report."""
        record.listeners = (*record.listeners, self.tell)
        return Seams(Seam(DataLoader, "__init__", self._noting))

    def tell(self, entry: Entry, loader: Any, ours: Any) -> None:
        """Writes into a loader's entry where it was made; a listener of `record`."""
        birth = next((one for one in reversed(self._births) if one.loader() is loader), None)
        if birth is not None:
            entry.notes = tuple(_notes(birth))

    def _noting(self, make: Callable[..., None], is_on: Callable[[], bool]) -> Callable[..., None]:
        @functools.wraps(make)  # frameworks ask for its arguments
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            make(self, *args, **kwargs)
            if is_on():
                births.append(_birth(self, births))

        births = self._births
        return __init__


def _birth(loader: Any, births: deque[_Birth]) -> _Birth:
    kind = f"{type(loader).__module__}.{type(loader).__qualname__}"
    frame = _maker(loader)
    if frame is None:
        return _Birth(weakref.ref(loader), kind, "")
    place = callers.place_of(frame)
    module = str(frame.f_globals.get("__name__", ""))
    is_installed = any(folder in frame.f_code.co_filename for folder in _INSTALLED)
    origin = _origin(loader, births) if is_installed else None
    return _Birth(weakref.ref(loader), kind, place, module if origin else "", origin)


def _maker(loader: Any) -> FrameType | None:
    """Returns the first frame that is neither a library's of ours or torch's, nor in a constructor of the loader's."""
    frame = inspect.currentframe()
    while frame is not None and (callers.is_library(frame) or _is_of(frame, loader)):
        frame = frame.f_back
    return frame


def _is_of(frame: FrameType, loader: Any) -> bool:
    # Of constructors only: a frame that was looked at may hold what was in its variables for as long as it runs.
    return frame.f_code.co_name == "__init__" and any(one is loader for one in list(frame.f_locals.values()))


def _origin(loader: Any, births: deque[_Birth]) -> _Birth | None:
    for birth in reversed(births):
        other = birth.loader()
        if other is not None and other is not loader and other.dataset is loader.dataset:
            return birth
    return None


def _notes(birth: _Birth) -> list[str]:
    if birth.origin is None:
        return [f"made at {birth.place}"] if birth.place else []
    origin = birth.origin
    notes = [f"made by {birth.framework} of a {origin.kind}, which was made at {origin.place}"]
    if origin.kind == f"{ShmDataLoader.__module__}.{ShmDataLoader.__qualname__}" != birth.kind:
        notes.append("what that one had beyond torch's arguments is not there any more")
    return notes
