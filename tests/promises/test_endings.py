"""How loaders, the interpreter and its threads end, and with how few descriptors one can do."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import textwrap
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import IterableDataset

from shmloader import ShmDataLoader
from tests.helpers.datasets import Images
from tests.helpers.support import PATIENCE, assert_same, run_file


class Ends(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from range(3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("length", [1, 16, 17])
def test_workers_end_while_the_loop_has_their_last_batches(length: int, in_order: bool) -> None:
    loader = ShmDataLoader(Images(length), batch_size=4, num_workers=3, in_order=in_order)
    iterator: Any = iter(loader)
    batches = [next(iterator) for _ in range(len(loader))]
    for worker in iterator._workers:
        assert connection.wait([worker.sentinel], timeout=PATIENCE), "it has not ended"
    assert len(batches) == len(loader)
    with pytest.raises(StopIteration):
        next(iterator)
    assert {worker.exitcode for worker in iterator._workers} == {0}


def test_workers_that_stay_do_not_end() -> None:
    loader = ShmDataLoader(Images(16), batch_size=4, num_workers=2, persistent_workers=True)
    first = list(loader)
    iterator: Any = loader._iterator
    assert not connection.wait([worker.sentinel for worker in iterator._workers], timeout=0)
    assert_same(list(loader), first)


class Restless:
    """Indices whose iterator goes on after its end."""

    def __iter__(self) -> Any:
        return self

    def __init__(self) -> None:
        self.left = 0

    def __next__(self) -> list[int]:
        self.left = (self.left or 6) - 1
        if self.left:
            return [self.left]
        raise StopIteration


def test_a_sampler_that_has_ended_is_not_asked_again() -> None:
    batches = list(ShmDataLoader(Images(16), batch_sampler=Restless(), num_workers=2))
    assert len(batches) == 5


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


@pytest.mark.sampled(4)
@pytest.mark.parametrize("ending", ENDINGS)
def test_normal_ends_are_silent_and_leave_nothing(ending: str) -> None:
    result = run(ENDINGS[ending] + "\nprint('pid', os.getpid())")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.sampled(4)
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
    select.select([pidfd], [], [])
    os.close(pidfd)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("iterator", ["iter(make(worker_init_fn=fail))", "iterators[0]"])
def test_an_error_in_an_exit_function_that_runs_after_ours_is_raised_there(iterator: str) -> None:
    result = run_file(
        f"""
        import atexit

        @atexit.register  # before shmloader registers its own, so it is called after that
        def evaluate():
            try: next({iterator})
            except (RuntimeError, ArithmeticError) as error: print(type(error).__name__)

        from shmloader import ShmDataLoader

        def fail(worker): raise ArithmeticError
        def make(**arguments): return ShmDataLoader(range(9), num_workers=1, **arguments)

        iterators = [iter(make())]
        """
    )
    assert result.stdout in ("ArithmeticError\n", "RuntimeError\n"), result.stderr


def test_an_exception_while_iterating_prints_itself_only() -> None:
    result = run("for batch in make(): raise ValueError('of the loop')")
    assert result.returncode == 1
    assert result.stderr.strip().endswith("ValueError: of the loop")
    assert result.stderr.count("Traceback") == 1


@pytest.mark.long
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


@pytest.mark.long
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
    before = files_in_shared_memory(os.getpid())
    iterator: Any = iter(ShmDataLoader(Images(), num_workers=2))
    next(iterator)
    for pid in (os.getpid(), *(worker.pid for worker in iterator._workers)):
        assert files_in_shared_memory(pid) <= before
    assert np.array_equal(next(iterator)[1], [1])


def files_in_shared_memory(pid: int) -> set[str]:
    """Returns what a process maps or has open of /dev/shm, where others come and go meanwhile."""
    names = {line.split(None, 5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a file that the worker has closed since it was listed
            names.add(str(link.readlink()))
    return {name for name in names if name.startswith("/dev/shm/")}
