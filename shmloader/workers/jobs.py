"""A job as bytes: what the sampler gave, pickled by value."""

from __future__ import annotations

import io
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from shmloader import torch_private
from shmloader.batches.dtypes import carried
from shmloader.batches.reducers import bytes_of
from shmloader.batches.tensors import as_rows, is_dense
from shmloader.data.shared_arrays import SharedArray
from shmloader.data.shared_sequence import SharedSequence


def pickled(index: Any) -> bytes:
    """Returns ``index`` as bytes, which `pickle.loads` reads.

    Raises:
        Exception: whatever pickling it raises.
    """
    try:
        data = pickle.dumps(index, 5)
        if b"torch" not in data:
            return data
    except Exception:  # there are objects that can be pickled for other processes only
        pass
    # Of some dtypes torch writes pickles that it does not read (uint16, float8), and stock sends no pickles of tensors.
    file = io.BytesIO()
    _Pickler(file, 5).dump(index)
    return file.getvalue()


class _Pickler(ForkingPickler):  # which reads what is registered for types each time
    # multiprocessing sends memory by descriptors, which can be read once, and stay open if they are not. A job is read
    # twice if it is sent again, many times if it is repeated, and never if it is dropped.
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            # Others than dense ones take themselves apart into storages and tensors, which come back here.
            return (carried, (as_rows(obj.contiguous()), obj.dtype)) if is_dense(obj) else obj.__reduce_ex__(5)
        if isinstance(obj, torch.storage.TypedStorage):
            return torch_private.typed_storage, (torch_private.untyped_storage(obj), obj.dtype)
        if isinstance(obj, torch.UntypedStorage) and obj.device.type == "cpu":
            return torch.Tensor.untyped_storage, (bytes_of(obj),)
        return obj.__reduce_ex__(5) if isinstance(obj, (SharedArray, SharedSequence)) else NotImplemented
