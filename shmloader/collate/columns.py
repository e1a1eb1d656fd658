"""The default collate function once more, for samples like those of a batch before. Runs in a worker.

What torch's function would make of the samples is known then (`templates`), so that only the elements have to be
written: those of each part of a sample, its *column*, into the place of their tensor. Samples that are not entirely
plain, or not alike, are left to torch's function.

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

from shmloader.batches.dtypes import carried
from shmloader.batches.tensors import Array, is_plain
from shmloader.slots.writer import SlotWriter

from .templates import Template, Templates

_Column = list[Any] | tuple[Any, ...]
_Write = Callable[[_Column, Array], bool]  # writes a column, or returns False

_dtype, _shape, _strides = map(attrgetter, ("dtype", "shape", "strides"))
_ARRAYS = {np.ndarray, np.memmap}

# What is joined is written twice, which is worth it while it stays in the processor's caches.
_JOINED_BYTES = 1 << 18


class ColumnCollate:
    """Collates as ``default_collate`` does, into the slot that is open.

    Args:
        templates: those of the batches before.
        writer: where batches go.
        is_default: whether torch's function would do what it does for templates to be known.
    """

    def __init__(self, templates: Templates, writer: SlotWriter, is_default: Callable[[], bool]) -> None:
        self._templates = templates
        self._writer = writer
        self._collate = writer.lending_to(default_collate)
        self._is_default = is_default

    def __call__(self, samples: Any) -> Any:
        """Returns the batch, or its template if all of it is in the slot."""
        columns: list[tuple[_Write, _Column]] = []
        is_plain_list = type(samples) is list or type(samples) is tuple
        try:
            template = self._templates.find(_describe(samples, columns) if is_plain_list else None)
        except RuntimeError:  # tensors that have no shape, or samples that are nested too deep
            template = self._templates.find(None)
        if template is not None and self._is_default() and self._is_filled(template, columns):
            return template
        return self._collate(samples)

    def _is_filled(self, template: Template, columns: list[tuple[_Write, _Column]]) -> bool:
        arrays = self._templates.arrays(template)
        if arrays is None:
            return False
        for (write, column), array in zip(columns, arrays, strict=True):
            if not write(column, array):
                self._writer.reclaim()
                return False
        return True


def _describe(samples: _Column, columns: list[tuple[_Write, _Column]]) -> Hashable:
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
        if len(set(map(type, samples))) > 1:
            return None
        try:
            return _of(kind, [_describe(part, columns) for part in zip(*samples, strict=True)])
        except ValueError:  # they differ in length
            return None
    if kind is dict:
        if set(map(type, samples)) != {dict} or set(map(type, first)) != {str}:
            return None
        try:
            parts = [_describe(list(map(itemgetter(key), samples)), columns) for key in first]
        except KeyError:
            return None
        return _of(tuple(first), parts)
    if kind is int or kind is float or kind is bool:
        columns.append((write_numbers, samples))
        return len(samples), kind
    if kind in _ARRAYS and first.ndim:
        columns.append((write_arrays, samples))
        return len(samples), first.dtype, first.shape
    if kind is torch.Tensor:
        columns.append((_write_tensors, samples))
        return len(samples), first.dtype, first.shape
    return None


def _of(head: Any, parts: list[Hashable]) -> Hashable:
    return None if None in parts else (head, *parts)


def _write_tensors(column: _Column, out: Array) -> bool:
    first = column[0]
    if not is_plain(first) or set(map(type, column)) != {torch.Tensor}:
        return False
    try:
        torch.stack(column, 0, out=carried(out, first.dtype))
    except (RuntimeError, TypeError):
        return False
    return True


def write_numbers(column: Sequence[Any], out: Array) -> bool:
    """Writes a column of which the first is an int, a float or a bool; returns False unless all are, and fit."""
    # Bytes are a sequence of ints too, which numpy would read as text and torch refuses.
    if not isinstance(column, (list, tuple)) or len(set(map(type, column))) > 1:
        return False
    try:
        out[:] = column
    except OverflowError:
        return False
    return True


def write_arrays(column: Sequence[Any], out: Array) -> bool:
    """Writes a column of which the first is an array; returns False unless all are plain, C-contiguous and alike."""
    if not set(map(type, column)) <= _ARRAYS:
        return False
    try:
        if out.nbytes <= _JOINED_BYTES:
            return _join(column, out)
        return _concatenate(column, out)
    except (ValueError, TypeError):
        return False


def _join(column: Sequence[Any], out: Array) -> bool:
    # Three times as fast as numpy, whose work for each array outweighs the copying of small ones.
    if set(map(_shape, column)) != {out.shape[1:]} or set(map(_dtype, column)) != {out.dtype}:
        return False
    out.data.cast("B")[:] = b"".join(column)  # which takes no array that is not C-contiguous
    return True


def _concatenate(column: Sequence[Any], out: Array) -> bool:
    first = column[0]
    if not first.flags.c_contiguous or len(set(map(len, column))) > 1 or set(map(_strides, column)) != {first.strides}:
        return False
    # Along an existing axis: np.stack would first give every sample a new one, at twice the time. Sizes of the other
    # axes and dtypes are compared by numpy.
    np.concatenate(column, out=out.reshape(-1, *out.shape[2:]), casting="no")
    return True
