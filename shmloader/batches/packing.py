"""Batch <-> slot.

A packed batch is its tensors' elements, wherever the writer put them in the slot, and behind them a *tail*: numbers
that say where they are, and the skeleton. The skeleton is a pickle (protocol 5) of whatever the collate function
returned, in which every dense CPU tensor is replaced by a call of `place.next_tensor`: it is the same for batches that
differ in nothing but shapes. Arrays and other objects that know protocol 5 put their buffers into the slot as well;
what is left is pickled by value.

Where code of the user's has registered a reducer for a type, with multiprocessing's ``ForkingPickler`` or ``copyreg``,
that one counts, for tensors and arrays too, as in torch's queues.

All offsets are relative to the slot, so a packed batch can be read from a copy of the slot too.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from multiprocessing.reduction import ForkingPickler
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from shmloader import torch_private

from .dtypes import CODES, as_bits, carried, carrier
from .place import Extent, Place, extent_of, next_tensor
from .reducers import Own, bytes_of, reduce_any_tensor
from .tensors import Block, is_plain

# What types go by in multiprocessing's queues, as it is at any time; of two entries the first one counts.
_REGISTERED: dict[type, Callable[[Any], Any]] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
_COPYREG = copyreg.dispatch_table

# What torch itself has registered, which moves memory: here, the slot takes its place.
_TORCHS_TYPES = {torch.nn.Parameter, torch.UntypedStorage, torch.storage.TypedStorage, *torch_private.storage_classes}
_TORCHS_REDUCERS = {
    torch_private.reduce_tensor,
    torch_private.reduce_storage,
    torch_private.reduce_typed_storage,
    torch_private.reduce_typed_storage_child,
}

_U64 = struct.Struct("<Q")
_IN_SKELETON = next_tensor, ()

# What numpy has registered for its classes of dtypes: `numpy.dtype` itself is in the pickle of each array.
_NUMPYS_REDUCER = _COPYREG.get(type(np.dtype))

# What is pickled with no code of the user's.
_CODELESS = {
    np.ndarray,
    np.memmap,
    type(np.dtype),
    torch.Size,
    torch.dtype,
    torch.device,
    OrderedDict,
    BuiltinFunctionType,
}

# Stock's queues pickle by Python's default protocol. Up to Python 3.13 it makes arrays native, contiguous and writable;
# from 3.14 on they arrive as they are.
_ARRAYS_STAY = pickle.DEFAULT_PROTOCOL >= 5

# A tensor with gaps between its elements is copied with them while its extent is at most this many times its elements;
# beyond, moving the gaps costs more than the strides are worth, and it arrives contiguous.
_MAX_GAPS = 2


class Writer(Protocol):
    """What a packer writes to: laid out piece by piece, and then filled, once it is certain that there is room."""

    def offset_of(self, address: int) -> int | None:
        """Returns the offset of a memory address, or None if nothing was written there."""

    def reserve(self, nbytes: int) -> int:
        """Lays out ``nbytes`` aligned bytes and returns their offset."""

    def rewind(self) -> None:
        """Forgets what was laid out and not written."""

    def view(self, offset: int, nbytes: int) -> Block:
        """Returns the bytes at ``offset``."""

    def write(self, offset: int, data: bytes) -> None:
        """Writes bytes at ``offset``."""


# The fields of a `Place`.
_Numbers = tuple[int, int, tuple[int, ...], tuple[int, ...] | None]


class Packed(NamedTuple):
    """A batch that was written.

    Attributes:
        tail_offset: where its tail lies.
        tail: the tail.
        numbers: the places of its tensors, as they travel.
        is_in_place: whether they all were there before the batch was packed.
    """

    tail_offset: int
    tail: bytes
    numbers: list[_Numbers]
    is_in_place: bool

    @property
    def places(self) -> list[Place]:
        """Where the batch's tensors lie, in its order; one that occurs twice is there once."""
        return [Place(*numbers) for numbers in self.numbers]


class Packer:
    """Writes batches into slots. Used in a worker.

    Args:
        registered: what types go by, beside ``copyreg``: multiprocessing's reducers.
        reduce_tensor: is asked first what a tensor goes by, of any class and wherever it is; NotImplemented: what it
            goes by otherwise.
    """

    def __init__(
        self,
        registered: Mapping[type, Callable[[Any], Any]] = _REGISTERED,
        reduce_tensor: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        self._buffer = io.BytesIO()
        self._pickler = _Pickler(self._buffer, registered, reduce_tensor)
        self._tail = b""
        self._offset = 0

    @property
    def has_asked_others(self) -> bool:
        """Whether the last batch's tail is partly made by what is registered for types: it may hold anything."""
        return self._pickler.has_asked_others

    def lay_out(self, batch: object, writer: Writer) -> None:
        """Lays ``batch`` out in the slot, to be written by `fill`, or to be dropped by `drop`. Until then it is held.

        Tensors that lie there already, whole or as views, stay where they are; any other is copied once.

        Raises:
            Exception: whatever pickling some object of the batch raises. Nothing is held then.
        """
        pickler = self._pickler
        pickler.begin(writer)
        try:
            self._dump(batch)
            extents = [(offset, buffer.nbytes) for buffer, offset in pickler.buffers]
            self._tail = _make_tail(pickler.places, extents, self._buffer.getvalue())
            self._offset = writer.reserve(len(self._tail))
        except BaseException:
            pickler.end()
            raise

    def fill(self, writer: Writer) -> Packed:
        """Writes what was laid out into the slot, which has room for it."""
        pickler = self._pickler
        try:
            for tensor, place in pickler.tensors:
                _copy_tensor(tensor, writer, place)
            for buffer, place in pickler.buffers:
                writer.view(place, buffer.nbytes).data[:] = buffer
            writer.write(self._offset, self._tail)
            return Packed(self._offset, self._tail, pickler.places, not pickler.tensors)
        finally:
            pickler.end()

    def drop(self) -> None:
        """Lets go of what was laid out."""
        self._pickler.end()

    def can_pack(self, part: object) -> bool:
        """Whether `lay_out` could take ``part`` as a batch, so far as that is seen without a slot."""
        self._pickler.begin(_Nowhere())
        try:
            self._pickler.dump(part)
        except Exception:
            return False
        finally:
            self._pickler.end()
        return True

    def _dump(self, batch: object) -> None:
        try:
            self._pickler.dump(batch)
        except RecursionError:
            # A forked worker is as deep in the stack as the loop was when it forked, and deeper; the thread in which
            # torch's queues pickle is not. So it gets one too, that what they can send can be sent here.
            writer = self._pickler.writer
            writer.rewind()
            self._pickler.end()
            self._pickler.begin(writer)
            _in_a_thread(lambda: self._pickler.dump(batch))


class _Nowhere:
    """Takes a batch that is pickled to see whether it can be."""

    def offset_of(self, address: int) -> int | None:
        return None

    def reserve(self, nbytes: int) -> int:
        return 0

    def rewind(self) -> None: ...

    def view(self, offset: int, nbytes: int) -> Block:
        raise NotImplementedError

    def write(self, offset: int, data: bytes) -> None:
        raise NotImplementedError


class _Pickler(pickle.Pickler):
    """Pickles a batch with its tensors taken out. Objects of multiprocessing go as they do through its queues.

    Attributes:
        writer: where the batch is laid out.
        places: of all tensors, in the order of the batch. Plain tuples, which take half the time and a third of the
            bytes of named ones.
        tensors: those that are still to be copied, contiguous, and to where.
        buffers: bytes that are still to be copied, and to where.
        has_asked_others: whether anything went as it was registered.
    """

    writer: Writer

    def __init__(
        self,
        file: io.BytesIO,
        registered: Mapping[type, Callable[[Any], Any]],
        reduce_tensor: Callable[[torch.Tensor], Any] | None,
    ) -> None:
        # No method of its own, with which it would stay for the garbage collector, and all that was pickled last.
        super().__init__(file, 5, buffer_callback=functools.partial(_take_buffer, weakref.ref(self)))
        self._registered = registered
        self._ask_first = reduce_tensor
        self.dispatch_table = {}  # `reducer_override` reads the tables as they are at that time
        self._file = file
        self._tensors_are_torchs = True
        self.has_asked_others = False
        self._runs_code = False
        self.places: list[_Numbers] = []
        self.tensors: list[tuple[torch.Tensor, int]] = []
        self.buffers: list[tuple[memoryview, int]] = []

    def begin(self, writer: Writer) -> None:
        """Makes ready for one batch."""
        self._file.seek(0)
        self._file.truncate()
        self.writer = writer
        self.has_asked_others = False
        self._runs_code = False
        self._tensors_are_torchs = self._registered.get(torch.Tensor) is torch_private.reduce_tensor

    def end(self) -> None:
        """Lets go of the batch."""
        self.clear_memo()
        self.places = []
        self.tensors.clear()
        self.buffers.clear()

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Puts a buffer into the slot, or returns True: one that is to arrive read-only goes by value."""
        raw = buffer.raw()
        if raw.readonly and _ARRAYS_STAY:
            return True
        offset = self.writer.reserve(raw.nbytes)
        self.buffers.append((memoryview(bytes(raw)) if self._runs_code else raw, offset))
        return False

    def _expect_code(self) -> None:
        """Copies what was taken so far, and what comes: code of the user's may write there before all is pickled."""
        if not self._runs_code:
            self._runs_code = True
            self.buffers[:] = [(memoryview(bytes(raw)), offset) for raw, offset in self.buffers]
            self.tensors[:] = [(tensor.clone(), offset) for tensor, offset in self.tensors]

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if self._ask_first is not None and isinstance(obj, torch.Tensor):
            reduced = self._ask_first(obj)
            if reduced is not NotImplemented:
                return reduced
        if kind is torch.Tensor and self._tensors_are_torchs:
            return self._reduce_tensor(obj)
        if kind is type or kind is FunctionType:  # for which pickle asks no table
            return NotImplemented
        reducer = self._registered.get(kind) or _COPYREG.get(kind)
        is_torchs = kind in _TORCHS_TYPES and reducer in _TORCHS_REDUCERS
        if reducer is not None and reducer is not _NUMPYS_REDUCER and not is_torchs:
            self.has_asked_others = True
            self._expect_code()
            return reducer(obj)
        ours = self._reduce_ours(obj, kind)
        if ours is not NotImplemented:
            return ours
        if kind not in _CODELESS and not issubclass(kind, (np.generic, np.dtype)):
            self._expect_code()
        return ours if reducer is None else reducer(obj)

    def _reduce_ours(self, obj: Any, kind: type) -> Any:
        """Returns what an object consists of that has memory to put into the slot, or NotImplemented."""
        if isinstance(obj, torch.Tensor):
            return self._reduce_parameter(obj) if kind is torch.nn.Parameter else reduce_any_tensor(obj)
        if kind is Own:
            return self._reduce_tensor(obj.tensor)
        if (kind is np.ndarray or kind is np.memmap) and not _ARRAYS_STAY:
            return self._reduce_array(obj, kind)
        if isinstance(obj, torch.storage.TypedStorage):
            return torch_private.typed_storage, (torch_private.untyped_storage(obj), obj.dtype)
        if isinstance(obj, torch.UntypedStorage) and obj.device.type == "cpu":
            return torch.Tensor.untyped_storage, (Own(bytes_of(obj)),)
        return NotImplemented

    def _reduce_array(self, array: np.ndarray[Any, Any], kind: type) -> Any:
        """Does to an array what protocol 4 does to it."""
        if kind is np.ndarray and not array.dtype.isnative:
            return array.__reduce__()  # by value, which makes it native
        if not array.dtype.hasobject:
            if not array.flags.forc:
                return array.copy(order="C").__reduce_ex__(5)
            if not array.flags.writeable:
                return array.copy(order="K").__reduce_ex__(5)
        return NotImplemented

    # What is registered for tensors sees a parameter whole in torch's queues, or not at all.
    def _reduce_parameter(self, parameter: torch.Tensor) -> Any:
        make, (data, *rest) = reduce_any_tensor(parameter)
        is_apart = type(data) is torch.Tensor and not self._tensors_are_torchs
        return make, (Own(data) if is_apart else data, *rest)

    def _reduce_tensor(self, tensor: torch.Tensor) -> Any:
        if not is_plain(tensor) or tensor.requires_grad:
            return reduce_any_tensor(tensor)
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        shape = tuple(tensor.shape)
        stride = None if is_canonical(tensor, shape) else tensor.stride()
        offset = self.writer.offset_of(tensor.data_ptr()) if tensor.numel() else 0
        if offset is None:
            there = as_bits(tensor)
            if not tensor.is_contiguous():
                extent = extent_of(shape, stride)
                if extent > _MAX_GAPS * tensor.numel():
                    there, stride = there.contiguous(), None
                else:
                    there = there.as_strided((extent,), (1,))
            offset = self.writer.reserve(there.nbytes)
            self.tensors.append((there.clone() if self._runs_code else there, offset))
        self.places.append((offset, CODES[tensor.dtype], shape, stride))
        return _IN_SKELETON


def _take_buffer(pickler: weakref.ref[_Pickler], buffer: pickle.PickleBuffer) -> bool:
    alive = pickler()
    assert alive is not None  # it is pickling
    return alive.take_buffer(buffer)


def is_canonical(tensor: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the strides are what any new tensor of this shape has: those of axes of no or one element are free."""
    if not tensor.is_contiguous():
        return False
    if 1 not in shape and 0 not in shape:
        return True
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= size or 1
    return tensor.stride() == tuple(reversed(stride))


def _copy_tensor(tensor: torch.Tensor, writer: Writer, offset: int) -> None:
    block = writer.view(offset, tensor.nbytes)
    there = np.ndarray(tuple(tensor.shape), carrier(tensor.dtype), block)
    carried(there, tensor.dtype).copy_(tensor)


def _in_a_thread(act: Callable[[], object]) -> None:
    raised: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised.pop()  # as it is: a frame that held it would be held by it


def _make_tail(places: list[_Numbers], extents: list[Extent], skeleton: bytes) -> bytes:
    numbers = pickle.dumps((places, extents), 5)
    return _U64.pack(len(numbers)) + numbers + skeleton


def split_tail(tail: bytes) -> tuple[list[Place], list[Extent], bytes]:
    """Returns what a tail consists of: its tensors' places, the extents of further buffers, and its skeleton."""
    (length,) = _U64.unpack_from(tail)
    end = _U64.size + length
    places, extents = pickle.loads(tail[_U64.size : end])
    return [Place(*place) for place in places], extents, tail[end:]
