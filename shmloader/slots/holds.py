"""Which slots code in workers may still hold, so that they must not be written again. Pure.

What user code in a worker has been lent of a slot it may keep. Of a batch the worker knows that when the batch is done,
and says so. Of an item of a producer's it cannot know at once, since the variables of the loop that has filled the item
are bound until the next one: so each item is held until its worker tells of the next.
"""

from __future__ import annotations


class Holds:
    """The slots that workers hold, whoever else has them."""

    def __init__(self) -> None:
        self._worker_of: dict[int, int] = {}
        self._last: dict[int, int] = {}  # by worker: the slot of its last item, which it may still hold

    def __contains__(self, slot: int) -> bool:
        return slot in self._worker_of

    def __len__(self) -> int:
        return len(self._worker_of)

    def begin(self, slot: int, worker: int) -> None:
        """Notes that code in ``worker`` holds ``slot``, until `end`."""
        self._worker_of[slot] = worker

    def follow(self, slot: int, worker: int, holds_last: bool) -> int | None:
        """Notes that an item has come in ``slot``, which code in ``worker`` holds until the next one.

        Args:
            slot: where the item is.
            worker: whose it is.
            holds_last: whether code in the worker holds the item before too, and so until `end`.

        Returns:
            The slot that is not held any more, or None.
        """
        last = self._last.get(worker)
        self._last[worker] = slot
        self._worker_of[slot] = worker
        if last is None or holds_last:
            return None
        del self._worker_of[last]
        return last

    def discard(self, slot: int) -> None:
        """Notes that it is seen by other means who holds ``slot``."""
        self._worker_of.pop(slot, None)

    def end(self, worker: int) -> list[int]:
        """Notes that ``worker`` has ended, and returns the slots that it held."""
        self._last.pop(worker, None)
        ended = [slot for slot, holder in self._worker_of.items() if holder == worker]
        for slot in ended:
            del self._worker_of[slot]
        return ended

    def end_all(self) -> list[int]:
        """Notes that all workers have ended, and returns the slots that they held."""
        ended = list(self._worker_of)
        self._worker_of.clear()
        self._last.clear()
        return ended
