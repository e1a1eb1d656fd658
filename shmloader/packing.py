"""Batch <-> slot.

A packed batch is its tensors' elements, wherever the writer put them in the slot, and behind them a *tail*: the table
of further buffers and the skeleton. The skeleton is a pickle (protocol 5) of whatever the collate function returned,
in which every dense CPU tensor is replaced by a `Placed`: offset, dtype, shape and strides. Arrays and other objects
that know protocol 5 put their buffers into the slot as well; what is left is pickled by value.

All offsets are relative to the slot, so a packed batch can be read from a copy of the slot too.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterable
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import numpy as np
import torch
from torch.multiprocessing import reductions

from .dtypes import ALL, CODES, TO_NUMPY, carrier
from .leases import Block

_U64 = struct.Struct("<Q")
_ndarray = np.ndarray
_from_numpy = torch.from_numpy

# A tensor with gaps between its elements keeps its strides while its extent is at most this many times its elements;
# beyond, moving the gaps costs more than the strides are worth, and it arrives contiguous.
_MAX_GAPS = 2

# Skeletons as long as this one are too seldom equal to be worth keeping.
_MAX_KEPT_TAIL = 4096
_MAX_KEPT = 64


class Memory(Protocol):
    """Where a packer puts bytes: a slot that grows on demand."""

    def allocate(self, nbytes: int) -> int:
        """Reserves ``nbytes`` aligned bytes and returns their offset in the slot."""

    def view(self, offset: int, nbytes: int) -> Block:
        """Returns the bytes at ``offset``."""

    def offset_of(self, address: int) -> int | None:
        """Returns the offset of a memory address, or None if nothing was allocated there."""


class Placed:
    """A tensor that lies in the slot: where, and of what dtype, shape and strides.

    Args:
        offset: bytes from the slot's beginning.
        code: the dtype's number in `dtypes.ALL`.
        shape: sizes of the axes.
        stride: steps along the axes, in elements; None: contiguous.
    """

    __slots__ = ("_carrier", "_dtype", "_empty", "_steps", "_viewed", "offset", "shape", "stride")

    def __init__(self, offset: int, code: int, shape: tuple[int, ...], stride: tuple[int, ...] | None) -> None:
        self.offset = offset
        self.shape = shape
        self.stride = stride
        self._dtype = ALL[code]
        self._carrier = carrier(self._dtype)
        self._steps = None if stride is None else tuple(step * self._carrier.itemsize for step in stride)
        self._viewed = self._dtype not in TO_NUMPY
        self._empty = 0 in shape

    def over(self, block: Block) -> torch.Tensor:
        """Returns the tensor as a view of ``block``, with a storage of its own that ends where its elements end."""
        if self._empty:
            return torch.empty(self.shape, dtype=self._dtype)
        tensor = _from_numpy(_ndarray(self.shape, self._carrier, block, self.offset, self._steps))
        return tensor.view(self._dtype) if self._viewed else tensor

    def copied(self, block: Block) -> torch.Tensor:
        """Returns the tensor in memory of its own, its strides as they are in ``block``."""
        extent = _extent(self.shape, self.stride) * self._carrier.itemsize
        alone = Placed(0, CODES[self._dtype], self.shape, self.stride)
        return alone.over(block[self.offset : self.offset + extent].copy())


def _extent(shape: tuple[int, ...], stride: tuple[int, ...] | None) -> int:
    """Returns how many elements lie between a tensor's first and last element, both included."""
    if 0 in shape:
        return 0
    if stride is None:
        count = 1
        for size in shape:
            count *= size
        return count
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


class Packer:
    """Writes batches into slots. Used in a worker."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._pickler = _Pickler(self._buffer, self._take_buffer)
        self._table: list[tuple[int, int]] = []

    def pack(self, batch: object, memory: Memory) -> tuple[int, int]:
        """Writes ``batch`` into ``memory`` and returns the tail's offset and length.

        Tensors that lie in ``memory`` already, whole or as views, stay where they are; any other is copied once.

        Raises:
            Exception: whatever pickling some object of the batch raises.
        """
        self._table.clear()
        self._buffer.seek(0)
        self._buffer.truncate()
        self._pickler.memory = memory
        self._pickler.clear_memo()
        try:
            self._pickler.dump(batch)
        finally:
            self._pickler.clear_memo()  # it holds the batch
        head = struct.pack(f"<Q{2 * len(self._table)}Q", len(self._table), *(n for pair in self._table for n in pair))
        tail = head + self._buffer.getvalue()
        offset = memory.allocate(len(tail))
        memory.view(offset, len(tail)).data[:] = tail
        return offset, len(tail)

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> None:
        raw = buffer.raw()
        self._table.append((_place_bytes(raw, self._pickler.memory), raw.nbytes))


class _Pickler(pickle.Pickler):
    """Pickles a batch with its tensors taken out. Objects of multiprocessing go as they do through its queues."""

    memory: Memory
    dispatch_table = ForkingPickler(io.BytesIO()).dispatch_table  # type: ignore[attr-defined]

    def __init__(self, file: io.BytesIO, buffer_callback: Callable[[pickle.PickleBuffer], None]) -> None:
        super().__init__(file, 5, buffer_callback=buffer_callback)

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is torch.Tensor:
            return _reduce_tensor(obj, self.memory)
        if isinstance(obj, torch.Tensor):
            return _reduce_any_tensor(obj)
        if isinstance(obj, torch.storage.TypedStorage):
            return _typed_storage, (obj._untyped_storage, obj.dtype)
        if isinstance(obj, torch.UntypedStorage) and obj.device.type == "cpu":
            return torch.Tensor.untyped_storage, (torch.empty(0, dtype=torch.uint8).set_(obj),)  # type: ignore[call-overload]
        return NotImplemented


def _reduce_tensor(tensor: torch.Tensor, memory: Memory) -> Any:
    if tensor.layout is not torch.strided or tensor.requires_grad or tensor.is_quantized or tensor.is_nested:
        return _reduce_any_tensor(tensor)
    if tensor.device.type != "cpu":
        return _reduce_any_tensor(tensor)
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return Placed, _place(tensor, memory)


def _reduce_any_tensor(tensor: torch.Tensor) -> Any:
    if tensor.requires_grad and not tensor.is_leaf:
        raise RuntimeError(
            "a batch holds a non-leaf tensor which requires grad; autograd does not cross processes, so detach it in "
            "the dataset or collate_fn"
        )
    if tensor.device.type not in ("cpu", "meta"):
        return reductions.reduce_tensor(tensor)
    # Sparse, nested and quantized tensors, parameters and subclasses take themselves apart into storages and dense
    # tensors, which come back here.
    return tensor.__reduce_ex__(5)


def _place(tensor: torch.Tensor, memory: Memory) -> tuple[int, int, tuple[int, ...], tuple[int, ...] | None]:
    """Makes sure that ``tensor`` lies in ``memory`` and returns the arguments of its `Placed`."""
    shape, code = tuple(tensor.shape), CODES[tensor.dtype]
    if not tensor.numel():
        return 0, code, shape, None
    stride = None if tensor.is_contiguous() else tensor.stride()
    offset = memory.offset_of(tensor.data_ptr())
    if offset is not None:
        return offset, code, shape, stride
    extent = _extent(shape, stride)
    if extent > _MAX_GAPS * tensor.numel():
        tensor, stride, extent = tensor.contiguous(), None, tensor.numel()
    nbytes = extent * tensor.dtype.itemsize
    offset = memory.allocate(nbytes)
    Placed(0, code, (extent,), None).over(memory.view(offset, nbytes)).copy_(tensor.as_strided((extent,), (1,)))
    return offset, code, shape, stride


def _place_bytes(raw: memoryview, memory: Memory) -> int:
    offset = memory.allocate(raw.nbytes)
    memory.view(offset, raw.nbytes).data[:] = raw
    return offset


def _typed_storage(untyped: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


class _Unpickler(pickle.Unpickler):
    """Reads a skeleton, with ``place`` called for every tensor in it."""

    def __init__(self, skeleton: memoryview, buffers: Iterable[Any], place: Callable[..., Any]) -> None:
        super().__init__(io.BytesIO(skeleton), buffers=buffers)
        self._place = place

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name == Placed.__name__:
            return self._place
        return super().find_class(module, name)


class _NotPlain(Exception):
    """A skeleton has more in it than lists, tuples and dicts of tensors and constants."""


class _PlainUnpickler(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name == Placed.__name__:
            return Placed
        raise _NotPlain


_Make = Callable[[Placed, Block], torch.Tensor]
_Build = Callable[[_Make, Block], Any]


class Unpacker:
    """Reads batches from slots, or from copies of them. Used in the parent.

    Skeletons repeat from batch to batch. One that is nothing but lists, tuples and dicts of tensors and constants is
    compiled once, after which a batch costs little more than its tensors.
    """

    def __init__(self) -> None:
        self._compiled: dict[bytes, _Build | None] = {}

    def views(self, block: Block, tail_offset: int, tail_bytes: int) -> Any:
        """Returns the batch whose tail is given; its tensors and arrays are views of ``block``."""
        return self._unpack(block, tail_offset, tail_bytes, Placed.over, lambda part: part)

    def copies(self, block: Block, tail_offset: int, tail_bytes: int) -> Any:
        """Returns the batch in memory of its own, a piece for every tensor, so that one does not hold another's."""
        return self._unpack(block, tail_offset, tail_bytes, Placed.copied, np.ndarray.copy)

    def _unpack(self, block: Block, offset: int, nbytes: int, make: _Make, take: Callable[[Block], Block]) -> Any:
        tail = block[offset : offset + nbytes].tobytes()
        try:
            build = self._compiled[tail]
        except KeyError:
            build = self._compile(tail)
        if build is not None:
            return build(make, block)
        table, skeleton = _split(tail)
        buffers = (take(block[start : start + length]) for start, length in table)
        return _Unpickler(skeleton, buffers, lambda *fields: make(Placed(*fields), block)).load()

    def _compile(self, tail: bytes) -> _Build | None:
        if len(tail) > _MAX_KEPT_TAIL:
            return None
        table, skeleton = _split(tail)
        try:
            if table:
                raise _NotPlain
            build = _compile(_PlainUnpickler(skeleton, (), Placed).load(), set())
        except _NotPlain:
            build = None
        if len(self._compiled) >= _MAX_KEPT:
            self._compiled.clear()
        self._compiled[tail] = build
        return build


def _split(tail: bytes) -> tuple[list[tuple[int, int]], memoryview]:
    """Returns a tail's table, an (offset, bytes) for every buffer, and its skeleton."""
    (count,) = _U64.unpack_from(tail)
    numbers = struct.unpack_from(f"<{2 * count}Q", tail, _U64.size)
    return list(zip(numbers[::2], numbers[1::2], strict=True)), memoryview(tail)[_U64.size * (1 + 2 * count) :]


def _compile(node: Any, seen: set[int]) -> _Build:
    """Returns a function that builds what ``node`` describes, anew at each call.

    Raises:
        _NotPlain: an object is of another type, or occurs twice: then it must be one object in the batch too.
    """
    kind = type(node)
    if kind is bool or kind is int or kind is float or kind is str or kind is bytes or node is None:
        return lambda make, block: node
    if id(node) in seen and node != ():
        raise _NotPlain
    seen.add(id(node))
    if kind is Placed:
        return lambda make, block: make(node, block)
    if kind is dict:
        keys = list(node)
        if not all(type(key) in (bool, int, float, str, bytes) for key in keys):
            raise _NotPlain
        values = [_compile(value, seen) for value in node.values()]
        return lambda make, block: {key: build(make, block) for key, build in zip(keys, values, strict=True)}
    if kind is list or kind is tuple:
        if node and all(type(child) is Placed for child in node) and len(set(map(id, node))) == len(node):
            return lambda make, block: kind([make(child, block) for child in node])
        parts = [_compile(child, seen) for child in node]
        return lambda make, block: kind([build(make, block) for build in parts])
    raise _NotPlain
