"""Samples that have more to them than arrays, tensors and numbers: text for example, or an object. They have one part.

They go through `batches.packing`, but come back more exactly than from multiprocessing's queues: a cache stands in the
dataset's place, and whoever reads from it in the same process would have had the dataset's own object. And they ask
none of multiprocessing's reducers: what those send lives as long as a process, and a cache may live longer.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shmloader.batches import unpicklable
from shmloader.batches.packing import Packer
from shmloader.batches.reducers import Own
from shmloader.batches.tensors import Array, Block
from shmloader.batches.unpacking import Unpacker
from shmloader.torch_private import reduce_tensor

_TAIL = struct.Struct("<QQ")  # its offset and its length

_ALIGNMENT = 64


class PackedForm:
    """The form of a sample that was packed.

    Args:
        data: where its tail begins in its one part, and how long that is.
    """

    def __init__(self, data: bytes) -> None:
        self._tail: tuple[int, int] = _TAIL.unpack(data)

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


# -- what comes back more exactly than from a queue ------------------------------------------------------------------


def _reduce_array(array: Array) -> Any:
    """Does what pickle does, but keeps the order of bytes, which queues do not; what arrives may be written to."""
    order: Any = "K" if array.flags.forc else "C"
    is_as_it_was = array.flags.forc and array.flags.writeable
    return (array if is_as_it_was else array.copy(order)).__reduce_ex__(5)


class _ElsewhereError(TypeError):
    """A tensor is on a device."""


def _reduce_tensor(tensor: torch.Tensor) -> Any:
    if tensor.device.type not in ("cpu", "meta"):
        raise _ElsewhereError(f"a tensor is on {tensor.device}, and only CPU tensors can be kept")
    if type(tensor) is not torch.Tensor or not vars(tensor):
        return NotImplemented
    return _as_it_is, (Own(tensor),), vars(tensor), None, None, _set_attributes


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _set_attributes(tensor: torch.Tensor, attributes: dict[str, Any]) -> None:
    vars(tensor).update(attributes)  # and not by __setstate__, which means something else to tensors


def _reduce_value(value: Any) -> Any:
    kind = type(value)
    base = _base_of(kind)
    # What pickle would give to the class's __new__, which would make something of it once more.
    return _made, (kind, base, base.__getnewargs__(value)), *value.__reduce_ex__(5)[2:]


def _made(kind: type, base: Any, arguments: tuple[Any, ...]) -> Any:
    return base.__new__(kind, *arguments)


_VALUES: tuple[Any, ...] = tuple, str, bytes, int, float, complex
_HOOKS = "__reduce__", "__reduce_ex__"


def _base_of(kind: type) -> Any:
    return next(base for base in _VALUES if issubclass(kind, base))


@functools.lru_cache(maxsize=64)
def _makes_something_of_itself(kind: type) -> bool:
    """Whether pickle calls the ``__new__`` of a class with values that have come out of it."""
    if not issubclass(kind, _VALUES) or any(getattr(kind, hook) is not getattr(object, hook) for hook in _HOOKS):
        return False
    # Of two methods that belong together one was replaced. Named tuples are generated with both.
    owners = [next(base for base in kind.__mro__ if name in vars(base)) for name in ("__new__", "__getnewargs__")]
    return not hasattr(kind, "__getnewargs_ex__") and kind.__mro__.index(owners[0]) < kind.__mro__.index(owners[1])


class _Reducers(dict[type, Callable[[Any], Any]]):
    """What types go by, in place of multiprocessing's reducers.

    Those would put descriptors into the file, and start what sends them.
    """

    def get(self, kind: type, default: Any = None) -> Any:
        """Returns what a type goes by, if anything."""
        return super().get(kind) or (_reduce_value if _makes_something_of_itself(kind) else default)


_REDUCERS = _Reducers({torch.Tensor: reduce_tensor, np.ndarray: _reduce_array})


def take_packed(sample: Any) -> tuple[bytes, list[Array]]:
    """Copies a sample into one part, and returns the form that it has there, and it.

    Raises:
        TypeError: some object in it cannot be pickled, or a tensor is on a device.
    """
    # Tensors are found as they are pickled. What has them may not be walked through: it may contain itself, or have an
    # end only where somebody stops asking, as text has, each item of which is text.
    packer, buffer = Packer(_REDUCERS, _reduce_tensor), _Buffer()
    try:
        packer.lay_out(sample, buffer)
    except (MemoryError, _ElsewhereError):
        raise
    except Exception as error:
        if packer.can_pack(sample):
            raise  # a signal's handler raised it, and the sample is not to blame
        raise TypeError(unpicklable.describe(sample, error, packer.can_pack)) from error
    buffer.allocate()
    packed = packer.fill(buffer)
    return _TAIL.pack(packed.tail_offset, len(packed.tail)), [buffer.block]
