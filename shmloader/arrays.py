"""A dataset over arrays, whose batches are gathered straight into their place."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from .dtypes import TO_TORCH, carrier

Array = np.ndarray[Any, Any]


class ArrayDataset(Dataset[tuple[torch.Tensor, ...]]):
    """What ``torch.utils.data.TensorDataset`` is for tensors, for NumPy arrays and memory maps too.

    Sample ``i`` is a tuple with row ``i`` of each array, as a tensor of its own. Any loader can read it;
    `ShmDataLoader` with the default collate function copies all rows of a batch into place at once, by
    `__getitems_into__`.

    Memory maps are opened again in workers that are spawned, and not sent to them.

    Args:
        arrays: NumPy arrays, memory maps or dense CPU tensors, shape (sample, ...), all of one length.

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

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        """Returns a copy of one row of each array."""
        return tuple(column.sample(index) for column in self._columns)

    def __getitems_into__(self, indices: Sequence[int], out: Sequence[Array | torch.Tensor]) -> None:
        """Copies rows into ``out``: for each array one of shape (batch, ...) and of the array's dtype.

        Raises:
            IndexError: there is no such row.
        """
        where = row_numbers(indices, len(self))
        if where is None:
            raise IndexError(f"rows {list(indices)} are not all ints of an ArrayDataset of {len(self)} rows")
        for column, place in zip(self._columns, out, strict=True):
            gather(column.rows, where, place)


class _Column:
    """One array, with its elements as numpy has them."""

    def __init__(self, array: Any, name: str) -> None:
        self._dtype = _dtype_of(array, name)
        self.rows: Array = as_rows(array) if isinstance(array, torch.Tensor) else array
        if not self.rows.ndim:
            raise ValueError(f"{name} has no axis of samples")

    def sample(self, index: int) -> torch.Tensor:
        # The array may be read-only, which torch warns of, and a tensor is not.
        return torch.from_numpy(np.array(self.rows[index])).view(self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        rows, memory = self.rows, cast(Any, self.rows.base)
        # A view of a map says the whole map's offset.
        is_map = isinstance(rows, np.memmap) and isinstance(memory, mmap.mmap) and rows.filename is not None
        return {"_dtype": self._dtype, "rows": _Map(rows) if is_map else rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rows = state["rows"]
        self.__dict__ = {**state, "rows": rows.open() if isinstance(rows, _Map) else rows}


class _Map:
    """What opens a memory map again."""

    def __init__(self, rows: Any) -> None:
        self._rows = {
            "filename": rows.filename,
            "dtype": rows.dtype,
            "mode": "c" if rows.mode == "c" else "r",
            "offset": rows.offset,
            "shape": rows.shape,
            "order": "C" if rows.flags.c_contiguous else "F",
        }

    def open(self) -> np.memmap[Any, Any]:
        return np.memmap(**self._rows)


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


def row_numbers(indices: Sequence[Any], length: int) -> Array | None:
    """Returns ``indices`` as an array, or None unless all are ints from 0 to ``length``, without it."""
    if not {int}.issuperset(map(type, indices)):
        return None
    try:
        where = np.frombuffer(array("q", indices), np.int64)  # a third of the time that np.array takes
    except OverflowError:
        return None
    # Without their signs, those below 0 are larger than any length.
    return where if not len(where) or where.view(np.uint64).max() < length else None


def gather(rows: Array, where: Array, out: Array | torch.Tensor) -> None:
    """Copies the rows ``where`` of ``rows`` into ``out``, which has their shape and dtype."""
    if isinstance(out, torch.Tensor):
        out = as_rows(out)
    if rows.flags.c_contiguous:
        # Any other mode than this fills a buffer first. The numbers are known to be right.
        rows.take(where, 0, out, "clip")
    else:  # of which it would copy all rows
        out[...] = rows[where]
