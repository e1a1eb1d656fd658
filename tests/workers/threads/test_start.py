"""Threads that start without being waited for."""

from __future__ import annotations

import gc
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from shmloader import ShmDataLoader
from shmloader.workers.threads import start
from tests.helpers.datasets import Mapped
from tests.helpers.signals import SignalAt
from tests.helpers.support import PATIENCE, descriptors, mappings


@pytest.fixture
def undisturbed() -> Iterator[None]:
    """Another thread runs only where this one waits."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("undisturbed")
def test_nobody_waits_for_a_thread_that_starts() -> None:
    came: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    threads = [start.start(lambda: came.put(threading.current_thread()), f"one-{number}") for number in range(3)]
    assert [thread.ident for thread in threads] == [None] * 3
    assert {came.get() for _ in threads} == set(threads)
    for thread in threads:
        thread.join()
    assert [thread.name for thread in threads] == ["one-0", "one-1", "one-2"]
    assert all(thread.daemon and thread.ident and not thread.is_alive() for thread in threads)
    assert not set(threads) & set(threading.enumerate())


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize("num_workers", [1, 5])
def test_an_iterator_that_is_dropped_before_its_threads_run(num_workers: int) -> None:
    loader = ShmDataLoader(Mapped(int, 64), batch_size=4, num_workers=num_workers, worker_type="thread")
    before = threading.enumerate()
    iter(loader)
    assert threading.enumerate() == before
    assert [batch.tolist() for batch in loader] == [list(range(start, start + 4)) for start in range(0, 64, 4)]


@pytest.mark.usefixtures("undisturbed")
def test_what_is_said_of_a_worker_whose_thread_has_not_run() -> None:
    """A timeout may come before it has, on a busy machine."""
    loader: Any = ShmDataLoader(Mapped(int, 4), num_workers=1, worker_type="thread")
    iterator: Any = iter(loader)
    workers = iterator._dispatcher._workers
    assert (workers.name(0), workers.state(0), workers.traceback(0)) == ("a thread", "about to start", [])
    assert next(iterator).tolist() == [0]
    assert workers.name(0) == f"thread {workers._workers[0].thread.native_id}"
    assert workers.state(0) != "about to start"


def test_there_are_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    before = threading.enumerate()
    monkeypatch.setattr(threading, name, refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        start.start(print, "one")
    assert threading.enumerate() == before


def test_a_python_that_has_no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts threads as ever."""

    def set_once(thread: threading.Thread, name: str, value: object) -> None:
        if name != "_started" or "_started" not in vars(thread):
            object.__setattr__(thread, name, value)

    monkeypatch.setattr(start._Thread, "__setattr__", set_once)
    thread = start.start(lambda: None, "one")
    assert thread.ident is not None
    thread.join()


class InterruptionError(TimeoutError):
    pass


def new_iterator(length: int) -> Any:
    return iter(ShmDataLoader(Mapped(int, length), batch_size=4, num_workers=2, worker_type="thread"))


def begun_under(trace: SignalAt) -> bool:
    """Returns whether an iterator began and was not interrupted, and ends it."""
    before = sys.gettrace()
    try:
        sys.settrace(trace)
        iterator = new_iterator(0)
        sys.settrace(before)
        assert not list(iterator)
    except InterruptionError:
        return False
    finally:
        sys.settrace(before)
    assert trace.left > 0, "what the handler raised was lost"
    return True


def ended_under(trace: SignalAt) -> bool:
    """Returns whether an iterator was closed, and that was not interrupted."""
    before, iterator = sys.gettrace(), new_iterator(16)
    assert [len(next(iterator)) for _ in range(2)] == [4, 4]  # both threads run
    try:
        sys.settrace(trace)
        iterator._shutdown_workers()
    except InterruptionError:
        return False
    finally:
        sys.settrace(before)
    return True


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("is_done_under", [begun_under, ended_under])
def test_a_signal_whose_handler_raises_leaves_nothing(is_done_under: Callable[[SignalAt], bool]) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise InterruptionError

    handler = signal.signal(signal.SIGUSR1, interrupt)
    try:
        is_done_under(SignalAt(1 << 30))  # what is made once is there
        gc.collect()
        before = descriptors(), mappings(), threading.active_count()
        for_ctrl_c = signal.getsignal(signal.SIGINT)
        moment = 1
        while not is_done_under(SignalAt(moment)):
            for thread in threading.enumerate():
                if thread.name.startswith("shmloader-worker"):  # left behind
                    thread.join(PATIENCE)
            gc.collect()
            assert (descriptors(), mappings(), threading.active_count()) == before, f"at moment {moment}"
            assert signal.getsignal(signal.SIGINT) is for_ctrl_c, f"at moment {moment}"
            moment += 2
        assert moment > 50
    finally:
        signal.signal(signal.SIGUSR1, handler)


def test_a_thread_that_is_dropped_runs_no_python_code() -> None:
    """A Ctrl-C that came meanwhile would be printed and forgotten."""
    entered: list[str] = []

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            entered.append(frame.f_code.co_name)

    came: queue.SimpleQueue[None] = queue.SimpleQueue()
    threads = [start.start(lambda: came.put(None), "dropped")]
    came.get(timeout=PATIENCE)
    threads[0].join(PATIENCE)
    gc.collect()
    sys.setprofile(look)
    try:
        threads.clear()
        gc.collect()
    finally:
        sys.setprofile(None)
    assert entered == []
