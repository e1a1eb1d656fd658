"""What becomes of leases whose pool is closed.

Their memory goes with the mapping, when the last tensor of any of them is gone. One small tensor that is kept for
long would so hold the batches that were in the loop's hands when the loader ended. So each slot's memory is given back
as its lease ends: finalizers do no I/O, but the next pool that is made or used looks here. For page-locked slots, that
is when no copy from them is in flight either; and until then the mapping must stay, tensors or not.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque

from shmloader.device.pinned import PinnedArena

from .arena import Arena
from .leases import Leases

_all: deque[_Departed] = deque()


class _Departed:
    """The leases of a closed pool. It does not keep the mapping alive, unless that is page-locked."""

    def __init__(self, arena: Arena, leases: Leases) -> None:
        self._pinned = arena if isinstance(arena, PinnedArena) else None
        self._memory = weakref.ref(arena.memory)
        self._ranges = [(arena.start(slot), arena.stride) for slot in range(arena.slots)]
        self._leases = leases
        self._owner_pid = os.getpid()

    def tidy(self) -> bool:
        """Gives back the memory of leases that have ended, and returns whether there are others."""
        memory = self._memory()
        if memory is None or self._owner_pid != os.getpid():
            return False
        for slot in self._leases.drain():
            if self._pinned is not None:
                self._pinned.give_back(slot)
            else:
                memory.madvise(mmap.MADV_REMOVE, *self._ranges[slot])
        return len(self._leases) > 0


def see_off(arena: Arena, leases: Leases) -> None:
    """Takes over the leases of a pool that is being closed."""
    if len(leases):
        _all.append(_Departed(arena, leases))


def tidy() -> None:
    """Gives back the memory of all leases of closed pools that have ended. Safe from several threads."""
    for _ in range(len(_all)):  # none, nearly always
        try:
            departed = _all.popleft()
        except IndexError:  # another thread took it
            return
        if departed.tidy():
            _all.append(departed)
