"""A worker's slot as memory to allocate from: it grows when a batch needs more than the slot may use."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import torch

from .arena import Arena
from .dtypes import carrier
from .errors import PoolMemoryError
from .leases import Block

# Cache lines, and what vector instructions want.
ALIGNMENT = 64


class SlotWriter:
    """Allocates from one slot at a time, upwards. Used in a worker.

    Args:
        arena: where slots lie.
        max_bytes: the pool's cap, for an error's text.
        ask: called with the bytes that the open slot needs in all; asks the parent, blocks until it has answered, and
            returns how many bytes the slot may use now.
    """

    def __init__(self, arena: Arena, max_bytes: int, ask: Callable[[int], int]) -> None:
        self._arena = arena
        self._max_bytes = max_bytes
        self._thread = threading.get_ident()
        self._ask = ask
        self._slot = -1
        self._room = 0
        self._top = 0
        self._address = 0
        self._block: Block | None = None
        self._blocks: list[weakref.ref[Block]] = []

    def open(self, slot: int, room: int) -> None:
        """Begins a batch in ``slot``, of which ``room`` bytes may be used."""
        self._slot = slot
        self._room = room
        self._top = 0
        self._address = self._arena.address + self._arena.start(slot)
        self._block = None
        self._blocks.clear()

    @property
    def is_open(self) -> bool:
        """Whether a batch is being written, and this is the thread that writes it.

        A dataset may collate in threads of its own; what they make is packed like any other tensor.
        """
        return self._slot >= 0 and threading.get_ident() == self._thread

    def close(self) -> bool:
        """Ends the batch, and returns whether nothing in this process holds a tensor of the slot any more.

        A collate function may keep what it returned, as a cache or for statistics. Such a tensor must not change
        under it, as it would when the slot was used again.
        """
        self._slot = -1
        self._block = None
        if any(block() is not None for block in self._blocks):
            gc.collect()  # a batch with a reference cycle looks like one that is held
        return all(block() is None for block in self._blocks)

    def allocate(self, nbytes: int) -> int:
        """Reserves ``nbytes`` bytes of the slot and returns their offset, a multiple of ALIGNMENT.

        Blocks while the parent decides whether the slot may grow; the parent's answer or its end wakes it.

        Raises:
            PoolMemoryError: the pool cannot hold a batch of this size.
        """
        offset = -(-self._top // ALIGNMENT) * ALIGNMENT
        end = offset + nbytes
        if end > self._room:
            self._grow(end)
        self._top = end
        return offset

    def _grow(self, need: int) -> None:
        granted = self._ask(need)
        if granted < need:
            raise PoolMemoryError(
                f"a batch needs at least {need} bytes of shared memory, which do not fit under "
                f"max_pool_bytes={self._max_bytes} beside the batches that the loop holds; raise it, or make batches "
                "smaller"
            )
        self._room = granted
        self._block = None  # the next one spans the larger range

    def view(self, offset: int, nbytes: int) -> Block:
        """Returns ``nbytes`` bytes at ``offset``. For use within the library: it does not count as held."""
        return np.ndarray((nbytes,), np.uint8, self._arena.memory, self._arena.start(self._slot) + offset)

    def offset_of(self, address: int) -> int | None:
        """Returns where in the slot ``address`` lies, or None if it is not in what was allocated."""
        offset = address - self._address
        return offset if 0 <= offset < self._top else None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """Returns an uninitialised tensor in the slot, to be filled and perhaps to be held by user code.

        An empty tensor needs no slot: for one the answer is None.
        """
        count = 1
        for size in shape:
            count *= size
        if not count:
            return None
        numpy_dtype = carrier(dtype)
        offset = self.allocate(count * numpy_dtype.itemsize)
        if self._block is None:
            self._block = self._arena.block(self._slot, self._room)
            self._blocks.append(weakref.ref(self._block))
        tensor = torch.from_numpy(np.ndarray(shape, numpy_dtype, self._block, offset))
        return tensor if tensor.dtype is dtype else tensor.view(dtype)
