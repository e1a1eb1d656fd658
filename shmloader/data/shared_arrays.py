"""Arrays in shared memory: what they are in the process that made them, and how they travel."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from types import EllipsisType, NoneType
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from shmloader.batches.tensors import Array

from .shared_memory import Segment, fill, mapped, new_file, seal, segment_of

# Indices whose result is a view: a text is a field's name. Of ints a view comes too, but that is a row, or an element.
_VIEWS = (slice, EllipsisType, NoneType, str)


class SharedArray(np.ndarray[Any, Any]):
    """An array over shared memory, which other processes are sent without a copy, as they are slices of it.

    A row that an int picks is a plain array over the same memory, so that samples and batches are what they are for
    any other array; what is computed or copied of one is plain too.

    multiprocessing sends it by descriptor; ``pickle``, ``copy`` and whatever builds on them go by value. So does what a
    loader's worker returns: a batch is the loop's own memory.
    """

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, _VIEWS) or (type(index) is tuple and all(isinstance(one, _VIEWS) for one in index)):
            return super().__getitem__(index)
        return self.view(np.ndarray)[index]

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        if array is self:  # which was written to in place
            return array
        # NumPy 1 leaves it to this method to make scalars of arrays without an axis.
        return array[()] if return_scalar or array.shape == () else array.view(np.ndarray)

    def copy(self, order: Any = "C") -> Any:
        """Returns a plain array with the same elements, in memory of its own."""
        return self.view(np.ndarray).copy(order)

    def __repr__(self) -> str:
        plain, name = repr(self.view(np.ndarray)), type(self).__qualname__
        return name + plain.removeprefix("array").replace("\n", "\n" + " " * (len(name) - len("array")))

    def __copy__(self) -> Any:
        return self.copy("K")

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self.view(np.ndarray), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return np.asarray, (self.view(np.ndarray),)


# Where there is no batch to collate, torch makes tensors of NumPy's arrays, but for those of text and objects: it knows
# both by the name of the class.
SharedArray.__module__, SharedArray.__name__ = np.__name__, np.ndarray.__name__


def share_arrays(arrays: Sequence[Array], frozen: bool) -> list[SharedArray]:
    """Copies arrays into one segment, and returns them as they lie there.

    Args:
        arrays: without objects in them, of any layout.
        frozen: whether no process may write to them.

    Raises:
        MemoryError: there is not that much memory.
    """
    with new_file() as fd:
        offsets = fill(fd, arrays)
        seal(fd, frozen)
        segment = mapped(fd, frozen)
    return [
        SharedArray(source.shape, source.dtype, segment.block(), offset)
        for source, offset in zip(arrays, offsets, strict=True)
    ]


def as_shared(array: Array) -> Array:
    """Returns an array as one that travels without a copy, where its elements lie in shared memory."""
    return array if segment_of(array) is None else array.view(SharedArray)


def _reduce(array: SharedArray) -> Any:
    segment = segment_of(array)
    if segment is None or is_returned_by_a_worker():
        return np.asarray, (array.view(np.ndarray),)
    offset = array.__array_interface__["data"][0] - segment.address
    return _rebuilt, (segment, offset, array.dtype, array.shape, array.strides, array.flags.writeable)


def _rebuilt(
    segment: Segment, offset: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...], writeable: bool
) -> SharedArray:
    array = SharedArray(shape, dtype, segment.block(), offset, strides)
    array.flags.writeable = writeable
    return array


def is_returned_by_a_worker() -> bool:
    """Whether what is being pickled goes from a loader's worker to the loop, and not to a process that it starts."""
    return get_worker_info() is not None and get_spawning_popen() is None


reduction.ForkingPickler.register(SharedArray, _reduce)
