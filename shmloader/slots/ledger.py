"""Who owns which slot, and how many bytes each may use: FREE -> WRITING -> READY -> LEASED -> FREE.

Pure: memory is counted here and touched elsewhere, so that the rules can be tested by random walks. Only the parent
has a ledger, so nothing here needs a lock.

Every slot has a *resident* size, the bytes that its writers have touched so far and that therefore take memory, and
an *allowance*, the bytes that it counts for against the pool's cap. A slot that is being written may use up to its
allowance without asking; any other slot's allowance is what it really takes. The allowances never sum to more than
the cap.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

# Room for a job and for an exception's text, which must arrive however small the cap is.
MIN_SLOT_BYTES = 64 * 1024

# A slot is surplus when it is much larger than recent batches, or was not needed for a while. "A while" is counted in
# batches per slot that is in use; small differences are not worth the system call and the page faults to come.
_WINDOW_BATCHES_PER_SLOT = 32
_SURPLUS_FACTOR = 2


class State(Enum):
    """Whose a slot is."""

    FREE = "free"  # nobody's
    WRITING = "writing"  # the worker's whose job names it
    READY = "ready"  # the parent's: a batch that was not handed out yet
    LEASED = "leased"  # the consumer's: it ends when no tensor of the batch is alive
    RETAINED = "retained"  # that of code in a worker, which holds a tensor of the batch, and nobody else's


# An enum's members are looked up at ten times the cost of a global.
_FREE, _WRITING, _READY, _LEASED, _RETAINED = State  # in this order


class SlotWatcher(Protocol):
    """Who is told what becomes of slots, at once. It decides nothing, and does not raise."""

    def is_ready(self, slot: int) -> None:
        """WRITING -> READY."""

    def is_lent(self, slot: int) -> None:
        """READY -> LEASED."""

    def is_retained(self, slot: int) -> None:
        """READY or LEASED -> RETAINED."""

    def is_free(self, slot: int) -> None:
        """Any state but FREE -> FREE."""


class _Slot:
    __slots__ = ("allowance", "last_used", "number", "resident", "state")

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = _FREE
        self.resident = 0
        self.allowance = MIN_SLOT_BYTES
        self.last_used = 0


class Ledger:
    """The states and sizes of a pool's slots.

    Args:
        slots: how many slots there are.
        cap: bytes that all slots together may take, at least MIN_SLOT_BYTES each.
        in_flight: how many slots may be WRITING or READY at a time; so many are never leased away.
        max_leased: how many may be LEASED; by default all but ``in_flight``.
        slot_cap: bytes that one slot may take; by default all of ``cap``.
        may_be_held: how many batches workers may come to hold: lending leaves room for them.

    Attributes:
        watcher: who is told what becomes of slots, but for claims, whose jobs the ledger does not know. None: nobody.
    """

    watcher: SlotWatcher | None = None

    def __init__(
        self,
        slots: int,
        cap: int,
        in_flight: int,
        max_leased: int | None = None,
        slot_cap: int | None = None,
        may_be_held: int = 0,
    ) -> None:
        self.cap = cap
        self.slot_cap = min(cap, slot_cap or cap)
        # A plain loop holds two batches beside those in flight.
        self.share = min(max(MIN_SLOT_BYTES, cap // (in_flight + 2)), self.slot_cap)
        if min(cap // slots, self.slot_cap) < MIN_SLOT_BYTES:
            raise ValueError(f"a cap of {cap} bytes is too small for {slots} slots of {MIN_SLOT_BYTES} bytes")
        self._slots = [_Slot(number) for number in range(slots)]
        # The slot that was freed last is used next: its pages are mapped and perhaps cached, and slots that a plain
        # loop does not need are never touched.
        self._free = self._slots[::-1]
        self._to_go_on = 1 + may_be_held
        self._max_leased = slots - in_flight if max_leased is None else max_leased
        self._leased = 0
        self._held_bytes = 0
        self._committed = sum(slot.allowance for slot in self._slots)
        self._batches = 0
        self._largest = self._largest_before = 0
        self._oversized: list[_Slot] = []
        self._window_end = self._window = _WINDOW_BATCHES_PER_SLOT * min(slots, 2 * (in_flight + 2))

    def __repr__(self) -> str:
        states = " ".join(f"{slot.number}:{slot.state.value}:{slot.resident}/{slot.allowance}" for slot in self._slots)
        return f"<Ledger {self._committed}/{self.cap} {states}>"

    def state(self, number: int) -> State:
        """Returns whose slot ``number`` is."""
        return self._slots[number].state

    def allowance(self, number: int) -> int:
        """Returns the bytes that slot ``number`` counts for; while it is WRITING, those that may be used."""
        return self._slots[number].allowance

    @property
    def committed(self) -> int:
        """The sum of all allowances."""
        return self._committed

    @property
    def resident(self) -> int:
        """Bytes that the slots' writers have touched and that were not given back."""
        return sum(slot.resident for slot in self._slots)

    @property
    def leased(self) -> int:
        """How many slots the consumer holds."""
        return self._leased

    @property
    def is_leased_out(self) -> bool:
        """Whether the consumer holds as many slots as it may."""
        return self._leased >= self._max_leased

    def count(self, state: State) -> int:
        """Returns how many slots are in ``state``."""
        return sum(slot.state is state for slot in self._slots)

    def claim(self) -> int:
        """Takes a FREE slot for a job; its allowance becomes a fair share of the cap, or what is left of the cap.

        Raises:
            IndexError: no slot is FREE; cannot happen while no more than ``in_flight`` are WRITING or READY.
        """
        slot = self._free.pop()
        slot.state = _WRITING
        slot.last_used = self._batches
        more = min(self.share - slot.allowance, self.cap - self._committed)
        if more > 0:
            self._set_allowance(slot, slot.allowance + more)
        return slot.number

    def is_short_of(self, need: int) -> bool:
        """Whether a slot that is claimed now cannot have ``need`` bytes, but could if others were FREE."""
        if need <= MIN_SLOT_BYTES or need > self.slot_cap:
            return False
        spare = sum(free.allowance - MIN_SLOT_BYTES for free in self._free)
        return need > self.cap - self._committed + spare + MIN_SLOT_BYTES

    def touch(self, number: int, nbytes: int) -> None:
        """Notes that the first ``nbytes`` bytes of a WRITING slot are written already, with its job."""
        slot = self._expect(number, _WRITING)
        slot.resident = max(slot.resident, nbytes)
        self._largest = max(self._largest, nbytes)

    def grant(self, number: int, need: int) -> list[int] | None:
        """Raises the allowance of a WRITING slot to ``need`` bytes, if need be at the expense of FREE slots.

        Returns:
            The slots whose memory has to be given back first, or None when even that would not do now.
        """
        slot = self._expect(number, _WRITING)
        if need > self.slot_cap:
            return None
        missing = self._committed - slot.allowance + need - self.cap
        emptied: list[int] = []
        if missing > 0:
            spare = sorted(self._free, key=lambda free: free.allowance, reverse=True)
            if missing > sum(free.allowance - MIN_SLOT_BYTES for free in spare):
                return None
            for free in spare:
                if missing <= 0:
                    break
                missing -= free.allowance - MIN_SLOT_BYTES
                self._empty(free)
                emptied.append(free.number)
        self._set_allowance(slot, max(slot.allowance, need))
        return emptied

    def curb(self, number: int, written: int) -> None:
        """Lowers the allowance of a WRITING slot to what is written; its other memory was given back."""
        slot = self._expect(number, _WRITING)
        slot.resident = min(slot.resident, written)
        self._set_allowance(slot, max(MIN_SLOT_BYTES, written))

    def ready(self, number: int, touched: int) -> None:
        """WRITING -> READY: the worker is done and has touched the slot's first ``touched`` bytes."""
        slot = self._expect(number, _WRITING)
        slot.state = _READY
        self._settle(slot, touched)
        self._batches += 1
        if touched > self._largest:
            self._largest = touched
        if self.watcher is not None:
            self.watcher.is_ready(number)

    def lend(self, number: int) -> bool:
        """READY -> LEASED, the batch is the consumer's; or returns False, where too little would be left to go on.

        Enough are ``in_flight`` slots, and bytes for one more batch of the largest size, and for those that workers may
        come to hold.
        """
        slot = self._expect(number, _READY)
        idle_slots = len(self._slots) - self._leased - 2
        held_bytes = self._held_bytes + slot.allowance
        largest = max(self._largest, self._largest_before, slot.resident)
        room_to_go_on = self._to_go_on * largest + idle_slots * MIN_SLOT_BYTES
        if self.is_leased_out or held_bytes + room_to_go_on > self.cap:
            return False
        slot.state = _LEASED
        self._leased += 1
        self._held_bytes = held_bytes
        if self.watcher is not None:
            self.watcher.is_lent(number)
        return True

    def retain(self, number: int) -> None:
        """READY or LEASED -> RETAINED, however little is left: code in a worker holds it, and nothing can be done."""
        slot = self._slots[number]
        if slot.state is _LEASED:
            self._leased -= 1
        else:
            self._expect(number, _READY)
            self._held_bytes += slot.allowance
        slot.state = _RETAINED
        if self.watcher is not None:
            self.watcher.is_retained(number)

    def free(self, number: int) -> None:
        """Any state but FREE -> FREE: nobody reads or writes the slot any more.

        A WRITING slot is taken to be as its last batch left it. Where its writer may have been interrupted, its
        memory has to be given back (`empty`), since nobody knows how much of it was touched.
        """
        slot = self._slots[number]
        if slot.state is _FREE:
            raise ValueError(f"slot {number} is free already")
        if slot.state is _LEASED or slot.state is _RETAINED:
            self._leased -= slot.state is _LEASED
            self._held_bytes -= slot.allowance
        elif slot.state is _WRITING:
            self._settle(slot, 0)
        slot.state = _FREE
        self._free.append(slot)
        if slot.resident > self._largest and self._is_oversized(slot):
            self._oversized.append(slot)
        if self.watcher is not None:
            self.watcher.is_free(number)

    def empty(self, number: int) -> None:
        """Notes that the memory of a FREE slot was given back."""
        self._empty(self._expect(number, _FREE))

    def surplus(self) -> list[int]:
        """Returns the FREE slots whose memory should be given back.

        Those are slots much larger than any batch of the last two windows (an outlier's), and slots that no batch of
        the last two windows needed.
        """
        if not self._oversized and self._batches < self._window_end:
            return []
        found = [slot for slot in self._oversized if slot.state is _FREE and self._is_oversized(slot)]
        self._oversized.clear()
        if self._batches >= self._window_end:
            unused_since = self._batches - 2 * self._window
            self._window_end = self._batches + self._window
            self._largest_before, self._largest = self._largest, 0
            found += [slot for slot in self._free if slot.resident and slot.last_used < unused_since]
        return [slot.number for slot in found]

    def _is_oversized(self, slot: _Slot) -> bool:
        return slot.resident > _SURPLUS_FACTOR * max(self._largest, self._largest_before, MIN_SLOT_BYTES)

    def _expect(self, number: int, state: State) -> _Slot:
        slot = self._slots[number]
        if slot.state is not state:
            raise ValueError(f"slot {number} is {slot.state.value}, not {state.value}")
        return slot

    def _settle(self, slot: _Slot, touched: int) -> None:
        if touched > slot.resident:
            slot.resident = touched
        self._set_allowance(slot, max(MIN_SLOT_BYTES, slot.resident))

    def _empty(self, slot: _Slot) -> None:
        slot.resident = 0
        self._set_allowance(slot, MIN_SLOT_BYTES)

    def _set_allowance(self, slot: _Slot, allowance: int) -> None:
        self._committed += allowance - slot.allowance
        slot.allowance = allowance
