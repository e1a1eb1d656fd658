"""Direct collation: torch's default collate functions, writing into the slot.

torch's ``collate`` looks each element type up in ``default_collate_fn_map``. A worker replaces entries of that map, so
that `default_collate` stacks into slot memory whoever calls it, a user's own collate function included. Whatever an
entry is not certain to treat as torch does, it leaves to torch's function: there the result is torch's, and so is the
error.

torch's function for tensors stacks into a storage that it makes in shared memory, and other libraries have copied that:
PyTorch Geometric for graphs, MONAI for volumes. So a storage in shared memory that is asked for while a batch is
collated lies in the slot too.

The map is the process's, and a worker may be one of its threads. So the entries are functions that look for the worker
that they run in, and in any other thread they do nothing but call torch's. They stay in the map: to take them out when
the last worker thread has ended would be one more thing that another thread may be in the middle of.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from shmloader.batches.dtypes import TO_TORCH, carried, carrier
from shmloader.batches.tensors import Array, hold, is_plain
from shmloader.slots.writer import SlotWriter
from shmloader.torch_private import (
    COLLATE_KEYS,
    collate_float_fn,
    collate_fn_map,
    collate_int_fn,
    collate_numpy_array_fn,
    collate_tensor_fn,
    lend_storages,
)

from .columns import write_arrays, write_numbers

_CollateFn = Callable[..., Any]
_NUMBERS: dict[type, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}


class DirectCollation:
    """What the entries of torch's map do in one worker.

    An entry that the user has replaced or added stays the user's. Ours write into the slot while the batch's own
    collate function runs (`SlotWriter.is_collating`), and into private memory at any other time: what a dataset
    collates may be a source of the batch.
    """

    def __init__(self, writer: SlotWriter) -> None:
        self._writer = writer
        self._values: list[_CollateFn] = []  # the map's, if none is the user's
        self._has_lent = False

    def install(self) -> None:
        """Makes the default collate functions of this process write into the writer's slot, in whatever thread."""
        global _of_process
        _of_thread.collation = None  # a worker thread's, where the process was forked from that
        _of_process = self
        self._begin()

    def install_in_thread(self) -> None:
        """Does the same in this thread alone, until `leave_thread`."""
        _of_thread.collation = self
        self._begin()

    def _begin(self) -> None:
        replace_entries()
        if collate_fn_map.keys() == COLLATE_KEYS and all(collate_fn_map[kind] is ours for kind, _, ours in _ENTRIES):
            self._values = list(collate_fn_map.values())

    def is_default(self) -> bool:
        """Whether no entry of the map is the user's. Asked for every batch, since code of a dataset may change it."""
        return list(collate_fn_map.values()) == self._values

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, Array]:
        """Returns new memory, in the slot if it has room for it: a tensor, and the array that carries it.

        Else it is private: torch's own function would take shared memory, of a size that is limited on many machines.
        """
        array = self._writer.array(shape, carrier(dtype))
        return _private(shape, dtype) if array is None else (carried(array, dtype), array)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, Array]:
        """Does the same for code that may not be the batch's own collate function."""
        return self.empty(shape, dtype) if self._writer.is_collating else _private(shape, dtype)

    def storage(self, nbytes: int) -> torch.UntypedStorage | None:
        """Returns a storage in place of one in shared memory; None while no batch is being collated.

        A dataset may want to share what it makes with its own processes; a batch is sent by us.
        """
        if not self._writer.is_collating:
            return None
        self._has_lent = True
        return self.empty((nbytes,), torch.uint8)[0].untyped_storage()

    def has_lent_storage(self) -> bool:
        """Whether other functions than ours may have made tensors in the slot since this was asked last."""
        found, self._has_lent = self._has_lent, False
        return found

    # What each of these does not make, it returns None for.

    def stack_tensors(self, batch: Sequence[Any]) -> torch.Tensor | None:
        """Stacks tensors."""
        first = batch[0]
        if type(first) is torch.Tensor and is_plain(first):
            # What cannot be stacked, torch's own function refuses in its own words.
            with contextlib.suppress(RuntimeError, TypeError):
                out, _ = self._new((len(batch), *first.shape), first.dtype)
                return torch.stack(batch, 0, out=out)  # type: ignore[arg-type]
        return None

    def stack_arrays(self, batch: Sequence[Any]) -> torch.Tensor | None:
        """Stacks arrays."""
        first = batch[0]
        if first.dtype in TO_TORCH and first.ndim and first.flags.c_contiguous:
            tensor, out = self._new((len(batch), *first.shape), TO_TORCH[first.dtype])
            if write_arrays(batch, out):
                return tensor
        return None

    def join_numbers(self, batch: Sequence[Any]) -> torch.Tensor | None:
        """Makes a tensor of numbers."""
        dtype = _NUMBERS.get(type(batch[0]))
        if dtype is not None:
            tensor, out = self._new((len(batch),), dtype)
            if write_numbers(batch, out):
                return tensor
        return None


class _OfThread(threading.local):
    collation: DirectCollation | None = None


_of_thread = _OfThread()
_of_process: DirectCollation | None = None  # of a worker process, whose dataset may have threads of its own


def leave_thread() -> None:
    """Undoes `DirectCollation.install_in_thread` in this thread."""
    _of_thread.collation = None


def _stack_tensors(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    collation = _of_thread.collation or _of_process
    made = None if collation is None else collation.stack_tensors(batch)
    return collate_tensor_fn(batch, collate_fn_map=collate_fn_map) if made is None else made


def _stack_arrays(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    collation = _of_thread.collation or _of_process
    made = None
    # torch makes tensors of arrays and collates those, by whatever entry there is for them.
    if collation is not None and collate_fn_map is not None and collate_fn_map.get(torch.Tensor) is _stack_tensors:
        made = collation.stack_arrays(batch)
    return collate_numpy_array_fn(batch, collate_fn_map=collate_fn_map) if made is None else made


def _join_numbers(torchs: _CollateFn, batch: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    collation = _of_thread.collation or _of_process
    made = None if collation is None else collation.join_numbers(batch)
    return torchs(batch, collate_fn_map=collate_fn_map) if made is None else made


# The types, torch's functions for them, and ours. User code may pickle a copy of the map, so these can be pickled too.
_ENTRIES: list[tuple[type, _CollateFn, _CollateFn]] = [
    (torch.Tensor, collate_tensor_fn, _stack_tensors),
    (np.ndarray, collate_numpy_array_fn, _stack_arrays),
    (float, collate_float_fn, functools.partial(_join_numbers, collate_float_fn)),
    (int, collate_int_fn, functools.partial(_join_numbers, collate_int_fn)),
]


def _storage(nbytes: int) -> torch.UntypedStorage | None:
    collation = _of_thread.collation or _of_process
    return None if collation is None else collation.storage(nbytes)


def replace_entries() -> None:
    """Puts our functions into torch's map, in the place of torch's. Safe to call again, and from any thread."""
    lend_storages(_storage)
    for kind, torchs, ours in _ENTRIES:
        if collate_fn_map.get(kind) is torchs:
            collate_fn_map[kind] = ours


def _private(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, Array]:
    array = np.empty(shape, carrier(dtype))
    if 0 in shape:  # numpy has other strides for these
        return torch.empty(shape, dtype=dtype, device="cpu"), array
    tensor = carried(array, dtype)
    hold(tensor.untyped_storage(), array)  # torch's own would be shared memory, which does not move
    return tensor, array
