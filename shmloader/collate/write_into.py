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
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset

from shmloader.batches.dtypes import TO_NUMPY, carried
from shmloader.batches.structure import NotPlainError, joiner
from shmloader.batches.structure import leaves as structure_leaves
from shmloader.batches.tensors import Array, as_rows, is_dense
from shmloader.data.gather import write_rows
from shmloader.slots.writer import SlotWriter

from .default import DirectCollation
from .templates import Template, Templates

_Indices = Sequence[Any]

# Goes through the indices of a batch, one after the other.
Each = Callable[[Any], Any]


def as_is(indices: Any) -> Any:
    """Goes through indices as they are."""
    return indices


# Reading from these has no effect, so that it does no harm to read them again as torch's fetcher does.
_PLAIN_INDICES = {list, tuple, range, array, np.ndarray, np.memmap, torch.Tensor}


class DirectFetcher:
    """Fetches batches as torch's fetcher does, but has the dataset write them into the slot once it is known how.

    Args:
        fetcher: torch's, for what is not written directly.
        collation: makes the first batch of each size.
        templates: those of the batches before.
        writer: where batches go.
        way: what `way_of` returned.
        each: how torch's fetcher goes through indices.
    """

    def __init__(
        self,
        fetcher: Any,
        collation: DirectCollation,
        templates: Templates,
        writer: SlotWriter,
        way: Way,
        each: Each = as_is,
    ) -> None:
        self._fetcher = fetcher
        self._collate = fetcher.collate_fn
        self._collation = collation
        self._templates = templates
        self._writer = writer
        self._way = way
        self._each = each
        self._arrays = templates.lend if way.lends else templates.arrays
        self._structure: SampleStructure | None = None
        fetcher.collate_fn = self._learn

    def fetch(self, indices: Any) -> Any:
        """Returns the batch of ``indices``, or its template if all of it is in the slot."""
        structure = self._structure
        if structure is not None and (count := len(indices) if type(indices) is list else _count(indices)):
            arrays, batch = room_for(count, count, structure, self._templates, self._collation, self._arrays)
            if self._way.write(indices, arrays, structure) is not NotImplemented:
                return batch
            del arrays, batch  # which hold the slot
            self._writer.reclaim()
        return self._fetcher.fetch(self._each(indices))

    def _learn(self, samples: Any) -> Any:
        batch = self._collate(samples)
        with contextlib.suppress(NotPlainError, RecursionError):
            self._structure = SampleStructure(samples[0], batch)
        self._fetcher.collate_fn = self._collate
        return batch


def _count(indices: Any) -> int:
    """Returns how many samples a batch has; 0 where torch's fetcher must find that out: it is an iterator, or none."""
    if isinstance(indices, (np.ndarray, torch.Tensor)):
        return len(indices) if indices.ndim else 0
    return len(indices) if isinstance(indices, Sequence) else 0


class SampleStructure:
    """What samples, and batches of them, consist of.

    Args:
        sample: the first of a batch. Nothing of it is held, nor of the batch, whose memory will be another batch's.
        batch: the whole of it, collated.

    Attributes:
        leaves: of each tensor of a batch the dtype, and the sizes of its axes behind that of samples.

    Raises:
        NotPlainError: a part is not a tensor, or the two differ.
    """

    def __init__(self, sample: Any, batch: Any) -> None:
        self._join_out = joiner(sample, lambda part: isinstance(part, _COLLATED))
        self._join_batch = joiner(batch, lambda part: isinstance(part, torch.Tensor))
        tensors = list(structure_leaves(batch))
        is_writable = all(isinstance(one, torch.Tensor) and is_dense(one) and one.numel() for one in tensors)
        if not tensors or not is_writable or len(tensors) != len(list(structure_leaves(sample))):
            raise NotPlainError
        self.leaves: list[tuple[torch.dtype, tuple[int, ...]]] = [(one.dtype, tuple(one.shape[1:])) for one in tensors]

    def batch(self, tensors: list[torch.Tensor]) -> Any:
        """Returns the batch, of one tensor for each leaf."""
        return self._join_batch(iter(tensors))

    def out(self, arrays: list[Array]) -> Any:
        """Returns what a dataset writes a whole batch to, of one array for each leaf."""
        return self._join_out(iter(self._as_users_know(arrays)))

    def rows(self, arrays: list[Array], count: int) -> Iterator[Any]:
        """Yields what a dataset writes one sample to, for each of ``count`` samples."""
        columns = [self._rows(leaf, count) for leaf in self._as_users_know(arrays)]
        return (self._join_out(iter(row)) for row in zip(*columns, strict=True))

    def _as_users_know(self, arrays: list[Array]) -> list[Any]:
        """Returns arrays, but tensors for dtypes that NumPy does not have."""
        pairs = zip(arrays, self.leaves, strict=True)
        return [array if dtype in TO_NUMPY else carried(array, dtype) for array, (dtype, _) in pairs]

    @staticmethod
    def _rows(leaf: Any, count: int) -> Sequence[Any]:
        if isinstance(leaf, torch.Tensor):
            return leaf.unbind(0)
        # Of one axis the rows would be numbers, which nothing can be written to.
        return list(leaf) if leaf.ndim > 1 else [leaf[row, ...] for row in range(count)]


def room_for(
    key: Hashable,
    count: int,
    structure: SampleStructure,
    templates: Templates,
    collation: DirectCollation,
    arrays_of: Callable[[Template], list[Array] | None],
) -> tuple[list[Array], Any]:
    """Returns what a batch of ``count`` samples is written to, one array for each leaf; and the batch or its template.

    Args:
        key: of the batch's template.
        count: how many samples.
        structure: theirs.
        templates: those of the batches before.
        collation: makes new memory where there is no template, or its slot has no room.
        arrays_of: gives a template's places, `Templates.lend` or `Templates.arrays`.
    """
    template = templates.find(key)
    if template is not None and (arrays := arrays_of(template)) is not None:
        return arrays, template
    made = [collation.empty((count, *row), dtype) for dtype, row in structure.leaves]
    return [array for _, array in made], structure.batch([tensor for tensor, _ in made])


# What the default collate function makes tensors of.
_COLLATED = (torch.Tensor, np.ndarray, np.bool_, np.number, int, float)

# Returns NotImplemented where the batch has to be read as always.
_Write = Callable[[_Indices, list[Array], SampleStructure], Any]


class Way(NamedTuple):
    """How samples of a dataset are written into arrays.

    Attributes:
        write: called with indices, an array for each leaf of the batch, and the structure of samples; returns
            NotImplemented where it cannot.
        lends: whether that gives the arrays to code of the user's, which may hold them.
    """

    write: _Write
    lends: bool


def _methods(kind: type) -> tuple[Any, Any]:
    return vars(kind).get("__getitem__"), vars(kind).get("__getitems__")


_OWN_METHODS = {kind: _methods(kind) for kind in (Subset, TensorDataset)}


def way_of(dataset: Any, each: Each = as_is) -> Way | None:
    """Returns how samples of ``dataset`` are written into arrays, or None where they are not.

    They are where it has one of the methods above, is a ``TensorDataset`` of torch's, or a subset of either. A class
    that has a ``__getitem__`` or ``__getitems__`` of its own, and inherits the method, may mean something else by its
    samples; so may an object that has a ``__getitems__`` of its own, which torch's fetcher would call.

    Args:
        dataset: the user's.
        each: how indices are gone through where samples are written one by one.
    """
    if "__getitems__" in getattr(dataset, "__dict__", ()):
        return None
    if type(dataset) in _OWN_METHODS and _OWN_METHODS[type(dataset)] != _methods(type(dataset)):
        return None  # they were replaced
    if type(dataset) is Subset:
        way = way_of(dataset.dataset, each)
        return None if way is None else way._replace(write=_subset_writer(dataset, way.write))
    if _defines(type(dataset), "__getitems_into__"):
        return Way(partial(_write_batch, dataset.__getitems_into__), lends=True)
    if _defines(type(dataset), "__getitem_into__"):
        return Way(partial(_write_each, dataset.__getitem_into__, each), lends=True)
    return Way(_RowsWriter(dataset), lends=False) if type(dataset) is TensorDataset else None


def _defines(kind: type, method: str) -> bool:
    for base in kind.__mro__:
        if method in vars(base):
            return vars(base)[method] is not None  # None says that there is none, as with methods of Python's own
        if "__getitem__" in vars(base) or "__getitems__" in vars(base):
            return False
    return False


def _subset_writer(subset: Subset[Any], write: _Write) -> _Write:
    def write_chosen(indices: _Indices, arrays: list[Array], structure: SampleStructure) -> Any:
        all_indices: Any = subset.indices
        if type(all_indices) not in _PLAIN_INDICES:
            return NotImplemented
        try:
            chosen = [all_indices[i] for i in indices]
        except Exception:  # which comes before this in torch's fetcher, if a sample before it is an error too
            return NotImplemented
        return write(chosen, arrays, structure)

    return write_chosen


def _write_batch(
    write: Callable[[_Indices, Any], Any], indices: _Indices, arrays: list[Array], structure: SampleStructure
) -> Any:
    return write(indices, structure.out(arrays))


def _write_each(
    write: Callable[[Any, Any], Any], each: Each, indices: _Indices, arrays: list[Array], structure: SampleStructure
) -> Any:
    for index, row in zip(each(indices), structure.rows(arrays, len(indices)), strict=True):
        if write(index, row) is NotImplemented:
            return NotImplemented
    return None


class _RowsWriter:
    def __init__(self, dataset: TensorDataset) -> None:
        self._dataset = dataset
        self._tensors: Sequence[torch.Tensor] = ()
        self._places: list[tuple[int, torch.Size]] = []
        self._columns: list[Array] = []

    def __call__(self, indices: _Indices, arrays: list[Array], structure: SampleStructure) -> Any:
        # An init function may replace them, and a thread of the user's, or an index that runs code, their memory.
        tensors = self._dataset.tensors
        if tensors is not self._tensors or (self._columns and _places_of(tensors) != self._places):
            self._columns = _columns_of(tensors)
            self._tensors = tensors
            self._places = _places_of(tensors) if self._columns else []
        return write_rows(self._columns, indices, arrays) if self._columns else NotImplemented


def _places_of(tensors: Sequence[torch.Tensor]) -> list[tuple[int, torch.Size]]:
    return [(tensor.data_ptr(), tensor.shape) for tensor in tensors]


def _columns_of(tensors: Any) -> list[Array]:
    """Returns the tensors of a dataset as arrays; none unless they are of one length, and dense."""
    is_plain = type(tensors) is tuple and all(is_dense(tensor) and tensor.ndim for tensor in tensors)
    if not is_plain or len(set(map(len, tensors))) != 1:
        return []
    return list(map(as_rows, tensors))
