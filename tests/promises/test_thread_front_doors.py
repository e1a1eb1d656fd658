"""Producers and job queues whose workers are threads of the program."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from shmloader import JobQueue, Producer, WorkerDiedError
from shmloader.slots import orphans
from tests.helpers.support import PATIENCE, assert_same, children, mappings


def count_to(slots: Any, count: int, kept: list[Any] | None = None, every: int = 1) -> None:
    info = get_worker_info()
    assert info is not None
    for number, slot in zip(range(count), slots, strict=False):
        with slot as (values, who):
            values[...] = number
            who[...] = info.id
            if kept is not None and number % every == 0:
                kept.append((number, values))


SPECS = (1000,), (1,)


def numbers(items: Iterator[Any]) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for values, who in items:
        assert (values == values[0]).all()
        found[int(who[0]), int(values[0])] += 1
    return found


def test_all_items_of_all_targets_arrive_once() -> None:
    with Producer(count_to, SPECS, args=(200,), num_workers=3, worker_type="thread") as producer:
        assert not children()
        assert numbers(iter(producer)) == {(worker, number): 1 for worker in range(3) for number in range(200)}
    assert get_worker_info() is None


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("holds", [False, True])
def test_what_a_target_holds_never_changes(every: int, holds: bool) -> None:
    """Neither while it runs, nor when the producer is gone, whether or not the consumer has the same items."""
    kept: list[Any] = []
    held: list[Any] = []
    with Producer(count_to, SPECS, args=(60, kept, every), num_workers=2, worker_type="thread") as producer:
        for item in producer:
            if holds:
                held.append((item, item[0].clone()))
    del producer, item
    gc.collect()
    orphans.tidy()
    assert len(kept) == 2 * len(range(0, 60, every))
    for number, values in kept:
        assert (values == number).all()
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
    del number, values
    while kept or held:
        kept[:1], held[:1] = [], []
        gc.collect()
        orphans.tidy()
        assert all((array == value).all() for value, array in kept)
        assert all(bool((one[0] == copy).all()) for one, copy in held)
    orphans.tidy()
    assert mappings() == 0


def test_a_consumer_in_each_thread() -> None:
    found: list[Counter[tuple[int, int]]] = []
    with Producer(count_to, SPECS, args=(300,), num_workers=2, worker_type="thread") as producer:
        threads = [threading.Thread(target=lambda: found.append(numbers(iter(producer)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert sum(found, Counter()) == {(worker, number): 1 for worker in range(2) for number in range(300)}


def raise_after(slots: Any, count: int, error: BaseException) -> None:
    count_to(slots, count)
    raise error


def test_a_target_that_raises() -> None:
    producer = Producer(raise_after, SPECS, args=(5, KeyError("what")), worker_type="thread")
    with producer:
        items = iter(producer)
        assert numbers(next(items) for _ in range(5)) == {(0, number): 1 for number in range(5)}
        with pytest.raises(KeyError, match="in Producer worker thread 0"):
            next(items)


def test_a_target_that_leaves() -> None:
    producer = Producer(raise_after, SPECS, args=(2, SystemExit(3)), worker_type="thread")
    with producer, pytest.raises(WorkerDiedError, match=r"^Producer worker thread was ended by SystemExit: 3"):
        numbers(iter(producer))


def test_a_stop_ends_the_loops_of_targets() -> None:
    ended = threading.Event()

    def endless(slots: Any) -> None:
        for slot in slots:
            slot.arrays[...] = 1
            slot.ready()
        ended.set()

    producer = Producer(endless, (10,), worker_type="thread")
    assert (producer.get(timeout=PATIENCE) == 1).all()
    producer.stop()
    assert ended.is_set()
    assert not producer.is_alive()


def test_results_are_those_of_processes() -> None:
    def call(count: int) -> Any:
        if count % 5 == 3:
            raise ValueError(count)
        return {"array": np.full((count, 3), count), "tensor": torch.arange(count), "text": str(count)}

    def results(queue: JobQueue) -> list[Any]:
        found: list[Any] = []
        for count in range(20):
            queue.put(count)
        while len(queue):
            try:
                found.append(queue.get())
            except ValueError as error:
                found.append(str(error).splitlines()[-1])
        return found

    with JobQueue(call, num_workers=2, worker_type="thread") as threads, JobQueue(call, num_workers=2) as processes:
        assert_same(results(threads), results(processes))


def test_a_context_is_for_processes() -> None:
    with pytest.raises(ValueError, match="multiprocessing_context is for worker processes"):
        JobQueue(len, num_workers=1, worker_type="thread", multiprocessing_context="spawn")
    with pytest.raises(ValueError, match="multiprocessing_context is for worker processes"):
        Producer(count_to, SPECS, worker_type="thread", multiprocessing_context="spawn")
