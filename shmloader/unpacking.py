"""Slot -> batch: reading what `packing` describes, from a slot or from a copy of one. Runs in the parent."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from .leases import Block
from .packing import split_tail
from .placed import Placed, copier, viewer

# Skeletons as long as this one are too seldom equal to be worth keeping.
_MAX_KEPT_TAIL = 1 << 16
_MAX_KEPT = 64


class _Unpickler(pickle.Unpickler):
    """Reads a skeleton, with ``place`` called for every tensor in it."""

    def __init__(self, skeleton: memoryview, buffers: Iterable[Any], place: Callable[..., Any]) -> None:
        super().__init__(io.BytesIO(skeleton), buffers=buffers)
        self._place = place

    def find_class(self, module: str, name: str) -> Any:
        if module == Placed.__module__ and name == Placed.__name__:
            return self._place
        return super().find_class(module, name)


class _NotPlainError(Exception):
    """A skeleton has more in it than lists, tuples and dicts of tensors and constants."""


class _PlainUnpickler(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == Placed.__module__ and name == Placed.__name__:
            return Placed
        raise _NotPlainError


_Build = Callable[[Block], Any]
_Make = Callable[[Sequence[Placed]], Callable[[Block], list[Any]]]
_Join = Callable[[Iterator[Any]], Any]  # makes a structure of its tensors


class Unpacker:
    """Reads batches from slots, or from copies of them. Used in the parent.

    Skeletons repeat from batch to batch. One that is nothing but lists, tuples and dicts of tensors and constants is
    compiled once, after which a batch costs little more than its tensors.
    """

    def __init__(self) -> None:
        self._views = _Reader(viewer, lambda part: part)
        self._copies = _Reader(copier, np.ndarray.copy)

    def views(self, block: Block, tail_offset: int, tail_bytes: int) -> Any:
        """Returns the batch whose tail is given; its tensors and arrays are views of ``block``."""
        return self._views.read(block, tail_offset, tail_bytes)

    def copies(self, block: Block, tail_offset: int, tail_bytes: int) -> Any:
        """Returns the batch in memory of its own, a piece for every tensor, so that one does not hold another's."""
        return self._copies.read(block, tail_offset, tail_bytes)


class _Reader:
    """Reads batches in one way.

    Args:
        make: returns what makes tensors, from their places.
        take: makes a buffer from the bytes that it is in.
    """

    def __init__(self, make: _Make, take: Callable[[Block], Block]) -> None:
        self._make = make
        self._take = take
        self._compiled: dict[bytes, _Build | None] = {}

    def read(self, block: Block, offset: int, nbytes: int) -> Any:
        tail = block[offset : offset + nbytes].tobytes()
        try:
            build = self._compiled[tail]
        except KeyError:
            build = self._compile(tail)
        if build is not None:
            return build(block)
        table, skeleton = split_tail(tail)
        buffers = (self._take(block[start : start + length]) for start, length in table)
        return _Unpickler(skeleton, buffers, lambda *fields: self._make([Placed(*fields)])(block)[0]).load()

    def _compile(self, tail: bytes) -> _Build | None:
        if len(tail) > _MAX_KEPT_TAIL:
            return None
        table, skeleton = split_tail(tail)
        try:
            if table:
                raise _NotPlainError
            build = self._builder(_PlainUnpickler(skeleton, (), Placed).load())
        except _NotPlainError:
            build = None
        if len(self._compiled) >= _MAX_KEPT:
            self._compiled.clear()
        self._compiled[tail] = build
        return build

    def _builder(self, node: Any) -> _Build:
        places: list[Placed] = []
        join = _compile(node, places, set())
        make = self._make(places)
        if type(node) is list and all(type(child) is Placed for child in node):  # as most batches are
            return make
        return lambda block: join(iter(make(block)))


def _compile(node: Any, places: list[Placed], seen: set[int]) -> _Join:
    """Returns a function that builds what ``node`` describes of its tensors, whose ``places`` it adds, in order.

    Raises:
        _NotPlainError: an object is of another type, or occurs twice: then it must be one object in the batch too.
    """
    kind = type(node)
    if kind is bool or kind is int or kind is float or kind is str or kind is bytes or node is None:
        return lambda tensors: node
    if id(node) in seen and node != ():
        raise _NotPlainError
    seen.add(id(node))
    if kind is Placed:
        places.append(node)
        return next
    if kind is dict:
        keys = list(node)
        if not all(type(key) in (bool, int, float, str, bytes) for key in keys):
            raise _NotPlainError
        join = _join_all([_compile(value, places, seen) for value in node.values()])
        return lambda tensors: dict(zip(keys, join(tensors), strict=True))
    if kind is list or kind is tuple:
        join = _join_all([_compile(child, places, seen) for child in node])
        return join if kind is list else lambda tensors: tuple(join(tensors))
    raise _NotPlainError


def _join_all(parts: list[_Join]) -> _Join:
    if all(part is next for part in parts):
        return lambda tensors: list(islice(tensors, len(parts)))
    return lambda tensors: [part(tensors) for part in parts]
