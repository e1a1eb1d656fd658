"""Faults x moments: what the loop is told, and that nothing is left behind.

Every test is bounded by the suite's time limit; what is left behind is checked after every test.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from shmloader import ShmDataLoader, WorkerDiedError, WorkerTimeoutError

from .datasets import Images
from .support import children, run_file


def raise_error() -> None:
    raise ValueError("a fault")


def raise_base_exception() -> None:
    raise GeneratorExit("a fault")


def leave() -> None:
    sys.exit(3)


def leave_at_once() -> None:
    os._exit(4)


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


FAULTS: dict[str, tuple[Callable[[], None], type[Exception], str]] = {
    "exception": (raise_error, ValueError, "a fault"),
    "base exception": (raise_base_exception, WorkerDiedError, "exited unexpectedly with exit code 1"),
    "sys.exit": (leave, WorkerDiedError, "exited unexpectedly with exit code 3"),
    "os._exit": (leave_at_once, WorkerDiedError, "exited unexpectedly with exit code 4"),
    "SIGKILL": (kill(signal.SIGKILL), WorkerDiedError, "is killed by signal: Killed"),
    "SIGSEGV": (kill(signal.SIGSEGV), WorkerDiedError, "is killed by signal: Segmentation fault"),
    "memory error": (lambda: (_ for _ in ()).throw(MemoryError("a fault")), MemoryError, "a fault"),
}


class Faulty:
    """A dataset, init function and collate function that meet a fault at one moment, in worker 1."""

    def __init__(self, fault: str, moment: str) -> None:
        self.fault, self.moment = FAULTS[fault][0], moment

    def at(self, moment: str) -> None:
        info = get_worker_info()
        if moment == self.moment and info is not None and info.id == 1:
            self.fault()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        if index == 1:
            self.at("first sample")
        if index == 21:
            self.at("middle sample")
        return Stubborn(self if index == 21 else None, index)

    def init(self, worker: int) -> None:
        self.at("init")

    def collate(self, samples: list[Any]) -> Any:
        if samples[0].index == 21:
            self.at("collate")
        return samples[0], torch.full((1000,), samples[0].index)


class Stubborn:
    """A sample that meets the fault while it is pickled, when its batch is half written."""

    def __init__(self, faulty: Faulty | None, index: int) -> None:
        self.faulty, self.index = faulty, index

    def __reduce__(self) -> Any:
        if self.faulty is not None:
            self.faulty.at("writing")
        return Stubborn, (None, self.index)


MOMENTS = ["init", "first sample", "middle sample", "collate", "writing"]


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_a_worker(fault: str, moment: str, persistent_workers: bool) -> None:
    _, error, text = FAULTS[fault]
    faulty = Faulty(fault, moment)
    loader: ShmDataLoader[Any] = ShmDataLoader(
        faulty,  # type: ignore[arg-type]
        num_workers=2,
        worker_init_fn=faulty.init,
        collate_fn=faulty.collate,
        persistent_workers=persistent_workers,
    )
    iterator = iter(loader)
    seen: list[int] = []
    with pytest.raises(error, match=text) as caught:
        seen.extend(checked(batch) for batch in iterator)
    first_lost = 21 if moment in ("middle sample", "collate", "writing") else 1
    # A death is told at once, an exception in its batch's place.
    assert seen == list(range(len(seen) if error is WorkerDiedError else first_lost))
    assert len(seen) <= first_lost
    if error is WorkerDiedError:
        assert "worker 1 of 2" in str(caught.value)
        assert f"batch {first_lost}: indices [{first_lost}]" in str(caught.value)
        with pytest.raises(RuntimeError, match="closed"):
            next(iterator)
        assert not children()
    else:
        rest = [checked(batch) for batch in iterator] if moment != "init" else []
        assert rest == (list(range(len(seen) + 1, 40)) if moment != "init" else [])
    del iterator, caught
    faulty.moment = "never"
    if not (persistent_workers and error is not WorkerDiedError):
        assert [checked(batch) for batch in loader] == list(range(40))


def checked(batch: tuple[Stubborn, torch.Tensor]) -> int:
    """Returns the number of a batch whose content is right."""
    sample, tensor = batch
    assert set(tensor.tolist()) == {sample.index}
    return sample.index


@pytest.mark.parametrize("fault", ["SIGKILL", "os._exit"])
def test_a_worker_that_dies_between_passes(fault: str) -> None:
    loader = ShmDataLoader(Images(20), num_workers=2, persistent_workers=True)
    assert len([None for _ in loader]) == 20
    iterator = loader._iterator
    assert iterator is not None
    victim = iterator._workers[0]  # type: ignore[attr-defined]
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with pytest.raises(WorkerDiedError, match=f"pid {victim.pid}.*killed by signal: Killed"):
        list(loader)
    del iterator
    assert len([None for _ in loader]) == 20


@pytest.mark.parametrize("timeout", [0, 30])
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_all_workers_die(num_workers: int, persistent_workers: bool, timeout: float) -> None:
    loader = ShmDataLoader(
        Images(1000), num_workers=num_workers, persistent_workers=persistent_workers, timeout=timeout
    )
    iterator = iter(loader)
    next(iterator)
    for process in iterator._workers:  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="is killed by signal: Killed"):
        list(iterator)
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    del iterator
    assert len([None for _ in loader]) == 1000


def test_a_ctrl_c_while_workers_are_awaited_leaves_nobody_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    iterator = iter(ShmDataLoader(Images(), num_workers=2))
    next(iterator)
    for process in iterator._workers:  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr("shmloader.workers.time.monotonic", interrupt)
    with pytest.raises(KeyboardInterrupt):
        iterator._shutdown_workers()  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert not children()


class Hanging(Images):
    """Eight images, one of which takes until a byte comes down a pipe."""

    def __init__(self, hold: int, at: int) -> None:
        super().__init__(8)
        self.hold, self.at = hold, at

    def __getitem__(self, index: int) -> Any:
        if index == self.at:
            os.read(self.hold, 1)
        return super().__getitem__(index)


def test_a_worker_that_hangs_is_named_by_the_timeout() -> None:
    hold, release = os.pipe()
    iterator = iter(ShmDataLoader(Hanging(hold, 3), num_workers=2, timeout=0.2))
    assert [int(next(iterator)[1]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerTimeoutError, match=r"DataLoader timed out after 0.2 seconds"):
        next(iterator)
    os.write(release, b"x")
    assert [int(label) for _, label in iterator] == [3, 4, 5, 6, 7]
    os.close(hold)
    os.close(release)


def test_a_timeout_between_passes_can_be_survived() -> None:
    hold, release = os.pipe()
    loader = ShmDataLoader(Hanging(hold, 6), num_workers=2, timeout=0.2, persistent_workers=True)
    iterator = iter(loader)
    assert [int(next(iterator)[1]) for _ in range(4)] == [0, 1, 2, 3]
    for _ in range(2):
        with pytest.raises(WorkerTimeoutError):
            iter(loader)
    os.write(release, b"xxx")
    assert [int(label) for _, label in loader] == list(range(8))
    os.close(hold)
    os.close(release)


def test_a_stopped_worker_does_not_hang_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.workers.GRACE_SECONDS", 0.2)
    monkeypatch.setattr("shmloader.workers._TERM_SECONDS", 0.2)
    iterator = iter(ShmDataLoader(Images(), num_workers=2, timeout=0.5))
    next(iterator)
    os.kill(iterator._workers[1].pid, signal.SIGSTOP)  # type: ignore[attr-defined]
    with pytest.raises(WorkerTimeoutError):
        list(iterator)
    del iterator
    gc.collect()
    assert not children()


def test_ctrl_c_in_the_loop() -> None:
    loader = ShmDataLoader(Images(), num_workers=2)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    for process in iterator._workers:  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGINT)
    assert len([None for _ in iterator]) == 49
    assert len([None for _ in loader]) == 50


class Ends(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from range(3)


def test_workers_that_have_no_more_data_may_end_early() -> None:
    assert [int(value) for value in ShmDataLoader(Ends(), num_workers=3)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script that can ``make`` loaders over an endless supply of samples."""
    prelude = """
        import os, signal, sys, threading, time
        import numpy as np
        from torch.utils.data import Dataset
        from shmloader import ShmDataLoader

        class Data(Dataset):
            def __len__(self): return 10**6
            def __getitem__(self, index): return np.full(1000, index)

        def make(**arguments): return ShmDataLoader(Data(), batch_size=4, num_workers=2, **arguments)
    """
    return run_file(textwrap.dedent(prelude) + textwrap.dedent(script))


ENDINGS = {
    "exit with a live iterator": "it = iter(make()); next(it)",
    "exit with a live persistent iterator": "l = make(persistent_workers=True); it = iter(l); next(it)",
    "exit with held batches": "it = iter(make()); held = [next(it) for _ in range(3)]",
    "sys.exit in the loop": "for batch in make(): sys.exit(0)",
    "a loader in a thread": "t = threading.Thread(target=lambda: next(iter(make()))); t.start(); t.join()",
    "an iterator that a thread leaves behind": (
        "box = []\n"
        "t = threading.Thread(target=lambda: box.append(iter(make()))); t.start(); t.join()\n"
        "assert int(next(box[0])[0, 0]) == 0"
    ),
    "a daemon thread that iterates": (
        "import queue; q = queue.Queue()\n"
        "threading.Thread(target=lambda: [q.put(0) for batch in make()], daemon=True).start()\n"
        "[q.get() for _ in range(10)]"
    ),
    "two loaders": "a, b = iter(make()), iter(make()); next(a); next(b); next(a)",
    "a fork that exits": "it = iter(make()); next(it); pid = os.fork()\nif pid: os.waitpid(pid, 0); next(it)",
    "a fork that drops the iterator": (
        "it = iter(make()); next(it); pid = os.fork()\n"
        "if pid == 0:\n    del it\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert int(next(it)[0, 0]) == 4"
    ),
    "a fork that iterates": (
        "l = make(persistent_workers=True); it = iter(l); next(it); pid = os.fork()\n"
        "if pid == 0:\n    assert int(next(iter(l))[0, 0]) == 0; sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert int(next(it)[0, 0]) == 4"
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_normal_ends_are_silent_and_leave_nothing(ending: str) -> None:
    result = run(ENDINGS[ending] + "\nprint('pid', os.getpid())")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "os.abort()"])
def test_workers_do_not_outlive_their_parent(death: str) -> None:
    result = run(
        f"""
        a, b = iter(make()), iter(make(persistent_workers=True))
        next(a), next(b)
        print(*[process.pid for it in (a, b) for process in it._workers], flush=True)
        {death}
        """
    )
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 4
    for pid in pids:
        wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Blocks until a process that is not a child has ended; the suite's time limit bounds it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    select.select([pidfd], [], [])
    os.close(pidfd)


def test_an_exception_while_iterating_prints_itself_only() -> None:
    result = run("for batch in make(): raise ValueError('of the loop')")
    assert result.returncode == 1
    assert result.stderr.strip().endswith("ValueError: of the loop")
    assert result.stderr.count("Traceback") == 1


def test_few_descriptors() -> None:
    result = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        class Many(Dataset):
            def __len__(self): return 300
            def __getitem__(self, index): return [np.full(2, index)] * 100
        held = list(ShmDataLoader(Many(), num_workers=2, num_slots=310))
        assert len(held) == 300 and int(held[299][99][0, 1]) == 299
        """
    )
    assert result.returncode == 0, result.stderr


def test_no_descriptors_at_all() -> None:
    result = run(
        """
        import resource
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, used + 1))
        try: iter(make())
        except OSError as error: assert error.errno == 24, error
        """
    )
    assert result.returncode == 0, result.stderr


def test_a_limit_on_file_sizes() -> None:
    result = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        assert int(next(iter(make()))[3, 0]) == 3
        """
    )
    assert result.returncode == 0, result.stderr


def test_no_named_shared_memory() -> None:
    before = {path.name for path in Path("/dev/shm").iterdir()}
    iterator = iter(ShmDataLoader(Images(), num_workers=2))
    next(iterator)
    assert {path.name for path in Path("/dev/shm").iterdir()} <= before
    assert np.array_equal(next(iterator)[1], [1])
