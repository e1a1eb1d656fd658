"""A tensor's place in a packed batch, and the tensor from its place.

What a packed batch is, `packing` says; it writes places, `unpacking` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from .dtypes import ALL, CODES, TO_NUMPY, carried, carrier
from .leases import Block

_ndarray = np.ndarray
_from_numpy = torch.from_numpy


class Placed:
    """A tensor that lies in the slot: where, and of what dtype, shape and strides.

    Args:
        offset: bytes from the slot's beginning.
        code: the dtype's number in `dtypes.ALL`.
        shape: sizes of the axes.
        stride: steps along the axes, in elements; None: contiguous.
    """

    __slots__ = ("_carrier", "_dtype", "_steps", "offset", "shape", "stride")

    def __init__(self, offset: int, code: int, shape: tuple[int, ...], stride: tuple[int, ...] | None) -> None:
        self.offset = offset
        self.shape = shape
        self.stride = stride
        self._dtype = ALL[code]
        self._carrier = carrier(self._dtype)
        self._steps = None if stride is None else tuple(step * self._carrier.itemsize for step in stride)

    def over(self, block: Block) -> torch.Tensor:
        """Returns the tensor as a view of ``block``, with a storage of its own that ends where its elements end."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self._dtype)
        return carried(_ndarray(self.shape, self._carrier, block, self.offset, self._steps), self._dtype)

    def copied(self, block: Block) -> torch.Tensor:
        """Returns the tensor in memory of its own, its strides as they are in ``block``."""
        nbytes = extent_of(self.shape, self.stride) * self._carrier.itemsize
        alone = Placed(0, CODES[self._dtype], self.shape, self.stride)
        return alone.over(block[self.offset : self.offset + nbytes].copy())

    @property
    def as_array(self) -> tuple[tuple[int, ...], np.dtype[Any], int, tuple[int, ...] | None] | None:
        """What makes an array that is all of the tensor: shape, dtype, offset, strides; None where there is more."""
        if 0 in self.shape or self._dtype not in TO_NUMPY:
            return None
        return self.shape, self._carrier, self.offset, self._steps


def next_tensor() -> NoReturn:
    """Stands for the next of a batch's tensors, where a batch is pickled without them."""
    raise NotImplementedError("only an unpickler that has the tensors can read this")


def viewer(places: Sequence[Placed]) -> Callable[[Block], list[torch.Tensor]]:
    """Returns what makes views of a block, as `Placed.over` does, for all places in one loop."""
    arrays = [place.as_array for place in places]
    plain = [array for array in arrays if array is not None]
    if len(plain) < len(arrays):
        return lambda block: [place.over(block) for place in places]
    return lambda block: [
        _from_numpy(_ndarray(shape, dtype, block, offset, strides)) for shape, dtype, offset, strides in plain
    ]


def copier(places: Sequence[Placed]) -> Callable[[Block], list[torch.Tensor]]:
    """Returns what copies tensors out of a block, for all places."""
    return lambda block: [place.copied(block) for place in places]


def extent_of(shape: tuple[int, ...], stride: tuple[int, ...] | None) -> int:
    """Returns how many elements lie between a tensor's first and last element, both included."""
    if 0 in shape:
        return 0
    if stride is None:
        count = 1
        for size in shape:
            count *= size
        return count
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
