"""The schedule against a naive model of stock's rules, over random walks."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from shmloader.passes.schedule import Schedule


class Naive:
    """Stock's bookkeeping, written down as plainly as can be: one list of tasks, looked through every time."""

    def __init__(self, workers: int, prefetch: int, in_order: bool) -> None:
        self.workers, self.prefetch, self.in_order = workers, prefetch, in_order
        self.active = [True] * workers
        self.turn = itertools.cycle(range(workers))
        self.tasks: list[dict[str, Any]] = []
        self.arrivals: list[int] = []

    def load(self, worker: int) -> int:
        return sum(task["worker"] == worker and not (task["out"] or task["forgotten"]) for task in self.tasks)

    def next_worker(self) -> int | None:
        for _ in range(self.workers):
            worker = next(self.turn)
            room = self.in_order or self.load(worker) < self.prefetch * self.workers // sum(self.active)
            if self.active[worker] and room:
                return worker
        return None

    def send(self, worker: int) -> int:
        self.tasks.append({"worker": worker, "made": False, "out": False, "lost": False, "forgotten": False})
        return len(self.tasks) - 1

    def end(self, worker: int) -> list[int]:
        self.active[worker] = False
        lost = [
            seq for seq, task in enumerate(self.tasks)
            if task["worker"] == worker and not task["made"] and not task["lost"]
        ]  # fmt: skip
        for seq in lost:
            self.tasks[seq]["lost"] = True
        return lost

    def take(self) -> int | None:
        candidates = [seq for seq, task in enumerate(self.tasks) if not task["out"] and not task["lost"]]
        if self.in_order:
            candidates = [seq for seq in candidates[:1] if self.tasks[seq]["made"]]
        else:
            candidates = [seq for seq in self.arrivals if not (self.tasks[seq]["out"] or self.tasks[seq]["lost"])]
        if not candidates:
            return None
        self.tasks[candidates[0]]["out"] = True
        return candidates[0]

    def done(self) -> bool:
        return all(task["out"] or task["lost"] for task in self.tasks)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_random_walk(seed: int, in_order: bool) -> None:
    draw = random.Random(seed)
    workers, prefetch = draw.randint(1, 5), draw.randint(1, 4)
    schedule: Schedule[str] = Schedule(workers, prefetch, in_order)
    naive = Naive(workers, prefetch, in_order)
    assert schedule.look_ahead == workers * prefetch
    in_flight = 0
    for _ in range(1500):
        action = draw.choice(["send", "send", "arrive", "arrive", "take", "take", "end", "forget"])
        waiting = [
            seq for seq, task in enumerate(naive.tasks) if not (task["made"] or task["lost"])
        ]  # fmt: skip
        if action == "send" and in_flight < schedule.look_ahead:
            # Without order stock does not hand a worker more than its share, so a walk must ask both.
            worker = schedule.next_worker()
            assert worker == naive.next_worker()
            if worker is not None:
                task = schedule.send(worker, job=b"indices", slot=3)
                assert task.seq == naive.send(worker)
                assert (task.worker, task.slot) == (worker, 3)
                in_flight += 1
        elif action == "arrive" and waiting:
            seq = draw.choice(waiting)
            schedule.arrive(seq, f"batch {seq}")
            naive.tasks[seq]["made"] = True
            naive.arrivals.append(seq)
        elif action == "take":
            taken, expected = schedule.take(), naive.take()
            assert (None if taken is None else taken.seq) == expected
            if taken is not None:
                assert taken.result == f"batch {taken.seq}"
                in_flight -= 1
        elif action == "forget" and draw.random() < 0.1:
            left = [seq for seq, task in enumerate(naive.tasks) if not (task["out"] or task["lost"])]
            if left:
                seq = draw.choice(left)
                schedule.forget(seq)
                naive.tasks[seq].update(lost=True, forgotten=True)
                in_flight -= 1
        elif action == "end" and draw.random() < 0.05:
            worker = draw.randrange(workers)
            if naive.active[worker] and sum(naive.active) > 1:
                lost = [task.seq for task in schedule.end_worker(worker)]
                assert lost == naive.end(worker)
                in_flight -= len(lost)
        assert schedule.done == naive.done()
        owed = [seq for seq, task in enumerate(naive.tasks) if not (task["made"] or task["lost"] or task["out"])]
        assert sorted(task.seq for w in range(workers) for task in schedule.outstanding(w)) == owed
        assert schedule.unmade() == len(owed)
        asking = {naive.tasks[seq]["worker"]: seq for seq in reversed(owed) if seq % 3}
        behind = [seq for seq in owed if seq > asking.get(naive.tasks[seq]["worker"], seq)]
        assert [task.seq for task in schedule.stuck_behind(asking.values())] == behind
        awaited = schedule.awaited
        left = [seq for seq, task in enumerate(naive.tasks) if not (task["out"] or task["lost"])]
        assert (awaited.seq if awaited else None) == (left[0] if in_order and left else None)
        assert [task.seq for task in schedule.made()] == [seq for seq in left if naive.tasks[seq]["made"]]


def test_no_worker_is_left() -> None:
    schedule: Schedule[str] = Schedule(2, 1, in_order=True)
    schedule.end_worker(0)
    schedule.end_worker(1)
    assert schedule.next_worker() is None
    assert schedule.done
    assert schedule.take() is None


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_batches_go_to_whoever_owes_least(seed: int, in_order: bool) -> None:
    draw = random.Random(seed)
    workers = draw.randint(1, 5)
    schedule: Schedule[str] = Schedule(workers, 4, in_order, to_the_free=True)
    owed: dict[int, int] = {}  # batches that are not made, and who has them
    active = set(range(workers))
    for _ in range(1500):
        action = draw.choice(["send", "send", "arrive", "take", "end", "forget"])
        if action == "send":
            worker = schedule.next_worker()
            loads = {one: list(owed.values()).count(one) for one in active}
            assert (worker is None) == (not active)
            if worker is not None:
                assert loads[worker] == min(loads.values())
                owed[schedule.send(worker, b"job", 0).seq] = worker
        elif action == "arrive" and owed:
            seq = draw.choice(list(owed))
            del owed[seq]
            schedule.arrive(seq, "made")
        elif action == "take":
            schedule.take()
        elif action == "forget" and owed and draw.random() < 0.2:
            schedule.forget(seq := draw.choice(list(owed)))
            del owed[seq]
        elif action == "end" and active and draw.random() < 0.01:
            schedule.end_worker(ended := active.pop())
            owed = {seq: worker for seq, worker in owed.items() if worker != ended}
