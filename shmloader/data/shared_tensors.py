"""Tensors in shared memory. torch itself sends them to other processes by descriptor, without a copy.

A storage that torch has made of a descriptor is shared to torch already: pickled for a process, it stays where it is.
One that lies in memory which torch does not know of, as that of arrays, would be moved to memory of torch's then, under
all its views.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch

from shmloader.batches.tensors import as_rows
from shmloader.torch_private import MOVER_TO_A_NAME, storage_of_descriptor

from .shared_memory import fill, new_file, seal

_MARK = "_shmloader_is_shared"


def share_tensors(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies tensors into a file for each dtype, and returns them as they lie there: contiguous views of its storage.

    torch saves no storage that tensors of several dtypes are views of.

    Args:
        tensors: dense ones, of any layout.

    Raises:
        MemoryError: there is not that much memory.
    """
    shared: dict[int, torch.Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        alike = [number for number, tensor in enumerate(tensors) if tensor.dtype is dtype]
        shared.update(zip(alike, _share_alike([tensors[number] for number in alike]), strict=True))
    return [shared[number] for number in range(len(tensors))]


def _share_alike(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with new_file() as fd:
        # By NumPy: torch would start a pool of threads for it, and workers are going to be forked.
        offsets = fill(fd, [as_rows(tensor) for tensor in tensors])
        seal(fd, frozen=False)
        storage = storage_of_descriptor(fd, os.fstat(fd).st_size)
    _guard()
    setattr(storage, _MARK, True)
    return [_over(storage, offset, source) for source, offset in zip(tensors, offsets, strict=True)]


def _over(storage: torch.UntypedStorage, offset: int, like: torch.Tensor) -> torch.Tensor:
    stride = torch.empty(like.shape, device="meta").stride()
    return torch.empty(0, dtype=like.dtype, device="cpu").set_(storage, offset // like.itemsize, like.shape, stride)


def _guard() -> None:
    """Has torch refuse to move such memory to a file with a name, which its other sharing strategy does.

    The views in this process would then lie in other memory than those of all other processes, without a word.
    """
    method = getattr(torch.UntypedStorage, MOVER_TO_A_NAME)
    if not hasattr(method, _MARK):
        setattr(torch.UntypedStorage, MOVER_TO_A_NAME, _refusing(method))


def _refusing(method: Any) -> Any:
    @functools.wraps(method)
    def share(storage: torch.UntypedStorage, *arguments: Any, **options: Any) -> Any:
        if hasattr(storage, _MARK):
            raise RuntimeError(
                "this tensor lies in the memory of share(), which has no name, and torch's sharing strategy "
                "'file_system' sends memory by name. Send a clone of it, or use "
                "torch.multiprocessing.set_sharing_strategy('file_descriptor'), the default"
            )
        return method(storage, *arguments, **options)

    setattr(share, _MARK, True)
    return share
