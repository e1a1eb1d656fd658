"""What the loop's side of a loader's passes has taken. What workers have done they record themselves.

For each batch there are two looks at the clock, on entering `next` and on leaving it, and two more where it blocks. All
else is counted anyway, or is read from the workers' records when somebody asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from shmloader.slots.pool import Pool
from shmloader.workers.recorder import Record, Slow, Sums

from .restarts import RestartCount

# Of so many reads of the sampler one is timed. A prime, since samplers may have a rhythm: one that sorts samples by
# their lengths takes its time once for hundreds of batches.
READS_PER_LOOK = 17


class Totals(NamedTuple):
    """Sums over one pass, or over a loader's life. Times are in nanoseconds.

    Attributes:
        batches: batches handed out.
        samples: samples in them.
        nbytes: bytes of them in slots.
        copies: batches handed out as private copies.
        copies_for_room: those of them because the pool's cap left no room to lend more.
        starting: in ``iter``.
        ending: ending workers in the ``next`` that finds no more.
        outside: between one ``next`` and the following one.
        inside: in ``next``, `wait` and `ending` included.
        wait: blocked until a worker said something. Without workers: making batches.
        waits: how often ``next`` has blocked.
        first_wait: the part of ``wait`` before the first batch of a pass.
        restarts: workers that have died and were replaced.
        sampling: reading the sampler behind the first batches, by what some of the reads took.
        passes: how often ``iter`` was called.
        workers: what workers have made, by number; also batches that were not handed out.
    """

    batches: int = 0
    samples: int = 0
    nbytes: int = 0
    copies: int = 0
    copies_for_room: int = 0
    starting: int = 0
    ending: int = 0
    outside: int = 0
    inside: int = 0
    wait: int = 0
    waits: int = 0
    first_wait: int = 0
    restarts: int = 0
    sampling: int = 0
    passes: int = 0
    workers: tuple[Sums, ...] = ()

    def __sub__(self, other: Totals) -> Totals:
        """Returns what came between the two."""
        before = (*other.workers, *[Sums()] * (len(self.workers) - len(other.workers)))
        workers = tuple(now - then for now, then in zip(self.workers, before, strict=False))
        return Totals._make((*(now - then for now, then in zip(self[:-1], other[:-1], strict=True)), workers))

    def plus(self, other: Totals) -> Totals:
        """Returns both together."""
        count = max(len(self.workers), len(other.workers))
        each = [[*one.workers, *[Sums()] * (count - len(one.workers))] for one in (self, other)]
        workers = tuple(one.plus(two) for one, two in zip(*each, strict=True))
        return Totals._make((*(one + two for one, two in zip(self[:-1], other[:-1], strict=True)), workers))


class Meter:
    """What one iterator has taken. Used in the thread that iterates.

    Args:
        meters: of the loader.
        records: of the workers; sums in them from before do not count.
        pool: of the iterator; None: there are no workers, and the only record is of what the loop's process makes.

    Attributes:
        entered: when ``next`` was entered last.
        left: when it was left last, or the pass began.
        outside: see `Totals`. It is set with ``entered``, and no call in between, so that no other thread and no
            signal's handler finds the one without the other. What was spent within ``next`` follows from it.
        wait, waits, first_wait, sampling: see `Totals`.
    """

    def __init__(self, meters: Meters, records: list[Record], pool: Pool | None = None) -> None:
        self.entered = self.left = time.monotonic_ns()
        self._since = self.left  # less what lies between passes
        self.outside = self.wait = self.waits = self.first_wait = self.sampling = 0
        self._meters = meters
        self._records = records
        self._pool = pool
        self._at_begin = 0
        self._before = Totals()

    def begin(self) -> None:
        """Has the loader count from here on; but of workers, whose records are new, all that they have done."""
        self._before = self._counts()._replace(workers=())
        self._since = self.left
        self.outside = self.wait = self.waits = self.first_wait = self.sampling = 0
        self._at_begin = self._batches
        self._meters.add(self)

    def begin_pass(self) -> None:
        """Notes that a pass begins, and that workers have done nothing for it."""
        self._at_begin = self._batches
        self._meters.begin_workers()

    def blocked(self, began: int) -> None:
        """Notes that ``next`` has waited for workers, since ``began``."""
        took = time.monotonic_ns() - began
        self.wait += took
        self.waits += 1
        if self._pool is not None and self._pool.batches == self._at_begin:
            self.first_wait += took

    def has_sampled(self, began: int) -> None:
        """Notes that one read of the sampler of `READS_PER_LOOK` has ended, since ``began``."""
        self.sampling += READS_PER_LOOK * (time.monotonic_ns() - began)

    @property
    def _batches(self) -> int:
        return 0 if self._pool is None else self._pool.batches

    def _counts(self) -> Totals:
        workers = tuple(record.sums() for record in self._records)
        if self._pool is None:
            made = workers[0]
            return Totals(made.batches, made.samples, workers=workers)
        pool = self._pool
        return Totals(pool.batches, pool.samples, pool.nbytes, pool.copies, pool.copies_for_room, workers=workers)

    def totals(self) -> Totals:
        """Returns what it has taken so far. From any thread."""
        times = self._times()
        return (self._counts() - self._before)._replace(
            outside=times.outside,
            inside=times.inside,
            wait=times.wait,
            waits=times.waits,
            first_wait=times.first_wait,
            sampling=self.sampling,
        )

    def _times(self) -> Totals:
        while True:
            entered, left = self.entered, self.left
            times = Totals(outside=self.outside, wait=self.wait, waits=self.waits, first_wait=self.first_wait)
            until = time.monotonic_ns() if entered > left else left  # behind the waits, which are a part of it
            times = times._replace(inside=until - self._since - times.outside)
            if self.entered == entered and self.left == left:  # else the iterator's thread has gone on meanwhile
                return times

    def go_on(self, now: int) -> None:
        """Notes that the loop has a pass's iterator: what lies before that is not its time between batches."""
        if self.left >= self.entered:  # else another thread is in its `next`, or this was called from there
            self._since += now - self.left
            self.left = now

    def slowest(self) -> list[tuple[int, Slow]]:
        """Returns the slowest samples of the pass with the workers that made them, the slowest first."""
        found = [(number, slow) for number, record in enumerate(self._records) for slow in record.slowest()]
        return sorted(found, key=lambda one: -one[1].seconds)

    def close(self) -> None:
        """Leaves the sums to the loader, which holds neither pool nor records then. Safe to call again."""
        self._meters.fold(self)

    def ended(self, began: int) -> None:
        """Notes that ``next`` has ended the workers since ``began``; behind `close`, else it counts twice."""
        self._meters.add_ending(time.monotonic_ns() - began)


@dataclass(frozen=True)
class _Sum:
    """What is known of a loader. It is replaced as a whole, since another thread may look at it at any time."""

    past: Totals = field(default_factory=Totals)
    live: tuple[Meter, ...] = ()
    slowest: tuple[tuple[int, Slow], ...] = ()


@dataclass
class Meters:
    """What all passes of a loader have taken. Used in the process that iterates; `total` from any thread.

    Attributes:
        restarts: counts workers that are replaced.
        mark: the sums where the last pass began.
    """

    restarts: RestartCount = field(default_factory=RestartCount)
    mark: Totals = field(default_factory=Totals)
    _sum: _Sum = field(default_factory=_Sum)

    def add(self, meter: Meter) -> None:
        """Takes up a new iterator's."""
        self._change(lambda known: replace(known, live=(*known.live, meter)))

    def fold(self, meter: Meter) -> None:
        """Notes the sums of an iterator that has ended."""

        def folded(known: _Sum) -> _Sum:
            if meter not in known.live:
                return known
            live = tuple(one for one in known.live if one is not meter)
            return _Sum(known.past.plus(meter.totals()), live, tuple(meter.slowest()))

        self._change(folded)

    def begin_pass(self) -> int:
        """Notes that ``iter`` was called, and returns when that was."""
        self.mark = self.total()
        return time.monotonic_ns()

    def begin_workers(self) -> None:
        """Notes that what workers have done until now is not of this pass."""
        self.mark = self.mark._replace(workers=self.total().workers)

    def end_begin(self, began: int) -> None:
        """Notes that ``iter`` returns."""
        now = time.monotonic_ns()
        self._add(Totals(starting=now - began, passes=1))
        for meter in self._sum.live:
            meter.go_on(now)

    def add_past(self, totals: Totals) -> None:
        """Counts what passes have taken that were another loader's."""
        self._add(totals)

    def add_ending(self, took: int) -> None:
        """Notes that a pass has ended, and how long that took."""
        self._add(Totals(ending=took, inside=took))

    def _add(self, more: Totals) -> None:
        self._change(lambda known: replace(known, past=known.past.plus(more)))

    def _change(self, change: Callable[[_Sum], _Sum]) -> None:
        """Replaces what is known by what ``change`` makes of it, until nothing comes in between.

        Iterators of other threads may, and any that the garbage collector ends meanwhile. A lock would be no help: one
        thread's own could wait for it, and a forked process for ever.
        """
        while True:
            known = self._sum
            changed = change(known)
            if self._sum is known:
                self._sum = changed
                return

    def total(self) -> Totals:
        """Returns the sums of the loader's life. Does not block. None is ever less than it was in `mark` before."""
        known = self._sum
        total = known.past._replace(restarts=self.restarts.total)
        for meter in known.live:
            total = total.plus(meter.totals())
        return total

    def slowest(self) -> tuple[tuple[int, Slow], ...]:
        """Returns the slowest samples of the last pass, with the workers that made them, the slowest first."""
        known = self._sum
        return tuple(known.live[-1].slowest()) if known.live else known.slowest
