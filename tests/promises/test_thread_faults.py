"""What becomes of worker threads that end, hang, or are left behind. A thread cannot be killed."""

from __future__ import annotations

import gc
import os
import signal
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, default_collate

from shmloader import (
    ShmDataLoader,
    StuckWorkerWarning,
    WorkerDiedError,
    WorkerRestartWarning,
    WorkerTimeoutError,
)
from shmloader.workers import interface
from tests.helpers.datasets import Images, Mapped
from tests.helpers.faults import Unforeseen
from tests.helpers.support import PATIENCE, assert_same, checksum, mappings, run_file

BATCHES = 30


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("shmloader-worker")]


def make(sample: Callable[[int], Any], **arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(
        Mapped(sample, BATCHES), **{"batch_size": None, "num_workers": 2, "worker_type": "thread", **arguments}
    )


# -- deaths --------------------------------------------------------------------------------------------------------

DEATHS: dict[str, tuple[Callable[[], BaseException], str]] = {
    "sys.exit": (lambda: SystemExit(3), "SystemExit: 3"),
    "KeyboardInterrupt": (KeyboardInterrupt, "KeyboardInterrupt"),
    "another": (lambda: Unforeseen("a fault"), "tests.helpers.faults.Unforeseen: a fault"),
}


class Dying:
    """A sample that ends its worker, once or always, at an index."""

    def __init__(self, death: str, at: int = 7, once: bool = False) -> None:
        self.left = 1 if once else 1000
        self._death = death
        self._at = at

    def __call__(self, index: int) -> torch.Tensor:
        if index == self._at and self.left:
            self.left -= 1
            make_death = DEATHS[self._death][0]
            raise make_death()
        return torch.full((100,), index)


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_death_is_told_and_the_loader_works_again(
    death: str, persistent_workers: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    sample = Dying(death)
    source = make(sample, persistent_workers=persistent_workers)
    iterator = iter(source)
    seen: list[int] = []
    with pytest.raises(WorkerDiedError) as caught:
        seen.extend(int(batch[0]) for batch in iterator)
    text = str(caught.value)
    assert text.startswith(f"DataLoader worker thread was ended by {DEATHS[death][1]}. It was worker 1 of 2, and at ")
    assert "at batch 7: indices 7, for" in text
    assert "pid" not in text
    assert "signal" not in text
    assert seen == list(range(len(seen)))
    assert len(seen) <= 7
    assert not workers()
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    del iterator, caught
    assert ("Traceback" in capfd.readouterr().err) == (death != "sys.exit")
    sample.left = 0
    assert [int(batch[0]) for batch in source] == list(range(BATCHES))


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("in_order", [False, True])
def test_a_worker_that_dies_is_replaced(death: str, in_order: bool) -> None:
    source = make(Dying(death, once=True), worker_restarts=1, in_order=in_order, persistent_workers=True)
    with pytest.warns(WorkerRestartWarning, match=r"worker thread was ended by .*It is replaced, 1 of") as caught:
        seen = [int(batch[0]) for batch in source]
    assert sorted(seen) == list(range(BATCHES))
    assert seen == sorted(seen) or not in_order
    assert len(caught) == 1
    assert sorted(int(batch[0]) for batch in source) == list(range(BATCHES))
    statistics = source.statistics()
    assert statistics is not None
    assert statistics.restarts == 1


def test_a_batch_that_ends_every_worker_is_named() -> None:
    with (
        pytest.raises(WorkerDiedError, match="second worker that batch 7 has ended"),
        pytest.warns(WorkerRestartWarning),
    ):
        list(make(Dying("sys.exit"), worker_restarts=5))


class DyingStream(IterableDataset[Any]):
    def __init__(self, armed: list[int]) -> None:
        self.armed = armed

    def __iter__(self) -> Iterator[int]:
        for index in range(20):
            if index == 7 and self.armed:
                raise SystemExit
            yield index

    def __deepcopy__(self, memo: Any) -> DyingStream:
        return DyingStream([self.armed.pop()] if self.armed else [])


def test_a_stream_goes_on_where_its_worker_has_died() -> None:
    source = ShmDataLoader(DyingStream([1]), batch_size=None, num_workers=1, worker_type="thread", worker_restarts=1)
    with pytest.warns(WorkerRestartWarning):
        assert list(source) == list(range(20))


def test_a_worker_that_cannot_begin() -> None:
    def init(worker: int) -> None:
        if worker == 1:
            raise SystemExit("no")

    with pytest.raises(WorkerDiedError, match=r"ended by SystemExit: no\. It was worker 1 of 2, and owed batch 1"):
        list(make(lambda index: index, worker_init_fn=init))


KEPT: list[tuple[torch.Tensor, int]] = []


@pytest.mark.parametrize("worker_restarts", [0, 3])
def test_what_a_worker_kept_before_it_died_stays(worker_restarts: int) -> None:
    """Of batches that it had delivered, and of the one that it died at, whose slot is half written."""
    deaths = {5, 8, 11}

    def keep(samples: list[Any]) -> Any:
        batch = default_collate(samples)
        index = int(samples[0][0])
        if index in {4, 5, 8, 11}:
            KEPT.append((batch, checksum([batch])))
        if index in deaths:
            deaths.discard(index)
            raise SystemExit
        return batch

    source = make(lambda index: torch.full((1000,), index), batch_size=1, collate_fn=keep, num_workers=1)
    source.worker_restarts = worker_restarts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkerRestartWarning)
        for _ in range(5):
            try:
                for number, batch in enumerate(source):
                    assert (batch == number).all()
                    del batch
            except WorkerDiedError:
                assert not worker_restarts
    assert not deaths
    assert all(checksum([batch]) == before for batch, before in KEPT)
    assert all((batch == batch[0, 0]).all() for batch, _ in KEPT)
    del source
    KEPT.clear()
    gc.collect()
    assert mappings() == 0


# -- hangs ---------------------------------------------------------------------------------------------------------


class Gate:
    """A sample that waits at an index until it is let through."""

    def __init__(self, at: int = 5) -> None:
        self._at = at
        self.is_there, self.is_open = threading.Event(), threading.Event()

    def __call__(self, index: int) -> torch.Tensor:
        if index == self._at:
            self.hang()
        return torch.full((100,), index)

    def hang(self) -> None:
        self.is_there.set()
        assert self.is_open.wait(PATIENCE)

    def open(self, threads: list[threading.Thread]) -> None:
        """Lets the worker through, and waits for its end."""
        self.is_open.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_a_hang_is_told_and_the_loop_goes_on_after_it() -> None:
    gate = Gate()
    iterator: Any = iter(make(gate, timeout=60))
    assert [int(next(iterator)[0]) for _ in range(5)] == list(range(5))
    assert gate.is_there.wait(PATIENCE)
    iterator._timeout = 0.1
    (thread,) = [thread for thread in workers() if thread.name.endswith("1")]
    for _ in range(2):
        with pytest.raises(WorkerTimeoutError) as caught:
            next(iterator)
        text = str(caught.value)
        assert text.startswith("DataLoader timed out after 0.1 seconds, waiting for batch 5: indices 5, of worker 1\n")
        assert f"\n  worker 1 (thread {thread.native_id}) is waiting, and at batch 5: indices 5, for" in text
        assert " in hang\n" in text
        assert os.path.join("shmloader", "workers") not in text  # noqa: PTH118
    del caught
    gate.is_open.set()
    iterator._timeout = 60
    assert [int(batch[0]) for batch in iterator] == list(range(5, BATCHES))


@pytest.fixture
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "GRACE_SECONDS", 0.05)


@pytest.mark.usefixtures("_no_grace")
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_worker_that_does_not_end_is_left_behind_with_its_memory(
    persistent_workers: bool, keeps: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    gate, kept = Gate(), []

    def collate(sample: Any) -> Any:
        batch = default_collate([sample])
        if keeps and sample[0] == 5:
            kept.append((batch, checksum([batch])))
        return batch

    source = make(gate, persistent_workers=persistent_workers, collate_fn=collate, num_workers=1)
    iterator: Any = iter(source)
    held = [next(iterator) for _ in range(5)]
    assert gate.is_there.wait(PATIENCE)
    pool = iterator._pool
    with pytest.warns(StuckWorkerWarning, match=r"worker thread 0 of 1 did not end within 0\.05 seconds, .* in wait\."):
        iterator._shutdown_workers()
    (stuck,) = workers()
    gate._at = -1
    del iterator
    again: Any = iter(source)
    assert again._pool is not pool
    assert [int(batch[0, 0]) for batch in again] == list(range(BATCHES))
    assert [int(batch[0, 0]) for batch in held] == list(range(5))
    del again, pool
    assert mappings() == 2
    gate.open([stuck])
    assert [int(batch[0, 0]) for batch in held] == list(range(5))
    assert all(checksum([batch]) == before for batch, before in kept)
    assert len(kept) == 2 * keeps  # what came back, and what the second pass made
    del held
    kept.clear()
    del source
    gc.collect()
    assert mappings() == 0
    assert capfd.readouterr().err == ""


def leave_behind(iterator: Any, gate: Gate) -> None:
    """Ends an iterator while a worker waits at the gate, and lets that go on and end."""
    assert gate.is_there.wait(PATIENCE)
    left = workers()
    with pytest.warns(StuckWorkerWarning):
        iterator._shutdown_workers()
    gate.open(left)


@pytest.mark.usefixtures("_no_grace")
def test_one_that_comes_back_with_too_much_ends_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    """It asks for room, and nobody is there to grant it."""
    gate = Gate(0)

    def sample(index: int) -> torch.Tensor:
        gate(index)
        return torch.ones(8 << 20, dtype=torch.uint8)

    source = make(sample, max_pool_bytes=2 << 20)
    iterator: Any = iter(source)
    leave_behind(iterator, gate)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("_no_grace")
def test_one_that_comes_back_by_an_exception_ends_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    gate = Gate(3)

    def sample(index: int) -> torch.Tensor:
        value = gate(index)
        if gate.is_open.is_set():
            raise Unforeseen
        return value

    iterator: Any = iter(make(sample))
    next(iterator)
    leave_behind(iterator, gate)
    assert capfd.readouterr().err == ""


def test_a_ctrl_c_does_not_wait_for_a_worker() -> None:
    """Neither in the wait for a batch, nor in that for the end."""
    gate = Gate()
    source = make(gate)
    iterator: Any = iter(source)
    assert [int(next(iterator)[0]) for _ in range(5)] == list(range(5))
    assert gate.is_there.wait(PATIENCE)
    left = workers()
    main = threading.get_native_id()
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
    timer.start()
    with pytest.warns(StuckWorkerWarning, match=r"within 0\.1 seconds"), pytest.raises(KeyboardInterrupt):
        next(iterator)
    timer.join()
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    del iterator
    again: Any = iter(source)
    gate._at = -1
    assert main == threading.get_native_id()
    workers_of_again = again._dispatcher._workers
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
    assert len([None for _ in again]) == BATCHES
    other = Gate(1)
    third: Any = iter(make(other))
    assert other.is_there.wait(PATIENCE)
    left += workers()
    timer.start()
    with pytest.warns(StuckWorkerWarning), pytest.raises(KeyboardInterrupt):
        third._shutdown_workers()  # would wait for five seconds
    timer.join()
    assert workers_of_again is not third._dispatcher._workers
    other.open([])
    gate.open(left)


def test_a_thread_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.endswith("-2"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    source = make(lambda index: index, num_workers=4)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        iter(source)
    assert not workers()
    monkeypatch.undo()
    assert list(source) == list(range(BATCHES))


def test_a_loop_whose_iterator_another_thread_closes_is_told() -> None:
    gate = Gate(0)
    iterator: Any = iter(make(gate))
    assert gate.is_there.wait(PATIENCE)
    told: list[BaseException] = []

    def loop() -> None:
        try:
            next(iterator)
        except RuntimeError as error:
            told.append(error)

    waiting = threading.Thread(target=loop)
    waiting.start()
    closing = threading.Thread(target=iterator._shutdown_workers)
    closing.start()
    waiting.join(PATIENCE)
    gate.is_open.set()
    closing.join(PATIENCE)
    assert not waiting.is_alive()
    assert "closed" in str(told[0])
    told.clear()


EXIT = """
    import sys, threading, time, warnings
    import torch
    from torch.utils.data import Dataset
    from shmloader import ShmDataLoader
    from shmloader.workers import interface

    warnings.simplefilter("error")

    class Slow(Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            if index == 9:
                time.sleep(1000)
            return torch.ones(3) * index

    interface.GRACE_SECONDS = 0.1
    loader = ShmDataLoader(Slow(), num_workers=2, worker_type="thread", persistent_workers=True)
    iterator = iter(loader)
    held = [next(iterator) for _ in range(9)]
"""


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(0)",
        "del iterator, loader",
        "thread = threading.Thread(target=lambda: list(iterator), daemon=True); thread.start()",
        "cycle = [iterator]; cycle.append(cycle); del iterator, loader, cycle",
    ],
)
def test_the_interpreters_end_is_silent_though_a_worker_hangs(end: str) -> None:
    if end == "del iterator, loader":
        end = "warnings.simplefilter('ignore'); " + end
    ended = run_file(textwrap.dedent(EXIT) + end + "\n")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)


def test_batches_are_right_after_many_iterators_that_were_left() -> None:
    source = ShmDataLoader(Images(60, (50, 50)), batch_size=3, num_workers=3, worker_type="thread", shuffle=True)
    images = torch.from_numpy(Images(60, (50, 50)).images)
    kept: list[Any] = []
    for stop in (0, 1, 5, 2, 20, 3) * 3:
        for _, batch in zip(range(stop), source, strict=False):
            assert_same(batch[0], images[batch[1]])
            kept = [*kept[-7:], batch]
    for pictures, labels in kept:
        assert_same(pictures, images[labels])
