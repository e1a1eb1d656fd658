"""Batches whose memory torch moves, to share it with other processes.

``share_memory_()``, and pickling a tensor for another process, give its storage new memory. Arrays, and tensors by
DLPack, that were made of the tensor before then still lie where it was, and hold nothing but the storage. So the
storage is made to hold that memory as well: for private copies when they are made, for slots at that moment, since to
do it for every tensor would cost every batch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from shmloader.batches.tensors import hold
from shmloader.torch_private import STORAGE_MOVERS

from . import fork_copies

_MARK = "_shmloader_holds"


def install() -> None:
    """Has torch's storages hold their slot, where they have one, when their memory is moved. Safe to call again."""
    for name in STORAGE_MOVERS:
        method = getattr(torch.UntypedStorage, name)
        if not hasattr(method, _MARK):
            setattr(torch.UntypedStorage, name, _holding(method))


def _holding(method: Any) -> Any:
    @functools.wraps(method)
    def share(storage: torch.UntypedStorage, *arguments: Any, **options: Any) -> Any:
        _hold_slot(storage)
        return method(storage, *arguments, **options)

    setattr(share, _MARK, True)
    return share


def _hold_slot(storage: torch.UntypedStorage) -> None:
    if storage.device.type != "cpu":
        return
    address = storage.data_ptr()
    for block in fork_copies.blocks():
        if 0 <= address - fork_copies.address_of(block) < block.nbytes:
            hold(storage, block)
            return
