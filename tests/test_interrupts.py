"""Signal handlers that are put off until a block has ended."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from shmloader import ShmDataLoader, interrupts
from shmloader.interrupts import AllDeferred, deferred
from tests.helpers.signals import SignalAt
from tests.helpers.support import PATIENCE

NUMBERS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM]


class SignalError(Exception):
    pass


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handle(act: Callable[[int], object]) -> list[Any]:
    """Installs a handler for all, and returns what is installed."""

    def handler(number: int, frame: Any) -> None:
        act(number)

    for number in NUMBERS:
        signal.signal(number, handler)
    return [signal.getsignal(number) for number in NUMBERS]


def fail(number: int) -> None:
    raise SignalError(number)


@pytest.mark.usefixtures("_handlers")
def test_handlers_run_when_the_block_has_ended() -> None:
    ran: list[int] = []
    hurried: list[None] = []
    installed = handle(ran.append)
    with AllDeferred(lambda: hurried.append(None)) as came:
        for number in NUMBERS:
            signal.raise_signal(number)
        assert (came, ran, len(hurried)) == (NUMBERS, [], 3)
    assert ran == NUMBERS
    assert [signal.getsignal(number) for number in NUMBERS] == installed


@pytest.mark.usefixtures("_handlers")
def test_one_that_raises_keeps_none_from_running_or_being_restored() -> None:
    ran: list[int] = []

    def run(number: int) -> None:
        ran.append(number)
        fail(number)

    installed = handle(run)
    with pytest.raises(SignalError), AllDeferred():  # noqa: PT012
        for number in NUMBERS:
            signal.raise_signal(number)
    assert sorted(ran) == sorted(NUMBERS)
    assert [signal.getsignal(number) for number in NUMBERS] == installed


@pytest.mark.usefixtures("_handlers")
def test_a_signal_that_comes_while_handlers_are_restored_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    installed = handle(ran.append)
    set_handler = interrupts._set_handler

    def set_and_send(number: int, handler: Any) -> Any:
        if number == signal.SIGUSR1 and handler is installed[0]:
            signal.raise_signal(signal.SIGALRM)  # whose turn comes later
        return set_handler(number, handler)

    monkeypatch.setattr(interrupts, "_set_handler", set_and_send)
    with AllDeferred():
        signal.raise_signal(signal.SIGUSR2)
    assert ran == [signal.SIGUSR2, signal.SIGALRM]


@pytest.mark.usefixtures("_handlers")
def test_a_signal_that_comes_before_one_whose_handler_is_not_replaced_yet_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[int] = []
    installed = handle(lambda number: fail(number) if number == signal.SIGALRM else ran.append(number))
    set_handler = interrupts._set_handler

    def set_and_send(number: int, handler: Any) -> Any:
        before = set_handler(number, handler)
        if number == signal.SIGUSR1 and before is installed[0]:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGALRM)  # whose turn comes later
        return before

    monkeypatch.setattr(interrupts, "_set_handler", set_and_send)
    with pytest.raises(SignalError), AllDeferred():
        pass
    assert ran == [signal.SIGUSR1]
    assert [signal.getsignal(number) for number in NUMBERS] == installed


@pytest.mark.usefixtures("_handlers")
def test_ctrl_c_works_after_another_signals_handler_has_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    handle(fail)
    before = signal.getsignal(signal.SIGINT)
    set_handler = interrupts._set_handler

    def set_and_send(number: int, handler: Any) -> None:
        set_handler(number, handler)
        if handler is not before:
            signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(interrupts, "_set_handler", set_and_send)
    with pytest.raises(SignalError), interrupts.deferred():
        pass
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("_handlers")
def test_what_a_handler_raises_leaves_no_reference_cycle() -> None:
    handle(fail)

    def block() -> set[None]:
        held: set[None] = set()
        found.append(weakref.ref(held))
        with AllDeferred():
            signal.raise_signal(signal.SIGUSR1)
        return held

    found: list[Any] = []
    gc.disable()
    try:
        with contextlib.suppress(SignalError):
            block()
        assert found[0]() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("_handlers")
def test_a_forked_process_has_its_handlers() -> None:
    parent = os.getpid()
    handle(lambda number: os._exit(7) if os.getpid() != parent else None)
    with AllDeferred() as came:
        pid = os.fork()
        if pid == 0:
            signal.raise_signal(signal.SIGUSR1)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert signal.SIGUSR1 not in came  # the child's end may be among them: torch has a handler for that


@pytest.mark.usefixtures("_handlers")
def test_a_process_that_is_forked_within_blocks_has_its_handlers_back() -> None:
    installed = handle(fail)
    with AllDeferred() as came, AllDeferred() as came_within:
        signal.raise_signal(signal.SIGUSR1)
        pid = os.fork()
        if pid == 0:
            found = [signal.getsignal(number) for number in NUMBERS]
            os._exit(0 if found == installed and not came and not came_within else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        came_within.clear()


@pytest.mark.usefixtures("_handlers")
def test_nothing_happens_in_other_threads() -> None:
    installed = handle(fail)
    found: list[Any] = []

    def look() -> None:
        with AllDeferred():
            found.extend(signal.getsignal(number) for number in NUMBERS)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == installed


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("signals", [{"before": 1}, {"within": 1}, {"before": 1, "within": 2}])
def test_what_is_due_at_a_drop_is_done_whatever_handlers_raise(
    signals: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[None] = []
    printed: list[type[BaseException] | None] = []
    left = dict(signals)
    getpid = os.getpid

    def send(point: str) -> None:
        for number in NUMBERS[: left.pop(point, 0)]:
            signal.raise_signal(number)

    def act() -> None:
        send("within")
        done.append(None)

    def interrupted_getpid() -> int:
        send("before")
        return getpid()

    handle(fail)
    monkeypatch.setattr(sys, "unraisablehook", lambda one: printed.append(one.exc_type))
    dropped = interrupts.at_drop(act)
    monkeypatch.setattr(os, "getpid", interrupted_getpid)
    del dropped
    assert done
    assert printed == [SignalError]


# -- what a handler raises at a drop -----------------------------------------------------------------------------------


def raises_soon() -> BaseException | None:
    """Returns what is raised in this thread from now on, if anything is."""
    try:
        time.sleep(PATIENCE)  # which the signal ends
    except BaseException as error:
        return error
    return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("error", [KeyboardInterrupt("mine"), SystemExit(3)])
@pytest.mark.parametrize("has_ctrl_c", [True, False])
def test_what_ends_the_program_is_raised_once_behind_a_drop(
    number: int, error: BaseException, has_ctrl_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the call of the handler that there was: another one would be a second Ctrl-C to a handler that counts."""
    called: list[int] = []
    printed: list[Any] = []

    def handler(number: int, frame: Any) -> None:
        called.append(number)
        raise error

    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler if has_ctrl_c else signal.SIG_IGN)
        signal.signal(number, handler)
        installed = signal.getsignal(signal.SIGINT)
        due = [number]
        dropped = interrupts.at_drop(lambda: signal.raise_signal(due.pop()) if due else None)  # it may be called twice
        raised: list[BaseException | None] = []
        try:
            del dropped
            raised.append(raises_soon())
        except BaseException as soon:  # already there
            raised.append(soon)
        assert raised == [error]
        assert error.__context__ is None
        assert (called, printed) == ([number], [])
        assert signal.getsignal(signal.SIGINT) is installed
    finally:
        for one, handler_before in before.items():
            signal.signal(one, handler_before)


def drop_with(error: BaseException) -> None:
    """Drops something, while a signal comes whose handler raises ``error``."""

    def handler(number: int, frame: Any) -> None:
        raise error

    due = [signal.SIGUSR1]
    signal.signal(signal.SIGUSR1, handler)
    dropped = interrupts.at_drop(lambda: signal.raise_signal(due.pop()) if due else None)
    del dropped


@pytest.mark.usefixtures("_handlers")
def test_what_an_alarm_raises_is_printed_where_something_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block that has set the alarm, and expects it, might have ended when it is raised later."""

    class Alarm(BaseException):
        pass

    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: printed.append(unraisable.exc_type))
    before = signal.getsignal(signal.SIGINT)
    drop_with(Alarm())
    assert printed == [Alarm]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def _pending(_handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised behind a drop waits for a SIGINT of the test's."""
    monkeypatch.setattr("_thread.start_new_thread", lambda act, arguments: None)


@pytest.mark.usefixtures("_pending")
@pytest.mark.parametrize("blocks", [(deferred,), (AllDeferred,), (deferred, AllDeferred)])
def test_a_ctrl_c_is_one_again_when_a_block_has_put_back_what_was_to_be_raised(blocks: tuple[Any, ...]) -> None:
    def raise_within() -> None:
        with contextlib.ExitStack() as stack:
            for block in (*blocks, interrupts.Undeferred):
                stack.enter_context(block())
            signal.raise_signal(signal.SIGINT)

    drop_with(SystemExit(3))
    with pytest.raises(SystemExit):
        raise_within()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    drop_with(SystemExit(4))
    with pytest.raises(SystemExit, match="4"):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_pending")
def test_of_several_that_end_the_program_one_is_raised_and_the_handler_is_back() -> None:
    drop_with(SystemExit(3))
    drop_with(SystemExit(4))
    with pytest.raises(SystemExit, match="3"):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_handlers")
def test_a_drop_where_the_system_has_no_more_threads_leaves_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next Ctrl-C, however much later, would raise what is printed here."""
    printed: list[Any] = []

    def start(act: Any, arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", start)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: printed.append(str(unraisable.exc_value)))
    drop_with(SystemExit(3))
    assert printed == ["3"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- code of the user's that takes long --------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(), (deferred,), (AllDeferred,), (deferred, AllDeferred), (AllDeferred, deferred)])
@pytest.mark.parametrize("comes_before", [False, True])
def test_a_ctrl_c_raises_at_once_where_it_is_not_deferred(blocks: tuple[Any, ...], comes_before: bool) -> None:
    installed = signal.getsignal(signal.SIGINT)
    went_on: list[None] = []
    with pytest.raises(KeyboardInterrupt), contextlib.ExitStack() as stack:  # noqa: PT012
        for block in blocks:
            stack.enter_context(block())
        within = signal.getsignal(signal.SIGINT)
        stack.callback(lambda: went_on.append(None) if signal.getsignal(signal.SIGINT) is not within else None)
        if comes_before and blocks:
            signal.raise_signal(signal.SIGINT)
        with interrupts.Undeferred():
            if not (comes_before and blocks):
                signal.raise_signal(signal.SIGINT)
            went_on.append(None)
    assert not went_on
    assert signal.getsignal(signal.SIGINT) is installed


def test_a_ctrl_c_as_the_block_is_left_restores_the_handler() -> None:
    installed = signal.getsignal(signal.SIGINT)

    def interrupt_the_end(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name == "__exit__":
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    def interrupt() -> None:
        with deferred(), interrupts.Undeferred():
            sys.setprofile(interrupt_the_end)

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    gc.collect()
    assert signal.getsignal(signal.SIGINT) is installed


# -- starts ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("call", ["fork", "pidfd_open"])
@pytest.mark.parametrize("worker", [0, 1])
def test_a_handler_that_raises_as_a_worker_starts_leaves_no_process(
    call: str, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a descriptor, which the suite looks for."""
    handle(fail)
    own, real = os.getpid(), getattr(os, call)
    calls: list[Any] = []

    def call_and_signal(*arguments: Any) -> Any:
        result = real(*arguments)
        if os.getpid() == own:
            calls.append(result)
            if len(calls) == worker + 1:
                signal.raise_signal(signal.SIGUSR1)
        return result

    monkeypatch.setattr(os, call, call_and_signal)
    dataset: Any = list(range(4))
    loader: ShmDataLoader[int] = ShmDataLoader(dataset, num_workers=2)
    with pytest.raises(SignalError):
        iter(loader)
    monkeypatch.undo()
    assert not multiprocessing.active_children()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert len(list(loader)) == 4


@pytest.mark.long
@pytest.mark.usefixtures("_handlers")
def test_a_handler_that_raises_as_workers_are_stopped_leaves_no_process() -> None:
    """At any moment at which Python calls one. Nor a descriptor, which the suite looks for."""
    handle(fail)
    dataset: Any = list(range(8))
    loader: ShmDataLoader[int] = ShmDataLoader(dataset, num_workers=2, forward_logs=True)
    moment = 1
    is_over = False
    while not is_over:
        iterator: Any = iter(loader)
        next(iterator)
        send = SignalAt(moment)
        sys.settrace(send)
        try:
            iterator.close()
        except SignalError:
            pass
        finally:
            sys.settrace(None)
        is_over = send.left > 0
        iterator.close()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        del iterator
        moment += 7
    assert moment > 50
