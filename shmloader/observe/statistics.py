"""What `ShmDataLoader.statistics` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shmloader.data.cache_statistics import CacheStatistics
from shmloader.slots.ledger import State

from . import table
from .counts import Counts
from .figures import PassStatistics, SlowSample
from .verdict import Verdict

STOCK = Verdict("torch's own loader loads here (see FallbackWarning), and nothing is known of it.")


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
        cache: what each `CachedDataset` that the loader's dataset is, wraps or has as an attribute has done, summed;
            None where there is none.
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
    slots: Mapping[str, int] = field(default_factory=Counts)
    cache: CacheStatistics | None = None
    verdict: Verdict = STOCK

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
        if self.cache is not None:
            parts.append([_of_cache(self.cache)])
        parts.append(table.wrapped(self.verdict))
        return "\n\n".join("\n".join(lines) for lines in parts)

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures in dicts, lists, numbers and texts, for JSON.

        As `dataclasses.asdict`; and beside the verdict's text, ``verdict_kind`` and ``verdict_knob``.
        """
        found = dataclasses.asdict(self)
        found |= {"slots": dict(self.slots), "verdict": str.__str__(self.verdict)}
        return found | {"verdict_kind": self.verdict.kind.value, "verdict_knob": self.verdict.knob}


def _of_passes(found: LoaderStatistics) -> list[list[str]]:
    passes = [found.last_pass, found]
    rows = [[found.name or "loader", "last pass", "all passes"]]
    rows += [[name, *(table.count(getattr(one, name)) for one in passes)] for name in ("batches", "samples")]
    rows.append(["bytes", *(table.size(one.bytes) for one in passes)])
    rows.append(["samples/s", *(table.count(one.samples_per_second) for one in passes)])
    rows.append(["time", *(table.duration(one.seconds) for one in passes)])
    for text, name in (("  loop", "loop"), ("  waited", "wait"), ("  own work", "own"), ("  start and end", "start")):
        values = [(getattr(one, f"{name}_seconds"), one.seconds) for one in passes]
        rows.append([text, *(f"{table.duration(part)} {table.share(part, whole):>5}" for part, whole in values)])
    for name in ("copies", "growth", "restarts"):
        if getattr(found, name):
            rows.append([name, *(table.count(getattr(one, name)) for one in passes)])
    return rows


_TIMES = "fetch", "collate", "idle", "room", "paused"


def _of_workers(last: PassStatistics) -> list[list[str]]:
    times = [name for name in _TIMES if name in _TIMES[:3] or any(getattr(w, f"{name}_seconds") for w in last.workers)]
    has_lock = any(worker.lock_seconds is not None for worker in last.workers)
    rows = [["worker", "batches", *times, "late", "processor", *(["lock"] if has_lock else [])]]
    for worker in last.workers:
        values = [getattr(worker, f"{name}_seconds") for name in times]
        shares = [table.share(value, sum(values)) for value in values]
        used = "-" if worker.cpu_share is None else table.share(worker.cpu_share, 1)
        lock = [] if not has_lock else ["-" if worker.lock_seconds is None else table.duration(worker.lock_seconds)]
        rows.append([str(worker.number), table.count(worker.batches), *shares, str(worker.late_batches), used, *lock])
    return rows


def _of_pool(found: LoaderStatistics) -> str:
    states = ", ".join(f"{count} {state}" for state, count in found.slots.items() if count)
    return f"{states} slots, {table.size(found.resident_bytes)} of at most {table.size(found.max_bytes)}"


def _of_cache(cache: CacheStatistics) -> str:
    reads = f"{table.count(cache.hits)} hits, {table.count(cache.misses)} misses"
    room = f"{table.size(cache.bytes)} of at most {table.size(cache.max_bytes)}"
    did_not_fit = f", {table.count(cache.did_not_fit)} did not fit" if cache.did_not_fit else ""
    return f"cache: {reads}; {table.count(cache.samples)} of {table.count(cache.length)} samples in {room}{did_not_fit}"
