"""Figures of producers and job queues, against what a naive count says; and what is said of their consumers."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import shmloader
from shmloader import IdleWorkersWarning, JobQueue, Producer, StreamStatistics, TensorSpec
from shmloader.observe import processors
from shmloader.observe.case import Setting
from shmloader.observe.figures import PassStatistics, WorkerStatistics
from shmloader.observe.stream_verdict import PRODUCER, QUEUE, StreamKind, judge_stream
from shmloader.observe.verdict import Kind
from tests.helpers.support import in_threads
from tests.helpers.verdicts import told

KINDS = ["process", "thread"]
SPEC = TensorSpec((100,), torch.float32)


def fill(slots: Any, count: int, seconds: float = 0.0) -> None:
    for number, slot in zip(range(count), slots, strict=False):
        with slot as array:
            array[...] = number
            if seconds:
                time.sleep(seconds)


def work(number: int, seconds: float = 0.0) -> Any:
    if seconds:
        time.sleep(seconds)
    if number == -1:
        raise LookupError("no such number")
    return np.full(100, number, np.float32)


def assert_sound(found: StreamStatistics, num_workers: int) -> None:
    """Times are parts of a whole, and nothing is lost on the way to elsewhere."""
    parts = found.wait_seconds, found.own_seconds, found.loop_seconds, found.start_seconds, found.first_wait_seconds
    assert all(0 <= part <= found.seconds + 1e-9 for part in parts)
    assert abs(found.wait_seconds + found.own_seconds + found.loop_seconds - found.seconds) < 1e-6
    assert len(found.workers) == num_workers
    for worker in found.workers:
        assert min(worker.fetch_seconds, worker.collate_seconds, worker.idle_seconds, worker.room_seconds) >= 0
    assert pickle.loads(pickle.dumps(found)) == found
    assert json.loads(json.dumps(found.to_dict()))["batches"] == found.batches
    assert "waited" in str(found)
    assert "worker" in str(found) or not num_workers


@pytest.mark.parametrize("worker_type", KINDS)
def test_items_of_a_producer_are_counted(worker_type: str) -> None:
    producer = Producer(fill, SPEC, args=(40,), num_workers=2, worker_type=worker_type, name="simulator")
    found = producer.statistics()
    assert (found.batches, found.num_slots, found.verdict.kind) == (0, 0, Kind.UNKNOWN)
    held = []
    for number, item in enumerate(producer, 1):
        if number % 20 == 0:
            held.append(item)
            found = producer.statistics()
            assert (found.batches, found.samples) == (number, number)
            assert found.slots["leased"] == len(held) == found.leased
            assert sum(found.slots.values()) >= found.num_slots
            assert_sound(found, 2)
    assert number == 80
    found = producer.statistics()
    assert (found.name, found.batches, found.samples, found.consumers) == ("simulator", 80, 80, 1)
    assert found.bytes >= 80 * 400
    assert [worker.batches for worker in found.workers] == [40, 40]
    assert sum(worker.bytes for worker in found.workers) == found.bytes
    assert_sound(found, 2)
    assert producer.statistics() == found, "it has ended"


@pytest.mark.parametrize("worker_type", KINDS)
def test_results_of_a_queue_are_counted(worker_type: str) -> None:
    with JobQueue(work, num_workers=2, worker_type=worker_type) as queue:
        for number in range(30):
            queue.put(number if number != 7 else -1)
        for number in range(30):
            if number == 7:
                with pytest.raises(LookupError):
                    queue.get()
            else:
                queue.get()
        assert sum(1 for _ in queue.map((number,) for number in range(10))) == 10
        found = queue.statistics()
        assert found.batches == 39
        assert sum(worker.batches for worker in found.workers) == 39
        assert found.bytes >= 39 * 400
        assert_sound(found, 2)
    assert queue.statistics().batches == 39
    assert shmloader.live_loaders() == ()


def test_several_consumers_count_together() -> None:
    with Producer(fill, SPEC, args=(60,), num_workers=2, worker_type="thread") as producer:
        taken: list[int] = []
        in_threads(*[lambda: taken.append(sum(1 for _ in producer)) for _ in range(3)])
        found = producer.statistics()
    assert sum(taken) == found.batches == 120
    assert 1 <= found.consumers <= 3
    assert_sound(found, 2)


def test_what_is_looked_at_while_others_take_is_never_less_than_nothing() -> None:
    is_over = threading.Event()
    found: list[StreamStatistics] = []
    with Producer(fill, SPEC, args=(1500,), num_workers=2, worker_type="thread") as producer:

        def look() -> None:
            while not is_over.is_set():
                found.append(producer.statistics())

        def take() -> None:
            try:
                assert sum(1 for _ in producer) == 3000
            finally:
                is_over.set()

        in_threads(take, look)
    counts = [one.batches for one in found]
    assert counts == sorted(counts)
    for one in found:
        assert min(one.wait_seconds, one.own_seconds, one.loop_seconds, one.seconds) >= 0


def test_a_consumer_that_is_the_limit() -> None:
    def figures() -> StreamStatistics:
        with Producer(fill, SPEC, args=(20,), num_workers=2) as producer:
            for _ in producer:
                time.sleep(0.03)
            return producer.statistics()

    found = told(Kind.LOOP_BOUND, figures)
    assert sum(worker.idle_seconds for worker in found.workers) > 0.1, "for slots"


@pytest.mark.parametrize("what", ["producer", "queue"])
def test_too_few_workers(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(processors, "available", lambda: 64)

    def figures() -> StreamStatistics:
        source: Any
        if what == "producer":
            source = Producer(fill, SPEC, args=(30, 0.005), num_workers=2)
            results = iter(source)
        else:
            source = JobQueue(work, num_workers=2)
            results = source.map((number, 0.005) for number in range(60))
        assert sum(1 for _ in results) == 60
        found: StreamStatistics = source.statistics()
        source.stop() if what == "producer" else source.close()
        return found

    found = told(Kind.MORE_WORKERS, figures)
    assert found.verdict.knob == "num_workers"
    assert sum(worker.work_seconds for worker in found.workers) >= 0.005 * 60


def test_jobs_that_are_put_one_by_one() -> None:
    def figures() -> StreamStatistics:
        with JobQueue(work, num_workers=4) as queue, warnings.catch_warnings():
            warnings.simplefilter("ignore", IdleWorkersWarning)
            for number in range(40):
                queue.put(number, 0.005)
                queue.get()
            return queue.statistics()

    found = told(Kind.SHORT_OF_SLOTS, figures)
    assert found.verdict.knob == "prefetch_factor"
    assert "Put jobs further ahead" in found.verdict


def stream(wait: float, loop: float, own: float = 0.0, **of_workers: Any) -> PassStatistics:
    workers = tuple(WorkerStatistics(number, **{"batches": 50, "cpu_share": 1.0, **of_workers}) for number in range(2))
    return PassStatistics(
        batches=100, seconds=wait + loop + own, wait_seconds=wait, loop_seconds=loop, own_seconds=own, workers=workers
    )


@pytest.mark.parametrize("kind", [PRODUCER, QUEUE], ids=lambda kind: kind.owner)
@pytest.mark.parametrize(
    ("figures", "processors", "said", "knob"),
    [
        (stream(0.01, 1.0, fetch_seconds=0.5), 8, Kind.LOOP_BOUND, lambda kind: None),
        (stream(0.5, 0.5, fetch_seconds=1.0), 8, Kind.MORE_WORKERS, lambda kind: "num_workers"),
        (stream(0.5, 0.5, fetch_seconds=1.0), 2, Kind.SLOW_DATASET, lambda kind: kind.maker),
        (stream(0.3, 0.7, fetch_seconds=0.2, idle_seconds=0.5), 8, Kind.SHORT_OF_SLOTS, lambda kind: kind.ahead),
        (stream(1.0, 0.0, fetch_seconds=0.3, idle_seconds=0.7), 8, Kind.SHORT_OF_SLOTS, lambda kind: kind.ahead),
        (stream(1.0, 0.0, fetch_seconds=0.8, idle_seconds=0.7), 8, Kind.MORE_WORKERS, lambda kind: "num_workers"),
        (stream(0.1, 0.5, 0.4, fetch_seconds=0.2), 8, Kind.OWN_WORK, lambda kind: kind.maker),
        (stream(0.5, 0.5, fetch_seconds=0.2, room_seconds=0.4), 8, Kind.MEMORY_CAP, lambda kind: "max_pool_bytes"),
        (stream(0.0, 0.01), 8, Kind.UNKNOWN, lambda kind: None),
    ],
)
def test_what_is_said_of_figures(
    figures: PassStatistics, processors: int, said: Kind, knob: Callable[[StreamKind], str | None], kind: StreamKind
) -> None:
    verdict = judge_stream(figures, Setting(num_workers=2, processors=processors, max_bytes=1 << 30), kind)
    assert (verdict.kind, verdict.knob) == (said, knob(kind))
    assert verdict.endswith(".")
    assert "batch" not in verdict
    assert "DataLoader" not in verdict


def test_consumers_share_what_workers_make() -> None:
    """Three that each take 20 ms for an item need as many workers as one that takes a third of that."""
    figures = stream(3.0, 2.1, fetch_seconds=1.0)
    setting = Setting(num_workers=2, processors=8)
    assert judge_stream(figures, setting, PRODUCER, 1).kind is not Kind.MORE_WORKERS
    assert "num_workers=3." in judge_stream(figures, setting, PRODUCER, 3)


def test_a_report_takes_them(caplog: pytest.LogCaptureFixture) -> None:
    got: list[StreamStatistics] = []
    producer = Producer(fill, SPEC, args=(25,), num_workers=2, name="simulator")
    queue = JobQueue(work, num_workers=1)
    with (
        caplog.at_level(logging.INFO, "shmloader"),
        producer,
        queue,
        shmloader.report([producer, queue], every=1e-9, to=got.append),
    ):
        assert sum(1 for _ in producer) == 50
        assert sum(1 for _ in queue.map((number,) for number in range(10))) == 10
    assert {one.name for one in got} == {"simulator", "work"}
    assert max(one.batches for one in got if one.name == "simulator") == 50
    assert max(one.batches for one in got if one.name == "work") == 10
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("simulator: 50 batches") for line in lines)
    assert producer._delivery.steps.listeners == queue._delivery.steps.listeners == ()
