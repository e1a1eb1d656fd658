"""The figures of a loader."""

from __future__ import annotations

from dataclasses import dataclass

from shmloader.passes.restarts import RestartCount
from shmloader.slots.pool import Pool


@dataclass(frozen=True)
class LoaderStatistics:
    """What a loader's pool is and has done, and what its workers have gone through.

    Attributes:
        num_slots: slots in the pool.
        max_bytes: the cap.
        resident_bytes: memory that slots take now.
        leased: slots whose batches the consumer holds.
        batches: batches handed out so far.
        copies: batches of those that were handed out as private copies, since the consumer held so many.
        restarts: workers that have died and were replaced, over all passes.
    """

    num_slots: int
    max_bytes: int
    resident_bytes: int
    leased: int
    batches: int
    copies: int
    restarts: int


def collect(pool: Pool, restarts: RestartCount) -> LoaderStatistics:
    """Returns the figures as they are now."""
    return LoaderStatistics(
        num_slots=pool.num_slots,
        max_bytes=pool.max_bytes,
        resident_bytes=pool.resident_bytes,
        leased=pool.leased,
        batches=pool.batches,
        copies=pool.copies,
        restarts=restarts.total,
    )
