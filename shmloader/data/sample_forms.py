"""Samples as bytes, and back. A sample is a *form* and its parts.

Of most samples the parts are what they consist of, and the form is the rest (`plain_forms`): samples that are alike
have the same form, and their parts can be read straight into rows of a batch. Other samples have one part
(`packed_forms`).
"""

from __future__ import annotations

import functools
import pickle
from typing import Any, NamedTuple, Protocol

from shmloader.batches.structure import NotPlainError
from shmloader.batches.tensors import Array

from .packed_forms import PackedForm, take_packed
from .plain_forms import PlainForm, take_plain

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
    except (NotPlainError, pickle.PicklingError, AttributeError):  # a named tuple's class may have no name
        form, parts = take_packed(sample)
        return Taken(_PACKED + form, parts)
    return Taken(_PLAIN + form, parts)


@functools.lru_cache(maxsize=64)
def form_of(data: bytes) -> Form:
    """Returns what bytes say of a form."""
    if data[:1] == _PACKED:
        return PackedForm(data[1:])
    return PlainForm(pickle.loads(data[1:]))
