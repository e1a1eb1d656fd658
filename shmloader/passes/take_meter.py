"""What those who take results have waited for them. From any number of threads; see `meter` for a loop's."""

from __future__ import annotations

import threading
from time import monotonic_ns

from .meter import Totals


class _Times:
    """Of one thread, which alone changes them. Nanoseconds, as `Totals` has them."""

    def __init__(self) -> None:
        self.entered = self.left = self.blocked_since = 0
        self.outside = self.inside = self.wait = self.waits = self.first_wait = 0

    def totals(self, now: int) -> Totals:
        """Returns the sums, with what has begun and not ended."""
        inside, wait = self.inside, self.wait
        if self.entered > self.left:
            inside += max(0, now - self.entered)
            wait += max(0, now - self.blocked_since) if self.blocked_since else 0
        return Totals(
            outside=self.outside,
            inside=inside,
            wait=min(wait, inside),
            waits=self.waits,
            first_wait=self.first_wait,
            starting=0,
        )


class TakeMeter:
    """The times of all threads that take results. A thread's end is not noticed, so that its times stay."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._all: dict[int, _Times] = {}  # by thread number, which the system uses again

    @property
    def consumers(self) -> int:
        """How many threads have taken, at a time."""
        return len(self._all)

    def enter(self) -> None:
        """Notes that this thread asks for a result."""
        now = monotonic_ns()
        times: _Times | None = getattr(self._mine, "times", None)
        if times is None:
            times = self._mine.times = self._all.setdefault(threading.get_ident(), _Times())
        else:
            times.outside += now - times.left
        times.entered = now

    def leave(self) -> None:
        """Notes that it has one, or an exception."""
        times: _Times = self._mine.times
        now = monotonic_ns()
        times.inside += now - times.entered
        times.entered = times.left = now

    def begin_wait(self) -> None:
        """Notes that it waits for workers."""
        self._mine.times.blocked_since = monotonic_ns()

    def end_wait(self, is_first: bool) -> None:
        """Notes that they have told something; ``is_first``: before the first result."""
        times: _Times = self._mine.times
        took = monotonic_ns() - times.blocked_since
        times.blocked_since = 0
        times.wait += took
        times.waits += 1
        if is_first:
            times.first_wait += took

    def totals(self) -> Totals:
        """Returns the sums of all threads. From any thread; does not block."""
        now, total = monotonic_ns(), Totals()
        for times in list(self._all.values()):
            total = total.plus(times.totals(now))
        return total
