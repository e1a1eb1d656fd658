"""One chunk of a `chunks.ChunkedDataset`: its rows, and the memory that they lie in."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch

from shmloader.batches.dtypes import TO_TORCH
from shmloader.batches.structure import Join, any_joiner, is_named, take_apart
from shmloader.batches.tensors import Array, as_rows, is_dense

# By which dtype numpy's numbers become elements of a tensor. torch reads them as Python's: a float32 as a double, which
# makes signalling NaNs quiet. Of float16 it does not keep the bits of NaNs, and of uint64 it refuses large numbers.
_NUMBERS = {np.dtype(code): np.dtype(code) for code in "?bBhHiIlqd"} | {np.dtype("f"): np.dtype("d")}


class Chunk:
    """One chunk.

    Args:
        whole: what the iterable gave.
        number: the chunk's number in the pass, for errors.

    Attributes:
        length: how many rows it has.

    Raises:
        TypeError: it is no structure of arrays.
        ValueError: an array has no axis of rows, or their lengths differ.
    """

    def __init__(self, whole: Any, number: int) -> None:
        self._whole = whole
        self._fields: list[Any] = []
        if not _add_fields(whole, self._fields) or not self._fields:
            _refuse_type(whole, number)
        if not all(field.ndim for field in self._fields) or len(set(map(len, self._fields))) > 1:
            _refuse_lengths(whole, number)
        self.length = len(self._fields[0])

    def row(self, number: int) -> Any:
        """Returns one row, of views where ``array[number]`` is one."""
        return self._join(iter([field[number] for field in self._fields]))

    @cached_property
    def _join(self) -> Join:
        return any_joiner(self._whole, _is_array)

    @cached_property
    def kind(self) -> Hashable:
        """What determines a batch of its rows but for their elements: structure, dtypes and shapes.

        None where it is not certain that to copy their memory gives what is made of rows one by one.
        """
        return _kind_of(self._whole)

    @property
    def specs(self) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Of each array the dtype and the shape of a row. Only where there is a `kind`."""
        return [(_torch_dtype(field), tuple(field.shape[1:])) for field in self._fields]

    @cached_property
    def columns(self) -> list[Array]:
        """The elements of its arrays, in the order of the structure. Only where there is a `kind`."""
        return list(map(_column_of, self._fields))


# -- structures ------------------------------------------------------------------------------------------------------


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _add_fields(node: Any, fields: list[Any]) -> bool:
    """Adds the arrays of a structure in order, and returns whether there is nothing else in it."""
    if _is_array(node):
        fields.append(node)
        return True
    parts = take_apart(node)
    return parts is not None and all(_add_fields(part, fields) for part in parts.values)


def _named(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields what is no container in a structure, with its path."""
    parts = None if _is_array(node) else take_apart(node)
    if parts is None:
        yield path, node
    else:
        for name, part in zip(parts.paths, parts.values, strict=True):
            yield from _named(part, path + name)


def _described(value: Any) -> str:
    return f"an object of type {type(value).__qualname__}"


def _refuse_type(whole: Any, number: int) -> NoReturn:
    wanted = f"chunk {number} must be an array, a tensor or a structure of them"
    for path, value in _named(whole, ""):
        if not _is_array(value):
            raise TypeError(f"{wanted}, {f'and its field {path} is' if path else 'and is'} {_described(value)}")
    raise TypeError(f"{wanted}, and has none: {whole!r}")


def _refuse_lengths(whole: Any, number: int) -> NoReturn:
    fields = list(_named(whole, ""))
    for path, field in fields:
        if not field.ndim:
            raise ValueError(f"chunk {number}{path and f', field {path}'} has no axis of rows: its shape is ()")
    first, length = fields[0][0], len(fields[0][1])
    path, other = next((path, len(field)) for path, field in fields if len(field) != length)
    raise ValueError(f"chunk {number}: field {path} has {other} rows, and field {first} has {length}")


# -- memory ----------------------------------------------------------------------------------------------------------


def _kind_of(node: Any) -> Hashable:
    """Returns what `Chunk.kind` says of a structure, or of a part."""
    if _is_array(node):
        return _kind_of_array(node)
    kind = type(node)
    if kind is dict:
        return _of((dict, *node), node.values()) if set(map(type, node)) == {str} else None
    return _of((kind,), node) if kind is list or kind is tuple or is_named(node) else None


def _of(head: tuple[Any, ...], parts: Iterable[Any]) -> Hashable:
    kinds = tuple(map(_kind_of, parts))
    return None if None in kinds else (head, kinds)


def _kind_of_array(field: Any) -> Hashable:
    if isinstance(field, torch.Tensor):
        return (torch.Tensor, field.dtype, tuple(field.shape[1:])) if is_dense(field) else None
    if type(field) not in (np.ndarray, np.memmap) or field.dtype not in (TO_TORCH if field.ndim > 1 else _NUMBERS):
        return None
    # torch takes no array that goes backwards, or in steps that are no whole elements.
    if any(step < 0 or step % field.itemsize for step in field.strides[1:]):
        return None
    return np.ndarray, field.dtype, field.shape[1:]


def _torch_dtype(field: Any) -> torch.dtype:
    dtype: torch.dtype = field.dtype if isinstance(field, torch.Tensor) else TO_TORCH[field.dtype]
    return dtype


def _column_of(field: Any) -> Array:
    if isinstance(field, torch.Tensor):
        return as_rows(field)
    if field.ndim > 1:
        return np.asarray(field)
    if field.dtype == np.bool_:  # whose byte may be any, a mask's 255 say; of a number torch makes 0 or 1
        return np.asarray(np.asarray(field).view(np.uint8), np.bool_)
    return np.asarray(field, _NUMBERS[field.dtype])
