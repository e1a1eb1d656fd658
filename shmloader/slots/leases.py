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


class Lease(weakref.ref[Block]):
    """The right to one slot, as long as the block that it refers to is alive.

    Attributes:
        slot: which slot.
        is_settled: whether no copy from the slot will be in flight when the lease ends; see `Leases.settle`.
    """

    __slots__ = ("is_settled", "slot")
    slot: int
    is_settled: bool


class _ThreadsLease(Lease):
    """A lease of what code in a worker thread holds, which is this process's too.

    Attributes:
        nbytes: how much of the block is written. All of it may be far more than there is memory.
        consumers_block: what the consumer holds of the slot; so long as this lease lasts, the consumer's does.
    """

    __slots__ = ("consumers_block", "nbytes")
    nbytes: int
    consumers_block: Block | None


# All leases that have not been seen to end. A weak reference that a garbage collection finds to be garbage itself, as
# those of a loader in a reference cycle are, is cleared by it, though what it refers to is alive. A lease that looked
# ended then would cost a batch that is held. So no lease is ever garbage before its end.
_reachable: dict[int, Lease] = {}


def _forget_the_ended() -> None:
    """Drops those whose end nobody asked for, since their pool was gone. Their callbacks have been called."""
    for key, lease in list(_reachable.items()):
        if lease() is None:
            _reachable.pop(key, None)


class Leases:
    """The leases of one pool. Used in the parent, from the thread that iterates; leases may end in any.

    Attributes:
        other_holders: how a warning goes on, behind the consumer's tensors, to name what else may hold slots.
    """

    other_holders = ""

    def __init__(self) -> None:
        _forget_the_ended()
        # A weak reference must itself stay alive for its callback to be called.
        self._live: dict[int, Lease] = {}
        self._beside: dict[int, _ThreadsLease] = {}  # of slots that the consumer has too
        self._ended: deque[Lease] = deque()

    def __len__(self) -> int:
        return len(self._live)

    def open(self, slot: int, block: Block) -> Lease:
        """Begins a lease of ``slot`` that ends when ``block`` and everything based on it is gone."""
        lease = Lease(block, self._ended.append)
        lease.slot = slot
        lease.is_settled = False
        self._live[slot] = _reachable[id(lease)] = lease
        return lease

    def settle(self, lease: Lease) -> None:
        """Notes that when ``lease`` ends, no copy from its slot is in flight."""
        lease.is_settled = True

    def follow(self, slot: int, block: Block, written: int) -> None:
        """Has the lease of ``slot`` end no sooner than ``block``, which code in a worker thread holds.

        Where the consumer has the slot too, it ends when neither holds it.
        """
        lease = _ThreadsLease(block, self._ended.append)
        lease.slot = slot
        lease.nbytes = written
        lease.is_settled = False
        _reachable[id(lease)] = lease
        consumers = self._live.get(slot)
        lease.consumers_block = None if consumers is None else consumers()
        if lease.consumers_block is None:
            self._live[slot] = lease
        else:
            self._beside[slot] = lease

    @property
    def follows_any(self) -> bool:
        """Whether code in worker threads holds anything; see `follow`."""
        leases = [*self._live.values(), *self._beside.values()]
        return any(isinstance(lease, _ThreadsLease) and lease() is not None for lease in leases)

    def blocks(self) -> list[Block]:
        """Returns the slots' memory that the consumer holds. Safe from any thread."""
        held = [(block, lease) for lease in list(self._live.values()) if (block := lease()) is not None]
        return [block[: lease.nbytes] if isinstance(lease, _ThreadsLease) else block for block, lease in held]

    def ended(self) -> list[Lease]:
        """Returns the leases that have ended since the last call."""
        leases = []
        ended = self._ended
        while ended:
            lease = ended.popleft()
            _reachable.pop(id(lease), None)
            if self._live.get(lease.slot) is lease:  # else it was found before
                del self._live[lease.slot]
                leases.append(lease)
            elif self._beside.get(lease.slot) is lease:
                del self._beside[lease.slot]
                del lease  # with which the consumer's may end
        return leases

    def drain(self) -> list[int]:
        """Returns the slots that are free again, since their leases have ended, since the last call."""
        return [lease.slot for lease in self.ended()]
