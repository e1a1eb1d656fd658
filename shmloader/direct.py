"""Direct writing: batches that a dataset writes into the slot itself. Runs in a worker.

A dataset says that it can by a method:

- ``__getitems_into__(indices, out)`` writes the samples of a whole batch; ``out`` has the structure of a sample, and
  in each place of a tensor or number an array of shape (batch, ...);
- ``__getitem_into__(index, out)`` writes one sample; its arrays are one sample's, those of numbers have no axis.

Arrays are NumPy's, but tensors for dtypes that NumPy does not have. The structure is learned from the samples of the
worker's first batch, which are read and collated as always; so is every batch for which there is no such way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset

from .arrays import Array, as_rows, gather, is_dense, row_numbers
from .collation import DirectCollation
from .dtypes import TO_NUMPY

_Indices = Sequence[Any]
_Write = Callable[[_Indices, Any], None]
_Allot = Callable[[int], tuple[Any, Any]]  # from a batch's length to the dataset's ``out`` and the loop's batch


class _OrdinaryError(Exception):
    """This batch has to be read and collated as always. Nothing was written."""


class DirectFetcher:
    """Fetches batches as torch's fetcher does, but has the dataset write them into the slot once it is known how.

    Args:
        fetcher: torch's, for what is not written directly.
        collation: where batches go.
        write: what `writer_of` returned.
    """

    def __init__(self, fetcher: Any, collation: DirectCollation, write: _Write) -> None:
        self._fetcher = fetcher
        self._collate = fetcher.collate_fn
        self._collation = collation
        self._write = write
        self._allot: _Allot | None = None
        fetcher.collate_fn = self._learn

    def fetch(self, indices: Any) -> Any:
        """Returns the batch of ``indices``."""
        if self._allot is not None and len(indices):
            out, batch = self._allot(len(indices))
            try:
                self._write(indices, out)
            except _OrdinaryError:
                pass
            else:
                return batch
        return self._fetcher.fetch(indices)

    def _learn(self, samples: Any) -> Any:
        batch = self._collate(samples)
        self._allot = _allotter(samples[0], batch, self._collation)
        self._fetcher.collate_fn = self._collate
        return batch


def writer_of(dataset: Any) -> _Write | None:
    """Returns what writes samples of ``dataset`` into arrays, or None if it does not know how.

    Those that do are datasets with one of the methods above, torch's ``TensorDataset``, and subsets of any. A class
    that has a ``__getitem__`` or ``__getitems__`` of its own, and inherits the method, may mean something else by its
    samples.
    """
    if type(dataset) is Subset:
        write = writer_of(dataset.dataset)
        return None if write is None else lambda indices, out: write([dataset.indices[i] for i in indices], out)
    if _defines(type(dataset), "__getitems_into__"):
        write_all: _Write = dataset.__getitems_into__
        return write_all
    if _defines(type(dataset), "__getitem_into__"):
        return lambda indices, out: _write_each(dataset.__getitem_into__, indices, out)
    return _RowsWriter(dataset) if type(dataset) is TensorDataset else None


def _defines(kind: type, method: str) -> bool:
    for base in kind.__mro__:
        if method in vars(base):
            return True
        if "__getitem__" in vars(base) or "__getitems__" in vars(base):
            return False
    return False


def _write_each(write: Callable[[Any, Any], None], indices: _Indices, out: Any) -> None:
    for index, row in zip(indices, _rows(out, len(indices)), strict=True):
        write(index, row)


class _RowsWriter:
    def __init__(self, dataset: TensorDataset) -> None:
        self._dataset = dataset
        self._tensors: Sequence[torch.Tensor] = ()
        self._columns: list[Array] = []

    def __call__(self, indices: _Indices, out: Any) -> None:
        if self._tensors is not self._dataset.tensors:  # an init function may replace them
            self._tensors = self._dataset.tensors
            self._columns = list(map(as_rows, self._tensors)) if all(map(is_dense, self._tensors)) else []
        where = row_numbers(indices, len(self._columns[0])) if self._columns else None
        if where is None:
            raise _OrdinaryError
        for column, place in zip(self._columns, out, strict=True):
            gather(column, where, place)


def _rows(out: Any, count: int) -> Sequence[Any]:
    """Returns ``out`` as a sequence of samples."""
    if isinstance(out, np.ndarray):
        return list(out) if out.ndim > 1 else [out[row, ...] for row in range(count)]
    if isinstance(out, torch.Tensor):
        return out.unbind(0)
    if isinstance(out, dict):
        return [dict(zip(out, row, strict=True)) for row in zip(*(_rows(out[key], count) for key in out), strict=True)]
    rows = zip(*(_rows(part, count) for part in out), strict=True)
    return list(rows) if type(out) is tuple else list(map(_joiner(type(out)), rows))


def _joiner(kind: Any) -> Callable[[Any], Any]:
    """Returns what makes a list, a tuple or a named tuple of its parts."""
    return kind._make if hasattr(kind, "_fields") else kind  # type: ignore[no-any-return]


def _allotter(sample: Any, batch: Any, collation: DirectCollation) -> _Allot | None:
    """Returns what makes room for batches of samples like ``sample``, or None where a part is not a tensor.

    It holds nothing of the sample and the batch, whose memory will be another batch's.

    Args:
        sample: the first of a batch.
        batch: the whole of it, collated.
        collation: knows where there is room.
    """
    if isinstance(batch, torch.Tensor):
        return _leaf_allotter(batch, collation) if is_dense(batch) and batch.numel() else None
    if type(sample) is dict and type(batch) is dict and sample:
        parts = [_allotter(sample[key], batch[key], collation) for key in batch]
        keys = list(batch)
        return _all_of(parts, *2 * [lambda found: dict(zip(keys, found, strict=True))])
    is_tuple = isinstance(sample, tuple) and (type(sample) is tuple or hasattr(sample, "_fields"))
    if (is_tuple or type(sample) is list) and isinstance(batch, (list, tuple)) and sample:
        parts = [_allotter(*pair, collation) for pair in zip(sample, batch, strict=True)]
        return _all_of(parts, _joiner(type(sample)), _joiner(type(batch)))
    return None


def _all_of(
    parts: Sequence[_Allot | None], join_out: Callable[[Any], Any], join_batch: Callable[[Any], Any]
) -> _Allot | None:
    allots = [part for part in parts if part is not None]
    if len(allots) < len(parts):
        return None

    def allot(count: int) -> tuple[Any, Any]:
        outs, batches = zip(*[part(count) for part in allots], strict=True)
        out = join_out(outs)
        return out, join_batch(batches)

    return allot


def _leaf_allotter(batch: torch.Tensor, collation: DirectCollation) -> _Allot:
    dtype, shape = batch.dtype, tuple(batch.shape[1:])
    has_twin = dtype in TO_NUMPY

    def allot(count: int) -> tuple[Any, Any]:
        tensor, array = collation.empty((count, *shape), dtype)
        return (array if has_twin else tensor), tensor

    return allot
