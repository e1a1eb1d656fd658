"""A dataset over arrays, whose batches are gathered straight into their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from shmloader.batches.dtypes import TO_TORCH
from shmloader.batches.tensors import Array, as_rows, is_dense

from .file_maps import FilePart, part_of_file
from .gather import write_rows
from .shared_arrays import as_shared


class ArrayDataset(Dataset[tuple[torch.Tensor, ...]]):
    """What ``torch.utils.data.TensorDataset`` is for tensors, for NumPy arrays and memory maps too.

    Sample ``i`` is a tuple with row ``i`` of each array, as a tensor of its own. Any loader can read it;
    `ShmDataLoader` with the default collate function copies all rows of a batch into place at once, by
    `__getitems_into__`. Any index that NumPy takes is an index, with NumPy's meaning and errors.

    Pickled, as for workers that are spawned, a memory map is the name of its file and a place in it, if opening that
    file gives the bytes that the map has at that time. Where this is not certain, its rows are sent: of a copy-on-write
    map that was written to, of a file that is gone or replaced, of one without a name. Arrays and tensors that `share`
    has returned stay in shared memory, for workers of any start method.

    Args:
        arrays: NumPy arrays, memory maps or dense CPU tensors, shape (sample, ...), all of one length. Of NumPy's
            subclasses only the elements count, and not a mask for example.

    Raises:
        TypeError: one is something else, or has a dtype that torch does not have.
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
        # Plain in any case: a subclass may index in its own way, and memory maps do so at a cost.
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
        source: Any = self._source
        if not (isinstance(source, torch.Tensor) and source.is_shared()):  # which torch sends to processes as it is
            rows = self.rows
            source = part_of_file(rows) or as_shared(rows)
        return {"_dtype": self._dtype, "_source": source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        source = state["_source"]
        if isinstance(source, FilePart):
            source = source.open()
        is_tensor = isinstance(source, torch.Tensor)
        self.__dict__ = {**state, "_source": source if is_tensor else np.asarray(source)}


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
