"""The pool: an arena, the ledger of its slots, and the leases that the consumer has on them.

Here the ledger's decisions become memory operations. Used in the parent, by one iterator at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shmloader.batches.tensors import Block
from shmloader.batches.unpacking import Unpacker
from shmloader.errors import PoolMemoryError, WorkerFault
from shmloader.words import LOADER, Words, alternatives

from . import fork_copies, moved_storages, orphans
from .arena import ADDRESS_SPACE_LIMIT, Arena, tight_limit
from .held_batches import CopyNotice
from .holds import Holds
from .leases import Lease, Leases
from .ledger import MIN_SLOT_BYTES, Ledger, SlotWatcher, State
from .results import Made, Result, Retained, Spilled, Unsent
from .writer import Hold

NO_SLOT = -1


class Memory(Protocol):
    """A kind of memory that slots may lie in."""

    @property
    def lends_small_parts(self) -> bool:
        """Whether small parts of a batch are views of the slot too, and not copies beside it."""

    def make(self, slots: int, max_slot_bytes: int, workers: int, declared_bytes: int) -> tuple[Arena, Leases]:
        """Returns a new arena, see `Arena` for the arguments, and its leases."""


@dataclass(frozen=True)
class SharedMemory:
    """Plain shared memory."""

    lends_small_parts = False

    def make(self, slots: int, max_slot_bytes: int, workers: int, declared_bytes: int) -> tuple[Arena, Leases]:
        """Returns a new arena and its leases; see `Arena`."""
        return Arena(slots, max_slot_bytes, workers, declared_bytes), Leases()


class Pool:
    """Slots in shared memory, from being claimed for a job to the end of the consumer's lease.

    Args:
        num_slots: how many slots.
        in_flight: how many of them are set aside for jobs, at least.
        max_bytes: the cap on what all slots take together.
        available: the memory that there is; a larger cap would be none.
        num_workers: how many workers write to it.
        memory: what slots lie in.
        declared_bytes: what a batch takes, where that is declared; see `Arena`.
        held_per_worker: how many slots each worker may hold beside ``num_slots``, for batches that code in it
            holds; see `slots.writer`. Where it is more than one, workers hold slots as a matter of course, and there
            is always room for that.
        words: for texts.

    Attributes:
        num_slots: as above.
        max_bytes: the cap, or the memory that there was where that is less.
        cap_text: how errors call what limits the pool.
        arena: where slots lie.
        batches: batches handed out so far.
        copies: batches of those that were handed out as private copies, since the consumer held so many.
        copies_for_room: those of them where slots were left, and the cap left no room to lend them.
        samples: samples in the batches handed out.
        nbytes: bytes that these took in their slots.
        populated_slots, populated_bytes: how many slots are resident from the start, and how much of each.

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
        memory: Memory = SharedMemory(),
        declared_bytes: int = 0,
        held_per_worker: int = 1,
        words: Words = LOADER,
    ) -> None:
        all_slots = num_slots + held_per_worker * num_workers
        if max_bytes < all_slots * MIN_SLOT_BYTES:
            raise ValueError(
                f"max_pool_bytes={max_bytes} is too small: {all_slots} slots take at least "
                f"{all_slots * MIN_SLOT_BYTES} bytes; raise it, or lower {alternatives(words.fewer)}"
            )
        orphans.tidy()
        self.cap_text = f"max_pool_bytes={max_bytes}"
        if available is not None and available < max_bytes:
            max_bytes = max(available, all_slots * MIN_SLOT_BYTES)
            self.cap_text = f"the {max_bytes} bytes of memory that were left when the pool was made ({self.cap_text})"
        self._words = words
        self.num_slots = num_slots
        self.max_bytes = max_bytes
        self.arena, self._leases = memory.make(all_slots, max_bytes, num_workers, declared_bytes)
        if self.arena.stride < MIN_SLOT_BYTES:
            raise PoolMemoryError(
                f"there is no address space for {num_slots} slots; lower {alternatives(words.fewer)}, or raise "
                f"{tight_limit() or ADDRESS_SPACE_LIMIT}"
            )
        if self.arena.stride < max_bytes and (limit := tight_limit()):
            self.cap_text = f"{self.arena.stride} bytes, what a slot can have under {limit}"
        self._ledger = Ledger(
            all_slots,
            max_bytes,
            in_flight,
            num_slots - in_flight,
            self.arena.stride,
            (held_per_worker - 1) * num_workers,
        )
        self._holds = Holds()
        self._unpacker = Unpacker(memory.lends_small_parts)
        self.batches = self.copies = self.copies_for_room = self.samples = self.nbytes = 0
        self._samples = self.arena.shared_state.samples
        self.populated_slots = self.populated_bytes = 0
        self._copy_notice = CopyNotice(self._ledger, num_slots, self.cap_text, self._leases.other_holders, words)
        moved_storages.install()
        fork_copies.watch(self._leases)

    @property
    def resident_bytes(self) -> int:
        """Memory that slots take now."""
        return self._ledger.resident

    @property
    def leased(self) -> int:
        """How many slots' batches the consumer holds now."""
        self._drain()
        return self._ledger.leased

    def states(self) -> dict[State, int]:
        """Returns how many slots are in each state now."""
        return {state: self._ledger.count(state) for state in State}

    def watch(self, watcher: SlotWatcher | None) -> None:
        """Tells ``watcher`` from now on what becomes of slots, and nobody else; None: nobody."""
        self._ledger.watcher = watcher

    def populate(self, slots: int, nbytes: int) -> None:
        """Makes the first ``nbytes`` bytes of the ``slots`` slots that will be used first resident.

        Raises:
            PoolMemoryError: they do not fit under ``max_pool_bytes``, or there is not that much memory.
        """
        nbytes = max(nbytes, 1)
        advice = f"lower {alternatives(self._words.less)}, or declare smaller shapes"
        claimed = [self._ledger.claim() for _ in range(slots)]
        for slot in claimed:
            if self._ledger.allowance(slot) < nbytes and self._ledger.grant(slot, nbytes) is None:
                raise PoolMemoryError(
                    f"{slots} {self._words.many} of {nbytes} bytes, as they are declared, do not fit under "
                    f"{self.cap_text}; raise it, {advice}"
                )
            try:
                self.arena.populate(slot, nbytes)
            except PoolMemoryError as error:
                raise PoolMemoryError(f"{error}; {advice}") from error.__cause__
            self._ledger.ready(slot, nbytes)
        for slot in reversed(claimed):
            self._ledger.free(slot)
        self.populated_slots, self.populated_bytes = slots, nbytes

    def collect(self) -> None:
        """Frees the slots whose leases have ended, and gives surplus memory back.

        Warns:
            HeldBatchesWarning: once, after the first private copy.
            FallbackWarning: once, where the slots' memory lacks something; see `Arena.announce`.
        """
        self._copy_notice.announce()
        self.arena.announce()
        orphans.tidy()
        self._drain()
        for slot in self._ledger.surplus():
            self._give_back(slot)

    def claim(self, job: bytes, least: bool = False) -> tuple[int, int]:
        """Takes a free slot and writes ``job``, pickled indices, into it.

        Args:
            job: what is written.
            least: whether the slot gets no more than the job needs, and so leaves its share to others.

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
                raise PoolMemoryError(
                    f"the {self._words.job} of one {self._words.made} take {len(job)} bytes of shared memory, which do "
                    f"not fit under {self.cap_text} beside the {self._words.many} that are held; raise it, or make "
                    "them fewer or smaller"
                )
        if least:
            room = self.curb(slot, len(job))
        start = self.arena.start(slot)
        self.arena.memory[start : start + len(job)] = job
        if len(job) > MIN_SLOT_BYTES:  # which any slot counts for
            self._ledger.touch(slot, len(job))
        return slot, room

    def is_short_of(self, nbytes: int) -> bool:
        """Whether a job of ``nbytes`` bytes cannot be claimed for now, but could if other slots were free."""
        return self._ledger.is_short_of(nbytes)

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

    def ready(self, made: Made) -> None:
        """Notes that the slot's writer is done with it."""
        self._ledger.ready(made.slot, made.tail_offset + made.tail_bytes)

    def release(self, result: Result) -> None:
        """Frees the slot of a batch that is not needed, or was copied."""
        if isinstance(result, Retained):
            self._holds.begin(result.made.slot, result.worker)
            self._free(result.made.slot)
        elif isinstance(result, Made):
            self._free(result.slot)

    def withdraw(self, slot: int) -> None:
        """Takes back a slot whose job its worker has never begun, or of which nothing came."""
        self._ledger.free(slot)

    def retain(self, slot: int, worker: int) -> None:
        """Sets aside a slot of which nothing came, but that code in ``worker`` holds, until that has ended."""
        made = Made(slot, self._ledger.allowance(slot), 0)
        self.ready(made)
        self.release(Retained(made, worker))

    def hold(self, slot: int, worker: int, holds_last: bool) -> None:
        """Notes that code in ``worker`` may hold an item that has come, until the next one; see `Holds.follow`.

        It may be handed out meanwhile; its slot becomes free only when neither has it.
        """
        let_go = self._holds.follow(slot, worker, holds_last)
        if let_go is not None:
            self._free_if_retained(let_go)

    def inherit(self, worker: int, slots: list[int], holds: Sequence[Hold] = ()) -> None:
        """Takes back what a worker that has died had: the slots of its jobs, and those that it held.

        Args:
            worker: which one.
            slots: of its jobs.
            holds: what code in this process holds through workers; such slots stay retained until `follow`.
        """
        held = {hold.slot for hold in holds}
        for slot in slots:
            if slot in held:
                self.retain(slot, worker)
            else:
                self._take_from_the_dead(slot)
        if not held:
            for slot in self._holds.end(worker):
                self._free_if_retained(slot)

    def follow(self, holds: Sequence[Hold]) -> None:
        """Has slots that code in this process holds through worker threads be in use until it lets go.

        Called when the workers have ended. It is not the end of the threads that ends such a hold.
        """
        for hold in holds:
            self._holds.discard(hold.slot)
            if self._ledger.state(hold.slot) is State.WRITING:
                self._ledger.ready(hold.slot, hold.written)
            if self._ledger.state(hold.slot) is State.READY:
                self._ledger.retain(hold.slot)
            if self._ledger.state(hold.slot) in (State.RETAINED, State.LEASED):
                self._leases.follow(*hold)

    def withdraw_all(self) -> None:
        """Takes back the slots of all jobs that their workers have never begun."""
        for slot in range(self.arena.slots):
            if self._ledger.state(slot) is State.WRITING:
                self._ledger.free(slot)

    def abandon(self) -> bool:
        """Frees every slot that the consumer does not hold, after the workers have ended, wherever they were.

        Returns:
            Whether others may use it: not while code of worker threads holds slots, since no more are to spare.
        """
        self._end_holds()
        for slot in range(self.arena.slots):
            if self._ledger.state(slot) is State.WRITING:
                self._take_from_the_dead(slot)
            elif self._ledger.state(slot) is State.READY:
                self._ledger.free(slot)
        self.arena.shared_state.stopped = False
        return not self._leases.follows_any

    def hand_over(self, result: Result) -> tuple[Any, Lease | None]:
        """Returns the batch itself, and its lease.

        It is views of its slot where the consumer may have it. Otherwise it is copies, and there is no lease.

        Raises:
            Exception: making the batch raised it; the job could not be sent; or what unpickling the batch raises.
        """
        if isinstance(result, Made) and not result.is_fault:
            nbytes = result.tail_offset + result.tail_bytes
            self.batches += 1
            self.samples += self._samples[result.slot]
            self.nbytes += nbytes
            if self._ledger.lend(result.slot):
                block = self.arena.block(result.slot, nbytes)
                lease = self._leases.open(result.slot, block)
                return self._unpacker.views(block, result.tail_offset, result.tail_bytes), lease
            self.copies += 1
            self.copies_for_room += not self._ledger.is_leased_out
            self._copy_notice.note(nbytes)
            return self._copy(result, result), None
        if isinstance(result, Unsent):
            raise result.error
        packed = result.made if isinstance(result, Retained) else result
        if packed.is_fault:
            fault: WorkerFault = self._copy(packed, result)
            fault.reraise()
        self.batches += 1
        self.samples += packed.samples if isinstance(packed, Spilled) else self._samples[packed.slot]
        self.nbytes += packed.tail_offset + packed.tail_bytes
        return self._copy(packed, result), None

    def settle(self, lease: Lease) -> None:
        """Notes that when ``lease`` ends no copy from its slot is in flight, so that the slot is free at once."""
        self._leases.settle(lease)

    def spill(self, result: Result) -> Result:
        """Moves a batch that waits for its turn out of its slot, which is free then. A `Retained` one stays there."""
        if not isinstance(result, Made):
            return result
        block, *_ = self._where(result)
        block = block.copy()
        self._free(result.slot)
        samples = self._samples[result.slot]
        return Spilled(block, result.tail_offset, result.tail_bytes, result.is_fault, samples)

    def close(self) -> None:
        """Gives back all memory but that of leased slots, which follows as their leases end; see `orphans`.

        Called when the workers have ended.
        """
        self._drain()
        self._end_holds()
        for slot in range(self.arena.slots):
            if self._ledger.state(slot) not in (State.LEASED, State.RETAINED):  # which threads hold; see `follow`
                self.arena.give_back(slot)
        orphans.adopt(self.arena, self._leases)

    def _drain(self) -> None:
        for slot in self._leases.drain():
            self._free(slot)

    def _free(self, slot: int) -> None:
        """Notes that neither the parent nor the consumer has ``slot`` any more, which a worker may hold."""
        if slot in self._holds:
            self._ledger.retain(slot)
        else:
            self._ledger.free(slot)

    def _end_holds(self) -> None:
        for slot in self._holds.end_all():
            self._free_if_retained(slot)

    def _free_if_retained(self, slot: int) -> None:
        """Notes that no worker holds ``slot`` any more, which may be the parent's or the consumer's."""
        if self._ledger.state(slot) is State.RETAINED:
            self._ledger.free(slot)

    def _where(self, packed: Made | Spilled) -> tuple[Block, int, int]:
        offset, nbytes = packed.tail_offset, packed.tail_bytes
        block = self.arena.block(packed.slot, offset + nbytes) if isinstance(packed, Made) else packed.block
        return block, offset, nbytes

    def _copy(self, packed: Made | Spilled, result: Result) -> Any:
        try:
            return self._unpacker.copies(*self._where(packed))
        finally:
            self.release(result)

    def _take_from_the_dead(self, slot: int) -> None:
        # How much of it was touched died with its writer.
        self._ledger.free(slot)
        self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        self._ledger.empty(slot)
        self.arena.give_back(slot)
