"""Slot -> batch: reading what `packing` describes, from a slot or from a copy of one. Runs in the parent."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from .packing import split_tail
from .place import Extent, Place, copier, lender, next_tensor, small_ranges
from .structure import Join, NotPlainError, joiner
from .tensors import Block

# Tails and skeletons as long as this are too seldom equal to be worth caching.
_MAX_CACHED_BYTES = 1 << 16
_MAX_CACHED = 64

_NEXT_TENSOR = next_tensor.__module__, next_tensor.__name__


class _Tensor:
    """Stands for a tensor in what a skeleton describes."""


class _Unpickler(pickle.Unpickler):
    """Reads a skeleton, with ``next_one`` called for every tensor in it."""

    def __init__(self, skeleton: bytes, buffers: Iterable[Any], next_one: Callable[[], Any]) -> None:
        super().__init__(io.BytesIO(skeleton), buffers=buffers)
        self._next_one = next_one

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == _NEXT_TENSOR:
            return self._next_one
        return super().find_class(module, name)


class _PlainUnpickler(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != _NEXT_TENSOR:
            raise NotPlainError
        return super().find_class(module, name)


_T = TypeVar("_T")
_Build = Callable[[Block], Any]
_Make = Callable[[Sequence[Place], Sequence[range]], Callable[[Block], list[Any]]]
_Part = tuple[slice, Callable[[Block], Block]]


class Unpacker:
    """Reads batches from slots, or from copies of them. Used in the parent.

    Skeletons repeat from batch to batch. One that is nothing but lists, tuples and dicts of tensors and constants is
    compiled once, after which a batch costs little more than its tensors.

    Args:
        lends_small_parts: whether small parts of a batch are views too, since they have to be where the slot is.
    """

    def __init__(self, lends_small_parts: bool = False) -> None:
        self._views = _Reader(lender, _nothing_apart if lends_small_parts else small_ranges, lambda part: part)
        self._copies = _Reader(lambda places, apart: copier(places), _nothing_apart, np.ndarray.copy)

    def views(self, block: Block, tail_offset: int, tail_bytes: int) -> Any:
        """Returns the batch whose tail is given; its tensors and arrays are views of ``block``, but for small ones.

        These have memory of their own, so that a label that is kept does not hold its images.
        """
        return self._views.read(block, tail_offset, tail_bytes)

    def copies(self, block: Block, tail_offset: int, tail_bytes: int) -> Any:
        """Returns the batch in memory of its own, a piece for every tensor, so that one does not hold another's."""
        return self._copies.read(block, tail_offset, tail_bytes)


class _Reader:
    """Reads batches in one way.

    Args:
        make: returns what makes tensors, from their places and the ranges that are set apart.
        apart: returns the ranges that are copied first, from the extents of all parts.
        take: makes a buffer from the bytes that it is in, where they are not set apart.
    """

    def __init__(
        self, make: _Make, apart: Callable[[list[Extent]], list[range]], take: Callable[[Block], Block]
    ) -> None:
        self._make = make
        self._apart = apart
        self._take = take
        self._builds: dict[bytes, _Build] = {}  # by tail
        self._joins: dict[bytes, Join | None] = {}  # by skeleton; None: not plain

    def read(self, block: Block, offset: int, nbytes: int) -> Any:
        tail = block[offset : offset + nbytes].tobytes()
        build = self._builds.get(tail)
        if build is None:
            build = _cached(self._builds, tail, self._builder(tail))
        return build(block)

    def _builder(self, tail: bytes) -> _Build:
        places, extents, skeleton = split_tail(tail)
        apart = self._apart([*((place.offset, place.nbytes) for place in places), *extents])
        make = self._make(places, apart)
        join = self._join(skeleton)
        if extents or join is None:
            takes = [np.ndarray.copy if any(start in one for one in apart) else self._take for start, _ in extents]
            parts = [(slice(start, start + nbytes), take) for (start, nbytes), take in zip(extents, takes, strict=True)]
            return lambda block: _unpickle(skeleton, block, parts, make(block))
        if join is list:  # as most batches are
            return make
        return lambda block: join(iter(make(block)))

    def _join(self, skeleton: bytes) -> Join | None:
        try:
            return self._joins[skeleton]
        except KeyError:
            return _cached(self._joins, skeleton, _plain(skeleton))


def _unpickle(skeleton: bytes, block: Block, parts: list[_Part], tensors: list[Any]) -> Any:
    # No method of the reader, which keeps what calls this: it would stay for the garbage collector.
    buffers = (take(block[where]) for where, take in parts)
    return _Unpickler(skeleton, buffers, iter(tensors).__next__).load()


def _nothing_apart(extents: list[Extent]) -> list[range]:
    return []


def _cached(cache: dict[bytes, _T], key: bytes, value: _T) -> _T:
    if len(key) <= _MAX_CACHED_BYTES:
        if len(cache) >= _MAX_CACHED:
            cache.clear()
        cache[key] = value
    return value


def _plain(skeleton: bytes) -> Join | None:
    """Returns what makes a batch of its tensors, or None if unpickling alone can.

    Unpickling is for what is nested deep, too: it takes no Python frames, of which a loop may have few left.
    """
    seen = set()

    def is_tensor(part: Any) -> bool:
        if type(part) is not _Tensor:
            return False
        if part in seen:  # it occurs twice: then it must be one object in each batch too
            raise NotPlainError
        seen.add(part)
        return True

    try:
        batch = _PlainUnpickler(skeleton, (), _Tensor).load()
        join = joiner(batch, is_tensor)
        return list if type(batch) is list and set(map(type, batch)) == {_Tensor} else join
    except (NotPlainError, pickle.UnpicklingError):
        return None
