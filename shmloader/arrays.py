"""A dataset over arrays, whose batches are gathered straight into their place."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .dtypes import TO_TORCH, carrier
from .file_maps import Array, FilePart, part_of_file

# What torch and numpy index with as with an int. An np.bool_ is a mask to both, a uint8 tensor to torch.
_INTS = {int, *(np.dtype(code).type for code in "bBhHiIlLqQ")}
_INDEX_TENSORS = {(dtype, 0, True) for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)}
_tensor_kind = attrgetter("dtype", "ndim", "is_cpu")


class ArrayDataset(Dataset[tuple[torch.Tensor, ...]]):
    """What ``torch.utils.data.TensorDataset`` is for tensors, for NumPy arrays and memory maps too.

    Sample ``i`` is a tuple with row ``i`` of each array, as a tensor of its own. Any loader can read it;
    `ShmDataLoader` with the default collate function copies all rows of a batch into place at once, by
    `__getitems_into__`. Any index that NumPy takes is an index, with NumPy's meaning and errors.

    Pickled, as for workers that are spawned, a memory map is the name of its file and a place in it, if opening that
    file gives the bytes that the map has at that time. Where this is not certain, its rows are sent: of a copy-on-write
    map that was written to, of a file that is gone or replaced, of one without a name.

    Args:
        arrays: NumPy arrays, memory maps or dense CPU tensors, shape (sample, ...), all of one length. Of NumPy's
            subclasses only the elements count, and not a mask for example.

    Raises:
        TypeError: one is something else, or has a dtype that torch does not know.
        ValueError: one has no axis of samples, or their lengths differ.
    """

    def __init__(self, *arrays: Array | torch.Tensor) -> None:
        self._columns = [_Column(array, f"arrays[{number}]") for number, array in enumerate(arrays)]
        lengths = [len(column.rows) for column in self._columns]
        if not lengths or len(set(lengths)) > 1:
            raise ValueError(f"ArrayDataset takes one array or more, all of one length; theirs are {lengths}")

    def __len__(self) -> int:
        return len(self._columns[0].rows)

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, ...]:
        """Returns a copy of one row of each array."""
        return tuple(column.sample(index) for column in self._columns)

    def __getitems_into__(self, indices: Sequence[Any], out: Sequence[Array | torch.Tensor]) -> Any:
        """Copies rows into ``out``: for each array one of shape (batch, ...) and of the array's dtype.

        Returns:
            None, or NotImplemented where it is not certain that `__getitem__` would give the same for each index, or
            where ``out`` has not the shapes of rows. Then ``out`` has no meaning.
        """
        return write_rows([column.rows for column in self._columns], indices, out)


class _Column:
    """One array, with its elements as numpy has them."""

    def __init__(self, array: Any, name: str) -> None:
        self._dtype = _dtype_of(array, name)
        # Plain in any case: a subclass has ideas of its own of what a row is, and those of memory maps cost more.
        self._source: Array | torch.Tensor = array if isinstance(array, torch.Tensor) else np.asarray(array)
        if not self._source.ndim:
            raise ValueError(f"{name} has no axis of samples")

    @property
    def rows(self) -> Array:
        # A tensor's memory may be another by now, after share_memory_() for example.
        source = self._source
        return as_rows(source) if isinstance(source, torch.Tensor) else source

    def sample(self, index: Any) -> torch.Tensor:
        # The array may be read-only, which torch warns of, and a tensor is not.
        return torch.from_numpy(np.array(self.rows[index])).view(self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        rows = self.rows
        return {"_dtype": self._dtype, "_source": part_of_file(rows) or rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        source = state["_source"]
        self.__dict__ = {**state, "_source": source.open() if isinstance(source, FilePart) else source}


def _dtype_of(array: Any, name: str) -> torch.dtype:
    if isinstance(array, np.ndarray):
        if array.dtype not in TO_TORCH:
            raise TypeError(f"{name} is of dtype {array.dtype}, which torch does not have")
        return TO_TORCH[array.dtype]
    if not isinstance(array, torch.Tensor):
        raise TypeError(f"{name} is neither an array nor a tensor, but {type(array).__qualname__}")
    if not is_dense(array):
        raise TypeError(f"{name} is not a dense CPU tensor without gradient")
    return array.dtype


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie in this machine's memory, a step apart along each axis."""
    return tensor.layout is torch.strided and tensor.is_cpu and not (tensor.is_quantized or tensor.is_nested)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether there is nothing to a plain tensor but its elements as they lie there."""
    return (
        type(tensor) is torch.Tensor
        and is_plain(tensor)
        and not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg())
    )


def as_rows(tensor: torch.Tensor) -> Array:
    """Returns the elements of a dense tensor as an array over the same memory, of the dtype that carries them."""
    dtype = TO_TORCH[carrier(tensor.dtype)]
    return np.asarray((tensor if tensor.dtype is dtype else tensor.view(dtype)).numpy())


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
