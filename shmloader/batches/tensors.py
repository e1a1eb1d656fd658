"""Tensors as memory: which are nothing but elements in a row, and what holds the memory that they lie in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .dtypes import TO_TORCH, carrier

Array = np.ndarray[Any, Any]
Block = np.ndarray[Any, np.dtype[np.uint8]]


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


def hold(storage: torch.UntypedStorage, memory: Array) -> None:
    """Makes a tensor's storage hold ``memory`` too, even when torch gives the storage other memory; see
    `slots.moved_storages`.

    What is set on a storage lives as long as torch's own object, whoever refers to that: tensors, arrays, DLPack.
    """
    storage._shmloader_memory = memory  # type: ignore[attr-defined]
