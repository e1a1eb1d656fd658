"""Where a loader's pool stays between two passes over the data."""

from __future__ import annotations

import os

from .limits import memory_limit
from .pool import Pool, PoolStatistics

# Slots beyond those in flight: the loop's batch, the one before it that is still in its hands when it asks for the
# next, and some more for loops that look ahead or collect a few. Untouched slots take no memory.
_SPARE_SLOTS = 4


class PoolShelf:
    """Makes a loader's pools, and keeps one from pass to pass: its memory is touched once and its sizes are known.

    Iterators that live side by side have a pool each.

    Args:
        in_flight: how many batches may be under way.
        num_slots: slots of a pool; by default enough for a loop that holds as many again, and a few.
        max_bytes: the cap of a pool; by default half of the memory that this process may use.
        keep_open: see `Pool`.
        declared_bytes: bytes of a batch, where they are declared: a pool has room for them from the start.
    """

    def __init__(
        self, in_flight: int, num_slots: int | None, max_bytes: int | None, keep_open: bool, declared_bytes: int
    ) -> None:
        self._in_flight = in_flight
        self._num_slots = num_slots or 2 * in_flight + _SPARE_SLOTS
        self._max_bytes = max_bytes
        self._keep_open = keep_open
        self._declared_bytes = declared_bytes
        self._owner_pid = os.getpid()
        self._pool: Pool | None = None
        self._last: Pool | None = None

    @property
    def populated(self) -> tuple[int, int]:
        """How many slots a pool has resident from the start, and how many bytes of each.

        So many are used by a plain loop: those in flight, the batch in the loop's hands, and the one before it.
        """
        return (self._in_flight + 2, self._declared_bytes) if self._declared_bytes else (0, 0)

    def take(self) -> Pool:
        """Returns the kept pool, or a new one.

        Raises:
            ValueError, PoolMemoryError: see `Pool` and `Pool.populate`.
        """
        pool, self._pool = self._pool, None
        if pool is None or self._owner_pid != os.getpid():
            self._owner_pid = os.getpid()
            pool = self._new_pool()
        self._last = pool
        return pool

    def put(self, pool: Pool) -> None:
        """Keeps ``pool`` for the next iterator, or closes it if one is kept already."""
        if self._pool is None:
            self._pool = pool
        else:
            pool.close()

    def statistics(self) -> PoolStatistics | None:
        """Returns the figures of the pool that was taken last, or None before that."""
        return self._last.statistics() if self._last is not None else None

    def _new_pool(self) -> Pool:
        pool = Pool(self._num_slots, self._in_flight, self._max_bytes or memory_limit() // 2, self._keep_open)
        if self._declared_bytes:
            pool.populate(*self.populated)
        return pool

    def __del__(self) -> None:
        if self._pool is not None and self._owner_pid == os.getpid():
            self._pool.close()
