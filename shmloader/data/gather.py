"""Rows of arrays, copied into a batch all at once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from shmloader.batches.tensors import Array, as_rows, is_dense

# What torch and numpy index with as with an int. An np.bool_ is a mask to both, a uint8 tensor to torch.
_INTS = {int, *(np.dtype(code).type for code in "bBhHiIlLqQ")}
_INDEX_TENSORS = {(dtype, 0, True) for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)}
_tensor_kind = attrgetter("dtype", "ndim", "is_cpu")


def write_rows(columns: Sequence[Array], indices: Any, out: Any) -> Any:
    """Copies rows of arrays of one length into ``out``, one place for each; returns NotImplemented where that is not
    certain to be what reading them one by one gives.
    """
    where = row_numbers(indices, len(columns[0]))
    if where is None:
        return NotImplemented
    try:
        for column, place in zip(columns, out, strict=True):
            gather(column, where, place)
    except ValueError:  # the first batch had no rows, but slices perhaps
        return NotImplemented
    return None


def row_numbers(indices: Any, length: int) -> Array | None:
    """Returns the rows that ``indices`` mean, from 0 to ``length``, without it.

    None unless both torch and numpy certainly take each of them for one row: a list, tuple or range of ints, of numpy's
    or of tensors with one, or an array or tensor of them. Negative ones count from the end.
    """
    kind = type(indices)
    if kind is list or kind is tuple or kind is range:  # and not bytes, whose items are ints too
        if not ({int}.issuperset(map(type, indices)) or _are_ints(indices)):
            return None
        try:
            where = np.frombuffer(array("q", indices), np.int64)  # a third of the time that np.array takes
        except OverflowError:
            return None
    elif (numbers := _numbers(indices)) is not None:
        where = numbers
    else:
        return None
    # Without their signs, those below 0 are larger than any length.
    if len(where) and where.view(np.uint64).max() >= length:
        where = np.where(where < 0, where + length, where)
        if where.view(np.uint64).max() >= length:
            return None
    return where


def _are_ints(indices: Sequence[Any]) -> bool:
    kinds = set(map(type, indices))
    return kinds <= _INTS or (kinds == {torch.Tensor} and set(map(_tensor_kind, indices)) <= _INDEX_TENSORS)


def _numbers(indices: Any) -> Array | None:
    """Returns the elements of an array or tensor with one axis, if all are ints for certain."""
    if type(indices) is torch.Tensor and is_dense(indices) and (indices.dtype, 0, True) in _INDEX_TENSORS:
        indices = indices.numpy()
    if type(indices) is not np.ndarray or indices.ndim != 1 or indices.dtype.kind not in "iu":
        return None
    return indices.astype(np.int64) if np.can_cast(indices.dtype, np.int64) else None


def gather(rows: Array, where: Array, out: Array | torch.Tensor) -> None:
    """Copies the rows ``where`` of ``rows`` into ``out``, which has their dtype.

    Raises:
        ValueError: ``out`` has not the shape of these rows.
    """
    if isinstance(out, torch.Tensor):
        out = as_rows(out)
    flags = rows.flags
    if flags.c_contiguous and flags.aligned:
        # Any other mode than this fills a buffer first. The numbers are known to be right.
        rows.take(where, 0, out, "clip")
    elif out.shape != (len(where), *rows.shape[1:]):  # what follows would repeat them to fill it
        raise ValueError(f"{len(where)} rows of shape {rows.shape[1:]} do not go into an array of shape {out.shape}")
    else:  # of which it would copy all rows
        out[...] = rows[where]
