"""What `ShmDataLoader.statistics` returns, and the same of producers and job queues."""

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
class StreamStatistics(PassStatistics):
    """What a `Producer` or a `JobQueue` has given and taken, what its pool is, and what limits its consumers.

    It is immutable, and true of the moment it was asked for. Batches are items or results here, and so are samples; the
    loop is whoever takes them. What a worker does for one is ``work_seconds`` together. With several consuming threads,
    their times add up. Before workers are started there is no pool, and its figures are 0; when they have ended, they
    are 0 again, and all else is what it was then.

    ``str()`` is a table.

    Attributes:
        name: the owner's; where it has none, None for a loader, and else what it is.
        consumers: how many threads have taken something.
        num_slots: batches that the pool can hold at a time, those being made included.
        max_bytes: the cap on what all slots take: ``max_pool_bytes``, or the memory there was when it was made if that
            is less.
        resident_bytes: bytes of memory that the slots take now.
        leased: slots that are held: part of the batch is alive or, if page-locked, a device may still read it.
        slots: how many slots are in each state now: free, writing (asked for), ready (made, and not handed out), leased
            (the loop's), retained (held by code in a worker).
        verdict: what limits the loop, in words, with the argument that would help; a str, see `Verdict`.
    """

    name: str | None = None
    consumers: int = 1
    num_slots: int = 0
    max_bytes: int = 0
    resident_bytes: int = 0
    leased: int = 0
    slots: Mapping[str, int] = field(default_factory=Counts)
    verdict: Verdict = STOCK

    @property
    def queue_depth(self) -> int:
        """How many batches are made and wait for the loop now."""
        return self.slots.get(State.READY.value, 0)

    def __str__(self) -> str:
        """Returns a table: all that was taken, the workers, the pool, and the verdict."""
        return _table(self, {"all": self}, self, ("work", "idle"))

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures in dicts, lists, numbers and texts, for JSON.

        As `dataclasses.asdict`; and beside the verdict's text, ``verdict_kind`` and ``verdict_knob``.
        """
        found = dataclasses.asdict(self)
        found |= {"slots": dict(self.slots), "verdict": str.__str__(self.verdict)}
        return found | {"verdict_kind": self.verdict.kind.value, "verdict_knob": self.verdict.knob}


@dataclass(frozen=True, kw_only=True)
class LoaderStatistics(StreamStatistics):
    """What a loader has given and taken in all of its passes, what its pool is, and what limits the loop.

    It is immutable, and true of the moment it was asked for. Times and counts are of the loader's life; ``last_pass``
    has those of the pass that was begun last. With several iterators at a time, that is what all of them have done
    since then, and their times add up. The pool is the one used last; with ``num_workers=0`` there is none, and its
    figures are 0.

    ``str()`` is a table.

    Attributes:
        last_pass: the figures since the last ``iter``.
        slowest: the slowest samples of that pass, the slowest first.
        cache: what each `CachedDataset` that the loader's dataset is, wraps or has as an attribute has done, summed;
            None where there is none.
        verdict: of the last pass, or of all passes where that was short.
    """

    last_pass: PassStatistics = field(default_factory=PassStatistics)
    slowest: tuple[SlowSample, ...] = ()
    cache: CacheStatistics | None = None

    def __str__(self) -> str:
        """Returns a table: the last pass, all passes, the workers, the pool, and the verdict."""
        passes = {"last pass": self.last_pass, "all passes": self}
        return _table(self, passes, self.last_pass, ("fetch", "collate", "idle"), self.cache)


def _table(
    found: StreamStatistics,
    passes: Mapping[str, PassStatistics],
    of_workers: PassStatistics,
    times: tuple[str, ...],
    cache: CacheStatistics | None = None,
) -> str:
    parts = [table.columns(_of_passes(found, passes))]
    if of_workers.workers:
        parts.append(table.columns(_of_workers(of_workers, times)))
    if found.num_slots:
        parts.append([_of_pool(found)])
    if cache is not None:
        parts.append([_of_cache(cache)])
    parts.append(table.wrapped(found.verdict))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _of_passes(found: StreamStatistics, by_name: Mapping[str, PassStatistics]) -> list[list[str]]:
    passes = list(by_name.values())
    rows = [[found.name or "loader", *by_name]]
    rows += [[name, *(table.count(getattr(one, name)) for one in passes)] for name in ("batches", "samples")]
    if any(one.bytes for one in passes):  # there are no slots without workers
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


_RARE_TIMES = "room", "paused"
_QUEUES = 0.05  # the part of a worker's work in which it waits for a processor that is worth a column


def _of_workers(last: PassStatistics, always: tuple[str, ...]) -> list[list[str]]:
    rare = [name for name in _RARE_TIMES if any(getattr(worker, f"{name}_seconds") for worker in last.workers)]
    times = [*always, *rare]
    queues = any((worker.queue_share or 0.0) >= _QUEUES for worker in last.workers)
    has_lock = any(worker.lock_seconds is not None for worker in last.workers)
    waits = [*(["queue"] if queues else []), *(["lock"] if has_lock else [])]
    rows = [["worker", "batches", *times, "late", "processor", *waits]]
    for worker in last.workers:
        values = [getattr(worker, f"{name}_seconds") for name in times]
        shares = [table.share(value, sum(values)) for value in values]
        used = _share(worker.cpu_share)
        queue = [_share(worker.queue_share)] if queues else []
        lock = [] if not has_lock else ["-" if worker.lock_seconds is None else table.duration(worker.lock_seconds)]
        rows.append(
            [str(worker.number), table.count(worker.batches), *shares, str(worker.late_batches), used, *queue, *lock]
        )
    return rows


def _share(share: float | None) -> str:
    return "-" if share is None else table.share(share, 1)


def _of_pool(found: StreamStatistics) -> str:
    states = ", ".join(f"{count} {state}" for state, count in found.slots.items() if count)
    return f"{states} slots, {table.size(found.resident_bytes)} of at most {table.size(found.max_bytes)}"


def _of_cache(cache: CacheStatistics) -> str:
    reads = f"{table.count(cache.hits)} hits, {table.count(cache.misses)} misses"
    room = f"{table.size(cache.bytes)} of at most {table.size(cache.max_bytes)}"
    did_not_fit = f", {table.count(cache.did_not_fit)} did not fit" if cache.did_not_fit else ""
    return f"cache: {reads}; {table.count(cache.samples)} of {table.count(cache.length)} samples in {room}{did_not_fit}"
