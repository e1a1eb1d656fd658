"""Samples as bytes, and back. A sample is a *form* and its parts.

Of most samples the parts are what they consist of, and the form is the rest (`plain_forms`): samples that are alike
have the same form, and their parts can be read straight into rows of a batch. Other samples have one part
(`packed_forms`).
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from typing import Any, NamedTuple, Protocol

from shmloader.batches.structure import NotPlainError
from shmloader.batches.tensors import Array

from .packed_forms import PackedForm, take_packed
from .plain_forms import Part, PlainForm, take_plain

_PLAIN, _PACKED = b"\0", b"\1"


class Form(Protocol):
    """How a sample is made of its parts."""

    def parts(self, nbytes: int) -> list[Array]:
        """Returns new arrays for parts of ``nbytes`` bytes in all, uninitialised.

        Raises:
            ValueError: parts of this form do not take so many bytes.
        """

    def sample(self, parts: list[Array]) -> Any:
        """Returns the sample. It takes the memory of its parts over."""


class Taken(NamedTuple):
    """A sample that was taken apart.

    Attributes:
        form: its form, as bytes; see `form_of`.
        parts: its parts, contiguous, in memory of their own.
    """

    form: bytes
    parts: list[Array]

    def sample(self) -> Any:
        """Returns the sample once more, over the memory of these parts: nothing else has it."""
        return form_of(self.form).sample(self.parts)


def take(sample: Any) -> Taken:
    """Copies a sample into parts.

    Raises:
        TypeError: some object in it cannot be pickled, or a tensor is on a device.
    """
    try:
        form, parts = take_plain(sample)
    except (NotPlainError, pickle.PicklingError, AttributeError) as error:  # a named tuple's class may have no name
        if isinstance(error, AttributeError) and not _lacks_a_class(sample):
            raise  # a signal's handler raised it
        form, parts = take_packed(sample)
        return Taken(_PACKED + form, parts)
    return Taken(_PLAIN + form, parts)


def _lacks_a_class(sample: Any) -> bool:
    try:
        take_plain(sample)
    except (pickle.PicklingError, AttributeError):
        return True
    except NotPlainError:
        pass
    return False


def form_of(data: bytes) -> Form:
    """Returns what bytes say of a form.

    Raises:
        Exception: whatever unpickling the structure raises: the class of a named tuple is not there now, say.
    """
    known = _known(data)
    if not known.is_current():
        _known.cache_clear()
        known = _known(data)
    return known.form


class _Known(NamedTuple):
    """A form, and the classes of its named tuples by the names that they were found by.

    A name may mean another class by now: a module was reloaded, or the cell of a notebook was run again.
    """

    form: Form
    classes: list[tuple[str, str, Any]]

    def is_current(self) -> bool:
        return all(_found(module, name) is kind for module, name, kind in self.classes)


@functools.lru_cache(maxsize=64)
def _known(data: bytes) -> _Known:
    if data[:1] == _PACKED:
        return _Known(PackedForm(data[1:]), [])
    unpickler = _Unpickler(io.BytesIO(data[1:]))
    return _Known(PlainForm(unpickler.load()), unpickler.classes)


class _Unpickler(pickle.Unpickler):
    """Notes the classes that it finds, but for those of parts."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.classes: list[tuple[str, str, Any]] = []

    def find_class(self, module: str, name: str) -> Any:
        kind = super().find_class(module, name)
        if kind is not Part:
            self.classes.append((module, name, kind))
        return kind


def _found(module: str, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        return None
