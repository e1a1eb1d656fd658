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
    if not all(place.dtype in TO_NUMPY and 0 not in place.shape for place in places):
        makers = list(map(_view_maker, places))
        return lambda block: [make(block) for make in makers]
    # All in one loop, since this is what most batches cost.
    arguments = [place.array_arguments() for place in places]
    return lambda block: [
        _from_numpy(_ndarray(shape, dtype, block, offset, steps)) for shape, dtype, offset, steps in arguments
    ]


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
    copiers = [_copies_of([place], slice(place.offset, place.offset + place.nbytes)) for place in places]
    return lambda block: [copy(block)[0] for copy in copiers]


def _copies_of(places: Sequence[Place], where: slice) -> _ToTensors:
    """Returns what makes tensors over a copy of a part of a block."""
    view = viewer([place._replace(offset=place.offset - where.start) for place in places])

    def copy(block: Block) -> list[torch.Tensor]:
        memory = block[where].copy()
        tensors = view(memory)
        for tensor in tensors:
            hold(tensor.untyped_storage(), memory)
        return tensors

    return copy


def lender(places: Sequence[Place], apart: Sequence[range]) -> _ToTensors:
    """Returns what makes views of a block, or of copies of the ranges ``apart`` of it."""
    if not apart:
        return viewer(places)
    groups: list[list[int]] = [[] for _ in (None, *apart)]  # numbers of places: the views first, then by range
    for number, place in enumerate(places):
        group = next((n for n, one in enumerate(apart, 1) if place.nbytes and place.offset in one), 0)
        groups[group].append(number)
    view = viewer([places[number] for number in groups[0]])
    copies = [
        _copies_of([places[number] for number in group], slice(one.start, one.stop))
        for group, one in zip(groups[1:], apart, strict=True)
        if group  # else there are only other things than tensors in that range
    ]
    made = [number for group in groups for number in group]
    numbers = list(range(len(places)))
    order = [made.index(number) for number in numbers]
    is_in_order = order == numbers

    def lend(block: Block) -> list[torch.Tensor]:
        tensors = view(block)
        for copy in copies:
            tensors += copy(block)
        return tensors if is_in_order else [tensors[number] for number in order]

    return lend


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
