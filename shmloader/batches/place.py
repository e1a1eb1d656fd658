"""Where a tensor lies in a packed batch, and the tensor from its place.

What a packed batch is, `packing` says; it writes places, `unpacking` and templates read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from .dtypes import ALL, TO_NUMPY, TO_TORCH, carried, carrier
from .tensors import Array, Block, hold

# A part of a batch is small up to so many bytes, if all small parts are together at most so large a part of it.
_SMALL_BYTES = 16 * 1024
_SMALL_SHARE = 8
_NEAR = 64  # bytes between two parts that are copied together

_ndarray = np.ndarray
_from_numpy = torch.from_numpy

# Of a part of a batch: offset and bytes.
Extent = tuple[int, int]

_ToTensor = Callable[[Block], torch.Tensor]
_ToTensors = Callable[[Block], list[torch.Tensor]]


class Place(NamedTuple):
    """Where a dense tensor lies, and how. A plain tuple of these is how it travels.

    Attributes:
        offset: bytes from the beginning of the slot, or of whatever it is copied to.
        code: the dtype's number in `dtypes.ALL`.
        shape: sizes of the axes.
        stride: steps along the axes, in elements; None: contiguous.
    """

    offset: int
    code: int
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return ALL[self.code]

    @property
    def nbytes(self) -> int:
        """Bytes from the tensor's first element to its last."""
        return extent_of(self.shape, self.stride) * self.dtype.itemsize

    def array_arguments(self) -> tuple[tuple[int, ...], np.dtype[Any], int, tuple[int, ...] | None]:
        """Returns shape, dtype, offset and strides of the array over its elements."""
        its_carrier = carrier(self.dtype)
        steps = None if self.stride is None else tuple(step * its_carrier.itemsize for step in self.stride)
        return self.shape, its_carrier, self.offset, steps


def next_tensor() -> NoReturn:
    """Stands for the next of a batch's tensors, where a batch is pickled without them."""
    raise NotImplementedError("only an unpickler that has the tensors can read this")


def arrays_over(places: Sequence[Place], block: Block) -> list[Array]:
    """Returns the elements at ``places`` as new arrays over ``block``; of dtypes that NumPy lacks, their carriers."""
    arguments = [place.array_arguments() for place in places]
    return [_ndarray(shape, dtype, block, offset, steps) for shape, dtype, offset, steps in arguments]


def viewer(places: Sequence[Place]) -> _ToTensors:
    """Returns what makes views of a block, each with a storage of its own that ends where its elements end."""
    if not _are_plain(places):
        makers = list(map(_view_maker, places))
        return lambda block: [make(block) for make in makers]
    # All in one loop, since this is what most batches cost.
    arguments = [place.array_arguments() for place in places]
    return lambda block: [
        _from_numpy(_ndarray(shape, dtype, block, offset, steps)) for shape, dtype, offset, steps in arguments
    ]


def _are_plain(places: Sequence[Place]) -> bool:
    """Whether each tensor is all that `torch.from_numpy` makes of its array."""
    return all(place.dtype in TO_NUMPY and 0 not in place.shape for place in places)


def _view_maker(place: Place) -> _ToTensor:
    dtype = place.dtype
    if 0 in place.shape:
        return lambda block: _without_elements(place)
    shape, its_carrier, offset, steps = place.array_arguments()
    return lambda block: carried(_ndarray(shape, its_carrier, block, offset, steps), dtype)


def _without_elements(place: Place) -> torch.Tensor:
    dtype = TO_TORCH[carrier(place.dtype)]  # a new tensor of a quantized dtype is more than its elements
    if place.stride is None:
        return torch.empty(place.shape, dtype=dtype, device="cpu").view(place.dtype)
    return torch.empty_strided(place.shape, place.stride, dtype=dtype, device="cpu").view(place.dtype)


def copier(places: Sequence[Place]) -> _ToTensors:
    """Returns what copies tensors out of a block, each to memory of its own, with its strides."""
    ranges = [slice(place.offset, place.offset + place.nbytes) for place in places]
    make = _views_of([place._replace(offset=0) for place in places], range(len(places)))

    def copy(block: Block) -> list[torch.Tensor]:
        copies = [block[one].copy() for one in ranges]
        tensors = make(copies)
        for tensor, memory in zip(tensors, copies, strict=True):
            hold(tensor.untyped_storage(), memory)
        return tensors

    return copy


def lender(places: Sequence[Place], apart: Sequence[range]) -> _ToTensors:
    """Returns what makes views of a block, or of copies of the ranges ``apart`` of it."""
    # For each place the number of its block: 0 is all of it, the others are the copies.
    numbers = [
        next((n for n, one in enumerate(apart, 1) if place.nbytes and place.offset in one), 0) for place in places
    ]
    copied = [(place, n) for place, n in enumerate(numbers) if n]
    if not copied:
        return viewer(places)
    ranges = [slice(one.start, one.stop) for one in apart]
    starts = [0, *(one.start for one in apart)]
    moved = [place._replace(offset=place.offset - starts[n]) for place, n in zip(places, numbers, strict=True)]
    make = _views_of(moved, numbers)

    def lend(block: Block) -> list[torch.Tensor]:
        blocks = [block]
        for one in ranges:
            blocks.append(block[one].copy())  # noqa: PERF401 - twice as fast as to extend, for one or two
        tensors = make(blocks)
        for place, n in copied:
            hold(tensors[place].untyped_storage(), blocks[n])
        return tensors

    return lend


def _views_of(places: Sequence[Place], numbers: Sequence[int]) -> Callable[[list[Block]], list[torch.Tensor]]:
    """Returns what makes views as `viewer` does, but of several blocks, of which ``numbers`` has one for each place."""
    if not _are_plain(places):
        makers = [(n, _view_maker(place)) for n, place in zip(numbers, places, strict=True)]
        return lambda blocks: [make(blocks[n]) for n, make in makers]
    arguments = [(n, *place.array_arguments()) for n, place in zip(numbers, places, strict=True)]
    return lambda blocks: [
        _from_numpy(_ndarray(shape, dtype, blocks[n], offset, steps)) for n, shape, dtype, offset, steps in arguments
    ]


def small_ranges(extents: Sequence[Extent]) -> list[range]:
    """Returns the ranges of a block where what is small lies beside what is large.

    Small is what takes some KB, if all of it together is a small part of the batch. What lies side by side is one
    range; so is what overlaps, and then it is small or large together.

    Args:
        extents: of all parts.
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


def extent_of(shape: tuple[int, ...], stride: tuple[int, ...] | None) -> int:
    """Returns how many elements lie between a tensor's first and last element, both included."""
    if 0 in shape:
        return 0
    if stride is None:
        return math.prod(shape)
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
