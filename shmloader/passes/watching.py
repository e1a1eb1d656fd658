"""Who looks on at a loader's passes, and what is told of them.

Nobody does, as a rule: each place that would tell looks at one attribute then. Nothing here decides anything.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

from shmloader.slots.ledger import SlotWatcher
from shmloader.slots.pool import Pool
from shmloader.weak_members import WeakMembers
from shmloader.workers.interface import Workers
from shmloader.workers.recorder import Record

NO_BATCH = -1  # the number of no batch


@dataclasses.dataclass(frozen=True)
class Team:
    """The workers of a pass.

    Attributes:
        workers: who they are.
        records: what each of them writes of what it does. They hold the pool's memory.
    """

    workers: Workers
    records: list[Record]


class Watcher(SlotWatcher, Protocol):
    """Who is told, at once, in the thread that iterates. It blocks for no longer than a write to a file takes.

    Times are CLOCK_MONOTONIC's, in nanoseconds; what has just ended ends now.
    """

    def follow(self, team: Team | None) -> None:
        """A pass begins with these workers, or is under way, and all that was assigned was told; None: there are none.

        What is in their records from before is not new.
        """

    def is_assigned(self, seq: int, worker: int, slot: int) -> None:
        """A worker was asked for batch ``seq``; the slot is WRITING."""

    def has_waited(self, began: int) -> None:
        """The loop has waited for workers."""

    def has_stepped(self, began: int, seq: int) -> None:
        """The loop has been given batch ``seq``; NO_BATCH: an exception, or the end."""

    def is_over(self) -> None:
        """The workers have ended, and write nothing any more. Others may write in the same places from then on."""

    def note(self, what: str, worker: int | None = None, seq: int | None = None) -> None:
        """Something rare has happened, to the loop or to a worker, perhaps at a batch."""

    def announce(self) -> None:
        """A step begins, in which nothing has happened yet: warnings may be raised.

        Warns:
            TraceWarning: what the watcher has to say.
        """


def watched(watcher: Watcher, step: Callable[[], Any], seq: Callable[[], int]) -> Any:
    """Returns what ``step`` returns, and tells a watcher of it.

    Args:
        watcher: who is told.
        step: gives the loop its next batch.
        seq: returns that batch's number, when it is there.
    """
    watcher.announce()
    began = time.monotonic_ns()
    number = NO_BATCH
    try:
        data = step()
        number = seq()
        return data
    finally:
        watcher.has_stepped(began, number)


# Returns who watches a pool; None: there is none without workers.
WatcherFor = Callable[["Pool | None"], Watcher]


class Watched(Protocol):
    """A pass that tells a watcher."""

    def watched_by(self, watcher_for: WatcherFor | None) -> None:
        """Tells who ``watcher_for`` says from now on, and nobody else; None: nobody."""


class Watch:
    """Who watches the passes of one loader. Used in the thread that iterates."""

    def __init__(self) -> None:
        self._watcher_for: WatcherFor | None = None
        self._passes: WeakMembers[Watched] = WeakMembers()

    def add(self, one: Watched) -> None:
        """Has a pass watched, now or when a watch begins. Passes are not held."""
        self._passes.add(one)
        if self._watcher_for is not None:
            one.watched_by(self._watcher_for)

    @property
    def is_kept(self) -> bool:
        """Whether passes are watched now."""
        return self._watcher_for is not None

    def begin(self, watcher_for: WatcherFor) -> None:
        """Has all passes watched that there are, and those to come."""
        self._watcher_for = watcher_for
        for one in list(self._passes):
            one.watched_by(watcher_for)

    def end(self) -> None:
        """Has nobody told any more."""
        self._watcher_for = None
        for one in list(self._passes):
            one.watched_by(None)
