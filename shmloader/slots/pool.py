"""The pool: an arena, the ledger of its slots, and the leases that the consumer has on them.

Here the ledger's decisions become memory operations. Used in the parent, by one iterator at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from shmloader.batches.tensors import Block
from shmloader.batches.unpacking import Unpacker
from shmloader.device.pinned import PinnedArena, PinnedLeases
from shmloader.errors import HeldBatchesWarning, PoolMemoryError

from . import fork_copies, moved_storages, orphans
from .arena import ADDRESS_SPACE_LIMIT, Arena, tight_limit
from .leases import Leases
from .ledger import MIN_SLOT_BYTES, Ledger, State

NO_SLOT = -1


class Packed(NamedTuple):
    """A batch that a worker has made: where it is, and where its tail is in there.

    One whose job could not even be sent is in no slot, and stands for the error in the batch's place.
    """

    slot: int
    tail_offset: int
    tail_bytes: int
    is_fault: bool = False
    keeper: int | None = None  # the worker that holds tensors of it too
    spilled: Block | None = None  # the batch itself, where the slot was needed before its turn came
    error: Exception | None = None


@dataclass(frozen=True)
class PoolStatistics:
    """What a pool is and has done.

    Attributes:
        num_slots: slots in the pool.
        max_bytes: the cap.
        resident_bytes: memory that slots take now.
        leased: slots whose batches the consumer holds.
        batches: batches handed out so far.
        copies: batches of those that were handed out as private copies, since the consumer held so many.
    """

    num_slots: int
    max_bytes: int
    resident_bytes: int
    leased: int
    batches: int
    copies: int


class Pool:
    """Slots in shared memory, from being claimed for a job to the end of the consumer's lease.

    Args:
        num_slots: how many slots.
        in_flight: how many of them are kept for jobs, at least.
        max_bytes: the cap on what all slots take together.
        available: the memory that there is; a larger cap would be none.
        num_workers: how many workers write to it; each may keep one slot beside ``num_slots``, for a batch that code
            in it holds, see `worker`.
        pinned: whether what is handed out is to be in page-locked memory, which devices may copy from as they please.
        declared_bytes: what a batch takes, where that is declared; see `Arena`.

    Raises:
        ValueError: ``max_bytes`` is too small for ``num_slots`` slots.
        PoolMemoryError: the arena cannot be mapped.
    """

    def __init__(
        self,
        num_slots: int,
        in_flight: int,
        max_bytes: int,
        available: int | None = None,
        num_workers: int = 0,
        pinned: bool = False,
        declared_bytes: int = 0,
    ) -> None:
        all_slots = num_slots + num_workers
        if max_bytes < all_slots * MIN_SLOT_BYTES:
            raise ValueError(
                f"max_pool_bytes={max_bytes} is too small: {all_slots} slots take at least "
                f"{all_slots * MIN_SLOT_BYTES} bytes; raise it, or lower num_slots, prefetch_factor or num_workers"
            )
        orphans.tidy()
        self.cap_text = f"max_pool_bytes={max_bytes}"
        if available is not None and available < max_bytes:
            max_bytes = max(available, all_slots * MIN_SLOT_BYTES)
            self.cap_text = f"the {max_bytes} bytes of memory that were left when the pool was made ({self.cap_text})"
        self.num_slots = num_slots
        self.max_bytes = max_bytes
        self._pinned: PinnedLeases | None = None
        self._leases = Leases()
        if pinned:
            self.arena: Arena = PinnedArena(all_slots, max_bytes, num_workers, declared_bytes)
            self._leases = self._pinned = PinnedLeases(self.arena)
        else:
            self.arena = Arena(all_slots, max_bytes, num_workers, declared_bytes)
        if self.arena.stride < MIN_SLOT_BYTES:
            raise PoolMemoryError(
                f"there is no address space for {num_slots} slots; lower num_slots, prefetch_factor or num_workers, or "
                f"raise {tight_limit() or ADDRESS_SPACE_LIMIT}"
            )
        if self.arena.stride < max_bytes and (limit := tight_limit()):
            self.cap_text = f"{self.arena.stride} bytes, what a slot can have under {limit}"
        self._ledger = Ledger(all_slots, max_bytes, in_flight, num_slots - in_flight, self.arena.stride)
        self._unpacker = Unpacker(lends_all=pinned)
        self._batches = self._copies = 0
        self._shortage = ""  # why the first private copy was made
        self._is_announced = False
        moved_storages.install()
        fork_copies.watch(self._leases)

    def statistics(self) -> PoolStatistics:
        """Returns the pool's figures as they are now."""
        self._drain()
        ledger = self._ledger
        return PoolStatistics(
            self.num_slots, self.max_bytes, ledger.resident, ledger.leased, self._batches, self._copies
        )

    def populate(self, slots: int, nbytes: int) -> None:
        """Makes the first ``nbytes`` bytes of the ``slots`` slots that will be used first resident.

        Raises:
            PoolMemoryError: they do not fit under ``max_pool_bytes``, or there is not that much memory.
        """
        nbytes = max(nbytes, 1)
        claimed = [self._ledger.claim() for _ in range(slots)]
        for slot in claimed:
            if self._ledger.allowance(slot) < nbytes and self._ledger.grant(slot, nbytes) is None:
                raise PoolMemoryError(
                    f"{slots} batches of {nbytes} bytes, as sample_shapes declares them, do not fit under "
                    f"{self.cap_text}; raise it, or lower batch_size or prefetch_factor"
                )
            self.arena.populate(slot, nbytes)
            self._ledger.ready(slot, nbytes)
        for slot in reversed(claimed):
            self._ledger.free(slot)

    def collect(self) -> None:
        """Frees the slots whose leases have ended, and gives surplus memory back.

        Warns:
            HeldBatchesWarning: once, after the first private copy.
            FallbackWarning: once, where slots cannot be page-locked as they should be.
        """
        if self._shortage and not self._is_announced:
            self._announce_copies()
        if self._pinned is not None:
            self._pinned.announce()
        orphans.tidy()
        self._drain()
        for slot in self._ledger.surplus():
            self._give_back(slot)

    def claim(self, job: bytes) -> tuple[int, int]:
        """Takes a free slot and writes ``job``, pickled indices, into it.

        Returns:
            The slot, and the bytes that the worker may use.

        Raises:
            PoolMemoryError: the job alone is larger than a slot may be.
        """
        slot = self._ledger.claim()
        room = self._ledger.allowance(slot)
        if len(job) > room:
            room = self.grant(slot, len(job)) or 0
            if not room:
                self._ledger.free(slot)
                raise PoolMemoryError(f"the indices of one batch take {len(job)} bytes; raise max_pool_bytes")
        start = self.arena.start(slot)
        self.arena.memory[start : start + len(job)] = job
        return slot, room

    def grant(self, slot: int, need: int) -> int | None:
        """Lets the slot that is being written grow to ``need`` bytes.

        Returns:
            The bytes that it may use now, or None if there are not so many at present.
        """
        emptied = self._ledger.grant(slot, need)
        if emptied is None:
            return None
        for other in emptied:
            self.arena.give_back(other)
        return self._ledger.allowance(slot)

    def curb(self, slot: int, written: int) -> int:
        """Lets the slot of a job that waits have no more than what is written, and gives the rest back.

        Returns:
            The bytes that it may use now.
        """
        self.arena.give_back(slot, written)
        self._ledger.curb(slot, written)
        return self._ledger.allowance(slot)

    def move_out(self, slot: int, written: int) -> bytes:
        """Returns what is written in the slot of a worker that waits, and lets it have no more than any slot has."""
        start = self.arena.start(slot)
        data = self.arena.memory[start : start + written]
        self.curb(slot, 0)
        return data

    def move_in(self, slot: int, data: bytes) -> None:
        """Writes what was moved out of a slot back into it."""
        start = self.arena.start(slot)
        self.arena.memory[start : start + len(data)] = data

    def ready(self, packed: Packed) -> None:
        """Notes that the slot's writer is done with it."""
        self._ledger.ready(packed.slot, packed.tail_offset + packed.tail_bytes)

    def release(self, packed: Packed) -> None:
        """Frees the slot of a batch that nobody wants."""
        if packed.keeper is not None:
            block, *_ = self._where(packed)
            self._ledger.keep(packed.slot)
            self._leases.open(packed.slot, block)
            self._leases.keep(block, packed.keeper)
        elif packed.spilled is None and packed.error is None:
            self._ledger.free(packed.slot)

    def withdraw(self, slot: int) -> None:
        """Takes back a slot whose job its worker has never begun, or of which nothing came."""
        self._ledger.free(slot)

    def keep(self, slot: int, worker: int) -> None:
        """Sets aside a slot of which nothing came, but that code in ``worker`` holds, until that has ended."""
        packed = Packed(slot, self._ledger.allowance(slot), 0, keeper=worker)
        self.ready(packed)
        self.release(packed)

    def inherit(self, worker: int, slots: list[int]) -> None:
        """Takes back what a worker that has died had: the slots of its jobs, and those that it kept."""
        for slot in slots:
            self._take_from_the_dead(slot)
        self._leases.let_go(worker)
        self._drain()

    def withdraw_all(self) -> None:
        """Takes back the slots of all jobs that their workers have never begun."""
        for slot in range(self.arena.slots):
            if self._ledger.state(slot) is State.WRITING:
                self._ledger.free(slot)

    def abandon(self) -> None:
        """Frees every slot that the consumer does not hold, after the workers have ended, wherever they were."""
        self._leases.let_all_go()
        for slot in range(self.arena.slots):
            if self._ledger.state(slot) is State.WRITING:
                self._take_from_the_dead(slot)
            elif self._ledger.state(slot) is State.READY:
                self._ledger.free(slot)
        self.arena.shared_state.stopped = False

    def hand_over(self, packed: Packed) -> Any:
        """Returns the batch itself, as views of its slot where the consumer may have it, as copies otherwise.

        Raises:
            Exception: the job could not be sent; or what unpickling the batch raises.
        """
        if packed.error is not None:
            raise packed.error
        if packed.is_fault:
            return self._copy(packed)
        self._batches += 1
        # A slot that code in a worker holds is not lent: the worker may die and be replaced, and its successor hold
        # another one, while the loop still had this.
        if packed.spilled is None and packed.keeper is None:
            if self._ledger.lend(packed.slot):
                block, offset, nbytes = self._where(packed)
                self._leases.open(packed.slot, block)
                return self._unpacker.views(block, offset, nbytes)
            self._note_copy(packed)
        return self._copy(packed)

    def settle(self, addresses: Iterable[int]) -> None:
        """Notes that when a batch is dropped, no copy from its slot is in flight, so that it is free at once.

        Args:
            addresses: of the batch's tensors; one of them, at least, is in the slot, if it has one.
        """
        if self._pinned is None:
            return
        first = self.arena.address + self.arena.start(0)
        slots = ((address - first) // self.arena.stride for address in addresses)
        for slot in slots:
            if 0 <= slot < self.arena.slots:
                self._pinned.settle(slot)
                return

    def spill(self, packed: Packed) -> Packed:
        """Moves a batch that waits for its turn out of its slot, which is free then."""
        if packed.keeper is not None or packed.spilled is not None or packed.error is not None:
            return packed
        block, *_ = self._where(packed)
        self._ledger.free(packed.slot)
        return packed._replace(spilled=block.copy())

    def close(self) -> None:
        """Gives back all memory but that of leased slots, which follows as their leases end; see `departed`."""
        self._drain()
        for slot in range(self.arena.slots):
            if self._ledger.state(slot) is not State.LEASED:
                self.arena.give_back(slot)
        orphans.see_off(self.arena, self._leases)

    def _drain(self) -> None:
        for slot in self._leases.drain():
            self._ledger.free(slot)

    def _where(self, packed: Packed) -> tuple[Block, int, int]:
        block = packed.spilled
        if block is None:
            block = self.arena.block(packed.slot, packed.tail_offset + packed.tail_bytes)
        return block, packed.tail_offset, packed.tail_bytes

    def _copy(self, packed: Packed) -> Any:
        try:
            return self._unpacker.copies(*self._where(packed))
        finally:
            self.release(packed)

    def _take_from_the_dead(self, slot: int) -> None:
        # How much of it was touched died with its writer.
        self._ledger.free(slot)
        self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        self._ledger.empty(slot)
        self.arena.give_back(slot)

    def _note_copy(self, packed: Packed) -> None:
        self._copies += 1
        if self._shortage:
            return
        held = self._ledger.leased
        keeps = f"you keep {held} batches, or tensors of them"
        if self._pinned is not None:
            keeps += ", or copies of them to a device are under way"
        if self._ledger.is_leased_out:
            self._shortage = (
                f"{keeps}, and a pool of {self.num_slots} slots has no more to lend beside those for loading; further "
                "batches are private copies. Clone what you keep, drop batches sooner, or raise num_slots"
            )
        elif held > 1:  # one is in the hands of any loop that takes the next
            self._shortage = (
                f"{keeps}, and {self.cap_text} leaves no room to lend more beside those for loading; further batches "
                "are private copies. Clone what you keep, drop batches sooner, or raise max_pool_bytes"
            )
        else:
            self._shortage = (
                f"a batch takes {packed.tail_offset + packed.tail_bytes} bytes, and {self.cap_text} has no room to "
                "lend it beside the one before and those for loading; such batches are private copies. Raise "
                "max_pool_bytes, or make batches smaller"
            )

    def _announce_copies(self) -> None:
        # Not when the copy is made: were warnings errors, the batch would be lost.
        self._is_announced = True
        warnings.warn(self._shortage, HeldBatchesWarning, stacklevel=6)
