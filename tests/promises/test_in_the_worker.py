"""What code in a worker can see, and what becomes of its errors, is as in torch's loader."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from shmloader import ShmDataLoader, WorkerDiedError
from tests.helpers.datasets import Images, Mapped
from tests.helpers.support import (
    assert_same,
    assert_same_stream,
    first_line,
    let_stock_end,
    random_states,
    run_file,
    stream,
)

BOTH = pytest.mark.parametrize("kind", [DataLoader, ShmDataLoader])


class Surroundings(Dataset[Any]):
    """Samples that say where they were made."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        assert info is not None
        process = multiprocessing.current_process()
        parent = multiprocessing.parent_process()
        return {
            "info": (info.id, info.num_workers, info.seed, info.dataset is self),
            "fields": re.findall(r"(\w+)=", repr(info).split("dataset=")[0]),
            "seed": torch.initial_seed(),
            "states": random_states(),
            "torch threads": torch.get_num_threads(),
            "thread's name": Path("/proc/self/comm").read_text(),
            "threads": [thread.name for thread in threading.enumerate()][:1],
            "daemonic": process.daemon,
            "name": re.sub(r"\d+$", "N", process.name),
            "parent": parent is not None and parent.pid,
            "inference": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        }


def unchanged(samples: Any) -> Any:
    return samples


@pytest.mark.sampled(3)
@pytest.mark.parametrize("context", [None, "fork"])
@pytest.mark.parametrize("arguments", [{}, {"worker_init_fn": torch.manual_seed}, {"persistent_workers": True}])
def test_surroundings(arguments: dict[str, Any], context: str | None) -> None:
    assert_same_stream(
        Surroundings,
        num_workers=2,
        batch_size=2,
        collate_fn=unchanged,
        multiprocessing_context=context,
        epochs=2,
        **arguments,
    )


class Fixed(Dataset[Any]):
    """Samples that say whether the worker's info can be changed."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        refused = []
        for name in ("id", "num_workers", "seed", "dataset", "another"):
            try:
                setattr(info, name, 1)
            except Exception as error:
                refused.append((name, type(error).__name__, str(error)))
        return refused


POLICIES = """
import multiprocessing
import os
from torch.utils.data import DataLoader
from shmloader import ShmDataLoader

class Policy:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)

multiprocessing.set_start_method("fork")
os.nice(3)
for policy in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE):
    os.sched_setscheduler(0, policy, os.sched_param(0))
    kinds = (ShmDataLoader, DataLoader)
    ours, stock = ([list(map(int, batch)) for batch in kind(Policy(), num_workers=2)] for kind in kinds)
    assert ours == stock == 4 * [[policy, 3]], (ours, stock)
    assert os.sched_getscheduler(0) == policy
print("all")
"""


@pytest.mark.long
def test_workers_are_scheduled_as_the_main_process_is() -> None:
    """A policy that only lets others go first would have them wait for a processor that other programs use."""
    result = run_file(POLICIES)
    assert (result.stdout, result.stderr) == ("all\n", "")


class Policy(Dataset[int]):
    """Samples that say how their worker is scheduled, and take ``seconds`` of its processor's time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        end = time.process_time() + self.seconds
        while time.process_time() < end:
            pass
        return os.sched_getscheduler(0)


@pytest.mark.parametrize(("seconds", "policy"), [(0, os.SCHED_BATCH), (1e-3, os.SCHED_OTHER)])
def test_workers_that_make_batches_in_no_time_do_not_interrupt_the_loop(seconds: float, policy: int) -> None:
    before = os.sched_getscheduler(0)
    policies = [int(one) for one in ShmDataLoader(Policy(seconds), num_workers=1)]
    assert set(policies[:40]) == {before}
    assert set(policies[40:]) == {policy}
    assert os.sched_getscheduler(0) == before


def test_the_workers_info_cannot_be_changed() -> None:
    batches = assert_same_stream(Fixed, num_workers=1, batch_size=None)[0]
    assert [name for name, *_ in batches[0][0]] == ["id", "num_workers", "seed", "dataset", "another"]


def test_there_is_no_info_in_the_main_process() -> None:
    loader = ShmDataLoader(Images(), num_workers=1)
    assert [get_worker_info() for _ in loader] == [None] * 50
    assert get_worker_info() is None


class Counting(Dataset[Any]):
    """Samples that say how often this copy of the dataset was asked, and by whom."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return index, self.asked, torch.rand(1), random.random(), np.random.rand()


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_what_a_worker_keeps_from_pass_to_pass(persistent_workers: bool) -> None:
    dataset = Counting()
    batches = assert_same_stream(
        lambda: dataset, num_workers=2, batch_size=3, persistent_workers=persistent_workers, epochs=3
    )[0]
    assert int(batches[2][3][1][-1]) == (18 if persistent_workers else 6)
    assert dataset.asked == 0


@BOTH
def test_persistent_workers_are_the_same_processes(kind: Any) -> None:
    def pids(loader: DataLoader[Any]) -> set[int]:
        return {int(pid) for pid in itertools.chain.from_iterable(loader)}

    loader = kind(Mapped(lambda index: os.getpid()), num_workers=2, persistent_workers=True)
    assert not loader._iterator
    first = pids(loader)
    iterator: Any = loader._iterator
    assert {process.pid for process in iterator._workers} == first == pids(loader)
    next(iter(loader))  # and leaves it there
    assert pids(loader) == first
    passing = kind(Mapped(lambda index: os.getpid()), num_workers=2)
    assert not pids(passing) & pids(passing)
    assert passing._iterator is None


class TwoArguments(Exception):
    def __init__(self, code: int, name: str) -> None:
        super().__init__(code, name)
        self.code, self.name = code, name


class WithMessage(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Unpicklable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Unspeakable(Exception):
    def __str__(self) -> str:
        if not self.args:
            raise ValueError("no text")
        return str(self.args[0])


class Local:
    """Errors that are not what they seem."""

    @staticmethod
    def chained() -> None:
        try:
            raise OSError(2, "nothing there", "file.txt")
        except OSError as error:
            raise ValueError("no data") from error


NOTHING: dict[Any, Any] = {}
ERRORS: dict[str, Callable[[], Any]] = {
    "plain": lambda: (_ for _ in ()).throw(ValueError("a fault")),
    "without arguments": lambda: (_ for _ in ()).throw(RuntimeError()),
    "key": lambda: NOTHING["key"],
    "key of a tuple": lambda: NOTHING[1, "a"],
    "index": lambda: [][3],
    "system": lambda: Path("/nowhere").read_text(),
    "assertion": lambda: (_ for _ in ()).throw(AssertionError("not so")),
    "lines": lambda: (_ for _ in ()).throw(ValueError("one\ntwo\n")),
    "unicode": lambda: b"\xff".decode(),
    "two arguments": lambda: (_ for _ in ()).throw(TwoArguments(3, "name")),
    "message": lambda: (_ for _ in ()).throw(WithMessage("text")),
    "chained": Local.chained,
    "stop": lambda: (_ for _ in ()).throw(StopAsyncIteration("x")),
    "torch's own": lambda: torch.ones(2) @ torch.ones(3),
    "unspeakable": lambda: (_ for _ in ()).throw(Unspeakable()),
}


def fail_at(moment: str, error: str) -> dict[str, Any]:
    """Returns the arguments of a run that fails at a moment."""

    def sample(index: int) -> Any:
        return ERRORS[error]() if moment == "sample" and index == 3 else index

    def collate(samples: list[Any]) -> Any:
        return ERRORS[error]() if moment == "collate" and samples[0] == 4 else default_collate(samples)

    def init(worker: int) -> None:
        if moment == "init" and worker == 0:
            ERRORS[error]()

    return {"make_dataset": lambda: Mapped(sample, 8), "collate_fn": collate, "worker_init_fn": init}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("moment", ["sample", "collate"])
@pytest.mark.parametrize("error", ERRORS)
def test_errors(error: str, moment: str) -> None:
    _, errors, _ = assert_same_stream(num_workers=2, batch_size=2, **fail_at(moment, error))
    assert len(errors) == 1
    assert "Original Traceback" in str(errors[0])
    assert "test_in_the_worker.py" in str(errors[0])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_the_init_function(error: str) -> None:
    def first_error(kind: Any) -> BaseException:
        arguments = fail_at("init", error)
        return stream(kind(arguments.pop("make_dataset")(), num_workers=2, **arguments))[1][0]

    ours, stock = first_error(ShmDataLoader), first_error(DataLoader)
    let_stock_end()
    assert type(ours) is type(stock)
    assert first_line(ours) == first_line(stock)
    assert "in fail_at" not in str(ours)
    assert "in init" in str(ours)


def test_a_key_error_is_readable() -> None:
    with pytest.raises(KeyError) as caught:
        list(ShmDataLoader(Mapped(lambda index: NOTHING["key"]), num_workers=1))
    assert "\\n" not in str(caught.value)
    assert str(caught.value).splitlines()[-1] == "KeyError: 'key'"


def cause(function: Callable[[], Any]) -> BaseException | None:
    with pytest.raises(Exception, match="in DataLoader worker process 0") as caught:
        list(ShmDataLoader(Mapped(lambda index: function()), num_workers=1))
    return caught.value.__cause__


def test_an_error_that_is_more_than_its_text_is_the_cause() -> None:
    two = cause(ERRORS["two arguments"])
    assert isinstance(two, TwoArguments)
    assert (two.code, two.name, two.args) == (3, "name", (3, "name"))
    missing = cause(ERRORS["system"])
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.filename) == (2, "/nowhere")
    key = cause(ERRORS["key of a tuple"])
    assert isinstance(key, KeyError)
    assert key.args == ((1, "a"),)
    assert cause(ERRORS["plain"]) is None
    assert cause(lambda: (_ for _ in ()).throw(Unpicklable("a"))) is None
    assert cause(lambda: (_ for _ in ()).throw(TwoArguments(3, "long" * 10**6))) is None


def test_an_error_that_cannot_be_pickled_arrives_with_its_text() -> None:
    class Nowhere(Exception):
        pass

    def sample(index: int) -> int:
        if index == 1:
            raise Nowhere("the text")
        return index

    iterator = iter(ShmDataLoader(Mapped(sample, 4), num_workers=1))
    assert int(next(iterator)) == 0
    with pytest.raises(RuntimeError, match="the text") as caught:
        next(iterator)
    assert "Nowhere itself cannot be sent" in str(caught.value)
    assert [int(value) for value in iterator] == [2, 3]


def raise_from(kind: type) -> Any:
    raise kind("the text")


@pytest.mark.parametrize("culprit", ["class", "collate_fn", "exception"])
def test_names_that_are_larger_than_a_slot_may_be(culprit: str) -> None:
    name = "x" * 300_000
    unpicklable = type(name if culprit == "class" else "Odd", (), {"__reduce__": lambda self: raise_from(OSError)})
    error = type(name, (Exception,), {})

    def collate(samples: list[int]) -> Any:
        if samples == [1]:
            return raise_from(error) if culprit == "exception" else unpicklable()
        return samples

    if culprit == "collate_fn":
        collate.__qualname__ = name
    source = Mapped(lambda index: index, 4)
    iterator = iter(ShmDataLoader(source, num_workers=1, collate_fn=collate, num_slots=4, max_pool_bytes=5 << 16))
    assert next(iterator) == [0]
    with pytest.raises(RuntimeError, match=r"the text(.|\n)*itself cannot be sent"):
        next(iterator)
    assert list(iterator) == [[2], [3]]


class BadStream(IterableDataset[Any]):
    """A stream that fails where it is told to."""

    def __init__(self, at: str) -> None:
        self.at = at

    def __iter__(self) -> Iterator[int]:
        if self.at == "iter":
            raise ValueError("cannot begin")
        return self.numbers()

    def numbers(self) -> Iterator[int]:
        yield from range(3)
        if self.at == "end":
            raise ValueError("cannot go on")

    def __len__(self) -> int:
        if self.at == "len":
            raise ValueError("cannot say")
        return 3


@pytest.mark.sampled(6)
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("at", ["end", "len", "never"])
def test_streams_that_fail(at: str, batch_size: int | None, persistent_workers: bool) -> None:
    assert_same_stream(
        lambda: BadStream(at), num_workers=2, batch_size=batch_size, persistent_workers=persistent_workers, epochs=2
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_that_cannot_begin_or_has_no_length(num_workers: int) -> None:
    with pytest.raises(ValueError, match="cannot begin"):
        list(ShmDataLoader(BadStream("iter"), num_workers=num_workers))
    with pytest.raises(ValueError, match="cannot say"):
        len(ShmDataLoader(BadStream("len"), num_workers=num_workers))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_what_cannot_be_pickled_is_named(context: str) -> None:
    result = run_file(
        f"""
        import threading, warnings
        from torch.utils.data import DataLoader
        from shmloader import ShmDataLoader

        class Plain:
            def __init__(self, value=None): self.value = value
            def __len__(self): return 4
            def __getitem__(self, index): return index

        def fail(kind, **arguments):
            try:
                list(kind(num_workers=2, multiprocessing_context="{context}", **arguments))
            except Exception as error:
                return error

        if __name__ == "__main__":
            warnings.simplefilter("ignore")  # torch's, which stands in for a clear error there
            for arguments in (
                dict(dataset=Plain(threading.Lock())),
                dict(dataset=Plain(), collate_fn=lambda samples: samples),
                dict(dataset=Plain(), worker_init_fn=lambda worker: None),
            ):
                ours, stock = fail(ShmDataLoader, **arguments), fail(DataLoader, **arguments)
                assert type(ours) is type(stock), (ours, stock)
                print(ours)
        """
    )
    assert result.returncode == 0, result.stderr
    names = ["dataset (a Plain)", "collate_fn (a function)", "worker_init_fn (a function)"]
    for line, name in zip(result.stdout.splitlines(), names, strict=True):
        assert line.startswith(f"{name} cannot be pickled, which the start method '{context}' needs: ")
        assert "multiprocessing_context='fork'" in line


@pytest.mark.long
def test_a_class_that_spawned_workers_cannot_find() -> None:
    result = run_file(
        """
        from shmloader import ShmDataLoader, WorkerDiedError
        if __name__ == "__main__":
            class Hidden:
                def __len__(self): return 4
                def __getitem__(self, index): return index
            try:
                list(ShmDataLoader(Hidden(), num_workers=1, multiprocessing_context="spawn"))
            except WorkerDiedError as error:
                print(error)
        """
    )
    assert "exited unexpectedly with exit code 1" in result.stdout
    assert "imports the main module anew" in result.stdout
    assert "attribute 'Hidden'" in result.stderr


def test_local_classes_and_lambdas_need_no_pickling() -> None:
    class Here:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return lambda: index

    loader: ShmDataLoader[Any] = ShmDataLoader(
        Here(),  # type: ignore[arg-type]
        num_workers=2,
        collate_fn=lambda samples: [sample() for sample in samples],
        worker_init_fn=lambda worker: None,
    )
    assert list(loader) == [[0], [1], [2], [3]]


def test_a_death_in_a_worker_that_was_heard_of_is_not_laid_to_pickling() -> None:
    def sample(index: int) -> int:
        if index == 3:
            os._exit(1)
        return index

    with pytest.raises(WorkerDiedError) as caught:
        list(ShmDataLoader(Mapped(sample), num_workers=1))
    assert "main module" not in str(caught.value)


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_streams_of_different_start_methods(persistent_workers: bool) -> None:
    """A context object, as good as its name."""
    context = multiprocessing.get_context("fork")
    loader = ShmDataLoader(
        Images(10), num_workers=2, multiprocessing_context=context, persistent_workers=persistent_workers
    )
    assert_same(stream(loader)[0], stream(DataLoader(Images(10)))[0])
