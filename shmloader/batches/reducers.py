"""Tensors that are more than their elements in a row, taken apart into such as are not."""

from __future__ import annotations

from typing import Any

import torch

from shmloader.torch_private import reduce_tensor, sparse_parts


class Own:
    """A dense tensor that goes into the slot whatever is registered for tensors."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def reduce_any_tensor(tensor: torch.Tensor) -> Any:
    """Returns what a tensor is made of again, as ``__reduce__`` does: dense tensors, storages, and what is small.

    Raises:
        RuntimeError: it is a result of autograd.
    """
    if tensor.requires_grad and not tensor.is_leaf:
        raise RuntimeError(
            "a batch holds a non-leaf tensor which requires grad; autograd does not cross processes, so detach it in "
            "the dataset or collate_fn"
        )
    if tensor.device.type not in ("cpu", "meta"):
        return reduce_tensor(tensor)
    if type(tensor) is torch.Tensor and tensor.layout is not torch.strided:
        return _reduce_sparse(tensor)
    if tensor.is_quantized and not _has_quantizer(tensor):
        where = tensor.storage_offset(), tensor.shape, tensor.stride()
        return _unquantized, (Own(bytes_of(tensor.untyped_storage())), tensor.dtype, *where)
    # Nested and quantized tensors, parameters and subclasses take themselves apart into storages and dense
    # tensors, which come back here.
    return tensor.__reduce_ex__(5)


def _has_quantizer(tensor: torch.Tensor) -> bool:
    # One that `torch.empty` makes of a quantized dtype has none, nor has one that came through torch's own queues.
    try:
        tensor.qscheme()
    except RuntimeError:
        return False
    return True


def _unquantized(
    data: torch.Tensor, dtype: torch.dtype, offset: int, shape: torch.Size, stride: tuple[int, ...]
) -> torch.Tensor:
    return torch.empty(0, dtype=dtype, device="cpu").set_(data.untyped_storage(), offset, shape, stride)


def bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """Returns a storage as a tensor of its bytes."""
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)


def _reduce_sparse(tensor: torch.Tensor) -> Any:
    # torch's own reduction puts every sparse tensor that is unpickled on a list that only torch.load clears.
    if tensor.layout is torch.sparse_coo:
        parts = sparse_parts(tensor)
        return _coo_tensor, (*parts, tensor.shape, tensor.is_coalesced(), tensor.requires_grad)
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (tensor.ccol_indices(), tensor.row_indices())
    else:
        return tensor.__reduce_ex__(5)
    return _compressed_tensor, (*parts, tensor.values().detach(), tensor.shape, tensor.layout, tensor.requires_grad)


def _coo_tensor(
    indices: torch.Tensor, values: torch.Tensor, shape: torch.Size, coalesced: bool, requires_grad: bool
) -> torch.Tensor:
    return torch.sparse_coo_tensor(
        indices,
        values,
        shape,
        device=values.device,  # and not a default one
        requires_grad=requires_grad,
        check_invariants=False,
        is_coalesced=coalesced,
    )


def _compressed_tensor(
    compressed: torch.Tensor,
    plain: torch.Tensor,
    values: torch.Tensor,
    shape: torch.Size,
    layout: torch.layout,
    requires_grad: bool,
) -> torch.Tensor:
    return torch.sparse_compressed_tensor(
        compressed,
        plain,
        values,
        shape,
        layout=layout,
        device=values.device,
        requires_grad=requires_grad,
        check_invariants=False,
    )
