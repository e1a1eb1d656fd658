"""Faults x moments: what the loop is told, what came before, whether it can go on, and that nothing is left behind.

The rows and columns are in `faults`; each test here runs the cells of one kind of fault. Every one holds the first
batches in its hands meanwhile, and has a time limit; what is left behind is checked after every test.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from shmloader import ShmDataLoader, WorkerDiedError, WorkerRestartWarning, WorkerTimeoutError
from tests.helpers.datasets import Images, Mapped
from tests.helpers.faults import (
    BATCHES,
    FAULTS,
    LATER,
    MOMENTS,
    VICTIM,
    Held,
    Kind,
    Trap,
    Trapped,
    TrappedStream,
    cells,
    checked,
    contents,
    make,
    pids,
)
from tests.helpers.support import bits, children

ALL = list(range(BATCHES))

MakeTrap = Callable[..., Trap]


@pytest.fixture
def make_trap(tmp_path: Path) -> Iterator[MakeTrap]:
    """Makes traps, and takes them away."""
    traps: list[Trap] = []

    def make_trap(fault: str, moment: str, once: bool = False) -> Trap:
        traps.append(Trap(fault, moment, tmp_path / "armed", once))
        return traps[-1]

    yield make_trap
    for trap in traps:
        trap.close()


@pytest.fixture(autouse=True)
def _leaves_no_named_memory() -> Iterator[None]:
    before = named_memory()
    yield
    # Other processes may make some meanwhile, and name it after themselves.
    others = {path.name for path in Path("/proc").iterdir() if path.name.isdigit()} - {str(os.getpid())}
    assert not {name for name in named_memory() - before if not others.intersection(re.findall(r"\d+", name))}


def named_memory() -> set[str]:
    """Returns what lies in /dev/shm, but for semaphores, which are unlinked as soon as they are made."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def table(quick: Callable[..., bool], *kinds: Kind) -> pytest.MarkDecorator:
    """Parametrises a test with cells, in both ways of having workers; those that are not ``quick`` are slow."""
    return pytest.mark.parametrize(
        ("fault", "moment", "persistent_workers"),
        [
            pytest.param(
                fault,
                moment,
                persistent_workers,
                id=f"{fault}-{moment}-{'persistent' if persistent_workers else 'new'}",
                marks=[] if quick(fault, moment, persistent_workers) else pytest.mark.slow,
            )
            for fault, moment in cells(*kinds)
            for persistent_workers in (False, True)
        ],
    )


def alternating(fault: str, moment: str, persistent_workers: bool) -> bool:
    """Every cell once, and half of them in either way of having workers."""
    return (list(FAULTS).index(fault) + list(MOMENTS).index(moment)) % 2 == persistent_workers


def assert_says(error: BaseException | Warning, patterns: tuple[str, ...], pid: int) -> None:
    for pattern in patterns:
        assert _says(error, pattern, pid), str(error)


def _says(error: BaseException | Warning, pattern: str, pid: int) -> bool:
    return re.search(pattern.replace("PID", str(pid)), str(error), re.DOTALL) is not None


def assert_closed(iterator: Any) -> None:
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    assert not children()


def assert_works_again(loader: ShmDataLoader[Any], trap: Trap, held: Held) -> None:
    trap.disarm()
    assert [checked(batch) for batch in loader] == ALL
    held.check()


# -- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(6)
@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")  # of batches that made room for one over the cap
@table(alternating, Kind.ERROR, Kind.RESULT)
def test_an_error_comes_in_its_batchs_place_and_the_rest_after_it(
    make_trap: MakeTrap, fault: str, moment: str, persistent_workers: bool
) -> None:
    trap, held = make_trap(fault, moment), Held()
    loader = make(trap, persistent_workers=persistent_workers)
    iterator = iter(loader)
    lost = MOMENTS[moment].lost
    assert [held.take(next(iterator)) for _ in range(lost)] == ALL[:lost]
    with pytest.raises(FAULTS[fault].error) as caught:
        next(iterator)
    assert_says(caught.value, FAULTS[fault].texts, 0)
    if moment == "init function":
        rest = from_a_worker_that_could_not_begin(iterator, FAULTS[fault].error)
        assert rest == ALL[2::2]
    else:
        assert [held.take(batch) for batch in iterator] == ALL[lost + 1 :]
    held.check(least=1)
    trap.disarm()
    del iterator, caught
    assert [checked(batch) for batch in loader] == ALL
    held.check()


def from_a_worker_that_could_not_begin(iterator: Any, error: type[Exception]) -> list[int]:
    """Returns the batches of the other worker; each of this one's is its error."""
    rest = []
    for number in ALL[2:]:
        if number % 2 == VICTIM:
            with pytest.raises(error):
                next(iterator)
        else:
            rest.append(checked(next(iterator)))
    assert next(iterator, None) is None
    return rest


@pytest.mark.sampled(10)
@table(alternating, Kind.DEATH)
def test_a_death_is_told_and_the_loader_works_again(
    make_trap: MakeTrap, fault: str, moment: str, persistent_workers: bool
) -> None:
    trap, held = make_trap(fault, moment), Held()
    seen: list[int] = []
    loader = make(trap, persistent_workers=persistent_workers)
    iterator = iter(loader)
    pid = pids(iterator)[VICTIM]
    with pytest.raises(WorkerDiedError) as caught:
        seen.extend(held.take(batch) for batch in iterator)
    assert seen == ALL[: len(seen)]
    assert len(seen) <= MOMENTS[moment].lost
    assert_says(caught.value, (*FAULTS[fault].texts, MOMENTS[moment].place), pid)
    assert_closed(iterator)
    held.check()
    del iterator, caught
    assert_works_again(loader, trap, held)


def one_way(fault: str, moment: str, persistent_workers: bool) -> bool:
    """Every cell of two faults once."""
    return fault != "hang, deaf to SIGTERM" and alternating(fault, moment, persistent_workers)


@pytest.mark.sampled(6)
@table(one_way, Kind.HANG)
def test_a_hang_is_told_and_the_loop_goes_on_after_it(
    make_trap: MakeTrap, monkeypatch: pytest.MonkeyPatch, fault: str, moment: str, persistent_workers: bool
) -> None:
    monkeypatch.setattr("shmloader.workers.tracebacks._SILENCE_SECONDS", 0.3)
    trap, held, lost = make_trap(fault, moment), Held(), MOMENTS[moment].lost
    loader = make(trap, persistent_workers=persistent_workers)
    iterator: Any = iter(loader)
    pid = pids(iterator)[VICTIM]
    assert [held.take(next(iterator)) for _ in range(lost)] == ALL[:lost]
    trap.wait(pid)
    iterator._timeout = 0.1
    for _ in range(2):
        assert_tells(iterator, (*FAULTS[fault].texts, *silence(moment)), pid)
    iterator._timeout = 60
    trap.disarm()
    trap.release()
    os.kill(pid, signal.SIGCONT)
    assert [held.take(batch) for batch in iterator] == ALL[lost:]
    held.check(least=1)
    del iterator
    assert [checked(batch) for batch in loader] == ALL


def assert_tells(iterator: Any, patterns: tuple[str, ...], pid: int) -> None:
    """Asserts what the loop is told when it has waited in vain.

    A worker that the machine keeps from a processor may still be on its way to where it will wait, or not answer in
    time: then the loop waits once more.
    """
    error: WorkerTimeoutError | None = None
    for _ in range(50):
        with pytest.raises(WorkerTimeoutError) as caught:
            next(iterator)
        error = caught.value.with_traceback(None)  # whose frames hold the iterator
        if all(_says(error, pattern, pid) for pattern in patterns):
            return
    assert error is not None
    assert_says(error, patterns, pid)


def silence(moment: str) -> tuple[str, ...]:
    """What is said of the worker that the loop waits for in vain; patterns."""
    lost = MOMENTS[moment].lost
    batch = rf"batch {lost}: indices \[{lost}\]"
    place = rf"at {batch}, for [0-9.e-]+ s" if MOMENTS[moment].is_begun else f"has not begun {batch}"
    return (
        rf"^DataLoader timed out after 0\.1 seconds, waiting for {batch}, of worker 1\n",
        r"\n  worker 0 \(pid \d+\) is (waiting|running), and ",
        rf"\n  worker 1 \(pid PID\) is [a-z ]+, and {place}(\n|$)",
    )


@pytest.mark.sampled(6)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_the_iterator_is_being_closed_is_not_heard_of(
    make_trap: MakeTrap, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if FAULTS[fault].kind is Kind.HANG:
        monkeypatch.setattr("shmloader.workers.interface.GRACE_SECONDS", 0.1)
        monkeypatch.setattr("shmloader.workers.processes.workers._TERM_SECONDS", 0.1)
    trap, held = make_trap(fault, "closing"), Held()
    loader = make(trap)
    iterator: Any = iter(loader)
    assert [held.take(next(iterator)) for _ in range(LATER)] == ALL[:LATER]
    trap.wait(pids(iterator)[VICTIM])
    release_in_the_middle_of_closing(trap, iterator._dispatcher._workers)
    iterator._shutdown_workers()
    assert_closed(iterator)
    held.check(least=3)
    trap.disarm()
    del iterator
    assert [checked(batch) for batch in loader] == ALL
    held.check()


def release_in_the_middle_of_closing(trap: Trap, workers: Any) -> None:
    reap = workers._reap

    def release_and_reap(*arguments: Any) -> None:
        workers._reap = reap
        trap.release()
        reap(*arguments)

    workers._reap = release_and_reap


# -- start methods that pickle -------------------------------------------------------------------------------------


def spawn_cells() -> list[Any]:
    quick = ("exception", "SIGKILL")
    kinds = (Kind.ERROR, Kind.DEATH)
    faults = [fault for fault in FAULTS if FAULTS[fault].kind in kinds]
    return [pytest.param(fault, marks=[] if fault in quick else pytest.mark.slow) for fault in faults]


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("fault", spawn_cells())
def test_a_fault_while_a_spawned_worker_is_unpickled_is_a_death(make_trap: MakeTrap, fault: str) -> None:
    """Nobody is there yet to send an exception: it is printed."""
    trap = make_trap(fault, "unpickling", once=True)
    loader = make(trap, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(WorkerDiedError) as caught:
        list(loader)
    how = FAULTS[fault].texts if FAULTS[fault].kind is Kind.DEATH else (r"exit code 1\.",)
    where = r"It was worker 0 of 1, and owed batch 0: indices \[0\], which it had not begun\."
    assert_says(
        caught.value, (*(text.replace("PID", r"\d+") for text in how), where, "imports the main module anew"), 0
    )
    assert not children() - {tracker()}
    assert [checked(batch) for batch in loader] == ALL


def tracker() -> int | None:
    pid: int | None = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    return pid


@pytest.mark.slow
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("fault", ["hang", "SIGSTOP"])
def test_a_hang_while_a_spawned_worker_is_unpickled(make_trap: MakeTrap, fault: str) -> None:
    trap = make_trap(fault, "unpickling", once=True)
    loader = make(trap, num_workers=1, multiprocessing_context="spawn")
    iterator: Any = iter(loader)
    trap.wait(pids(iterator)[0])
    iterator._timeout = 0.1
    with pytest.raises(WorkerTimeoutError, match=r"and has not begun batch") as caught:
        list(iterator)
    del iterator, caught
    assert not children() - {tracker()}
    assert [checked(batch) for batch in loader] == ALL


@pytest.mark.long
@pytest.mark.usefixtures("_resource_tracker")
def test_a_spawned_worker_that_dies_while_it_is_unpickled_is_replaced(make_trap: MakeTrap) -> None:
    loader = make(
        make_trap("SIGKILL", "unpickling", once=True), num_workers=1, multiprocessing_context="spawn", worker_restarts=1
    )
    with pytest.warns(WorkerRestartWarning, match="imports the main module anew.*It is replaced, 1 of"):
        assert [checked(batch) for batch in loader] == ALL


# -- deaths that are made good -------------------------------------------------------------------------------------


def undisturbed(dataset: Any, trap: Trap, **arguments: Any) -> list[list[tuple[int, bytes]]]:
    """Returns two passes in which nothing is met."""
    trap.disarm()
    torch.manual_seed(7)
    loader = make(trap, dataset, **arguments)
    passes = [contents(loader) for _ in range(2)]
    trap.armed.touch()
    return passes


@pytest.mark.sampled(18)
@pytest.mark.parametrize("dataset", [Trapped, TrappedStream])
@table(lambda fault, moment, persistent: fault == "SIGKILL" or (moment == "later sample" and persistent), Kind.DEATH)
def test_with_restarts_the_stream_is_the_same_as_without_the_death(
    make_trap: MakeTrap, fault: str, moment: str, persistent_workers: bool, dataset: Any
) -> None:
    trap, held = make_trap(fault, moment, once=True), Held()
    expected = undisturbed(dataset, trap, persistent_workers=persistent_workers)
    torch.manual_seed(7)
    loader = make(trap, dataset, persistent_workers=persistent_workers, worker_restarts=1)
    iterator = iter(loader)
    pid = pids(iterator)[VICTIM]
    with pytest.warns(WorkerRestartWarning) as caught:
        first = [(held.take(batch), bits(batch[0])) for batch in iterator]
    del iterator
    assert [first, contents(loader)] == expected
    assert len(caught) == 1
    message = caught[0].message
    assert isinstance(message, Warning)
    where = () if dataset is TrappedStream else (MOMENTS[moment].place,)
    assert_says(message, (*FAULTS[fault].texts, *where, r"It is replaced, 1 of worker_restarts=1$"), pid)
    assert caught[0].filename == __file__
    statistics = loader.statistics()
    assert statistics is not None
    assert (statistics.restarts, statistics.copies) == (1, 0)
    held.check(least=3)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("dataset", [Trapped, TrappedStream])
@table(lambda fault, moment, persistent: fault == "SIGKILL" and not persistent, Kind.DEATH)
def test_a_batch_that_ends_every_worker_is_named(
    make_trap: MakeTrap, fault: str, moment: str, persistent_workers: bool, dataset: Any
) -> None:
    trap, held = make_trap(fault, moment), Held()
    seen: list[int] = []
    loader = make(trap, dataset, persistent_workers=persistent_workers, worker_restarts=2)
    iterator = iter(loader)
    if moment == "after the token":  # which is written once, and then the trap is behind the worker
        with pytest.warns(WorkerRestartWarning):
            assert [held.take(batch) for batch in iterator] == ALL
        return
    with pytest.raises(WorkerDiedError) as caught, pytest.warns(WorkerRestartWarning) as warned:
        seen.extend(held.take(batch) for batch in iterator)
    lost = MOMENTS[moment].lost
    if moment == "init function":
        assert_says(caught.value, (r"All 2 of worker_restarts are used up",), 0)
        assert len(warned) == 2
    else:
        assert_says(caught.value, (rf"It is the second worker that batch {lost} has ended, so it is not replaced",), 0)
        assert len(warned) == 1
    assert seen == ALL[: len(seen)]
    assert len(seen) <= lost
    assert_closed(iterator)
    held.check()
    del iterator, caught
    assert_works_again(loader, trap, held)


# -- without order -------------------------------------------------------------------------------------------------


def test_without_order_an_error_costs_its_own_batch(make_trap: MakeTrap) -> None:
    iterator = iter(make(make_trap("exception", "writing"), in_order=False))
    seen: list[int] = []
    with pytest.raises(ValueError, match="a fault"):
        seen.extend(checked(batch) for batch in iterator)
    seen.extend(checked(batch) for batch in iterator)
    assert sorted(seen) == [number for number in ALL if number != LATER]


def test_without_order_a_death_repeats_nothing(make_trap: MakeTrap) -> None:
    held: list[int] = []
    iterator = iter(make(make_trap("SIGKILL", "before the token"), in_order=False))
    with pytest.raises(WorkerDiedError, match=r"It was worker [01] of 2, and at batch 21"):
        held.extend(checked(batch) for batch in iterator)
    assert len(set(held)) == len(held)
    assert LATER not in held
    assert_closed(iterator)


@pytest.mark.parametrize("moment", ["writing", "before the token", "after the token"])
def test_without_order_a_replaced_worker_loses_and_repeats_nothing(make_trap: MakeTrap, moment: str) -> None:
    loader = make(make_trap("SIGKILL", moment, once=True), in_order=False, worker_restarts=1)
    with pytest.warns(WorkerRestartWarning):
        assert sorted(checked(batch) for batch in loader) == ALL
    assert [checked(batch) for batch in loader] != []


def test_without_order_a_hang_holds_up_its_own_worker_only(make_trap: MakeTrap) -> None:
    trap = make_trap("hang", "first sample")
    iterator: Any = iter(make(trap, in_order=False, persistent_workers=True))
    trap.wait(0)
    seen = [checked(next(iterator)) for _ in range(BATCHES - 2)]
    iterator._timeout = 0.1
    with pytest.raises(WorkerTimeoutError, match=r"^DataLoader timed out after 0.1 seconds\n"):
        next(iterator)
    iterator._timeout = 60
    trap.release()
    seen += [checked(batch) for batch in iterator]
    assert sorted(seen) == ALL


# -- between passes ------------------------------------------------------------------------------------------------

FROM_OUTSIDE = {
    signal.SIGKILL: r"\(pid PID\) is killed by signal: Killed\.",
    signal.SIGTERM: r"\(pid\(s\) PID\) exited unexpectedly with exit code 0\.",  # torch's handler: from the parent
    signal.SIGBUS: r"\(pid PID\) is killed by signal: Bus error\.",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("steps", [BATCHES, 3])
@pytest.mark.parametrize("number", FROM_OUTSIDE)
def test_a_death_between_passes_is_told_by_the_next(make_trap: MakeTrap, number: signal.Signals, steps: int) -> None:
    loader, held = make(make_trap("exception", "never"), persistent_workers=True), Held()
    iterator: Any = iter(loader)
    assert [held.take(batch) for _, batch in zip(range(steps), iterator, strict=False)] == ALL[:steps]
    victim = end(iterator, number)
    with pytest.raises(WorkerDiedError) as caught:
        iter(loader)
    assert_says(caught.value, (FROM_OUTSIDE[number], "It was worker 1 of 2, and "), victim)
    if steps == BATCHES:
        assert_says(caught.value, ("owed nothing",), victim)
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    assert not children()
    held.check(least=3)
    del iterator, caught
    assert [checked(batch) for batch in loader] == ALL
    held.check()


def end(iterator: Any, number: signal.Signals) -> int:
    """Ends the victim by a signal, and returns its number after it has ended."""
    process = iterator._workers[VICTIM]
    os.kill(process.pid, number)
    process.join()
    pid: int = process.pid
    return pid


@pytest.mark.sampled(2)
@pytest.mark.parametrize("steps", [BATCHES, 3])
@pytest.mark.parametrize("dataset", [Trapped, TrappedStream])
def test_with_restarts_a_death_between_passes_changes_nothing(make_trap: MakeTrap, dataset: Any, steps: int) -> None:
    def passes(number: signal.Signals | None) -> list[list[tuple[int, bytes]]]:
        torch.manual_seed(7)
        loader = make(make_trap("exception", "never"), dataset, persistent_workers=True, worker_restarts=1)
        iterator: Any = iter(loader)
        first = contents(next(iterator) for _ in range(steps))
        if number is None:
            return [first, contents(loader), contents(loader)]
        end(iterator, number)
        with pytest.warns(WorkerRestartWarning, match="It is replaced, 1 of worker_restarts=1") as caught:
            iterator = iter(loader)
        second = contents(iterator)
        assert caught[0].filename == __file__
        return [first, second, contents(loader)]

    assert passes(signal.SIGKILL) == passes(None)


@pytest.mark.parametrize("dataset", [Trapped, TrappedStream])
def test_the_restarts_of_each_pass_are_counted_anew(make_trap: MakeTrap, dataset: Any) -> None:
    loader = make(make_trap("exception", "never"), dataset, persistent_workers=True, worker_restarts=1)
    for count in range(1, 4):
        iterator = iter(loader)
        next(iterator)
        end(iterator, signal.SIGKILL)
        with pytest.warns(WorkerRestartWarning, match="It is replaced, 1 of worker_restarts=1"):
            assert [checked(batch) for batch in iterator] == ALL[1:]
        statistics = loader.statistics()
        assert statistics is not None
        assert statistics.restarts == count


def test_a_worker_that_is_stopped_between_passes_can_be_waited_for(make_trap: MakeTrap) -> None:
    loader = make(make_trap("exception", "never"), persistent_workers=True)
    iterator: Any = iter(loader)
    assert [checked(batch) for batch in iterator] == ALL
    pid = pids(iterator)[VICTIM]
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    iterator._timeout = 0.1
    for _ in range(2):
        with pytest.raises(
            WorkerTimeoutError, match=rf"worker 1 \(pid {pid}\) is stopped by a signal, and owes nothing"
        ):
            iter(loader)
    os.kill(pid, signal.SIGCONT)
    iterator._timeout = 60
    assert [checked(batch) for batch in loader] == ALL
    assert pids(loader._iterator)[VICTIM] == pid


@pytest.mark.sampled(3)
@pytest.mark.parametrize("timeout", [0, 60])
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_all_workers_die(num_workers: int, persistent_workers: bool, timeout: float) -> None:
    loader = ShmDataLoader(Images(200), num_workers=num_workers, persistent_workers=persistent_workers, timeout=timeout)
    iterator = iter(loader)
    next(iterator)
    for pid in pids(iterator):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="is killed by signal: Killed"):
        list(iterator)
    assert_closed(iterator)
    del iterator
    assert len([None for _ in loader]) == 200


def test_all_workers_die_and_are_replaced(make_trap: MakeTrap) -> None:
    loader = make(make_trap("exception", "never"), worker_restarts=2)
    iterator = iter(loader)
    assert checked(next(iterator)) == 0
    for pid in pids(iterator):
        os.kill(pid, signal.SIGKILL)
    with pytest.warns(WorkerRestartWarning) as caught:
        assert [checked(batch) for batch in iterator] == ALL[1:]
    assert len(caught) == 2


def test_a_restart_costs_no_batch_where_warnings_are_errors(make_trap: MakeTrap) -> None:
    loader = make(make_trap("SIGKILL", "writing", once=True), worker_restarts=1)
    iterator = iter(loader)
    seen: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WorkerRestartWarning):
            seen.extend(checked(batch) for batch in iterator)
        seen.extend(checked(batch) for batch in iterator)
    assert seen == ALL


def test_a_restart_between_passes_where_warnings_are_errors(make_trap: MakeTrap) -> None:
    loader = make(make_trap("exception", "never"), persistent_workers=True, worker_restarts=1)
    iterator = iter(loader)
    assert checked(next(iterator)) == 0
    end(iterator, signal.SIGKILL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WorkerRestartWarning):
            iter(loader)
    for _ in range(2):
        assert [checked(batch) for batch in loader] == ALL


def test_a_replacement_that_cannot_be_started_ends_the_iterator(
    make_trap: MakeTrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(process: object) -> None:
        raise BlockingIOError(11, "no more processes")

    loader = make(make_trap("SIGKILL", "later sample", once=True), worker_restarts=1)
    iterator, held = iter(loader), Held()
    assert held.take(next(iterator)) == 0
    monkeypatch.setattr("shmloader.workers.processes.start._start", fail)
    with pytest.raises(BlockingIOError):
        contents(iterator)
    monkeypatch.undo()
    assert_closed(iterator)
    del iterator
    assert [checked(batch) for batch in loader] == ALL
    held.check(least=1)


# -- what else there is --------------------------------------------------------------------------------------------


def test_a_timeout_is_as_long_as_the_loader_says(make_trap: MakeTrap) -> None:
    trap = make_trap("hang", "first sample")
    iterator = iter(make(trap, timeout=2))
    assert checked(patient_next(iterator)) == 0
    with pytest.raises(WorkerTimeoutError, match=r"^DataLoader timed out after 2 seconds, waiting for batch 1"):
        next(iterator)
    trap.disarm()
    trap.release()
    assert [checked(patient_next(iterator)) for _ in ALL[1:]] == ALL[1:]
    with pytest.raises(StopIteration):
        next(iterator)


def test_a_timeout_shows_no_frames_of_the_loader(make_trap: MakeTrap) -> None:
    trap = make_trap("hang", "first sample")
    iterator: Any = iter(make(trap, timeout=60))
    assert checked(next(iterator)) == 0
    trap.wait(pids(iterator)[VICTIM])
    iterator._timeout = 0.1
    assert_tells(iterator, (r"\n    File .*, line \d+ in fetch(\n|$)",), pids(iterator)[VICTIM])
    with pytest.raises(WorkerTimeoutError) as caught:
        next(iterator)
    assert str(Path("shmloader", "workers")) not in str(caught.value)
    del caught
    trap.disarm()
    trap.release()
    assert [checked(patient_next(iterator)) for _ in ALL[1:]] == ALL[1:]


def patient_next(iterator: Iterator[Any]) -> Any:
    """Returns the next batch, however long the machine takes for it; the suite's time limit bounds that."""
    while True:
        with contextlib.suppress(WorkerTimeoutError):
            return next(iterator)


def test_a_hang_into_the_next_pass_can_be_survived(make_trap: MakeTrap) -> None:
    trap = make_trap("hang", "later sample", once=True)
    loader = make(trap, persistent_workers=True)
    iterator: Any = iter(loader)
    assert [checked(next(iterator)) for _ in range(LATER)] == ALL[:LATER]
    trap.wait(0)
    iterator._timeout = 0.1
    for _ in range(2):
        with pytest.raises(WorkerTimeoutError):
            iter(loader)
    iterator._timeout = 60
    trap.release()
    assert [checked(batch) for batch in loader] == ALL


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_stopped_worker_does_not_hang_the_end(monkeypatch: pytest.MonkeyPatch, persistent_workers: bool) -> None:
    monkeypatch.setattr("shmloader.workers.interface.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("shmloader.workers.processes.workers._TERM_SECONDS", 0.1)
    loader = ShmDataLoader(Images(), num_workers=2, persistent_workers=persistent_workers)
    iterator: Any = iter(loader)
    next(iterator)
    os.kill(pids(iterator)[1], signal.SIGSTOP)
    del iterator, loader
    gc.collect()
    assert not children()


def test_a_ctrl_c_while_workers_are_awaited_leaves_nobody_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    iterator: Any = iter(ShmDataLoader(Images(), num_workers=2))
    next(iterator)
    for pid in pids(iterator):
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("time.monotonic", interrupt)
    with pytest.raises(KeyboardInterrupt):
        iterator._shutdown_workers()
    monkeypatch.undo()
    assert not children()


def test_a_ctrl_c_in_workers_is_not_written_where_the_parent_has_its_signals_written() -> None:
    """As asyncio does, whose handler would be called once for each worker."""

    def interrupted(index: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return index

    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno())
        try:
            assert len(list(ShmDataLoader(Mapped(interrupted, 4), num_workers=2))) == 4
            writer.send(b"\0")  # that there is something to read
            # But perhaps SIGCHLD, which torch's own loader has a handler for.
            assert signal.SIGINT not in reader.recv(100)
        finally:
            signal.set_wakeup_fd(before)


def test_ctrl_c_in_the_loop() -> None:
    loader = ShmDataLoader(Images(), num_workers=2)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    for pid in pids(iterator):
        os.kill(pid, signal.SIGINT)
    assert len([None for _ in iterator]) == 49
    assert len([None for _ in loader]) == 50


# -- what is suspected ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((None, None), r"out-of-memory killer does that; its log says so \(dmesg\)\. "),
        ((3, None), r"out-of-memory killer does that; its log says so \(dmesg\)\. "),
        ((3, 3), r"out-of-memory killer does that, but its count for this control group did not rise\. "),
        (
            (3, 5),
            (
                r"out-of-memory killer has ended 2 of this control group since the workers were started; memory is "
                r"limited to 2\.5 GB\. Lower num_workers, prefetch_factor, batch_size or max_pool_bytes, or hold fewer "
                r"batches\. "
            ),
        ),
    ],
)
def test_who_has_killed_a_worker(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int | None, int | None], text: str
) -> None:
    answers = iter(counts)
    monkeypatch.setattr("shmloader.workers.processes.workers.oom_kills", lambda: next(answers))
    monkeypatch.setattr("shmloader.workers.processes.ends.oom_kills", lambda: next(answers))
    monkeypatch.setattr("shmloader.workers.processes.ends.memory_limit", lambda: 2_500_000_000)

    def sample(index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    with pytest.raises(WorkerDiedError, match=f"is killed by signal: Killed. The kernel's {text}It was worker 0 of 1"):
        list(ShmDataLoader(Mapped(sample), num_workers=1))


def replace_everywhere(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Replaces a function of `limits` in all modules of the library that have imported it."""
    for module in [module for key, module in sys.modules.items() if key.startswith("shmloader")]:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)


def test_many_indices_are_shortened() -> None:
    def sample(index: int) -> int:
        os._exit(4)

    with pytest.raises(WorkerDiedError, match=r"batch 0: indices \[0, 1, .{150,250}\.\.\., for"):
        list(ShmDataLoader(Mapped(sample, 1000), batch_size=1000, num_workers=1))


class Silent:
    """An index that cannot be told."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        raise ValueError("no words")


def test_indices_that_cannot_be_told_are_left_out() -> None:
    def sample(index: Any) -> int:
        os._exit(4)

    indices: Any = [Silent(0), Silent(1)]
    with pytest.raises(WorkerDiedError, match=r"at batch 0, for"):
        list(ShmDataLoader(Mapped(sample), sampler=indices, num_workers=1))
    assert get_worker_info() is None


class LateLook:
    """A poll object that sees the death of a worker, and not what that had written before.

    The kernel looks at one descriptor after the other. This is what it tells if a worker writes its token and dies
    between the look at the pipe and the look at the worker.
    """

    def __init__(self, workers: Any, release: Callable[[], None]) -> None:
        self._workers, self._poll, self._release = workers, workers._poll, release

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poll, name)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        ready: list[tuple[int, int]] = self._poll.poll(timeout)
        if self._workers._up.fd in dict(ready):
            return ready
        self._workers._poll = self._poll
        self._release()
        return [(fd, event) for fd, event in self._poll.poll(0) if fd != self._workers._up.fd]


def test_the_last_words_of_a_worker_that_dies_while_another_is_found_dead(make_trap: MakeTrap) -> None:
    trap = make_trap("SIGKILL", "after the token", once=True)
    trap.holds = True
    iterator: Any = iter(make(trap, worker_restarts=2))
    assert [checked(next(iterator)) for _ in range(LATER)] == ALL[:LATER]
    trap.wait(0)
    other, victim = pids(iterator)

    def release() -> None:
        trap.release()
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)

    os.kill(other, signal.SIGKILL)
    os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
    iterator._dispatcher._workers._poll = LateLook(iterator._dispatcher._workers, release)
    with pytest.warns(WorkerRestartWarning) as caught:
        rest = as_far_as_it_goes(iterator)
    iterator._shutdown_workers()
    del iterator
    assert rest == ALL[LATER:]
    assert len(caught) == 2


def as_far_as_it_goes(iterator: Iterator[Any]) -> list[int | str]:
    """Returns the batches that come, and the error that ends them, which holds nothing here."""
    seen: list[int | str] = []
    try:
        seen.extend(checked(batch) for batch in iterator)
    except Exception as error:
        seen.append(repr(error))
    return seen
