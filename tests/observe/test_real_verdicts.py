"""Each verdict in its situation, with workers and a loop that take their time.

What takes time here sleeps, so that it takes as long or longer on a busy machine, and the loop waits until batches are
there where it is not to wait in `next`.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from shmloader import LoaderStatistics, ShmDataLoader
from shmloader.observe import processors
from shmloader.observe.verdict import Kind
from shmloader.workers import recorder, run_queue
from tests.helpers.verdicts import ATTEMPTS, told

LENGTH = 160
SIZE = 4


class Sleepy(Dataset[Any]):
    """Samples that take some seconds each."""

    def __init__(self, seconds: Callable[[int], float] = lambda index: 0.0, floats: int = 4) -> None:
        self.seconds = seconds
        self.floats = floats

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        if seconds := self.seconds(index):
            time.sleep(seconds)
        return torch.full((self.floats,), float(index))


class Computing(Sleepy):
    """Samples of Python code."""

    def __getitem__(self, index: int) -> Any:
        count = 0
        while count < 40_000:
            count += 1
        return index


def read(loader: ShmDataLoader[Any], step: Callable[[int], object] = lambda number: None) -> LoaderStatistics:
    """Reads a pass, and returns the figures."""
    for number, _ in enumerate(loader):
        step(number)
    return loader.statistics()


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_loop_bound(worker_type: str) -> None:
    loader = ShmDataLoader(Sleepy(), batch_size=SIZE, num_workers=2, worker_type=worker_type, persistent_workers=True)

    def figures() -> LoaderStatistics:
        iterator: Any = iter(loader)
        for _ in iterator:
            while not iterator.is_ready() and not iterator._dispatcher.is_done:  # beside `next`, as if the loop took it
                iterator._dispatch_for(iterator._dispatcher.receive(0))
            time.sleep(0.05)
        return loader.statistics()

    told(Kind.LOOP_BOUND, figures)


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_more_workers(worker_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "available", lambda: 64)
    dataset = Sleepy(lambda index: 0.002)
    loader = ShmDataLoader(dataset, batch_size=SIZE, num_workers=2, worker_type=worker_type, persistent_workers=True)
    found = told(Kind.MORE_WORKERS, lambda: read(loader))
    assert "num_workers=" in found.verdict
    assert sum(worker.fetch_seconds for worker in found.workers) >= 0.002 * LENGTH


def test_a_slow_dataset_where_there_are_no_more_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        """A clock whose processes are at work all the time."""

        monotonic_ns = staticmethod(time.monotonic_ns)
        thread_time_ns = staticmethod(time.monotonic_ns)

    monkeypatch.setattr(recorder, "time", Busy)  # which workers inherit
    monkeypatch.setattr(processors, "available", lambda: 2)
    loader = ShmDataLoader(Sleepy(lambda index: 0.002), SIZE, num_workers=2, persistent_workers=True)
    found = told(Kind.SLOW_DATASET, lambda: read(loader))
    assert "2 processors" in found.verdict


def test_no_workers() -> None:
    told(Kind.IN_PROCESS, lambda: read(ShmDataLoader(Sleepy(lambda index: 0.001), SIZE, num_workers=0)))
    told(Kind.LOOP_BOUND, lambda: read(ShmDataLoader(Sleepy(), SIZE, num_workers=0), lambda number: time.sleep(0.01)))


def test_what_the_loop_computes_is_not_what_samples_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no workers, both are done by one thread; workers help on one processor too if samples only wait."""
    monkeypatch.setattr(processors, "available", lambda: 1)

    def step(number: int) -> None:
        end = time.thread_time_ns() + 10_000_000
        while time.thread_time_ns() < end:
            pass

    found = told(Kind.IN_PROCESS, lambda: read(ShmDataLoader(Sleepy(lambda index: 0.002), SIZE, num_workers=0), step))
    assert found.verdict.knob == "num_workers", found
    (made,) = found.workers
    assert made.cpu_share is not None
    assert made.cpu_share < 0.5, found


def test_start_up() -> None:
    def init(worker: int) -> None:
        time.sleep(0.3)

    arguments: dict[str, Any] = {"batch_size": SIZE, "num_workers": 2, "worker_init_fn": init}
    told(Kind.START_UP, lambda: read(ShmDataLoader(Sleepy(), **arguments), lambda number: time.sleep(0.002)))
    loader = ShmDataLoader(Sleepy(), persistent_workers=True, **arguments)
    assert read(loader).verdict.kind is not Kind.START_UP
    assert read(loader).verdict.kind is not Kind.START_UP


def test_long_batches_are_no_start_up() -> None:
    """The first one is late, as it would be with persistent workers."""
    dataset = Sleepy(lambda index: 0.03)
    arguments: dict[str, Any] = {"batch_size": SIZE, "num_workers": 8, "worker_type": "thread"}
    found = read(ShmDataLoader(dataset, **arguments))
    assert found.verdict.kind is not Kind.START_UP, found
    assert found.passes == found.last_pass.passes == 1


class Parts(IterableDataset[Any]):
    """Files of unequal sizes, one for each worker."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        for index in range(self.sizes[info.id]):
            time.sleep(0.002)
            yield torch.tensor(index)


def test_parts_of_a_stream_that_are_unequal() -> None:
    loader = ShmDataLoader(Parts((140, 8, 8)), SIZE, num_workers=3, persistent_workers=True)
    found = told(Kind.UNEQUAL_PARTS, lambda: read(loader))
    assert "worker 0" in found.verdict
    equal = read(ShmDataLoader(Parts((52, 52, 52)), SIZE, num_workers=3, persistent_workers=True))
    assert equal.verdict.kind is not Kind.UNEQUAL_PARTS, equal


def test_start_up_of_short_passes() -> None:
    """Each is too short for a verdict; all together are not."""
    loader = ShmDataLoader(Sleepy(), SIZE, sampler=range(SIZE * 8), num_workers=2)
    assert read(loader).verdict.kind is Kind.UNKNOWN
    for _ in range(8):
        read(loader)
    told(Kind.START_UP, lambda: read(loader))


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
def test_held_batches() -> None:
    loader = ShmDataLoader(Sleepy(lambda index: 0.002), SIZE, num_workers=2, num_slots=6, persistent_workers=True)
    held: list[Any] = []

    def figures() -> LoaderStatistics:
        held.clear()
        held.extend(loader)
        return loader.statistics()

    found = told(Kind.HELD_BATCHES, figures)
    assert "6 slots" in found.verdict
    assert found.last_pass.copies == len(held) - 2
    held.clear()


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
def test_memory_cap() -> None:
    """A batch is so large that no two can be lent."""
    dataset = Sleepy(lambda index: 0.001, 1 << 18)
    loader = ShmDataLoader(dataset, SIZE, num_workers=2, max_pool_bytes=13 << 20, persistent_workers=True)
    found = told(Kind.MEMORY_CAP, lambda: read(loader))
    assert found.verdict.knob == "max_pool_bytes"
    assert found.growth > 0


def test_work_in_the_loops_process() -> None:
    class Slow(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            for index in range(LENGTH):
                time.sleep(0.002)
                yield index

    for num_workers in (0, 2):
        loader = ShmDataLoader(
            Sleepy(), SIZE, sampler=Slow(), num_workers=num_workers, persistent_workers=num_workers > 0
        )
        found = told(Kind.OWN_WORK, functools.partial(read, loader))
        assert found.verdict.knob == "sampler"
        assert found.sampler_seconds >= 0.002 * LENGTH / 2


def test_stragglers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples take a second, of some that take a millisecond; the loop is slower than all others."""
    dataset = Sleepy(lambda index: 1.0 if index in (81, 121) else 0.001)
    loader = ShmDataLoader(dataset, SIZE, num_workers=2, persistent_workers=True)
    found = told(Kind.STRAGGLERS, lambda: read(loader, lambda number: time.sleep(0.02)))
    assert {one.what for one in found.slowest[:2]} == {"index 81", "index 121"}
    assert "index 81" in found.verdict
    assert sum(worker.late_batches for worker in found.last_pass.workers) >= 2


def test_one_slow_worker() -> None:
    """Batches are dealt in turns, so that one worker has all that are odd."""
    dataset = Sleepy(lambda index: 0.02 if index // SIZE % 2 else 0.002)
    loader = ShmDataLoader(dataset, SIZE, num_workers=2, persistent_workers=True)
    found = told(Kind.SLOW_WORKER, lambda: read(loader))
    assert "worker 1 takes" in found.verdict


def test_threads_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of Python code, which one thread runs at a time: the loop waits for them, or in each of its steps."""
    monkeypatch.setattr(processors, "available", lambda: 64)

    for step in (0.0, 0.001):
        loader = ShmDataLoader(Computing(), SIZE, num_workers=3, worker_type="thread", persistent_workers=True)
        # Beside other programs threads come by the lock as they come by processors.
        found = told(
            Kind.INTERPRETER_LOCK,
            lambda loader=loader, step=step: read(loader, lambda number: time.sleep(step)),  # type: ignore[misc]
        )
        assert found.verdict.knob == "worker_type"
        lock = [worker.lock_seconds for worker in found.last_pass.workers]
        assert all(seconds is not None and seconds > 0 for seconds in lock)


def test_more_workers_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that compute wait for a processor, which is not a wait for something that more of them would shorten."""
    if not run_queue.waited():
        pytest.skip("this kernel does not count how long threads wait for a processor")

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        monkeypatch.setattr(processors, "available", lambda: 1)
        loader = ShmDataLoader(Computing(), SIZE, num_workers=4, persistent_workers=True)
        for _ in range(ATTEMPTS):  # the first is mostly the workers' start
            found = told(Kind.SLOW_DATASET, lambda: read(loader))
            if "Workers wait for a processor" in found.verdict:
                break
    finally:
        os.sched_setaffinity(0, cores)
    assert any((worker.queue_share or 0) > 0.25 for worker in found.last_pass.workers)
    assert "Workers wait for a processor" in found.verdict


def test_threads_that_wait_are_not_told_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "available", lambda: 64)
    dataset = Sleepy(lambda index: 0.002)
    loader = ShmDataLoader(dataset, SIZE, num_workers=3, worker_type="thread", persistent_workers=True)
    found = told(Kind.MORE_WORKERS, lambda: read(loader))
    assert "worker_type" not in found.verdict


def test_workers_that_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop waits for them for a second, in which they make nothing."""
    monkeypatch.setattr(processors, "available", lambda: 64)
    loader = ShmDataLoader(Sleepy(lambda index: 0.0005), SIZE, num_workers=2, persistent_workers=True)

    def figures() -> LoaderStatistics:
        iterator: Any = iter(loader)
        timers = []
        for number, _ in enumerate(iterator):
            if number == 20:
                pids = [process.pid for process in iterator._workers]
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                timers = [threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)) for pid in pids]
                for timer in timers:
                    timer.start()
        for timer in timers:
            timer.join()
        return loader.statistics()

    # The latter where they were within a sample.
    found = told((Kind.HELD_UP, Kind.STRAGGLERS), figures)
    assert found.wait_seconds > 0.5
    assert found.verdict.knob != "num_workers"


def test_first_batches_of_persistent_workers_that_are_late() -> None:
    dataset = Sleepy(lambda index: 0.3 if index % LENGTH < 2 * SIZE else 0.0)

    def figures() -> LoaderStatistics:
        loader = ShmDataLoader(dataset, SIZE, num_workers=2, persistent_workers=True)
        read(loader, lambda number: time.sleep(0.002))
        first.append(loader.statistics())
        return read(loader, lambda number: time.sleep(0.002))

    first: list[LoaderStatistics] = []
    found = told(Kind.LATE_BEGIN, figures)
    assert found.verdict.knob == "epoch_size"
    assert found.last_pass.start_seconds > 1.0
    assert (first[-1].verdict.kind, first[-1].verdict.knob) == (Kind.LATE_BEGIN, None)


def test_samples_that_come_one_by_one() -> None:
    """Quick samples, and no workers: there is no batch size to be raised."""
    loader: ShmDataLoader[Any] = ShmDataLoader(Quick(), batch_size=None)
    kinds = Kind.IN_PROCESS, Kind.OWN_WORK  # by which takes longer, and both are quick
    found = told(kinds, lambda: read(loader), knob="dataset")
    assert "batch_size" not in found.verdict


class Quick(Dataset[Any]):
    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, index: int) -> Any:
        return sum(range(200))


def test_too_few_batches_ahead() -> None:
    """The loop takes eight at once, and then rests until far more could have been made."""
    loader = ShmDataLoader(Sleepy(lambda index: 0.005), SIZE, num_workers=2, prefetch_factor=1, persistent_workers=True)
    found = told(Kind.SHORT_OF_SLOTS, lambda: read(loader, lambda number: time.sleep(0.0 if (number + 1) % 8 else 0.4)))
    assert found.verdict.knob == "prefetch_factor"


def test_nothing_is_said_of_few_batches() -> None:
    found = read(ShmDataLoader(Sleepy(lambda index: 0.05), SIZE, sampler=range(40), num_workers=2))
    assert found.verdict.kind is Kind.UNKNOWN
    assert "10 batches" in found.verdict
