"""What a pool must be, and where a loader's stays between two passes over the data."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from shmloader import interrupts
from shmloader.words import LOADER, Words

from .arena import tight_limit
from .ledger import MIN_SLOT_BYTES
from .limits import memory
from .pool import Memory, Pool, SharedMemory

# Slots beyond those in flight: the loop's batch, the one before it that it still holds when it asks for the next, and
# more for libraries that look ahead, or collect the batches of one optimizer step. Untouched slots take no
# memory, but each counts for a little of the cap: where that is tight, there are fewer.
_SPARE_SLOTS = 16
_LEAST_SPARE_SLOTS = 4
_SLOTS_SHARE_OF_CAP = 8


@dataclass(frozen=True)
class PoolSettings:
    """What a pool must be.

    Attributes:
        num_workers: workers that write to it.
        in_flight: how many batches may be under way.
        num_slots: slots; None: enough for a loop that holds as many as are under way, and a few.
        max_bytes: the cap; None: half of the memory that this process may use.
        declared_bytes: bytes of a batch, where they are declared: there is room for them from the start.
        memory: what its slots lie in.
        on_the_way: how many batches are copied to a device ahead of the loop.
        held_per_worker: see `Pool`.
        words: those of the front door, for texts.
    """

    num_workers: int
    in_flight: int
    num_slots: int | None
    max_bytes: int | None
    declared_bytes: int
    memory: Memory = SharedMemory()  # noqa: RUF009 - it is immutable
    on_the_way: int = 0
    held_per_worker: int = 1
    words: Words = LOADER

    def _slots(self, max_bytes: int) -> int:
        if self.num_slots is not None:
            return self.num_slots
        least = 2 * self.in_flight + self.on_the_way + _LEAST_SPARE_SLOTS
        most = least + _SPARE_SLOTS - _LEAST_SPARE_SLOTS
        if tight_limit():  # the more slots, the smaller are they
            return least
        return max(least, min(most, max_bytes // _SLOTS_SHARE_OF_CAP // MIN_SLOT_BYTES))

    def check(self) -> None:
        """Raises where there are too few slots.

        Raises:
            ValueError: see above.
        """
        if self.num_slots is not None and self.num_slots < self.in_flight + 2:
            raise ValueError(
                f"num_slots={self.num_slots} is too small: prefetch_factor x num_workers = {self.in_flight} "
                f"{self.words.many} are made ahead and two are held, so it takes {self.in_flight + 2} at least"
            )

    def make(self) -> Pool:
        """Makes the pool.

        Raises:
            ValueError: there are too few slots, or too few bytes for them.
            PoolMemoryError: see `Pool` and `Pool.populate`.
        """
        self.check()
        there_is = memory()
        max_bytes = self.max_bytes or there_is.limit // 2
        pool = Pool(
            self._slots(max_bytes),
            self.in_flight,
            max_bytes,
            there_is.available,
            self.num_workers,
            self.memory,
            self.declared_bytes,
            self.held_per_worker,
            self.words,
        )
        if self.declared_bytes:
            try:
                # What a plain loop uses: those in flight, the loop's batch, and the one before it.
                pool.populate(self.in_flight + 2, self.declared_bytes)
            except BaseException:
                pool.close()  # what is page-locked would stay
                raise
        return pool


@dataclass
class _Unused:
    """Where the pool that no iterator uses is. Apart from the cache, whose end it must survive.

    Attributes:
        pool: the pool, if any.
        is_over: whether the loader is gone; of a reference cycle, it may go before its iterators.
    """

    pool: Pool | None = None
    is_over: bool = False


class PoolCache:
    """A loader's pool, from pass to pass: its memory is touched once and its sizes are known.

    Iterators that live side by side have a pool each.

    Attributes:
        last: the pool that was taken last, or None.
    """

    def __init__(self) -> None:
        self._settings: PoolSettings | None = None
        self.last: Pool | None = None
        self._begin()

    def _begin(self) -> None:
        self._owner_pid = os.getpid()
        self._unused = _Unused()
        self._at_drop = interrupts.at_drop(functools.partial(_close, self._unused))

    def take(self, settings: PoolSettings) -> Pool:
        """Returns the cached pool if it is as ``settings`` say, else a new one.

        Raises:
            ValueError, PoolMemoryError: see `PoolSettings.make`.
        """
        if self._owner_pid != os.getpid():
            self._begin()
        pool, self._unused.pool = self._unused.pool, None
        if pool is not None and settings != self._settings:
            pool.close()
            pool = None
        if pool is None:
            pool = settings.make()
        self._settings = settings
        self.last = pool
        return pool

    def put(self, pool: Pool) -> None:
        """Stores ``pool`` for the next iterator.

        Or closes it: if there is one already, if it is not the last one's, or if the loader is gone.
        """
        if self._unused.pool is None and pool is self.last and not self._unused.is_over:
            self._unused.pool = pool
        else:
            pool.close()


def _close(unused: _Unused) -> None:
    with interrupts.deferred():
        unused.is_over = True
        pool, unused.pool = unused.pool, None
        if pool is not None:
            pool.close()
