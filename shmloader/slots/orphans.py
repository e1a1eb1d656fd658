"""Leases whose pool is closed.

Their memory goes with the mapping, when the last tensor of any of them is gone. One small tensor that is held for long
would so hold all batches that the loop had when the loader ended. So each slot's memory is given back as its lease
ends: finalizers do no I/O, but the next pool that is made or used looks here. For page-locked slots, that
is when no copy from them is in flight either; and until then the mapping must stay, tensors or not.
"""

from __future__ import annotations

import os
from collections import deque

from .arena import Arena
from .leases import Leases

_all: deque[_Orphans] = deque()


class _Orphans:
    """The leases of a closed pool."""

    def __init__(self, arena: Arena, leases: Leases) -> None:
        self._give_back = arena.giving_back_later()
        self._leases = leases
        self._owner_pid = os.getpid()

    def tidy(self) -> bool:
        """Gives back the memory of leases that have ended, and returns whether there are others."""
        if self._owner_pid != os.getpid():
            return False
        # Not `all`, which would stop at the first.
        is_mapped = [self._give_back(slot) for slot in self._leases.drain()]
        return len(self._leases) > 0 and False not in is_mapped


def adopt(arena: Arena, leases: Leases) -> None:
    """Takes over the leases of a pool that is being closed."""
    if len(leases):
        _all.append(_Orphans(arena, leases))


def tidy() -> None:
    """Gives back the memory of all leases of closed pools that have ended. Safe from several threads."""
    for _ in range(len(_all)):  # none, nearly always
        try:
            orphans = _all.popleft()
        except IndexError:  # another thread took it
            return
        if orphans.tidy():
            _all.append(orphans)
