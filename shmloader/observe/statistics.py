"""The figures of a loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shmloader.data.cache_statistics import CacheStatistics, sum_of_caches
from shmloader.data.cached import CachedDataset
from shmloader.passes.restarts import RestartCount
from shmloader.slots.pool import Pool


@dataclass(frozen=True)
class LoaderStatistics:
    """What a loader's pool is and has done, and what its workers have gone through; see `ShmDataLoader.statistics`.

    It is immutable, and true of the moment it was asked for. The pool is the one used last; its figures go on from pass
    to pass while the loader's arguments stay as they are.

    Attributes:
        num_slots: batches that the pool can hold at a time, those being loaded included.
        max_bytes: the cap on what all slots take: ``max_pool_bytes``, or the memory there was when it was made if that
            is less.
        resident_bytes: bytes of memory that the slots take now.
        leased: slots the loop holds: part of the batch is alive or, if page-locked, a device may still read it.
        batches: batches handed out since the pool was made.
        copies: those of them handed out as private copies, because the loop held so many or the cap left no room to
            lend more. `HeldBatchesWarning` says which; raise ``num_slots`` or ``max_pool_bytes``, or clone what you
            keep.
        restarts: workers that died and were replaced, over all passes of the loader.
        cache: what each `CachedDataset` that the loader's dataset is, wraps or has as an attribute has done, summed;
            None where there is none.
    """

    num_slots: int
    max_bytes: int
    resident_bytes: int
    leased: int
    batches: int
    copies: int
    restarts: int
    cache: CacheStatistics | None


def collect(pool: Pool, restarts: RestartCount, dataset: Any) -> LoaderStatistics:
    """Returns the figures as they are now. Reads 9 bytes for each sample of a cached dataset."""
    return LoaderStatistics(
        num_slots=pool.num_slots,
        max_bytes=pool.max_bytes,
        resident_bytes=pool.resident_bytes,
        leased=pool.leased,
        batches=pool.batches,
        copies=pool.copies,
        restarts=restarts.total,
        cache=sum_of_caches(dataset, CachedDataset),
    )
