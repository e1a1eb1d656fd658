"""What a worker is given, as it travels through Ray's object store: pickled once, unpickled by each worker.

Ray hands out what is in its store as read-only memory, which all workers of a node share. A worker's dataset has to be
what it is here: what may be written to here is a copy of the worker's own there, as in a process that is spawned. What
is read-only here stays in the store, once for a node.

Classes and functions of the main module travel by value. What comes back refers to them by name, as whatever is pickled
does, and an actor's main module is one of Ray's. So they are set there, under the names that they have here.
"""

from __future__ import annotations

import contextlib
import io
import operator
import pickle
import sys
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.cloudpickle
import torch
from ray.actor import ActorHandle

from shmloader.batches.dtypes import carried
from shmloader.batches.tensors import as_rows, is_dense

_PROTOCOL = 5


class Parcel(NamedTuple):
    """An object, pickled, with its buffers beside it.

    Attributes:
        data: the pickle.
        buffers: the bytes of its arrays and tensors, as arrays.
        are_writable: which of them may be written to.
        handles: Ray's own objects in it, which Ray has to see to keep what they refer to alive.
    """

    data: bytes
    buffers: list[np.ndarray[Any, Any]]
    are_writable: list[bool]
    handles: list[Any]


def pack(parts: object) -> Parcel:
    """Returns a parcel of an object. Its buffers are views of the object's memory.

    Raises:
        Exception: whatever pickling some part of it raises.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(parts)
    pickler.dump(pickler.of_main)  # which refers to what is there already
    writable = [not buffer.raw().readonly for buffer in pickler.buffers]
    arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in pickler.buffers]
    return Parcel(file.getvalue(), arrays, writable, pickler.handles)


def unpack(parcel: Parcel) -> Any:
    """Returns the object. Called in the worker, with the parcel as it lies in the node's store.

    What it has of the classes and functions of the sender's main module is then found in this process's too.

    Raises:
        Exception: whatever unpickling it raises, such as the import of a module that is not on the node.
    """
    pairs = zip(parcel.buffers, parcel.are_writable, strict=True)
    buffers = [bytearray(buffer) if is_writable else buffer for buffer, is_writable in pairs]
    unpickler = _Unpickler(parcel, buffers)
    unpacked, of_main = unpickler.load(), unpickler.load()
    for name, one in of_main.items():
        one.__qualname__ = name  # by which it is pickled; for a class within another one it has come without
        if "." not in name:
            setattr(sys.modules["__main__"], name, one)
    return unpacked


def are_equal(one: Parcel, other: Parcel) -> bool:
    """Whether two parcels are of the same, bit for bit."""
    return (
        one.data == other.data
        and one.are_writable == other.are_writable
        and one.handles == other.handles
        and len(one.buffers) == len(other.buffers)
        and all(map(np.array_equal, one.buffers, other.buffers))
    )


class _Pickler(ray.cloudpickle.CloudPickler):  # type: ignore[misc]
    """Pickles functions and classes of the main module by value, as Ray does.

    Attributes:
        buffers: what was left out of the pickle.
        handles: Ray's own objects, likewise.
        of_main: what was pickled of the main module's classes and functions, by their names there.
    """

    def __init__(self, file: io.BytesIO) -> None:
        self.buffers: list[pickle.PickleBuffer] = []
        self.handles: list[Any] = []
        self.of_main: dict[str, Any] = {}
        super().__init__(file, _PROTOCOL, buffer_callback=self.buffers.append)

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, (ray.ObjectRef, ActorHandle)):
            return None
        self.handles.append(obj)
        return len(self.handles) - 1

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, FunctionType)) and obj.__module__ == "__main__":
            with contextlib.suppress(AttributeError):  # it is a local one, say
                if operator.attrgetter(obj.__qualname__)(sys.modules["__main__"]) is obj:
                    self.of_main[obj.__qualname__] = obj
        # torch would write the whole storage of each tensor into the pickle, by way of two copies.
        if isinstance(obj, torch.Tensor) and is_dense(obj) and obj.is_contiguous() and not vars(obj):
            return carried, (as_rows(obj), obj.dtype)
        return super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, parcel: Parcel, buffers: list[Any]) -> None:
        super().__init__(io.BytesIO(parcel.data), buffers=buffers)
        self._handles = parcel.handles

    def persistent_load(self, number: Any) -> Any:
        return self._handles[number]
