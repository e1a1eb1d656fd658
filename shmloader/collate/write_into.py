"""Direct writing: batches that a dataset writes into the slot itself. Runs in a worker.

A dataset says that it can by a method:

- ``__getitems_into__(indices, out)`` writes the samples of a whole batch; ``out`` has the structure of a sample, and
  in each place of a tensor or number an array of shape (batch, ...);
- ``__getitem_into__(index, out)`` writes one sample; its arrays are one sample's, those of numbers have no axis.

Arrays are NumPy's, but tensors for dtypes that NumPy does not have. The structure is learned from the samples of the
worker's first batch, which are read and collated as always; so is every batch for which there is no such way. Either
method says that there is none for a batch by returning ``NotImplemented``: what it has written does not count then.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset

from shmloader.batches.dtypes import TO_NUMPY, carried
from shmloader.batches.tensors import Array, as_rows, is_dense
from shmloader.data.gather import write_rows
from shmloader.slots.writer import SlotWriter

from .default import DirectCollation
from .templates import Templates

_Indices = Sequence[Any]
_Write = Callable[[_Indices, Any], Any]  # returns NotImplemented where the batch has to be read as always
_Join = Callable[[Iterator[Any]], Any]  # makes a structure of its leaves


# Reading from these has no effect, so that it does no harm to read them again as torch's fetcher does.
_PLAIN_INDICES = {list, tuple, range, array, np.ndarray, np.memmap, torch.Tensor}


class _NoTensorsError(Exception):
    """Batches have parts that nothing can be written to."""


class DirectFetcher:
    """Fetches batches as torch's fetcher does, but has the dataset write them into the slot once it is known how.

    Args:
        fetcher: torch's, for what is not written directly.
        collation: makes the first batch of each size.
        templates: those of the batches before.
        writer: where batches go.
        way: what `way_of` returned.
    """

    def __init__(
        self, fetcher: Any, collation: DirectCollation, templates: Templates, writer: SlotWriter, way: Way
    ) -> None:
        self._fetcher = fetcher
        self._collate = fetcher.collate_fn
        self._collation = collation
        self._templates = templates
        self._writer = writer
        self._way = way
        self._places = templates.places if way.is_ours else templates.lend
        self._shape: _Shape | None = None
        fetcher.collate_fn = self._learn

    def fetch(self, indices: Any) -> Any:
        """Returns the batch of ``indices``, or its template if all of it is in the slot."""
        if self._shape is not None and (count := len(indices) if type(indices) is list else _count(indices)):
            out, batch = self._room_for(count, self._shape)
            if self._way.write(indices, out) is not NotImplemented:
                return batch
            del out, batch  # which hold the slot
            self._writer.reclaim()
        return self._fetcher.fetch(indices)

    def _room_for(self, count: int, shape: _Shape) -> tuple[Any, Any]:
        """Returns what is written to, and the loop's batch or its template."""
        template = self._templates.find(count)
        if template is not None and (arrays := self._places(template)) is not None:
            return (arrays if self._way.is_ours else shape.out(arrays)), template
        tensors, arrays = [], []
        for dtype, row in shape.leaves:
            tensor, array = self._collation.empty((count, *row), dtype)
            tensors.append(tensor)
            arrays.append(array)
        return shape.out(arrays), shape.batch(tensors)

    def _learn(self, samples: Any) -> Any:
        batch = self._collate(samples)
        with contextlib.suppress(_NoTensorsError, RecursionError):
            self._shape = _Shape(samples[0], batch)
        self._fetcher.collate_fn = self._collate
        return batch


def _count(indices: Any) -> int:
    """Returns how many samples a batch has; 0 where torch's fetcher must find that out: it is an iterator, or none."""
    if isinstance(indices, (np.ndarray, torch.Tensor)):
        return len(indices) if indices.ndim else 0
    return len(indices) if isinstance(indices, Sequence) else 0


class Way(NamedTuple):
    """How samples of a dataset are written into arrays.

    Attributes:
        write: called with indices and arrays; returns NotImplemented where it does not know how.
        is_ours: whether that is code of this module, which takes a plain list of arrays and holds none.
    """

    write: _Write
    is_ours: bool


def _methods(kind: type) -> tuple[Any, Any]:
    return vars(kind).get("__getitem__"), vars(kind).get("__getitems__")


_OWN_METHODS = {kind: _methods(kind) for kind in (Subset, TensorDataset)}


def way_of(dataset: Any) -> Way | None:
    """Returns how samples of ``dataset`` are written into arrays, or None if it does not know how.

    Those that do are datasets with one of the methods above, torch's ``TensorDataset``, and subsets of any. A class
    that has a ``__getitem__`` or ``__getitems__`` of its own, and inherits the method, may mean something else by its
    samples; so may an object that has a ``__getitems__`` of its own, which torch's fetcher would call.
    """
    if "__getitems__" in getattr(dataset, "__dict__", ()):
        return None
    if type(dataset) in _OWN_METHODS and _OWN_METHODS[type(dataset)] != _methods(type(dataset)):
        return None  # somebody has put others in their place
    if type(dataset) is Subset:
        way = way_of(dataset.dataset)
        return None if way is None else way._replace(write=_subset_writer(dataset, way.write))
    if _defines(type(dataset), "__getitems_into__"):
        return Way(dataset.__getitems_into__, False)
    if _defines(type(dataset), "__getitem_into__"):
        return Way(lambda indices, out: _write_each(dataset.__getitem_into__, indices, out), False)
    return Way(_RowsWriter(dataset), True) if type(dataset) is TensorDataset else None


def _defines(kind: type, method: str) -> bool:
    for base in kind.__mro__:
        if method in vars(base):
            return True
        if "__getitem__" in vars(base) or "__getitems__" in vars(base):
            return False
    return False


def _subset_writer(subset: Subset[Any], write: _Write) -> _Write:
    def write_chosen(indices: _Indices, out: Any) -> Any:
        all_indices: Any = subset.indices
        if type(all_indices) not in _PLAIN_INDICES:
            return NotImplemented
        try:
            chosen = [all_indices[i] for i in indices]
        except Exception:  # which comes before this in torch's fetcher, if a sample before it is an error too
            return NotImplemented
        return write(chosen, out)

    return write_chosen


def _write_each(write: Callable[[Any, Any], Any], indices: _Indices, out: Any) -> Any:
    for index, row in zip(indices, _rows(out, len(indices)), strict=True):
        if write(index, row) is NotImplemented:
            return NotImplemented
    return None


class _RowsWriter:
    def __init__(self, dataset: TensorDataset) -> None:
        self._dataset = dataset
        self._tensors: Sequence[torch.Tensor] = ()
        self._places: list[tuple[int, torch.Size]] = []
        self._columns: list[Array] = []

    def __call__(self, indices: _Indices, out: Any) -> Any:
        # An init function may replace them, and a thread of the user's, or an index that runs code, their memory.
        tensors = self._dataset.tensors
        if tensors is not self._tensors or (self._columns and _places_of(tensors) != self._places):
            self._columns = _columns_of(tensors)
            self._tensors = tensors
            self._places = _places_of(tensors) if self._columns else []
        return write_rows(self._columns, indices, out) if self._columns else NotImplemented


def _places_of(tensors: Sequence[torch.Tensor]) -> list[tuple[int, torch.Size]]:
    return [(tensor.data_ptr(), tensor.shape) for tensor in tensors]


def _columns_of(tensors: Any) -> list[Array]:
    """Returns the tensors of a dataset as arrays; none unless they are as `TensorDataset` wants them, and dense."""
    is_plain = type(tensors) is tuple and all(is_dense(tensor) and tensor.ndim for tensor in tensors)
    if not is_plain or len(set(map(len, tensors))) != 1:
        return []
    return list(map(as_rows, tensors))


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


class _Shape:
    """What samples, and batches of them, consist of.

    Args:
        sample: the first of a batch. Nothing of it is held, nor of the batch, whose memory will be another batch's.
        batch: the whole of it, collated.

    Raises:
        _NoTensorsError: a part is not a tensor.
    """

    def __init__(self, sample: Any, batch: Any) -> None:
        self.leaves: list[tuple[torch.dtype, tuple[int, ...]]] = []
        self._join_out, self._join_batch = self._joiners(sample, batch)

    def out(self, arrays: list[Array]) -> Any:
        """Returns what the dataset writes to, of one array for each leaf."""
        pairs = zip(arrays, self.leaves, strict=True)
        return self._join_out(array if dtype in TO_NUMPY else carried(array, dtype) for array, (dtype, _) in pairs)

    def batch(self, tensors: list[torch.Tensor]) -> Any:
        """Returns the batch, of one tensor for each leaf."""
        return self._join_batch(iter(tensors))

    def _joiners(self, sample: Any, batch: Any) -> tuple[_Join, _Join]:
        if isinstance(batch, torch.Tensor) and is_dense(batch) and batch.numel():
            self.leaves.append((batch.dtype, tuple(batch.shape[1:])))
            return next, next
        if type(sample) is dict and type(batch) is dict and sample:
            keys = list(batch)
            parts = [self._joiners(sample[key], batch[key]) for key in keys]
            join_out = join_batch = lambda found: dict(zip(keys, found, strict=True))
        elif _is_sequence(sample) and isinstance(batch, (list, tuple)) and sample:
            parts = [self._joiners(*pair) for pair in zip(sample, batch, strict=True)]
            join_out, join_batch = _joiner(type(sample)), _joiner(type(batch))
        else:
            raise _NoTensorsError
        outs, batches = zip(*parts, strict=True)
        return _joining(join_out, outs), _joining(join_batch, batches)


def _is_sequence(sample: Any) -> bool:
    return type(sample) in (list, tuple) or (isinstance(sample, tuple) and hasattr(sample, "_fields"))


def _joining(join: Callable[[list[Any]], Any], parts: Sequence[_Join]) -> _Join:
    return lambda leaves: join([part(leaves) for part in parts])
