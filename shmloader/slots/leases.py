"""The consumer's right to a slot, and how the loader learns that it has ended.

Every batch gets one array over its slot, the *block*, and every tensor of the batch is made from an array whose base
is the block. A tensor's storage owns its array, so the block lives as long as any tensor, slice, ``.numpy()`` array
or autograd graph of the batch does. (A weak reference on a tensor would be wrong: a slice outlives the tensor that it
was cut from.)

The weak reference's callback is ``deque.append`` itself. It runs in whichever thread drops the last reference, or in
the middle of a garbage collection, so it must take no lock and run no code of ours; the reference carries the slot's
number, and the parent reads it when it next claims a slot.
"""

from __future__ import annotations

import weakref
from collections import deque

from shmloader.batches.tensors import Block


class _Lease(weakref.ref[Block]):
    __slots__ = ("slot",)
    slot: int


class Leases:
    """The leases of one pool. Used in the parent, from the thread that iterates; leases may end in any."""

    def __init__(self) -> None:
        # A weak reference must itself stay alive for its callback to be called.
        self._live: dict[int, _Lease] = {}
        self._ended: deque[_Lease] = deque()
        self._kept: dict[int, list[Block]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def open(self, slot: int, block: Block) -> None:
        """Begins a lease of ``slot`` that ends when ``block`` and everything based on it is gone."""
        lease = _Lease(block, self._ended.append)
        lease.slot = slot
        self._live[slot] = lease

    def keep(self, block: Block, worker: int) -> None:
        """Holds ``block`` on behalf of code in ``worker``, so that its lease does not end, until `let_go`."""
        self._kept.setdefault(worker, []).append(block)

    def blocks(self) -> list[Block]:
        """Returns the slots' memory that the consumer holds. Safe from any thread."""
        of_workers = {id(block) for blocks in list(self._kept.values()) for block in blocks}
        held = [lease() for lease in list(self._live.values())]
        return [block for block in held if block is not None and id(block) not in of_workers]

    def let_go(self, worker: int) -> None:
        """Ends the holds of ``worker``, which has ended."""
        self._kept.pop(worker, None)

    def let_all_go(self) -> None:
        """Ends the holds of all workers."""
        self._kept.clear()

    def drain(self) -> list[int]:
        """Returns the slots whose leases have ended since the last call."""
        slots = []
        ended = self._ended
        while ended:
            slot = ended.popleft().slot
            del self._live[slot]
            slots.append(slot)
        return slots
