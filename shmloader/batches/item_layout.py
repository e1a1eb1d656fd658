"""Items of fixed shapes: what they consist of, and where each part lies in a slot, known before there is any.

A producer declares its items. So their places, and the tail that `packing` writes behind them, are found once, in the
parent; a worker then makes arrays over a slot, and the parent tensors, and nothing of an item is ever pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shmloader.errors import PoolMemoryError

from .alignment import aligned
from .dtypes import CODES, TO_NUMPY, TO_TORCH, carried, carrier, is_filled_by_elements
from .packing import Packer
from .place import Place, arrays_over
from .spec import TensorSpec, is_shape
from .structure import Join, any_joiner, is_named, leaves, take_apart
from .tensors import Array, Block


@dataclass(frozen=True)
class ItemLayout:
    """Where the parts of an item lie in its slot.

    Attributes:
        structure: the item's, with a `TensorSpec` in the place of each part, which has a dtype.
        places: of its parts, in order.
        end: where the last of them ends.
        tail_offset: where the tail lies.
        tail: what `packing` writes there; the same for each item.
    """

    structure: Any
    places: list[Place]
    end: int
    tail_offset: int
    tail: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of a slot that an item takes."""
        return self.tail_offset + len(self.tail)

    def joiner(self) -> Callable[[list[Array]], Any]:
        """Returns what makes an item of its arrays, in which dtypes that NumPy lacks are tensors over them."""
        join = _joiner(self.structure)
        dtypes = [place.dtype for place in self.places]
        if all(dtype in TO_NUMPY for dtype in dtypes):
            return lambda arrays: join(iter(arrays))

        def join_mixed(arrays: list[Array]) -> Any:
            pairs = zip(arrays, dtypes, strict=True)
            return join(iter([array if dtype in TO_NUMPY else carried(array, dtype) for array, dtype in pairs]))

        return join_mixed


def lay_out(specs: Any, alignment: int) -> ItemLayout:
    """Reads a declaration, and lays its items out.

    Args:
        specs: a structure of dicts, lists, tuples and namedtuples with shapes and `TensorSpec` leaves; one leaf, for an
            item that is one tensor. A shape without a dtype has torch's default one.
        alignment: of each part, in bytes.

    Raises:
        TypeError: something is neither a structure nor a leaf; or a dtype is a quantized or a bits dtype.
        ValueError: a shape is impossible, or there is no leaf.
        PoolMemoryError: one item takes more than all memory.
    """
    try:
        structure = _read(specs, "")
    except RecursionError:
        raise ValueError("specs is nested too deep") from None
    places: list[Place] = []
    end = 0
    for leaf in leaves(structure):
        offset = aligned(end, alignment) if leaf.nbytes else 0
        places.append(Place(offset, CODES[leaf.dtype], leaf.shape, None))
        end = max(end, offset + leaf.nbytes)
    if not places:
        raise ValueError(f"specs must have a shape or a TensorSpec in it, got {specs!r}")
    tail_offset, tail = _packed(structure, places, end, alignment)
    return ItemLayout(structure, places, end, tail_offset, tail)


def _read(specs: Any, path: str) -> Any:
    """Returns the declaration with a `TensorSpec` that has a dtype in each leaf, in containers of the same kinds."""
    if isinstance(specs, TensorSpec) or is_shape(specs):
        return _leaf(specs, path)
    parts = None if specs is None else take_apart(specs)
    if parts is None:
        hint = f"; write ({specs},) for one axis" if isinstance(specs, int) else ""
        if specs is None:
            hint = "; each part of an item is a tensor, whose shape has to be known"
        raise TypeError(f"specs{path} must be a shape, a TensorSpec or a structure of them, got {specs!r}{hint}")
    if isinstance(specs, tuple) and type(specs) is not tuple and not is_named(specs):
        raise TypeError(
            f"specs{path} is of type {type(specs).__qualname__}, which makes something of its parts when it is called; "
            "items may be named tuples that do not"
        )
    return parts.rebuilt([_read(part, path + name) for part, name in zip(parts.values, parts.paths, strict=True)])


def _leaf(spec: Any, path: str) -> TensorSpec:
    try:
        leaf = spec if isinstance(spec, TensorSpec) else TensorSpec(spec)
        dtype = leaf.dtype or torch.get_default_dtype()
        if not is_filled_by_elements(dtype):
            raise TypeError(
                f"specs{path}: an item is elements that are written one by one, and no tensor of {dtype} is; declare "
                f"{TO_TORCH[carrier(dtype)]}, which is as wide, and convert what comes"
            )
        return TensorSpec(leaf.shape, dtype)
    except ValueError as error:
        raise ValueError(f"specs{path}: {error}") from None


def _packed(structure: Any, places: list[Place], end: int, alignment: int) -> tuple[int, bytes]:
    """Returns the offset of an item's tail, and the tail."""
    try:
        memory = np.empty(end, np.uint8)  # which is not touched
    except MemoryError:
        raise PoolMemoryError(f"an item takes {end} bytes, as specs declares it, and there is not so much") from None
    tensors = [carried(array, place.dtype) for array, place in zip(arrays_over(places, memory), places, strict=True)]
    paper = _Paper(memory, alignment)
    packer = Packer()
    packer.lay_out(_joiner(structure)(iter(tensors)), paper)
    packed = packer.fill(paper)
    return packed.tail_offset, packed.tail


class _Paper:
    """A slot that nothing is written to; see `packing.Writer`. The item is there already."""

    def __init__(self, memory: Block, alignment: int) -> None:
        self._start = int(memory.__array_interface__["data"][0])
        self._end = memory.nbytes
        self._alignment = alignment

    def offset_of(self, address: int) -> int | None:
        return address - self._start

    def reserve(self, nbytes: int) -> int:
        return aligned(self._end, self._alignment)

    def rewind(self) -> None: ...

    def view(self, offset: int, nbytes: int) -> Block:
        raise NotImplementedError

    def write(self, offset: int, data: bytes) -> None: ...


def _joiner(structure: Any) -> Join:
    """Returns what makes an item of its parts."""
    return any_joiner(structure, lambda part: isinstance(part, TensorSpec))
