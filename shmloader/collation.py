"""Direct collation: torch's default collate functions, writing into the slot.

torch's ``collate`` looks each element type up in ``default_collate_fn_map``. A worker process replaces the entries
for tensors and arrays in its own copy of that map, so that `default_collate` stacks into slot memory whoever calls
it, a user's own collate function included. Whatever the fast path is not certain to treat as torch does, it leaves
to torch's function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils.collate import collate_numpy_array_fn, collate_tensor_fn, default_collate_fn_map

from .dtypes import TO_TORCH
from .writer import SlotWriter

_CollateFn = Callable[..., Any]
_shape = attrgetter("shape")
_strides = attrgetter("strides")
_dtype = attrgetter("dtype")


class DirectCollation:
    """Replaces torch's entries for tensors and arrays in this process. Used in a worker.

    An entry that the user has replaced stays the user's.
    """

    def __init__(self, writer: SlotWriter) -> None:
        self._writer = writer

    def install(self) -> None:
        """Makes the default collate functions of this process write into the writer's slot while one is open."""
        self._replace(torch.Tensor, collate_tensor_fn, self._stack_tensors)
        self._replace(np.ndarray, collate_numpy_array_fn, self._stack_arrays)

    def uninstall(self) -> None:
        """Puts torch's entries back."""
        self._replace(torch.Tensor, self._stack_tensors, collate_tensor_fn)
        self._replace(np.ndarray, self._stack_arrays, collate_numpy_array_fn)

    def _replace(self, kind: type, old: _CollateFn, new: _CollateFn) -> None:
        if default_collate_fn_map.get(kind) == old:
            default_collate_fn_map[kind] = new

    def _stack_tensors(self, batch: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
        first = batch[0]
        if self._writer.is_open and type(first) is torch.Tensor and _is_plain(first):
            out = self._writer.empty((len(batch), *first.shape), first.dtype)
            if out is not None:
                # What cannot be stacked, torch's own function refuses in its own words.
                with contextlib.suppress(RuntimeError, TypeError):
                    return torch.stack(batch, 0, out=out)  # type: ignore[arg-type]
        return collate_tensor_fn(batch, collate_fn_map=collate_fn_map)

    def _stack_arrays(self, batch: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
        first = batch[0]
        dtype = TO_TORCH.get(first.dtype)
        if self._writer.is_open and dtype is not None and first.ndim and _are_alike(batch):
            out = self._writer.empty((len(batch), *first.shape), dtype)
            if out is not None:
                # Along an existing axis: np.stack would first give every sample a new one, at twice the time.
                joined = out.numpy().reshape(-1, *first.shape[1:])
                np.concatenate(batch, out=joined, casting="no")
                return out
        return collate_numpy_array_fn(batch, collate_fn_map=collate_fn_map)


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided and tensor.device.type == "cpu" and not (tensor.is_quantized or tensor.is_nested)
    )


def _are_alike(batch: Sequence[Any]) -> bool:
    """Whether all are plain C-contiguous arrays of one shape and dtype, for which joining bytes equals stacking."""
    first = batch[0]
    return (
        set(map(type, batch)) <= {np.ndarray, np.memmap}
        and len(set(map(_shape, batch))) == 1
        and set(map(_strides, batch)) == {first.strides}
        and first.flags.c_contiguous
        and len(set(map(_dtype, batch))) == 1
    )
