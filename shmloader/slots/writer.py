"""A worker's slot as memory to write to: laid out first, then made sure of, then filled."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from shmloader import process_exit
from shmloader.batches.alignment import aligned
from shmloader.batches.tensors import Array, Block
from shmloader.errors import PoolMemoryError
from shmloader.weak_members import WeakMembers
from shmloader.words import LOADER, Words

from . import fork_copies
from .arena import Arena
from .ledger import MIN_SLOT_BYTES

# What is never lent of a slot's room: an exception's text must find a place behind what user code may hold.
FAULT_BYTES = 16 * 1024


class Hold(NamedTuple):
    """What code in a worker holds of a slot.

    Attributes:
        slot: which slot.
        block: its memory. It is alive as long as anything is held.
        written: how many of its first bytes are written.
    """

    slot: int
    block: Block
    written: int


class Lent(NamedTuple):
    """What was lent of a slot, whether or not anybody holds it still; see `Hold`."""

    block: weakref.ref[Block]
    slot: int
    written: int


def still_held(lent: Iterable[Lent]) -> list[Hold]:
    """Returns what of that which was lent is held still."""
    blocks = {one.slot: (one.block(), one.written) for one in lent}
    return [Hold(slot, block, written) for slot, (block, written) in blocks.items() if block is not None]


class SlotWriter:
    """Lays out one batch at a time in its slot, from the bottom up. Used in a worker.

    What does not fit into the bytes that the slot may use is to be asked for once a batch, when all of it is laid out:
    a worker that waits for room holds as little as can be, so that workers cannot take it from each other.

    Memory that was lent in a batch is not written a second time in it while anything in this process refers to it: what
    is laid out later lies behind it.

    Args:
        arena: where slots lie.
        cap_text: what the pool is limited by, for an error's text.

    Attributes:
        address: where the slot begins, in this process.
        is_collating: whether the batch's own collate function runs. What user code collates at any other time, a sample
            perhaps, may be a source of the batch, and must not lie where that is going to be written.
        is_inherited: whether this is a process that user code has forked in the worker. The slot is the worker's.
    """

    def __init__(self, arena: Arena, cap_text: str) -> None:
        self._arena = arena
        self._cap_text = cap_text
        self._thread = threading.get_ident()
        self._slot = -1
        self._number = -1  # the slot's, also after it was closed
        self._room = 0
        self._top = 0
        self._written = 0
        self.address = 0
        self.is_collating = False
        self.is_inherited = False
        self._is_direct = True
        self._block: Block | None = None
        self._held: weakref.ref[Block] | None = None
        self._lent_before: list[Lent] = []
        _all.add(self)
        fork_copies.watch(self)

    def open(self, slot: int, room: int) -> None:
        """Begins a batch in ``slot``, of which ``room`` bytes may be used."""
        self._block = self._held = None  # first, since other threads may look at it
        self._slot = self._number = slot
        self._room = room
        self._top = self._written = 0
        self.address = self._arena.address + self._arena.start(slot)

    def close(self) -> None:
        """Ends the batch: nothing more is written."""
        self._slot = -1
        self._block = None

    @property
    def is_held(self) -> bool:
        """Whether something in this process holds a tensor of the batch that was closed last.

        A collate function may keep what it returned, as a cache or for statistics. Such a tensor must not change
        under it, as it would when the slot was used again.
        """
        return self._held is not None and self._held() is not None

    @property
    def lent(self) -> Lent | None:
        """What was lent of the slot that is open, or was closed last, if anything was."""
        held = self._held
        return None if held is None else Lent(held, self._number, self._written)

    def stop_lending(self) -> None:
        """From now on lends no memory of slots: batches are made elsewhere, and copied when they are packed."""
        self._is_direct = False
        if (lent := self.lent) is not None:
            self._lent_before.append(lent)

    def holds(self) -> list[Hold]:
        """Returns the slots of which something in this process holds a tensor. Safe from any thread."""
        lent = self.lent
        return still_held([*self._lent_before, *([] if lent is None else [lent])])

    def blocks(self) -> list[Block]:
        """Returns what was written of the slots of which something in this process holds a tensor."""
        return [hold.block[: hold.written] for hold in self.holds()]

    def leave_to_parent(self) -> None:
        """Writes nothing from now on. Called in a process that user code has forked in the worker.

        It may go on as the worker does, and would write its samples to the worker's slot.
        """
        self._is_direct = False
        self.is_inherited = True
        self._slot = self._room = -1

    def lending_to(self, collate_fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns the batch's collate function, with `is_collating` set while it runs."""

        def collate(samples: Any) -> Any:
            self.is_collating = True
            try:
                return collate_fn(samples)
            finally:
                self.is_collating = False

        return collate

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array | None:
        """Returns an uninitialised array in the slot, to be filled and perhaps to be held by user code.

        None where there is no slot for it: it is empty, or larger than what may be lent of the slot at present; no
        batch is open; this is another thread than the worker's own, such as a dataset may collate in; or after
        `stop_lending`.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        offset = aligned(self._top)
        if not nbytes or offset + nbytes > self._room - FAULT_BYTES:
            return None
        if not self._is_direct or self._slot < 0 or threading.get_ident() != self._thread:
            return None
        self._top = self._written = offset + nbytes
        return np.ndarray(shape, dtype, self._whole(), offset)

    def lay_out(self, nbytes: int, room: int) -> int | None:
        """Lays out the slot's first ``nbytes`` bytes, for whoever writes them now, and returns the slot's number.

        None where no batch is open, something of it is written already, or it may not use ``room`` bytes at present.
        """
        if self._slot < 0 or self._top or room > self._room:
            return None
        self._top = self._written = nbytes
        return self._slot

    def lend(self, nbytes: int, room: int) -> Block | None:
        """Does the same and returns the slot, to make arrays of that user code may hold; None after `stop_lending`."""
        if not self._is_direct or self.lay_out(nbytes, room + FAULT_BYTES) is None:
            return None
        return self._whole()

    def _whole(self) -> Block:
        if self._block is None:
            self._block = self._arena.block(self._slot, self._room)
            self._held = weakref.ref(self._block)
        return self._block

    def offset_of(self, address: int) -> int | None:
        """Returns where in the slot ``address`` lies, or None if nothing was written there."""
        offset = address - self.address
        return offset if 0 <= offset < self._written else None

    def reserve(self, nbytes: int) -> int:
        """Lays out ``nbytes`` bytes and returns their offset, a multiple of ALIGNMENT. They are not there yet."""
        offset = aligned(self._top)
        self._top = offset + nbytes
        return offset

    def rewind(self) -> None:
        """Forgets what was laid out and not written."""
        self._top = self._written

    def reclaim(self) -> None:
        """Forgets what was written too, unless something in this process holds it."""
        self._block = None
        if self._held is None or (block := self._held()) is None:
            self._held = None
            self._written = 0
        else:
            self._block = block
        self.rewind()

    @property
    def shortage(self) -> int:
        """How many bytes the slot needs in all, if it may not use so many; else 0."""
        return self._top if self._top > self._room else 0

    @property
    def to_stay(self) -> int:
        """How many of the slot's first bytes have to stay if it gets no more room.

        That is what is written, which user code may hold, and room for an exception's text behind it.
        """
        return self._written + FAULT_BYTES if self._written else 0

    def grant(self, room: int) -> None:
        """Lets the slot use ``room`` bytes from now on; 0: no more than what any slot may use, and what has to stay."""
        self._room = room or max(MIN_SLOT_BYTES, self.to_stay)

    def require(self, words: Words = LOADER) -> None:
        """Makes sure that all that was laid out may be written.

        Args:
            words: for the error's text.

        Raises:
            PoolMemoryError: the pool cannot hold a batch of this size.
        """
        if self._top > self._room:
            raise PoolMemoryError(
                f"{words.one} takes {self._top} bytes of shared memory, which do not fit under {self._cap_text} beside "
                f"the {words.many} that are held; raise it, or {words.smaller}"
            )

    def write(self, offset: int, data: bytes) -> None:
        """Writes bytes at ``offset``."""
        start = self._arena.start(self._slot) + offset
        self._arena.memory[start : start + len(data)] = data

    def view(self, offset: int, nbytes: int) -> Block:
        """Returns ``nbytes`` bytes at ``offset``. For use within the library: it does not count as held."""
        return np.ndarray((nbytes,), np.uint8, self._arena.memory, self._arena.start(self._slot) + offset)


_all: WeakMembers[SlotWriter] = WeakMembers()


def _leave_all_to_parent() -> None:
    for writer in _all:
        writer.leave_to_parent()


process_exit.in_child(process_exit.InChild.STOP_WRITING, _leave_all_to_parent)
