"""Holds slots back until the copies that were begun from them are over.

``x.to("cuda", non_blocking=True)`` returns before the device has read the slot. A batch of which no tensor is
alive may still be copied from, on a stream that cannot be found out. torch guards its own page-locked blocks in such a
case, and no others. So what is freed waits for a mark behind all that the devices have been given, on
whatever streams, when it was found to be free.
"""

from __future__ import annotations

import os
from collections import deque

from . import cuda


class Fence:
    """The slots of one pool that no tensor holds any more and a device may still read.

    Used in the parent, by one thread at a time. Nothing here waits.

    Args:
        driver: what tells when copies are over.
    """

    def __init__(self, driver: cuda.Driver) -> None:
        self._driver = driver
        self._owner_pid = os.getpid()
        self._unmarked: list[int] = []
        self._marked: deque[tuple[cuda.Mark, list[int]]] = deque()

    def __len__(self) -> int:
        return len(self._unmarked) + sum(len(slots) for _, slots in self._marked)

    def pass_on(self, freed: list[int]) -> list[int]:
        """Takes slots that no tensor holds any more, and returns those, of all that came so far, that none copies from.

        One mark does for all that came since the last one. While a graph is being captured nothing is asked of the
        device: to set a mark would spoil the capture.
        """
        self._unmarked += freed
        if not (self._unmarked or self._marked) or self._owner_pid != os.getpid() or self._driver.is_capturing():
            return []
        if self._unmarked and (mark := self._driver.mark()) is not None:
            # In this order: a Ctrl-C in between must not leave a slot in both.
            marked, self._unmarked = self._unmarked, []
            self._marked.append((mark, marked))
        passed: list[int] = []
        while self._marked and self._driver.has_passed(self._marked[0][0]):
            passed += self._marked.popleft()[1]
        return passed
