"""Samples as bytes, and back. A sample is a *form* and its parts.

Of most samples the parts are what they consist of: arrays, tensors and numbers, however nested in lists, tuples and
dicts. The form is the rest: the structure, and of each part its type, dtype and shape. Samples that are alike have the
same form, and their parts can be read straight into rows of a batch.

What has more to it, text for example or an object, goes through `batches.packing`, and has one part. multiprocessing's
reducers are not asked: what they send lives as long as a process, and a cache may live longer.
"""

from __future__ import annotations

import functools
import math
import pickle
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from shmloader.batches import unpicklable
from shmloader.batches.dtypes import TO_NUMPY, TO_TORCH, carried, carrier
from shmloader.batches.packing import Packer, is_canonical
from shmloader.batches.structure import Join, NotPlainError, joiner, leaves, take_apart
from shmloader.batches.tensors import Array, Block, as_rows, is_dense
from shmloader.batches.unpacking import Unpacker
from shmloader.torch_private import reduce_tensor

from .shared_arrays import SharedArray

_PLAIN, _PACKED = b"\0", b"\1"
_TAIL = struct.Struct("<QQ")  # its offset and its length

# One call reads so many parts at most, and a few more.
_MAX_PARTS = 1000

_ALIGNMENT = 64

# One object each, so that alike samples have equal pickles.
_ARRAY, _TENSOR, _SCALAR, _NUMBER = "array", "tensor", "scalar", "number"
_NAMES = {dtype: str(dtype).rpartition(".")[2] for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_SCALARS = {dtype.type: dtype for dtype in TO_TORCH}
_NUMBERS = {int: torch.int64, float: torch.float64, bool: torch.bool}
_INT64 = range(-(1 << 63), 1 << 63)


class Part(NamedTuple):
    """What one part of a plain sample is.

    Attributes:
        kind: an array, a tensor, a NumPy scalar, or a number of Python's.
        dtype: the name of its torch dtype.
        shape: sizes of its axes.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def carrier(self) -> np.dtype[Any]:
        """The dtype of the array that has its elements."""
        return carrier(getattr(torch, self.dtype))

    def made_of(self, array: Array) -> Any:
        """Returns the part whose elements an array has, over the same memory."""
        if self.kind == _ARRAY:
            return array
        if self.kind == _TENSOR:
            return carried(array, getattr(torch, self.dtype))
        return array[()] if self.kind == _SCALAR else array.item()


class Form(Protocol):
    """How a sample is made of its parts."""

    def parts(self, nbytes: int) -> list[Array]:
        """Returns new arrays for parts of ``nbytes`` bytes in all, uninitialised.

        Raises:
            ValueError: parts of this form do not take so many bytes.
        """

    def sample(self, parts: list[Array]) -> Any:
        """Returns the sample. It takes the memory of its parts over."""


class Taken(NamedTuple):
    """A sample that was taken apart.

    Attributes:
        form: its form, as bytes; see `form_of`.
        parts: its parts, contiguous, in memory of their own.
    """

    form: bytes
    parts: list[Array]

    def sample(self) -> Any:
        """Returns the sample once more, over the memory of these parts: nothing else has it."""
        return form_of(self.form).sample(self.parts)


def take(sample: Any) -> Taken:
    """Copies a sample into parts.

    Raises:
        TypeError: some object in it cannot be pickled, or a tensor is on a device.
    """
    try:
        return _take_plain(sample)
    except (NotPlainError, pickle.PicklingError, AttributeError):  # a named tuple's class may have no name
        return _take_packed(sample)


@functools.lru_cache(maxsize=64)
def form_of(data: bytes) -> Form:
    """Returns what bytes say of a form."""
    if data[:1] == _PACKED:
        return PackedForm(*_TAIL.unpack_from(data, 1))
    return PlainForm(pickle.loads(data[1:]))


# -- plain samples ---------------------------------------------------------------------------------------------------


class PlainForm:
    """The form of samples that are nothing but arrays, tensors and numbers.

    Args:
        structure: a sample with a `Part` in each place of one.
    """

    def __init__(self, structure: Any) -> None:
        self._structure = structure
        self._parts: list[Part] = []
        self._join = joiner(structure, self._is_part)
        self._layout = [(part.shape, part.carrier) for part in self._parts]
        self.nbytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._layout)

    def _is_part(self, value: Any) -> bool:
        if type(value) is not Part:
            return False
        self._parts.append(value)
        return True

    def parts(self, nbytes: int) -> list[Array]:
        """Returns new arrays, each in memory of its own: one that is kept does not hold the others."""
        if nbytes != self.nbytes:
            raise ValueError(f"the parts take {self.nbytes} bytes, and not {nbytes}")
        return [np.empty(shape, dtype) for shape, dtype in self._layout]

    def sample(self, parts: list[Array]) -> Any:
        """Returns the sample, over the memory of its parts."""
        return self._join(iter([part.made_of(array) for part, array in zip(self._parts, parts, strict=True)]))

    def rows(self, out: Any, count: int) -> list[Array] | None:
        """Returns the places of a batch's samples as bytes: for each part an array of shape (count, bytes).

        None where ``out`` is not what ``count`` samples of this form are written to.
        """
        columns: list[Array] = []
        return columns if _match(self._structure, out, count, columns) else None


def _match(node: Any, out: Any, count: int, columns: list[Array]) -> bool:
    if type(node) is Part:
        if not isinstance(out, (np.ndarray, torch.Tensor)):
            return False
        column = as_rows(out) if isinstance(out, torch.Tensor) else out
        # Compared with the dtype that the loader has learned, so that no rule of torch's is repeated here.
        dtype = out.dtype if isinstance(out, torch.Tensor) else TO_TORCH.get(out.dtype)
        is_same = dtype in _NAMES and _NAMES[dtype] == node.dtype and column.shape == (count, *node.shape)
        if not (is_same and column.flags.c_contiguous and column.size):
            return False
        columns.append(column.reshape(count, -1).view(np.uint8))
        return True
    ours, its = take_apart(node), take_apart(out)
    if ours is None or its is None or type(node) is not type(out) or list(ours.keys) != list(its.keys):
        return False
    return all(_match(one, other, count, columns) for one, other in zip(ours.values, its.values, strict=True))


def _take_plain(sample: Any) -> Taken:
    found: list[tuple[Part, Array]] = []
    seen: set[int] = set()

    def is_part(value: Any) -> bool:
        if isinstance(value, (str, bytes)):  # which differs from sample to sample
            raise NotPlainError
        pair = _as_part(value)
        if pair is None:
            return False
        if pair[0].kind in (_ARRAY, _TENSOR):
            if id(value) in seen:  # it would be two afterwards
                raise NotPlainError
            seen.add(id(value))
        found.append(pair)
        return True

    join: Join = joiner(sample, is_part)
    if len(found) > _MAX_PARTS:
        raise NotPlainError
    structure = join(iter([part for part, _ in found]))
    return Taken(_PLAIN + pickle.dumps(structure, 5), [array for _, array in found])


def _as_part(value: Any) -> tuple[Part, Array] | None:
    """Returns what a part is, and a copy of its elements; None for what is no part."""
    kind: Any = type(value)
    if kind is np.ndarray or kind is SharedArray:
        # Of other orders than C and Fortran, pickle makes C too.
        is_plain = value.dtype in TO_TORCH and (value.flags.c_contiguous or not value.flags.f_contiguous)
        return _pair(_ARRAY, TO_TORCH[value.dtype], np.array(value, order="C", subok=False)) if is_plain else None
    if kind is torch.Tensor:
        if not is_dense(value) or not is_canonical(value, tuple(value.shape)):
            return None
        return _pair(_TENSOR, value.dtype, as_rows(value).copy())
    if kind in _SCALARS:
        return _pair(_SCALAR, TO_TORCH[_SCALARS[kind]], np.array(value))
    if kind in _NUMBERS and (kind is not int or value in _INT64):
        return _pair(_NUMBER, _NUMBERS[kind], np.array(value, TO_NUMPY[_NUMBERS[kind]]))
    return None


def _pair(kind: str, dtype: torch.dtype, array: Array) -> tuple[Part, Array]:
    return Part(kind, _NAMES[dtype], array.shape), array


# -- other samples ---------------------------------------------------------------------------------------------------


class PackedForm:
    """The form of a sample that was packed.

    Args:
        tail_offset: where its tail begins in its one part.
        tail_bytes: how long that is.
    """

    def __init__(self, tail_offset: int, tail_bytes: int) -> None:
        self._tail = tail_offset, tail_bytes

    def parts(self, nbytes: int) -> list[Array]:
        """Returns one new array."""
        if sum(self._tail) != nbytes:
            raise ValueError(f"the part takes {sum(self._tail)} bytes, and not {nbytes}")
        return [np.empty(nbytes, np.uint8)]

    def sample(self, parts: list[Array]) -> Any:
        """Returns the sample, over the memory of its part."""
        (block,) = parts
        return Unpacker().views(block, *self._tail)


class _Buffer:
    """What a sample is packed into: private memory, made when all is laid out."""

    def __init__(self) -> None:
        self._top = 0
        self.block: Block = np.empty(0, np.uint8)

    def offset_of(self, address: int) -> int | None:
        return None

    def reserve(self, nbytes: int) -> int:
        offset = -(-self._top // _ALIGNMENT) * _ALIGNMENT
        self._top = offset + nbytes
        return offset

    def rewind(self) -> None:
        self._top = 0

    def allocate(self) -> None:
        # Gaps between parts are written to a file too, and must not be what was there before.
        self.block = np.zeros(self._top, np.uint8)

    def view(self, offset: int, nbytes: int) -> Block:
        return self.block[offset : offset + nbytes]

    def write(self, offset: int, data: bytes) -> None:
        self.block[offset : offset + len(data)] = np.frombuffer(data, np.uint8)


def _reduce_array(array: Array) -> Any:
    """Does what pickle does, but keeps the order of bytes, which queues do not; what arrives may be written to."""
    order: Any = "K" if array.flags.forc else "C"
    is_as_it_was = array.flags.forc and array.flags.writeable
    return (array if is_as_it_was else array.copy(order)).__reduce_ex__(5)


# In place of multiprocessing's, which would put descriptors into the file, and start what sends them.
_REDUCERS = {torch.Tensor: reduce_tensor, np.ndarray: _reduce_array}


def _take_packed(sample: Any) -> Taken:
    _refuse_devices(sample)
    packer, buffer = Packer(_REDUCERS), _Buffer()
    try:
        packer.lay_out(sample, buffer)
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(unpicklable.describe(sample, error, packer.can_pack)) from error
    buffer.allocate()
    packed = packer.fill(buffer)
    return Taken(_PACKED + _TAIL.pack(packed.tail_offset, len(packed.tail)), [buffer.block])


def _refuse_devices(sample: Any) -> None:
    found: Sequence[Any] = [one for one in leaves(sample) if isinstance(one, torch.Tensor)]
    for tensor in found:
        if tensor.device.type not in ("cpu", "meta"):
            raise TypeError(f"a tensor is on {tensor.device}, and only CPU tensors can be kept")
