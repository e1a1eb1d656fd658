"""Which worker makes which batch, how far ahead, and in which order batches come out.

Pure: no process, pipe or memory is touched here, so that it can be tested by random walks. The rules are those of
torch's multiprocessing iterator: batch i goes to the next worker in turn that still has data, at most
``prefetch_factor`` x ``num_workers`` batches are between being asked for and being handed out, and batches come out
by number, or by arrival when ``in_order`` is off. Where nobody compares with torch, the worker that owes least may be
next, and not the one whose turn it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Task(Generic[Result]):
    """A batch that was asked for and not handed out yet."""

    seq: int
    worker: int
    job: bytes  # what the sampler gave, pickled: it is sent again if the worker dies, and named in errors
    slot: int  # where the job is
    result: Result | None = None


class Schedule(Generic[Result]):
    """The batches of one pass over the data, from being asked for to being handed out.

    Args:
        num_workers: how many workers.
        prefetch_factor: batches per worker that may be under way.
        in_order: whether batches come out by number.
        to_the_free: whether a batch goes to a worker that owes least, and not in turns.
    """

    def __init__(self, num_workers: int, prefetch_factor: int, in_order: bool, to_the_free: bool = False) -> None:
        self.look_ahead = num_workers * prefetch_factor
        self._in_order = in_order
        self._to_the_free = to_the_free
        self._num_workers = num_workers
        self._active = [True] * num_workers
        self._load = [0] * num_workers
        self._owed = [0] * num_workers  # of these, batches that are not made
        self._turn = 0
        self._next_seq = 0
        self._out_seq = 0
        self._tasks: dict[int, Task[Result]] = {}
        self._arrived: deque[Task[Result]] = deque()

    def begin_with(self, worker: int) -> None:
        """Has ``worker`` get the first batch."""
        self._turn = worker % self._num_workers

    def over(self) -> set[int]:
        """Returns the workers that have no more data in this pass, and of which all batches were handed out."""
        return {worker for worker in range(self._num_workers) if not (self._active[worker] or self._load[worker])}

    def next_worker(self) -> int | None:
        """Returns the worker whose turn it is, or None when none can take a batch now.

        Without order a worker takes a batch only while it has fewer than its share, so that a slow one does not
        collect a queue; with order the turn alone decides. Each call moves the turn on, as stock's does. There are no
        turns where batches go to whoever is free.
        """
        if self._to_the_free:
            active = [worker for worker in range(self._num_workers) if self._active[worker]]
            return min(active, key=self._owed.__getitem__, default=None)
        for _ in range(self._num_workers):
            worker = self._turn
            self._turn = (worker + 1) % self._num_workers
            if self._active[worker] and (self._in_order or self._load[worker] < self.look_ahead // sum(self._active)):
                return worker
        return None

    def send(self, worker: int, job: bytes, slot: int) -> Task[Result]:
        """Notes that ``worker`` is asked for a batch, and numbers it."""
        task: Task[Result] = Task(self._next_seq, worker, job, slot)
        self._tasks[task.seq] = task
        self._next_seq += 1
        self._load[worker] += 1
        self._owed[worker] += 1
        return task

    def arrive(self, seq: int, result: Result) -> None:
        """Notes that batch ``seq`` was made."""
        task = self._tasks[seq]
        task.result = result
        self._owed[task.worker] -= 1
        if not self._in_order:
            self._arrived.append(task)

    def forget(self, seq: int) -> None:
        """Notes that batch ``seq`` is not needed, whether it was made or not."""
        task = self._tasks.pop(seq)
        self._load[task.worker] -= 1
        self._owed[task.worker] -= task.result is None
        if task in self._arrived:
            self._arrived.remove(task)

    def end_worker(self, worker: int) -> list[Task[Result]]:
        """Notes that ``worker`` has no more data in this pass, and returns its tasks that will never be made."""
        self._active[worker] = False
        lost = self.outstanding(worker)
        self._owed[worker] = 0
        for task in lost:
            del self._tasks[task.seq]
        return lost

    def take(self) -> Task[Result] | None:
        """Returns the next batch to hand out, or None when it is not made yet (or `done`)."""
        task = self.awaited if self._in_order else self._next_by_arrival()
        if task is None or task.result is None:
            return None
        del self._tasks[task.seq]
        self._load[task.worker] -= 1
        return task

    @property
    def is_ready(self) -> bool:
        """Whether `take` has a batch."""
        if not self._in_order:
            return bool(self._arrived)
        return (task := self.awaited) is not None and task.result is not None

    @property
    def under_way(self) -> int:
        """How many batches were asked for and not handed out, but for those that will never be made."""
        return len(self._tasks)

    @property
    def is_active(self) -> bool:
        """Whether any worker has more data in this pass."""
        return any(self._active)

    @property
    def done(self) -> bool:
        """Whether every batch that was asked for was handed out or will never be made."""
        return not self._tasks

    @property
    def awaited(self) -> Task[Result] | None:
        """The batch without which the loop cannot go on: with order the one that is next, without it none by name."""
        if not self._in_order or not self._tasks:
            return None
        # Numbers are missing where an iterable worker ended before its batch.
        while (task := self._tasks.get(self._out_seq)) is None:
            self._out_seq += 1
        return task

    def first_unmade(self) -> Task[Result] | None:
        """Returns the oldest batch that is not made: of those that its worker owes it is the first."""
        return next((task for task in self._tasks.values() if task.result is None), None)

    def task(self, seq: int) -> Task[Result] | None:
        """Returns the task of batch ``seq`` unless it was handed out or dropped."""
        return self._tasks.get(seq)

    def load(self, worker: int) -> int:
        """Returns how many batches ``worker`` was asked for that were not handed out yet."""
        return self._load[worker]

    def outstanding(self, worker: int) -> list[Task[Result]]:
        """Returns what ``worker`` still owes, oldest first."""
        return [task for task in self._tasks.values() if task.worker == worker and task.result is None]

    def made(self) -> list[Task[Result]]:
        """Returns the batches that were made and not handed out, oldest first."""
        return [task for task in self._tasks.values() if task.result is not None]

    def tasks(self) -> list[Task[Result]]:
        """Returns the batches that were asked for and not handed out, oldest first."""
        return list(self._tasks.values())

    def stuck_behind(self, seqs: Collection[int]) -> list[Task[Result]]:
        """Returns the batches that are not begun, since their workers are at earlier ones, namely ``seqs``."""
        at = {self._tasks[seq].worker: seq for seq in seqs}
        return [
            task for task in self._tasks.values() if task.result is None and task.seq > at.get(task.worker, task.seq)
        ]

    def unmade(self) -> int:
        """Returns how many batches are still to be made."""
        return sum(task.result is None for task in self._tasks.values())

    def _next_by_arrival(self) -> Task[Result] | None:
        return self._arrived.popleft() if self._arrived else None
