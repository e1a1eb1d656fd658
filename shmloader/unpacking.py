"""Slot -> batch: reading what `packing` describes, from a slot or from a copy of one. Runs in the parent."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from .leases import Block
from .packing import split_tail
from .placed import Placed

# Skeletons as long as this one are too seldom equal to be worth keeping.
_MAX_KEPT_TAIL = 4096
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


_Make = Callable[[Placed, Block], torch.Tensor]
_Build = Callable[[_Make, Block], Any]


class Unpacker:
    """Reads batches from slots, or from copies of them. Used in the parent.

    Skeletons repeat from batch to batch. One that is nothing but lists, tuples and dicts of tensors and constants is
    compiled once, after which a batch costs little more than its tensors.
    """

    def __init__(self) -> None:
        self._compiled: dict[bytes, _Build | None] = {}

    def views(self, block: Block, tail_offset: int, tail_bytes: int) -> Any:
        """Returns the batch whose tail is given; its tensors and arrays are views of ``block``."""
        return self._unpack(block, tail_offset, tail_bytes, Placed.over, lambda part: part)

    def copies(self, block: Block, tail_offset: int, tail_bytes: int) -> Any:
        """Returns the batch in memory of its own, a piece for every tensor, so that one does not hold another's."""
        return self._unpack(block, tail_offset, tail_bytes, Placed.copied, np.ndarray.copy)

    def _unpack(self, block: Block, offset: int, nbytes: int, make: _Make, take: Callable[[Block], Block]) -> Any:
        tail = block[offset : offset + nbytes].tobytes()
        try:
            build = self._compiled[tail]
        except KeyError:
            build = self._compile(tail)
        if build is not None:
            return build(make, block)
        table, skeleton = split_tail(tail)
        buffers = (take(block[start : start + length]) for start, length in table)
        return _Unpickler(skeleton, buffers, lambda *fields: make(Placed(*fields), block)).load()

    def _compile(self, tail: bytes) -> _Build | None:
        if len(tail) > _MAX_KEPT_TAIL:
            return None
        table, skeleton = split_tail(tail)
        try:
            if table:
                raise _NotPlainError
            build = _compile(_PlainUnpickler(skeleton, (), Placed).load(), set())
        except _NotPlainError:
            build = None
        if len(self._compiled) >= _MAX_KEPT:
            self._compiled.clear()
        self._compiled[tail] = build
        return build


def _compile(node: Any, seen: set[int]) -> _Build:
    """Returns a function that builds what ``node`` describes, anew at each call.

    Raises:
        _NotPlainError: an object is of another type, or occurs twice: then it must be one object in the batch too.
    """
    kind = type(node)
    if kind is bool or kind is int or kind is float or kind is str or kind is bytes or node is None:
        return lambda make, block: node
    if id(node) in seen and node != ():
        raise _NotPlainError
    seen.add(id(node))
    if kind is Placed:
        return lambda make, block: make(node, block)
    if kind is dict:
        keys = list(node)
        if not all(type(key) in (bool, int, float, str, bytes) for key in keys):
            raise _NotPlainError
        values = [_compile(value, seen) for value in node.values()]
        return lambda make, block: {key: build(make, block) for key, build in zip(keys, values, strict=True)}
    if kind is list or kind is tuple:
        ids = set(map(id, node))
        if len(ids) == len(node) and ids.isdisjoint(seen) and all(type(child) is Placed for child in node):
            seen |= ids
            return lambda make, block: kind([make(child, block) for child in node])
        parts = [_compile(child, seen) for child in node]
        return lambda make, block: kind([build(make, block) for build in parts])
    raise _NotPlainError
