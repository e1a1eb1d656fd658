"""A job as bytes: what the sampler gave, pickled by value."""

from __future__ import annotations

import io
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from shmloader.batches.dtypes import carried
from shmloader.batches.tensors import as_rows, is_dense


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
    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        # Not as multiprocessing does, by a descriptor of shared memory: a job that is sent again is read twice.
        return (carried, (as_rows(obj.contiguous()), obj.dtype)) if is_dense(obj) else obj.__reduce_ex__(5)
