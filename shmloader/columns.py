"""The default collate function once more, for samples like those of a batch before. Runs in a worker.

What torch's function would make of the samples is known then (`layouts`), so that only the elements have to be written:
those of each part of a sample, its *column*, into the place of their tensor. Samples that are not entirely plain, or
not alike, are left to torch's function.

All elements of a column are looked at in one C loop (``set(map(attribute, column))``), which costs a tenth of a Python
loop.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from .arrays import is_plain
from .layouts import Layout, Layouts
from .writer import SlotWriter

_Array = np.ndarray[Any, np.dtype[Any]]
_Column = list[Any] | tuple[Any, ...]
_Fill = Callable[[_Column, _Array], bool]  # writes a column, or returns False

_strides = attrgetter("strides")
_ARRAYS = {np.ndarray, np.memmap}


class ColumnCollate:
    """Collates as ``default_collate`` does, into the slot that is open.

    Args:
        layouts: those of the batches before.
        writer: where batches go.
    """

    def __init__(self, layouts: Layouts, writer: SlotWriter) -> None:
        self._layouts = layouts
        self._writer = writer

    def __call__(self, samples: Any) -> Any:
        """Returns the batch, or its layout if all of it is in the slot."""
        columns: list[tuple[_Fill, _Column]] = []
        is_plain_list = type(samples) is list or type(samples) is tuple
        layout = self._layouts.find(_describe(samples, columns) if is_plain_list else None)
        if layout is not None and self._is_filled(layout, columns):
            return layout
        return default_collate(samples)

    def _is_filled(self, layout: Layout, columns: list[tuple[_Fill, _Column]]) -> bool:
        arrays = self._layouts.arrays(layout)
        if arrays is None:
            return False
        for (fill, column), array in zip(columns, arrays, strict=True):
            if not fill(column, array):
                self._writer.rewind(to=0)
                return False
        return True


def _describe(samples: _Column, columns: list[tuple[_Fill, _Column]]) -> Hashable:
    """Takes samples apart.

    Args:
        samples: of one batch; or one part of each.
        columns: what they consist of is added here, in the order in which a batch has it.

    Returns:
        What determines their batch but for its elements, if the columns are as their first elements are, which is left
        to those who fill. None if there is anything that is not plain.
    """
    first = samples[0]
    kind = type(first)
    if kind is tuple or kind is list:
        if not len(set(map(type, samples))) == len(set(map(len, samples))) == 1:
            return None
        return _join(kind, [_describe(part, columns) for part in zip(*samples, strict=True)])
    if kind is dict:
        if set(map(type, samples)) != {dict} or set(map(type, first)) != {str}:
            return None
        try:
            parts = [_describe(list(map(itemgetter(key), samples)), columns) for key in first]
        except KeyError:
            return None
        return _join(tuple(first), parts)
    if kind is int or kind is float or kind is bool:
        columns.append((_fill_with_numbers, samples))
        return len(samples), kind
    if kind in _ARRAYS and first.ndim:
        columns.append((_fill_with_arrays, samples))
        return len(samples), first.dtype, first.shape
    if kind is torch.Tensor:
        columns.append((_fill_with_tensors, samples))
        return len(samples), first.dtype, first.shape
    return None


def _join(head: Any, parts: list[Hashable]) -> Hashable:
    return None if None in parts else (head, *parts)


def _fill_with_numbers(column: _Column, out: _Array) -> bool:
    return are_numbers(column) and join_numbers(column, out)


def _fill_with_arrays(column: _Column, out: _Array) -> bool:
    return are_alike(column) and join_arrays(column, out)


def _fill_with_tensors(column: _Column, out: _Array) -> bool:
    first = column[0]
    if not is_plain(first):
        return False
    tensor = torch.from_numpy(out)
    try:
        torch.stack(column, 0, out=tensor if tensor.dtype is first.dtype else tensor.view(first.dtype))
    except (RuntimeError, TypeError):
        return False
    return True


def are_numbers(column: Sequence[Any]) -> bool:
    """Whether a column of which the first is an int, a float or a bool has only such."""
    # Bytes are a sequence of ints too, which numpy would read as text and torch refuses.
    return isinstance(column, (list, tuple)) and len(set(map(type, column))) == 1


def are_alike(column: Sequence[Any]) -> bool:
    """Whether all are plain C-contiguous arrays of one length: then joining their bytes is stacking them."""
    first = column[0]
    return (
        first.flags.c_contiguous
        and set(map(type, column)) <= _ARRAYS
        and len(set(map(len, column))) == 1
        and set(map(_strides, column)) == {first.strides}
    )


def join_arrays(column: Sequence[Any], out: _Array) -> bool:
    """Writes arrays that are alike into ``out``; returns False if other axes or dtypes differ."""
    try:
        # Along an existing axis: np.stack would first give every sample a new one, at twice the time. Sizes of the
        # other axes and dtypes are compared by numpy.
        np.concatenate(column, out=out.reshape(-1, *out.shape[2:]), casting="no")
    except (ValueError, TypeError):
        return False
    return True


def join_numbers(column: Sequence[Any], out: _Array) -> bool:
    """Writes numbers into ``out``; returns False if one is too large for it."""
    try:
        out[:] = column
    except OverflowError:
        return False
    return True
