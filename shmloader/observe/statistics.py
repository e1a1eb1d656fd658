"""The figures of a loader, put together when somebody asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from shmloader.data.cached import CacheStatistics
from shmloader.passes.meter import Meters
from shmloader.slots.ledger import State
from shmloader.slots.pool import Pool

from . import table
from .figures import PassStatistics, SlowSample, of_slowest, of_totals
from .verdict import Setting, Verdict, is_enough, judge

_STOCK = Verdict("torch's own loader loads here (see FallbackWarning), and nothing is known of it.")


@dataclass(frozen=True, kw_only=True)
class LoaderStatistics(PassStatistics):
    """What a loader has given and taken in all of its passes, what its pool is, and what limits the loop.

    It is immutable, and true of the moment it was asked for. Times and counts are of the loader's life; ``last_pass``
    has those of the pass that was begun last. With several iterators at a time, that is what all of them have done
    since then, and their times add up. The pool is the one used last; with ``num_workers=0`` there is none, and its
    figures are 0.

    ``str()`` is a table.

    Attributes:
        name: the loader's; None: it has none.
        last_pass: the figures since the last ``iter``.
        slowest: the slowest samples of that pass, the slowest first.
        num_slots: batches that the pool can hold at a time, those being loaded included.
        max_bytes: the cap on what all slots take: ``max_pool_bytes``, or the memory there was when it was made if that
            is less.
        resident_bytes: bytes of memory that the slots take now.
        leased: slots the loop holds: part of the batch is alive or, if page-locked, a device may still read it.
        slots: how many slots are in each state now: free, writing (asked for), ready (made, and not handed out), leased
            (the loop's), retained (held by code in a worker).
        cache: what a `CachedDataset` has done, if the loader's dataset is or has one.
        verdict: what limits the loop, in words, with the argument that would help; a str, see `Verdict`. It is of the
            last pass, or of all passes where that was short.
    """

    name: str | None = None
    last_pass: PassStatistics = field(default_factory=PassStatistics)
    slowest: tuple[SlowSample, ...] = ()
    num_slots: int = 0
    max_bytes: int = 0
    resident_bytes: int = 0
    leased: int = 0
    slots: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    cache: CacheStatistics | None = None
    verdict: Verdict = _STOCK

    @property
    def queue_depth(self) -> int:
        """How many batches are made and wait for the loop now."""
        return self.slots.get(State.READY.value, 0)

    def __str__(self) -> str:
        """Returns a table: the last pass, all passes, the workers, the pool, and the verdict."""
        parts = [table.columns(_of_passes(self))]
        if self.last_pass.workers:
            parts.append(table.columns(_of_workers(self.last_pass)))
        if self.num_slots:
            parts.append([_of_pool(self)])
        parts.append(table.wrapped(self.verdict))
        return "\n\n".join("\n".join(lines) for lines in parts)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return _restored, ({**values, "slots": dict(self.slots)},)


def _restored(values: dict[str, Any]) -> LoaderStatistics:
    return LoaderStatistics(**{**values, "slots": MappingProxyType(values["slots"])})


def collect(
    meters: Meters, pool: Pool | None, setting: Setting, is_stock: bool = False, name: str | None = None
) -> LoaderStatistics:
    """Returns the figures as they are now. Does not block.

    Args:
        meters: what the loader's passes have taken.
        pool: the one used last.
        setting: what the loader is; the pool's part is filled in here.
        is_stock: whether torch's own loader has taken its place.
        name: the loader's.
    """
    total = meters.total()
    life, last = of_totals(total), of_totals(total - meters.mark)
    slowest = of_slowest(meters.slowest())
    pools: dict[str, Any] = {}
    if pool is not None:
        leased = pool.leased  # first: it frees what has ended
        slots = MappingProxyType({state.value: count for state, count in pool.states().items()})
        pools = {"num_slots": pool.num_slots, "max_bytes": pool.max_bytes, "resident_bytes": pool.resident_bytes}
        pools |= {"leased": leased, "slots": slots}
        setting = dataclasses.replace(setting, num_slots=pool.num_slots, max_bytes=pool.max_bytes)
    verdict = _STOCK if is_stock else judge(last if is_enough(last) else life, setting, slowest)
    return LoaderStatistics(
        **_fields(life), **pools, name=name, last_pass=last, slowest=slowest, verdict=verdict
    )  # fmt: skip


def _fields(figures: PassStatistics) -> dict[str, Any]:
    return {one.name: getattr(figures, one.name) for one in dataclasses.fields(figures)}


def _of_passes(found: LoaderStatistics) -> list[list[str]]:
    passes = [found.last_pass, found]
    rows = [[found.name or "loader", "last pass", "all passes"]]
    rows += [[name, *(table.count(getattr(one, name)) for one in passes)] for name in ("batches", "samples")]
    rows.append(["bytes", *(table.size(one.bytes) for one in passes)])
    rows.append(["samples/s", *(table.count(one.samples_per_second) for one in passes)])
    rows.append(["time", *(table.seconds(one.seconds) for one in passes)])
    for text, name in (("  loop", "loop"), ("  waited", "wait"), ("  own work", "own"), ("  start and end", "start")):
        values = [(getattr(one, f"{name}_seconds"), one.seconds) for one in passes]
        rows.append([text, *(f"{table.seconds(part)} {table.share(part, whole):>5}" for part, whole in values)])
    for name in ("copies", "growth", "restarts"):
        if getattr(found, name):
            rows.append([name, *(table.count(getattr(one, name)) for one in passes)])
    return rows


_TIMES = "fetch", "collate", "idle", "room", "paused"


def _of_workers(last: PassStatistics) -> list[list[str]]:
    times = [name for name in _TIMES if name in _TIMES[:3] or any(getattr(w, f"{name}_seconds") for w in last.workers)]
    rows = [["worker", "batches", *times, "late", "processor"]]
    for worker in last.workers:
        values = [getattr(worker, f"{name}_seconds") for name in times]
        shares = [table.share(value, sum(values)) for value in values]
        used = "-" if worker.cpu_share is None else table.share(worker.cpu_share, 1)
        rows.append([str(worker.number), table.count(worker.batches), *shares, str(worker.late_batches), used])
    return rows


def _of_pool(found: LoaderStatistics) -> str:
    states = ", ".join(f"{count} {state}" for state, count in found.slots.items() if count)
    return f"{states} slots, {table.size(found.resident_bytes)} of at most {table.size(found.max_bytes)}"
