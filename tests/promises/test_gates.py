"""`pause`, `resume` and `prefetching`: what is made while a loader is paused, and that the stream is the same."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from shmloader import ChunkedDataset, ShmDataLoader, WorkerDiedError, WorkerRestartWarning
from shmloader.passes.iterator import ShmIterator
from shmloader.workers.gate import WorkerGate
from shmloader.workers.threads.workers import ThreadWorkers
from tests.helpers.datasets import Images, Mapped, Shards
from tests.helpers.support import PATIENCE, assert_same, detached, let_stock_end, seed_everything, stream

KINDS = ["process", "thread"]


def until(is_so: Callable[[], bool]) -> None:
    """Waits until something is so, which it is at once on a machine that has nothing else to do."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Watched(Dataset[Any]):
    """Tells which samples were begun, and ends none before it may."""

    def __init__(self, length: int = 64) -> None:
        self.begun = torch.zeros(length, dtype=torch.int32).share_memory_()
        self.permits = multiprocessing.get_context("fork").Semaphore(0)

    def __len__(self) -> int:
        return len(self.begun)

    def __getitem__(self, index: int) -> int:
        self.begun[index] += 1
        assert self.permits.acquire(timeout=PATIENCE)
        return index

    def allow(self, count: int = 10_000) -> None:
        for _ in range(count):
            self.permits.release()

    def seen(self) -> list[int]:
        begun = self.begun.tolist()  # at once: it changes meanwhile
        assert max(begun) <= 1
        return [index for index, count in enumerate(begun) if count]


class WatchedInto(Watched):
    def __getitem_into__(self, index: int, out: Any) -> None:
        out[...] = self[index]


class WatchedStream(IterableDataset[Any]):
    def __init__(self) -> None:
        self.watched = Watched()
        self.begun = self.watched.begun
        self.allow = self.watched.allow
        self.seen = self.watched.seen

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        return map(self.watched.__getitem__, range(32 * info.id, 64))

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def loader(dataset: Any, **arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(dataset, **{"batch_size": 4, "num_workers": 2, **arguments})


# -- what is made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker_type", KINDS)
@pytest.mark.parametrize("make", [Watched, WatchedInto])
@pytest.mark.parametrize("seeding", ["worker", "sample"])
def test_a_pause_comes_before_the_next_sample(make: Any, worker_type: str, seeding: str) -> None:
    if worker_type == "thread" and seeding == "sample":
        return
    dataset = make()
    iterator = iter(paused := loader(dataset, worker_type=worker_type, seeding=seeding))
    until(lambda: dataset.seen() == [0, 4])  # each worker is at its first sample
    paused.pause()
    dataset.allow()
    assert next(iterator).tolist() == [0, 1, 2, 3]
    assert dataset.seen() == [0, 1, 2, 3, 4]  # one worker has ended what it was at; the other has made the batch
    for batch in range(1, 4):
        assert next(iterator).tolist() == list(range(4 * batch, 4 * batch + 4))
        assert dataset.seen() == list(range(4 * batch + 4))
    paused.resume()
    until(lambda: dataset.seen() == list(range(32)))  # as far ahead as ever, with nobody asking
    paused.pause()
    assert [batch.tolist()[0] for batch in iterator] == list(range(16, 64, 4))


@pytest.mark.parametrize("worker_type", KINDS)
def test_a_pause_comes_before_the_next_sample_of_a_stream(worker_type: str) -> None:
    dataset = WatchedStream()
    iterator = iter(paused := loader(dataset, worker_type=worker_type))
    until(lambda: dataset.seen() == [0, 32])
    paused.pause()
    dataset.allow()
    assert next(iterator).tolist() == [0, 1, 2, 3]
    assert dataset.seen() == [0, 1, 2, 3, 32]
    assert next(iterator).tolist() == [32, 33, 34, 35]
    assert dataset.seen() == [0, 1, 2, 3, 32, 33, 34, 35]


@pytest.mark.parametrize("worker_type", KINDS)
def test_a_pause_comes_before_the_next_chunk(worker_type: str) -> None:
    watched = Watched()

    class Chunks:
        def __iter__(self) -> Iterator[Any]:
            for index in range(20):
                watched[index]
                yield np.arange(2 * index, 2 * index + 2)

    iterator = iter(paused := loader(ChunkedDataset(Chunks()), num_workers=1, worker_type=worker_type))
    until(lambda: watched.seen() == [0])
    paused.pause()
    watched.allow()
    for batch in range(3):
        assert next(iterator).tolist() == list(range(4 * batch, 4 * batch + 4))
        assert watched.seen() == list(range(2 * batch + 2))


@pytest.mark.parametrize("worker_type", KINDS)
@pytest.mark.parametrize("batch_size", [4, None])
def test_a_pass_that_begins_paused_makes_what_is_asked_for(batch_size: int | None, worker_type: str) -> None:
    dataset = Watched()
    dataset.allow()
    paused = loader(dataset, batch_size=batch_size, worker_type=worker_type)
    paused.pause()
    iterator = iter(paused)
    size = batch_size or 1
    for batch in range(5):
        assert torch.as_tensor(next(iterator)).flatten().tolist() == list(range(size * batch, size * batch + size))
        assert dataset.seen() == list(range(size * batch + size))
    with paused.prefetching():
        until(lambda: dataset.seen() == list(range(9 * size)))
    next(iterator)
    assert dataset.seen() == list(range(9 * size))
    paused.resume()
    until(lambda: dataset.seen() == list(range(10 * size)))


class Told(Sampler[int]):
    def __init__(self, length: int = 64) -> None:
        self.length = length
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for index in range(self.length):
            self.read += 1
            yield index

    def __len__(self) -> int:
        return self.length


def test_the_sampler_is_not_read_ahead_while_it_is_paused() -> None:
    sampler = Told()
    paused = loader(Images(64), sampler=sampler, batch_size=1)
    paused.pause()
    iterator = iter(paused)
    assert sampler.read == 0
    for count in range(1, 4):
        next(iterator)
        assert sampler.read == count
    paused.resume()
    assert sampler.read == 7  # 3, and as far ahead as 2 workers with 2 batches each
    paused.pause()
    for _ in range(4):
        next(iterator)
    assert sampler.read == 7
    next(iterator)
    assert sampler.read == 8


def test_batches_that_are_made_stay_and_come_first() -> None:
    dataset = Watched()
    dataset.allow()
    iterator = iter(paused := loader(dataset))
    assert isinstance(iterator, ShmIterator)
    dispatcher = iterator._dispatcher
    # Not `is_ready`, which reads no more tokens when the first batch is there.
    until(lambda: (dispatcher.receive_ready(), len(dispatcher._schedule.made()) == 4)[1])
    paused.pause()
    for worker in iterator._workers:
        os.kill(worker.pid, signal.SIGSTOP)  # nobody has to do anything for them
    try:
        found = [next(iterator).tolist()[0] for _ in range(4)]
    finally:
        for worker in iterator._workers:
            os.kill(worker.pid, signal.SIGCONT)
    assert found == [0, 4, 8, 12]
    assert next(iterator).tolist() == [16, 17, 18, 19]


def frames_of(workers: Any, number: int) -> str:
    if not isinstance(workers, ThreadWorkers):
        return "".join(workers.traceback(number))
    frame = sys._current_frames()[workers._workers[number].thread.ident or 0]
    return "".join(traceback.format_stack(frame))


@pytest.mark.parametrize("worker_type", KINDS)
def test_workers_sleep_at_the_gate(worker_type: str) -> None:
    dataset = Watched()
    iterator = iter(paused := loader(dataset, worker_type=worker_type))
    assert isinstance(iterator, ShmIterator)
    until(lambda: dataset.seen() == [0, 4])
    paused.pause()
    dataset.allow()
    workers = iterator._dispatcher._workers
    # In a read of what they are sent: there is no loop that looks at the gate again and again.
    until(lambda: all("await_call" in frames_of(workers, number) for number in range(2)))
    assert next(iterator).tolist() == [0, 1, 2, 3]


# -- the same stream -------------------------------------------------------------------------------------------------


def toggled(of: ShmDataLoader[Any], rng: random.Random, passes: int) -> list[list[Any]]:
    """Returns the batches of some passes, in which the gate is opened and shut at random."""
    found: list[list[Any]] = []
    for _ in range(passes):
        found.append([])
        iterator = iter(of)
        while True:
            choice = rng.randrange(6)
            if choice == 0:
                of.pause()
            elif choice == 1:
                of.resume()
            try:
                if choice == 2:
                    with of.prefetching():
                        found[-1].append(detached(next(iterator)))
                else:
                    found[-1].append(detached(next(iterator)))
            except StopIteration:
                break
    return found


@pytest.mark.sampled(12)
@pytest.mark.parametrize("worker_type", KINDS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (Images, {"shuffle": True}),
        (Images, {"shuffle": True, "persistent_workers": True, "prefetch_factor": 4}),
        (Images, {"batch_size": 100}),
        (Images, {"batch_size": None}),
        (functools.partial(Images, 0), {}),
        (functools.partial(Shards, noisy=False), {"num_workers": 3}),
        (functools.partial(Shards, noisy=False), {"num_workers": 3, "persistent_workers": True, "drop_last": True}),
        (functools.partial(Shards, (0, 9, 0), noisy=False), {"num_workers": 3, "batch_size": 2}),
    ],
)
def test_the_stream_does_not_depend_on_the_gate(
    make: Any, arguments: dict[str, Any], worker_type: str, seed: int
) -> None:
    seed_everything(1)
    expected = stream(DataLoader(make(), **{"batch_size": 4, "num_workers": 2, **arguments}), 2)[0]
    let_stock_end()
    seed_everything(1)
    assert_same(toggled(loader(make(), worker_type=worker_type, **arguments), random.Random(seed), 2), expected)


@pytest.mark.parametrize("worker_type", KINDS)
def test_batches_in_any_order(worker_type: str) -> None:
    for seed in range(4):
        [found] = toggled(loader(Images(), in_order=False, worker_type=worker_type), random.Random(seed), 1)
        assert sorted(int(label) for _, labels in found for label in labels) == list(range(50))


@pytest.mark.filterwarnings("ignore:a batch takes:shmloader.HeldBatchesWarning")
@pytest.mark.parametrize("worker_type", KINDS)
def test_batches_that_hardly_fit(worker_type: str) -> None:
    """Those that wait for room may need that others are ended which wait at the gate."""

    def sample(index: int) -> torch.Tensor:
        return torch.full(((1 + index % 5) * 220_000,), index, dtype=torch.uint8)

    make = functools.partial(Mapped, sample, 40)
    expected = stream(DataLoader(make(), batch_size=1))[0]
    for seed in range(4):
        of = loader(make(), batch_size=1, num_workers=3, max_pool_bytes=2_000_000, num_slots=8, worker_type=worker_type)
        assert_same(toggled(of, random.Random(seed), 1), expected)


def test_with_no_workers_it_changes_nothing() -> None:
    of = ShmDataLoader(Images(), batch_size=4)
    of.pause()
    assert sum(1 for _ in of) == 13
    with of.prefetching():
        assert sum(1 for _ in of) == 13
    of.resume()


# -- when it is called -----------------------------------------------------------------------------------------------


def is_open(of: ShmDataLoader[Any]) -> bool:
    return of._lifetime.gate.is_open


def test_blocks_within_blocks() -> None:
    of = loader(Images())
    with of.prefetching():
        with of.prefetching():
            assert is_open(of)
        assert is_open(of)
        of.pause()
        with of.prefetching():
            assert is_open(of)
        assert not is_open(of)
    assert not is_open(of)
    of.resume()
    with pytest.raises(KeyError, match="within"):
        _fail_within(of)
    assert not is_open(of)


def _fail_within(of: ShmDataLoader[Any]) -> None:
    with of.prefetching():
        raise KeyError("within")


def test_a_gate_that_is_opened_and_shut_while_workers_read_nothing() -> None:
    dataset = Watched()
    iterator = iter(of := loader(dataset))
    until(lambda: dataset.seen() == [0, 4])
    for _ in range(3000):
        of.pause()
        of.resume()
    dataset.allow()
    assert [batch.tolist()[0] for batch in iterator] == list(range(0, 64, 4))


@pytest.mark.parametrize("worker_type", KINDS)
def test_all_passes_of_a_loader_pause(worker_type: str) -> None:
    of = loader(Images(), worker_type=worker_type)
    one, other = iter(of), iter(of)
    of.pause()
    assert_same([detached(batch) for batch in one], stream(DataLoader(Images(), batch_size=4))[0][0])
    of.resume()
    assert_same([detached(batch) for batch in other], stream(DataLoader(Images(), batch_size=4))[0][0])


@pytest.mark.parametrize("worker_type", KINDS)
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_passes_that_are_left_while_it_is_paused(persistent_workers: bool, worker_type: str) -> None:
    of = loader(Images(200), persistent_workers=persistent_workers, worker_type=worker_type)
    for count in range(4):
        iterator = iter(of)
        of.pause()
        for _ in range(count):
            next(iterator)
        del iterator
    assert sum(1 for _ in of) == 50


def test_a_copy_is_not_paused() -> None:
    of = loader(Images())
    of.pause()
    other = copy.copy(of)
    assert is_open(other)
    other.pause()
    of.resume()
    assert not is_open(other)


def test_what_the_sampler_raises_comes_from_resume() -> None:
    class Failing(Told):
        def __iter__(self) -> Iterator[int]:
            yield 0
            raise LookupError("sampler")

    of = loader(Images(), sampler=Failing(), batch_size=1)
    of.pause()
    iterator = iter(of)
    assert next(iterator)[1].tolist() == [0]
    with pytest.raises(LookupError, match="sampler"):
        of.resume()
    with pytest.raises(StopIteration):
        next(iterator)


# -- deaths ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_at_the_gate() -> None:
    iterator: Any = iter(of := loader(Images(200)))
    of.pause()
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="killed by signal"):
        list(iterator)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", [functools.partial(Images, 60), functools.partial(Shards, (30, 30), noisy=False)])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_worker_that_dies_at_the_gate_and_is_replaced(make: Any, persistent_workers: bool) -> None:
    expected = stream(DataLoader(make(), batch_size=4, num_workers=2))[0][0]
    let_stock_end()
    of = loader(make(), worker_restarts=3, persistent_workers=persistent_workers)
    for _ in range(2):
        iterator: Any = iter(of)
        found = [detached(next(iterator)) for _ in range(5)]
        of.pause()
        for number in (0, 1):
            os.kill(iterator._workers[number].pid, signal.SIGKILL)
        with pytest.warns(WorkerRestartWarning):
            found += [detached(next(iterator)) for _ in range(5)]
        of.resume()
        assert_same(found + [detached(batch) for batch in iterator], expected)


def test_a_gate_costs_nothing_but_a_look() -> None:
    """It wakes nobody, and asks nobody, unless it is shut."""
    memory = bytearray(64)

    class Open:
        gate = memory, 5

    gate = WorkerGate(Open(), 0)  # type: ignore[arg-type]
    gate.seq = 3
    gate.await_call = pytest.fail
    assert list(gate.each([1, 2, 3])) == [1, 2, 3]
    assert len(gate.each([1, 2, 3])) == 3
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        list(gate.each(7))
