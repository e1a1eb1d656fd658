"""A tensor's place in a packed batch, and the tensor from its place.

What a packed batch is, `packing` says; it writes places, `unpacking` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from .dtypes import ALL, CODES, TO_NUMPY, TO_TORCH, carried, carrier
from .tensors import Block, hold

# A part of a batch is small up to so many bytes, if all small parts are together at most so large a part of it.
_SMALL_BYTES = 16 * 1024
_SMALL_SHARE = 8
_NEAR = 64  # bytes between two parts that are copied together

_ndarray = np.ndarray
_from_numpy = torch.from_numpy


class Place:
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
            return self._without_elements()
        return carried(_ndarray(self.shape, self._carrier, block, self.offset, self._steps), self._dtype)

    def _without_elements(self) -> torch.Tensor:
        dtype = TO_TORCH[self._carrier]  # a new tensor of a quantized dtype is more than its elements
        if self.stride is None:
            return torch.empty(self.shape, dtype=dtype, device="cpu").view(self._dtype)
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device="cpu").view(self._dtype)

    def copied(self, block: Block) -> torch.Tensor:
        """Returns the tensor in memory of its own, its strides as they are in ``block``."""
        memory = block[self.offset : self.offset + self.nbytes].copy()
        tensor = self.moved(0).over(memory)
        hold(tensor.untyped_storage(), memory)
        return tensor

    def moved(self, offset: int) -> Place:
        """Returns what is the same but for its offset."""
        return Place(offset, CODES[self._dtype], self.shape, self.stride)

    @property
    def nbytes(self) -> int:
        """Bytes from the tensor's first element to its last."""
        return extent_of(self.shape, self.stride) * self._carrier.itemsize

    @property
    def as_array(self) -> tuple[tuple[int, ...], np.dtype[Any], int, tuple[int, ...] | None] | None:
        """What makes an array that is all of the tensor: shape, dtype, offset, strides; None where there is more."""
        if 0 in self.shape or self._dtype not in TO_NUMPY:
            return None
        return self.shape, self._carrier, self.offset, self._steps


def next_tensor() -> NoReturn:
    """Stands for the next of a batch's tensors, where a batch is pickled without them."""
    raise NotImplementedError("only an unpickler that has the tensors can read this")


def viewer(places: Sequence[Place]) -> Callable[[Block], list[torch.Tensor]]:
    """Returns what makes views of a block, as `Place.over` does, for all places in one loop."""
    arrays = [place.as_array for place in places]
    plain = [array for array in arrays if array is not None]
    if len(plain) < len(arrays):
        return lambda block: [place.over(block) for place in places]
    return lambda block: [
        _from_numpy(_ndarray(shape, dtype, block, offset, strides)) for shape, dtype, offset, strides in plain
    ]


def lender(places: Sequence[Place], apart: Sequence[range]) -> Callable[[Block], list[torch.Tensor]]:
    """Returns what makes views of a block, or of copies of the ranges ``apart`` of it, for all places in one loop."""
    if not apart:
        return viewer(places)
    # For each place the number of its block: 0 is all of it, the others are the copies.
    numbers = [
        next((n for n, one in enumerate(apart, 1) if place.nbytes and place.offset in one), 0) for place in places
    ]
    starts = [0, *(one.start for one in apart)]
    moved = [place.moved(place.offset - starts[n]) for place, n in zip(places, numbers, strict=True)]
    arrays = [place.as_array for place in moved]
    plain = [(n, *array) for n, array in zip(numbers, arrays, strict=True) if array is not None]
    ranges = [slice(one.start, one.stop) for one in apart]
    copied = [(index, n) for index, n in enumerate(numbers) if n]
    is_plain = len(plain) == len(arrays)

    def lend(block: Block) -> list[torch.Tensor]:
        blocks = [block]
        for one in ranges:
            blocks.append(block[one].copy())  # noqa: PERF401 - twice as fast as to extend, for one or two
        if is_plain:
            tensors = [
                _from_numpy(_ndarray(shape, dtype, blocks[n], offset, strides))
                for n, shape, dtype, offset, strides in plain
            ]
        else:
            tensors = [place.over(blocks[n]) for place, n in zip(moved, numbers, strict=True)]
        for index, n in copied:
            hold(tensors[index].untyped_storage(), blocks[n])
        return tensors

    return lend


def small_ranges(extents: Sequence[tuple[int, int]]) -> list[range]:
    """Returns the ranges of a block where what is small lies beside what is large.

    Small is what takes some KB, if all of it together is a small part of the batch. What lies side by side is one
    range; so is what overlaps, and then it is small or large together.

    Args:
        extents: offset and bytes of each part.
    """
    islands: list[range] = []
    for start, end in sorted((offset, offset + nbytes) for offset, nbytes in extents if nbytes):
        if islands and start < islands[-1].stop:
            islands[-1] = range(islands[-1].start, max(end, islands[-1].stop))
        else:
            islands.append(range(start, end))
    small = [island for island in islands if len(island) <= _SMALL_BYTES]
    if sum(map(len, small)) * _SMALL_SHARE > sum(map(len, islands)):
        return []
    ranges: list[range] = []
    for island in small:
        if ranges and island.start - ranges[-1].stop < _NEAR:
            ranges[-1] = range(ranges[-1].start, island.stop)
        else:
            ranges.append(island)
    return ranges


def copier(places: Sequence[Place]) -> Callable[[Block], list[torch.Tensor]]:
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
