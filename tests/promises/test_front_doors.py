"""What producers and job queues promise alike, with both kinds of workers."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shmloader import JobQueue, Producer, ProducerEndedError, TensorSpec, WorkerRestartWarning
from tests.helpers.support import PATIENCE

KINDS = pytest.mark.parametrize("kind", ["process", "thread"])


def raising(error: type[Exception]) -> Callable[[int], int]:
    def call(number: int) -> int:
        if number % 3 == 1:
            raise error
        return number

    return call


@KINDS
def test_a_function_that_raises_what_ends_an_iteration(kind: str) -> None:
    for error, expected in ((queue.Empty, queue.Empty), (StopIteration, RuntimeError)):
        with JobQueue(raising(error), num_workers=2, worker_type=kind) as jobs:
            results = jobs.map([(number,) for number in range(7)])
            assert next(results) == 0
            with pytest.raises(expected):
                next(results)
            assert [next(results), next(results)] == [2, 3]
            with pytest.raises(expected):
                next(results)
            assert list(results) == [5, 6]


@KINDS
@pytest.mark.filterwarnings("ignore::shmloader.IdleWorkersWarning")
def test_a_function_that_raises_what_get_raises(kind: str) -> None:
    with JobQueue(raising(queue.Empty), num_workers=2, worker_type=kind) as jobs:
        for number in (0, 1, 2):
            jobs.put(number)
            if number == 1:
                with pytest.raises(queue.Empty):
                    jobs.get(PATIENCE)
            else:
                assert jobs.get(PATIENCE) == number
        jobs.put(1)
        jobs.put(2)
        with pytest.raises(queue.Empty):
            jobs.get(PATIENCE)
        assert jobs.get(PATIENCE) == 2


def stop(worker: int) -> None:
    raise StopIteration


def count(slots: Any, error: type[Exception] | None = None) -> None:
    for number, slot in zip(range(20), slots, strict=False):
        with slot as array:
            array[...] = number
    if error is not None and torch.utils.data.get_worker_info().id == 0:  # type: ignore[union-attr]
        raise error


@KINDS
def test_an_init_function_that_looks_like_the_end(kind: str) -> None:
    with Producer(count, (2,), worker_type=kind, worker_init_fn=stop) as producer:
        with pytest.raises(RuntimeError, match="worker_init_fn raised StopIteration"):
            next(producer)
        assert list(producer) == []
    jobs = JobQueue(abs, num_workers=1, worker_type=kind, worker_init_fn=stop)
    with jobs, pytest.raises(RuntimeError, match="StopIteration"):
        next(jobs.map([(1,)]))


@KINDS
@pytest.mark.parametrize("error", [StopIteration, ProducerEndedError])
def test_a_target_that_raises_what_looks_like_the_end(kind: str, error: type[Exception]) -> None:
    with Producer(count, (2,), args=(error,), num_workers=2, worker_type=kind) as producer:
        items, errors = 0, 0
        while True:
            try:
                next(producer)
                items += 1
            except StopIteration:
                break
            except RuntimeError as raised:
                assert f"the target raised {error.__name__}" in str(raised)  # noqa: PT017
                errors += 1
    assert (items, errors) == (40, 1)


def replace(slots: Any) -> None:
    for slot in slots:
        with slot as item:
            item["tensor"] = torch.ones(3, dtype=torch.bfloat16)


def fill(slots: Any) -> None:
    for number, slot in zip(range(3), slots, strict=False):
        with slot as item:
            item["tensor"][...] = number
            item["nothing"].zero_()


@KINDS
def test_tensors_that_numpy_has_no_dtype_for(kind: str) -> None:
    specs = {"tensor": TensorSpec((3,), torch.bfloat16), "nothing": TensorSpec((0, 2), torch.bfloat16)}
    with Producer(fill, specs, worker_type=kind) as producer:
        assert [item["tensor"].tolist() for item in producer] == [[float(number)] * 3 for number in range(3)]
    with Producer(replace, specs, worker_type=kind) as producer, pytest.raises(RuntimeError, match="was replaced"):
        next(producer)


@KINDS
@pytest.mark.parametrize("timeout", [math.inf, 1e10, 2**70, 1e300])
def test_very_long_timeouts(kind: str, timeout: float) -> None:
    with JobQueue(abs, num_workers=1, worker_type=kind) as jobs:
        jobs.put(-3)
        assert jobs.get(timeout) == 3
    with Producer(count, (2,), num_slots=30, worker_type=kind) as producer:
        assert producer.get(timeout=timeout).tolist() == [0, 0]
        producer.join(timeout)
        assert not producer.is_alive()


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), (math.nan, ValueError), (True, TypeError), ("1", TypeError)]
)
def test_timeouts_that_are_none(timeout: Any, error: type[Exception]) -> None:
    with Producer(count, (2,)) as producer, JobQueue(abs, num_workers=1) as jobs:
        for wait in (lambda: producer.get(timeout=timeout), lambda: producer.join(timeout), lambda: jobs.get(timeout)):
            with pytest.raises(error, match="timeout must be"):
                wait()


def leave_once(numbers: set[int]) -> Callable[[int], int]:
    def call(number: int) -> int:
        if number in numbers:
            numbers.remove(number)
            raise SystemExit
        return number

    return call


@pytest.mark.filterwarnings("error::shmloader.WorkerRestartWarning")
def test_several_threads_that_die_are_all_replaced() -> None:
    """Though the warning of the first one's replacement is an error, and leaves the wait."""
    with JobQueue(leave_once({0, 1, 2, 3}), num_workers=4, worker_type="thread", worker_restarts=9) as jobs:
        for number in range(8):
            jobs.put(number)
        found: list[int] = []
        while len(found) < 8:
            try:
                found.append(jobs.get(PATIENCE))
            except WorkerRestartWarning:
                continue
        assert found == list(range(8))


def test_what_cannot_be_sent_is_named() -> None:
    with JobQueue(abs, num_workers=1) as jobs:
        with pytest.raises(TypeError, match="lambda"):
            jobs.put(lambda: 0, size=3)
        with pytest.raises(TypeError, match="lambda"):
            jobs.put(3, size=lambda: 0)
    with pytest.raises(TypeError, match="a Producer cannot be pickled"):
        Producer(count, (2,)).__reduce__()
