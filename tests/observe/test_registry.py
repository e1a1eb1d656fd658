"""What runs is listed, and can be closed from anywhere; names tell one loader from another."""

from __future__ import annotations

import gc
import os
import pickle
import re
import threading
import warnings
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import shmloader
from shmloader import (
    JobQueue,
    Producer,
    ShmDataLoader,
    TensorSpec,
    WorkerDiedError,
    WorkerRestartWarning,
    WorkerTimeoutError,
)
from shmloader.observe import registry
from tests.helpers.support import PATIENCE, checksum, in_threads

KINDS = ["process", "thread"]


class Numbers(Dataset[int]):
    """Samples are their indices."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> int:
        return index


class Dying(Numbers):
    def __getitem__(self, index: int) -> int:
        os._exit(3)


class Raising(Numbers):
    def __getitem__(self, index: int) -> int:
        raise LookupError("no such sample")


class Waiting(Numbers):
    """A sample of the last batch waits for a pipe that nobody writes to."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __getitem__(self, index: int) -> int:
        if index >= 8:
            os.read(self.fd, 1)
        return index


def fill(slots: Any) -> None:
    for slot in slots:
        with slot as array:
            array[...] = 1


def double(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("worker_type", KINDS)
def test_what_has_workers_is_listed_and_nothing_else(worker_type: str) -> None:
    train = ShmDataLoader(Numbers(), batch_size=4, num_workers=1, worker_type=worker_type, name="train")
    val = ShmDataLoader(Numbers(), batch_size=4, num_workers=1, worker_type=worker_type, persistent_workers=True)
    alone = ShmDataLoader(Numbers(), batch_size=4)
    assert shmloader.live_loaders() == ()
    first, second, _ = iter(train), iter(train), iter(alone)
    assert shmloader.live_loaders() == (train,)
    passes = iter(val)
    assert shmloader.live_loaders() == (train, val)
    del first
    assert shmloader.live_loaders() == (train, val)
    assert len(list(second)) == 16
    assert shmloader.live_loaders() == (val,)
    list(passes)
    assert shmloader.live_loaders() == (val,), "persistent workers stay"
    with (
        JobQueue(double, num_workers=1, worker_type=worker_type) as queue,
        Producer(fill, TensorSpec((2,), torch.uint8), worker_type=worker_type) as producer,
    ):
        assert shmloader.live_loaders() == (val, queue, producer)
    assert shmloader.live_loaders() == (val,)
    del val, passes
    assert shmloader.live_loaders() == ()


def test_nothing_is_held() -> None:
    gc.disable()
    try:
        for _ in range(50):
            next(iter(ShmDataLoader(Numbers(), num_workers=1, worker_type="thread")))
        assert len(registry._entries) < 5
    finally:
        gc.enable()


@pytest.mark.parametrize("worker_type", KINDS)
def test_all_are_closed(worker_type: str) -> None:
    loader = ShmDataLoader(Numbers(), batch_size=4, num_workers=2, worker_type=worker_type)
    queue = JobQueue(double, num_workers=1, worker_type=worker_type)
    queue.put(3)
    producer = Producer(fill, TensorSpec((2,), torch.uint8), worker_type=worker_type)
    iterators = [iter(loader), iter(loader)]
    held = [next(one) for one in iterators]
    before = checksum(held)
    item = producer.get()
    shmloader.close_all()
    assert shmloader.live_loaders() == ()
    shmloader.close_all()
    for one in iterators:
        with pytest.raises(RuntimeError, match="closed"):
            next(one)
    with pytest.raises(RuntimeError, match="closed"):
        queue.get()
    assert list(producer) == []
    assert not producer.is_alive()
    assert checksum(held) == before
    assert item.tolist() == [1, 1]
    assert len(list(loader)) == 16, "a loader begins anew"


def test_iterators_whose_loader_is_gone_are_closed_too() -> None:
    iterator = iter(ShmDataLoader(Numbers(), num_workers=1))
    assert shmloader.live_loaders() == ()
    shmloader.close_all()
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)


@pytest.mark.parametrize("worker_type", KINDS)
def test_a_thread_that_waits_for_a_batch_is_let_go(worker_type: str) -> None:
    reader, writer = os.pipe()
    loader = ShmDataLoader(Waiting(reader), batch_size=4, num_workers=1, worker_type=worker_type)
    begun = threading.Event()
    errors: list[BaseException] = []

    def train() -> None:
        try:
            for _, _ in enumerate(loader):
                begun.set()
        except RuntimeError as error:
            errors.append(error.with_traceback(None))

    def close() -> None:
        assert begun.wait(PATIENCE)
        os.write(writer, bytes(64))  # the worker may end
        shmloader.close_all()

    in_threads(train, close)
    os.close(reader)
    os.close(writer)
    assert not errors or "is closed" in str(errors[0])
    assert shmloader.live_loaders() == ()


@pytest.mark.long
def test_a_thread_that_waits_while_no_worker_answers_is_let_go() -> None:
    reader, writer = os.pipe()
    loader = ShmDataLoader(Waiting(reader), batch_size=4, num_workers=1)
    waits = threading.Event()
    raised: list[str] = []

    def train() -> None:
        iterator = iter(loader)
        next(iterator), next(iterator)
        waits.set()
        try:
            next(iterator)
        except RuntimeError as error:
            raised.append(str(error))

    def close() -> None:
        assert waits.wait(PATIENCE)
        shmloader.close_all()

    in_threads(train, close)
    os.close(reader)
    os.close(writer)
    assert len(raised) == 1
    assert "is closed" in raised[0]


def test_what_closing_raises_is_collected_and_the_others_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn:
        is_running = True

        def close(self) -> None:
            raise OSError("no")

    stubborn = Stubborn()
    registry.add(stubborn, stubborn)
    loader = ShmDataLoader(Numbers(), num_workers=1)
    iterator = iter(loader)
    with pytest.raises(RuntimeError, match="1 could not be closed: OSError: no") as caught:
        shmloader.close_all()
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)


def test_from_within_next_too() -> None:
    class Closing:
        """A sampler that closes what reads it."""

        def __iter__(self) -> Any:
            for number in range(64):
                if number == 20:
                    shmloader.close_all()
                yield number

        def __len__(self) -> int:
            return 64

    iterator = iter(ShmDataLoader(Numbers(), batch_size=2, num_workers=1, sampler=Closing()))
    with pytest.raises(RuntimeError, match="closed"):
        list(iterator)
    assert shmloader.live_loaders() == ()


def test_a_forked_child_sees_none_of_its_parents() -> None:
    loader = ShmDataLoader(Numbers(), num_workers=1)
    iterator = iter(loader)
    child = os.fork()
    if not child:
        try:
            shmloader.close_all()
            own = iter(loader)
            right = shmloader.live_loaders() == (loader,)
            del own
            os._exit(0 if right and not shmloader.live_loaders() else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert sum(1 for _ in iterator) == 64


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_name_is_an_attribute_and_in_the_repr() -> None:
    loader = ShmDataLoader(Numbers(), batch_size=4, num_workers=2, name="train")
    assert loader.name == "train"
    assert repr(loader).startswith("<ShmDataLoader 'train' batch_size=4 num_workers=2 at 0x")
    assert pickle.loads(pickle.dumps(loader)).name == "train"
    unnamed = ShmDataLoader(Numbers())
    assert unnamed.name is None
    assert repr(unnamed).startswith("<ShmDataLoader 'Numbers' batch_size=1 num_workers=0 at 0x")
    assert registry.label_of(JobQueue(double, num_workers=1)) == "double"
    assert registry.label_of(Producer(fill, (2,), name="simulator")) == "simulator"
    assert repr(object.__new__(ShmDataLoader)).startswith("<ShmDataLoader")


class Answering(Numbers):
    """Gives an answer, or an error, whatever attribute it is asked for."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __getattr__(self, name: str) -> object:
        if name == "__qualname__" and isinstance(self.answer, Exception):
            raise self.answer
        if name == "__qualname__":
            return self.answer
        raise AttributeError(name)


@pytest.mark.parametrize("answer", [KeyError("no such column"), 7, None])
def test_a_dataset_with_attributes_of_any_name_is_called_by_its_class(answer: object) -> None:
    assert registry.label_of(ShmDataLoader(Answering(answer))) == "Answering"


@pytest.mark.parametrize("name", [3, b"train", "", "a\nb"])
def test_a_name_that_cannot_be(name: Any) -> None:
    for make in (
        lambda: ShmDataLoader(Numbers(), name=name),
        lambda: JobQueue(double, num_workers=1, name=name),
        lambda: Producer(fill, (2,), name=name),
    ):
        with pytest.raises((TypeError, ValueError), match="name must be"):
            make()


@pytest.mark.parametrize("worker_type", KINDS)
def test_errors_say_whose_worker_it_was(worker_type: str) -> None:
    arguments: dict[str, Any] = {"num_workers": 1, "worker_type": worker_type, "name": "val"}
    kind = f"worker {worker_type} 0"
    with pytest.raises(LookupError, match=f"Caught LookupError in DataLoader 'val' {kind}"):
        list(ShmDataLoader(Raising(), **arguments))
    with JobQueue(Raising().__getitem__, **arguments) as queue:
        queue.put(1)
        with pytest.raises(LookupError, match=f"in JobQueue 'val' {kind}"):
            queue.get()
    with Producer(Raising().__getitem__, (2,), **arguments) as producer, pytest.raises(LookupError) as caught:
        next(producer)
    assert f"in Producer 'val' {kind}" in str(caught.value)


def test_deaths_timeouts_and_replacements_say_whose() -> None:
    with pytest.raises(WorkerDiedError, match=re.escape("DataLoader 'val' worker (pid(s) ")):
        list(ShmDataLoader(Dying(), num_workers=1, name="val"))
    reader, writer = os.pipe()
    iterator = iter(ShmDataLoader(Waiting(reader), batch_size=16, num_workers=1, name="val", timeout=0.1))
    with pytest.raises(WorkerTimeoutError, match=r"DataLoader 'val' timed out after 0\.1 seconds"):
        next(iterator)
    os.write(writer, bytes(64))
    del iterator
    os.close(reader)
    os.close(writer)
    restarted = ShmDataLoader(Dying(), num_workers=1, name="val", worker_restarts=1)
    with pytest.warns(WorkerRestartWarning, match="^DataLoader 'val' worker"), pytest.raises(WorkerDiedError):
        list(restarted)


def test_copies_are_announced_with_a_name_and_without_one_as_ever() -> None:
    dataset = TensorDataset(torch.arange(400).reshape(100, 4))
    for name, begin in ((None, "you hold "), ("val", "DataLoader 'val': you hold ")):
        loader = ShmDataLoader(dataset, num_workers=1, name=name, num_slots=4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(loader)
        assert str(caught[0].message).startswith(begin)


def test_a_profiler_sees_the_name() -> None:
    loader = ShmDataLoader(Numbers(), batch_size=16, num_workers=1, name="val")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        list(loader)
    assert any(event.key == "enumerate(DataLoader 'val')#ShmIterator.__next__" for event in profile.key_averages())


@pytest.mark.parametrize("how", ["close_all", "close"])
def test_a_job_that_closes_while_the_main_thread_does_is_not_waited_for(how: str) -> None:
    """Both would wait for each other, until a worker counts as stuck. So would two workers that close."""
    are_there = threading.Barrier(3)
    workers: SimpleQueue[threading.Thread] = SimpleQueue()
    done: list[int] = []

    def job(number: int) -> None:
        workers.put(threading.current_thread())
        are_there.wait(PATIENCE)
        shmloader.close_all() if how == "close_all" else queue.close()
        done.append(number)

    queue = JobQueue(job, num_workers=2, worker_type="thread")
    for number in range(2):
        queue.put(number)
    are_there.wait(PATIENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a worker that was left behind
        queue.close()
    for _ in range(2):
        workers.get(timeout=PATIENCE).join(PATIENCE)
    assert sorted(done) == [0, 1]
    assert shmloader.live_loaders() == ()
