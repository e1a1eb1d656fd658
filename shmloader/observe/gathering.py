"""Puts the figures of a loader together, when somebody asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from shmloader.data.cache_statistics import sum_of_caches
from shmloader.data.cached import CachedDataset
from shmloader.passes.delivery import Delivery
from shmloader.passes.meter import Meters, Totals
from shmloader.slots.pool import Pool
from shmloader.workers.recorder import Slow, Sums

from .counts import Counts
from .figures import PassStatistics, SlowSample, WorkerStatistics
from .statistics import STOCK, LoaderStatistics, StreamStatistics
from .stream_verdict import StreamKind, judge_stream
from .verdict import Setting, is_enough, judge

_NANO = 1e9


def collect(
    meters: Meters,
    pool: Pool | None,
    setting: Setting,
    dataset: Any,
    is_stock: bool = False,
    name: str | None = None,
) -> LoaderStatistics:
    """Returns the figures as they are now. Does not block, but reads 9 bytes for each sample of a cached dataset.

    Args:
        meters: what the loader's passes have taken.
        pool: the one used last.
        setting: what the loader is; what depends on the pool, the pass and the caches is filled in here.
        dataset: the loader's.
        is_stock: whether torch's own loader has taken its place.
        name: the loader's.
    """
    mark = meters.mark  # first: in another thread a pass may begin meanwhile
    total = meters.total()
    life, last = of_totals(total), of_totals(total - mark)
    slowest = of_slowest(meters.slowest())
    pools = _of_pool(pool)
    setting = dataclasses.replace(setting, **{name: pools[name] for name in ("num_slots", "max_bytes") if pools})
    cache = sum_of_caches(dataset, CachedDataset)
    judged = last if is_enough(last) else life
    has_first_pass = judged is life or not mark.batches
    setting = dataclasses.replace(setting, has_first_pass=has_first_pass, is_cached=cache is not None)
    verdict = STOCK if is_stock else judge(judged, setting, slowest)
    return LoaderStatistics(
        **_fields(life),
        **pools,
        name=name,
        last_pass=last,
        slowest=slowest,
        cache=cache,
        verdict=verdict,
    )


def collect_stream(delivery: Delivery, setting: Setting, kind: StreamKind, name: str | None) -> StreamStatistics:
    """Returns the figures of a producer or a job queue as they are now. Does not block.

    Args:
        delivery: of its workers.
        setting: what it is; the pool's part is filled in here.
        kind: which of the two, for texts.
        name: the owner's.
    """
    figures = of_totals(delivery.totals())
    pools = _of_pool(delivery.pool if delivery.is_running else None)
    setting = dataclasses.replace(setting, **{name: pools[name] for name in ("num_slots", "max_bytes") if pools})
    consumers = delivery.meter.consumers
    verdict = judge_stream(figures, setting, kind, max(1, consumers))
    return StreamStatistics(**_fields(figures), **pools, name=name or kind.owner, consumers=consumers, verdict=verdict)


def _of_pool(pool: Pool | None) -> dict[str, Any]:
    if pool is None:
        return {}
    leased = pool.leased  # first: it frees what has ended
    slots = Counts({state.value: count for state, count in pool.states().items()})
    return {
        "num_slots": pool.num_slots,
        "max_bytes": pool.max_bytes,
        "resident_bytes": pool.resident_bytes,
        "leased": leased,
        "slots": slots,
    }


def _fields(figures: PassStatistics) -> dict[str, Any]:
    return {one.name: getattr(figures, one.name) for one in dataclasses.fields(figures)}


def of_totals(totals: Totals) -> PassStatistics:
    """Returns the figures of what was counted."""
    return PassStatistics(
        batches=totals.batches,
        samples=totals.samples,
        bytes=totals.nbytes,
        copies=totals.copies,
        copies_for_room=totals.copies_for_room,
        restarts=totals.restarts,
        seconds=(totals.starting + totals.inside + totals.outside) / _NANO,
        start_seconds=(totals.starting + totals.ending + totals.first_wait) / _NANO,
        wait_seconds=totals.wait / _NANO,
        first_wait_seconds=totals.first_wait / _NANO,
        waits=totals.waits,
        own_seconds=(own := (totals.inside - totals.wait - totals.ending) / _NANO),
        sampler_seconds=max(0.0, min(totals.sampling / _NANO, own)),
        loop_seconds=totals.outside / _NANO,
        passes=totals.passes,
        workers=tuple(_worker(number, sums) for number, sums in enumerate(totals.workers)),
    )


def of_slowest(slowest: Iterable[tuple[int, Slow]]) -> tuple[SlowSample, ...]:
    """Returns the slowest samples."""
    return tuple(SlowSample(slow.seconds, slow.what, worker) for worker, slow in slowest)


def _worker(number: int, sums: Sums) -> WorkerStatistics:
    return WorkerStatistics(
        number=number,
        batches=sums.batches,
        samples=sums.samples,
        bytes=sums.nbytes,
        fetch_seconds=sums.fetch / _NANO,
        collate_seconds=sums.collate / _NANO,
        idle_seconds=sums.idle / _NANO,
        room_seconds=sums.room / _NANO,
        paused_seconds=sums.paused / _NANO,
        growth=sums.asks,
        late_batches=sums.lates,
        late_seconds=sums.late / _NANO,
        cpu_share=min(1.0, sums.cpu / sums.cpu_work) if sums.cpu_work > 0 else None,
        queue_share=min(1.0, sums.queued / sums.queued_work) if sums.queued_work > 0 else None,
        lock_seconds=sums.lock / sums.locks / _NANO if sums.locks > 0 else None,
    )
