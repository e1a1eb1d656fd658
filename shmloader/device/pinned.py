"""Slots in page-locked memory, which a device reads by itself, without a copy in between.

What is page-locked is the part of a slot that its batches have used, from the slot's beginning: its address range is
huge, and its other pages are not there. It is done by the parent, before a batch is handed out whose slot is not
page-locked that far. A copy may not span two registrations, so a slot that has grown is registered anew. Its size is
just what its largest batch took: each time it is registered anew that is a record, and records become rare.

Memory that is given back to the system, or unmapped, while it is registered would leave the device with pages that are
nobody's, and would make `is_pinned` lie about whatever is mapped there next. So a range is unregistered first, always,
and the mapping is held as long as any range of it is registered.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from shmloader import callers, process_exit
from shmloader.batches.tensors import Block
from shmloader.errors import FallbackWarning
from shmloader.slots.arena import Arena
from shmloader.slots.leases import Lease, Leases
from shmloader.slots.pages import round_up

from . import cuda
from .fence import Fence


class PinnedArena(Arena):
    """An arena whose slots are page-locked as far as they are used.

    Only by the process that makes it: in workers, and in processes that user code forks, it is like any arena.

    Args:
        slots, max_slot_bytes, workers, declared_bytes: see `Arena`.

    Raises:
        PoolMemoryError: see `Arena`.
    """

    def __init__(self, slots: int, max_slot_bytes: int, workers: int = 0, declared_bytes: int = 0) -> None:
        super().__init__(slots, max_slot_bytes, workers, declared_bytes)
        self._owner_pid = os.getpid()
        self._registered: dict[int, int] = {}
        self._failure = ""
        self.driver: cuda.Driver | None = None
        try:
            self.driver = cuda.driver()
        except cuda.MissingError as error:
            self._failure = str(error)
        self._is_announced = False

    @property
    def is_mine(self) -> bool:
        """Whether this is the process that made it."""
        return self._owner_pid == os.getpid()

    def pin(self, slot: int, nbytes: int) -> None:
        """Page-locks the first ``nbytes`` bytes of ``slot``, of which no tensor is alive and no copy in flight.

        Where that fails, which `announce` tells, this slot is not page-locked at all, and it is not tried again.
        """
        nbytes = round_up(nbytes)
        if self._registered.get(slot, 0) >= nbytes or not self.is_mine:
            return
        if not self._unpin(slot) or self.driver is None or self._failure or process_exit.is_exiting():
            return
        # Noted first: what comes in between, a Ctrl-C, leaves a note of what may not be registered, and to undo that
        # does no harm.
        _all.add(self)
        self._registered[slot] = nbytes
        if failure := self.driver.register(self.address + self.start(slot), nbytes):
            self._failure = f"{nbytes} bytes: {failure}"
            self._forget(slot)

    def _unpin(self, slot: int) -> bool:
        """Undoes `pin`, and returns whether the slot is not page-locked now. A device that is lost may refuse it."""
        if slot in self._registered and self.is_mine:
            if self.driver is None or not self.driver.unregister(self.address + self.start(slot)):
                return False
            self._forget(slot)
        return True

    def _forget(self, slot: int) -> None:
        del self._registered[slot]
        if not self._registered:
            _all.discard(self)

    def unpin_all(self) -> None:
        """Undoes `pin` for all slots. No copy may be in flight."""
        for slot in list(self._registered):
            self._unpin(slot)

    def populate(self, slot: int, nbytes: int) -> None:
        """Makes the first ``nbytes`` bytes of ``slot`` resident, and page-locks them; see `Arena.populate`."""
        super().populate(slot, nbytes)
        self.pin(slot, nbytes)

    def give_back(self, slot: int, after: int = 0) -> None:
        """Unregisters ``slot`` and gives its memory back, see `Arena.give_back`; or neither, where that is refused."""
        if self._unpin(slot):
            super().give_back(slot, after)

    def giving_back_later(self) -> Callable[[int], bool]:
        """Returns what gives back the memory of a slot. It holds the mapping, which a copy may still read."""

        def give_back(slot: int) -> bool:
            self.give_back(slot)
            return True

        return give_back

    def announce(self) -> None:
        """Says that slots cannot be page-locked, if so.

        Not at once: were warnings errors, the batch would be lost.

        Warns:
            FallbackWarning: once.
        """
        if self._failure and not self._is_announced:
            self._is_announced = True
            warnings.warn(
                f"the pool cannot be page-locked ({self._failure}), so batches are copied to page-locked memory, as "
                "torch's DataLoader does",
                FallbackWarning,
                stacklevel=callers.stacklevel(),
            )


class PinnedLeases(Leases):
    """The leases of a `PinnedArena`'s slots: what is leased is page-locked, and what has ended no device reads."""

    other_holders = ", or copies of them to a device are under way"

    def __init__(self, arena: PinnedArena) -> None:
        super().__init__()
        self._arena = arena
        self._fence = None if arena.driver is None else Fence(arena.driver)

    def __len__(self) -> int:
        return super().__len__() + (0 if self._fence is None else len(self._fence))

    def open(self, slot: int, block: Block) -> Lease:
        """Begins a lease, see `Leases.open`. Until there is a tensor over ``block``, it is page-locked."""
        self._arena.pin(slot, block.nbytes)
        return super().open(slot, block)

    def drain(self) -> list[int]:
        """Returns the slots whose leases have ended, and which no copy reads, since the last call."""
        ended = self.ended()
        settled = [lease.slot for lease in ended if lease.is_settled]
        others = [lease.slot for lease in ended if not lease.is_settled]
        return settled + (others if self._fence is None else self._fence.pass_on(others))


@dataclass(frozen=True)
class PinnedMemory:
    """Page-locked shared memory, as what a pool is made of; see `slots.pool.Memory`."""

    lends_small_parts = True  # a tensor has to lie in the slot to be page-locked

    def make(
        self, slots: int, max_slot_bytes: int, workers: int, declared_bytes: int
    ) -> tuple[PinnedArena, PinnedLeases]:
        """Returns a new arena and its leases; see `PinnedArena`."""
        arena = PinnedArena(slots, max_slot_bytes, workers, declared_bytes)
        return arena, PinnedLeases(arena)


_all: set[PinnedArena] = set()  # those with ranges that are registered; it holds their mappings


def _unpin_all() -> None:
    """Unregisters everything, since the interpreter ends, and the driver after it. Blocks until all copies are over."""
    arenas = [arena for arena in _all if arena.is_mine]
    if arenas and arenas[0].driver is not None:
        arenas[0].driver.finish()
    for arena in arenas:
        arena.unpin_all()


process_exit.at_exit(process_exit.AtExit.UNPIN, _unpin_all)
