"""When the parent dies, its workers do too, whatever they are at; and an orderly end says nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.helpers.support import PATIENCE

PRELUDE = """
import ctypes, os, select, signal, sys, threading, time
from pathlib import Path
from torch.utils.data import Dataset
from shmloader import ShmDataLoader

def hold_the_lock():
    sum(range(10**12))

class Data(Dataset):
    def __init__(self, block, report):
        self.block, self.report = block, report
    def __len__(self):
        return 10**6
    def __getitem__(self, index):
        if index >= 16 and self.block != "None":
            Path(f"{self.report}-{os.getpid()}").touch()
            eval(self.block)
        return index

def make(block="None", start_method="fork", **arguments):
    arguments = {"batch_size": 4, "num_workers": 2, "multiprocessing_context": start_method, **arguments}
    return ShmDataLoader(Data(block, FOLDER), **arguments)

def begin(*loaders):
    iterators = [iter(loader) for loader in loaders]
    for _ in range(3):
        for iterator in iterators:
            next(iterator)
    return iterators

def report(iterators):
    # Once all are in the sample that blocks.
    pids = [process.pid for iterator in iterators for process in iterator._workers]
    while not all(Path(f"{FOLDER}-{pid}").exists() for pid in pids):
        time.sleep(0.001)
    print(*pids, flush=True)

if __name__ == "__main__":
"""


@dataclasses.dataclass(frozen=True)
class End:
    """How a script ended, and what was left of it."""

    returncode: int
    stderr: str
    left: list[int]
    pids: list[int]


def run(script: str) -> End:
    """Runs a script that reports its workers and dies, and returns which of them live on for too long.

    Its output goes to files: a pipe would be open for as long as its workers are there.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.py"
        prelude = f"FOLDER = {folder + '/at'!r}\n" + PRELUDE
        file.write_text(prelude + textwrap.indent(textwrap.dedent(script), "    "))
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        with out.open("wb") as stdout, errors.open("wb") as stderr:
            parent = subprocess.run([sys.executable, file], stdout=stdout, stderr=stderr, timeout=PATIENCE, check=False)
        pids = [int(pid) for pid in out.read_text().split()]
        left = [pid for pid in pids if not ends(pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        names = {path.name for path in Path("/dev/shm").iterdir()}
        assert not [name for name in names for pid in pids if str(pid) in name.split("_")]
        return End(parent.returncode, errors.read_text(), left, pids)


def ends(pid: int) -> bool:
    """Blocks until a process that is not a child has ended; returns whether it has. One that lives on does for long."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], PATIENCE)[0])
    finally:
        os.close(pidfd)


DEATHS = {
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "segmentation fault": "ctypes.string_at(0)",
    "os._exit": "os._exit(3)",
    "abort": "os.abort()",
}
BLOCKS = {
    "sleeps": "time.sleep(600)",
    "reads": "os.read(os.pipe()[0], 1)",
    "waits for a lock": "threading.Semaphore(0).acquire()",
    "holds the interpreter's lock": "hold_the_lock()",
    "spins": "[None for _ in iter(int, 1)]",
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("death", DEATHS)
def test_workers_that_wait_for_the_loop(death: str) -> None:
    end = run(
        f"""
        iterators = begin(make(), make(persistent_workers=True), make(worker_restarts=3))
        print(*[process.pid for iterator in iterators for process in iterator._workers], flush=True)
        {DEATHS[death]}
        """
    )
    assert len(end.pids) == 6
    assert not end.left
    assert end.stderr == ""


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("death", "block"),
    [
        pytest.param(death, block, marks=[] if death == "SIGKILL" or block == "sleeps" else pytest.mark.slow)
        for death in ("SIGKILL", "segmentation fault", "os._exit")
        for block in BLOCKS
    ],
)
def test_workers_that_are_blocked(death: str, block: str) -> None:
    end = run(f"iterators = begin(make({BLOCKS[block]!r}))\nreport(iterators)\n{DEATHS[death]}")
    assert len(end.pids) == 2
    assert not end.left
    assert end.stderr == ""


@pytest.mark.long
@pytest.mark.sampled(6)
@pytest.mark.parametrize("block", BLOCKS)
def test_loaders_in_interleaved_order(block: str) -> None:
    """Later workers have the pipes of the earlier loaders' parent open."""
    end = run(
        f"""
        loaders = [make({BLOCKS[block]!r}, num_workers=1) for _ in range(3)]
        iterators = begin(*loaders)
        iterators += begin(make({BLOCKS[block]!r}), loaders[1])
        report(iterators)
        {DEATHS["SIGKILL"]}
        """
    )
    assert len(end.pids) == 6
    assert not end.left


@pytest.mark.sampled(8)
@pytest.mark.parametrize("block", [block for block in BLOCKS if block != "holds the interpreter's lock"])
@pytest.mark.parametrize("death", ["SIGKILL", "os._exit"])
def test_loaders_that_threads_have_started(death: str, block: str) -> None:
    end = run(
        f"""
        iterators = []
        threads = [
            threading.Thread(target=lambda: iterators.extend(begin(make({BLOCKS[block]!r})))) for _ in range(3)
        ]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        report(iterators)
        {DEATHS[death]}
        """
    )
    assert len(end.pids) == 6
    assert not end.left
    assert end.stderr == ""


def test_a_thread_that_ends_before_its_workers_do_not_take_them_along() -> None:
    """The kernel's signal would come with the end of the thread that has started a worker."""
    end = run(
        f"""
        iterators = []
        thread = threading.Thread(target=lambda: iterators.extend(begin(make())))
        thread.start()
        thread.join()
        time.sleep(0.05)
        assert all(int(next(iterators[0])[0]) == 4 * step for step in range(3, 100))
        print(*[process.pid for process in iterators[0]._workers], flush=True)
        {DEATHS["SIGKILL"]}
        """
    )
    assert end.returncode == -signal.SIGKILL, end.stderr
    assert len(end.pids) == 2
    assert not end.left


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_workers_that_have_given_up_their_rights() -> None:
    """With them the kernel drops the request for a signal; and a child has the workers' pipes open."""
    end = run(
        f"""
        iterators = begin(make(worker_init_fn=lambda worker: os.setegid(65534)))
        pids = [process.pid for process in iterators[0]._workers]
        print(*pids, flush=True)
        ends = [os.pidfd_open(pid) for pid in pids]
        if os.fork() == 0:
            signal.alarm({int(PATIENCE) + 3})
            for end in ends: select.select([end], [], [])
            os._exit(0)
        {DEATHS["SIGKILL"]}
        """
    )
    assert len(end.pids) == 2
    assert not end.left


@pytest.mark.long
def test_a_forked_child_with_workers_of_its_own() -> None:
    end = run(
        f"""
        iterators = begin(make())
        pid = os.fork()
        if pid == 0:
            report(begin(make("time.sleep(600)")))
            {DEATHS["SIGKILL"]}
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        assert int(next(iterators[0])[0]) == 12, "the parent's own"
        """
    )
    assert end.returncode == 0, end.stderr
    assert len(end.pids) == 2
    assert not end.left
    assert end.stderr == ""


def test_a_forked_child_outlives_its_parent_and_not_its_workers() -> None:
    end = run(
        f"""
        reader, writer = os.pipe()
        if os.fork() == 0:
            iterators = begin(make("time.sleep(600)"))
            report(iterators)
            os.write(writer, b"x")
            {DEATHS["SIGKILL"]}
        iterators = begin(make("time.sleep(600)"))
        os.read(reader, 1)
        report(iterators)
        {DEATHS["SIGKILL"]}
        """
    )
    assert len(end.pids) == 4
    assert not end.left


@pytest.mark.long
def test_successors_die_with_the_parent_too() -> None:
    end = run(
        f"""
        import warnings
        warnings.simplefilter("ignore")
        iterators = begin(make("hold_the_lock()", worker_restarts=4))
        report(iterators)
        iterators[0]._timeout = 1
        for process in iterators[0]._workers:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            os.unlink(FOLDER + "-" + str(process.pid))
        try:
            while True: next(iterators[0])
        except RuntimeError as error:
            assert "timed out" in str(error), error
        report(iterators)
        {DEATHS["SIGKILL"]}
        """
    )
    assert len(end.pids) == 4
    assert not end.left


def test_an_uncaught_exception_prints_itself_only() -> None:
    end = run(
        """
        iterators = begin(make(), make(persistent_workers=True))
        print(*[process.pid for iterator in iterators for process in iterator._workers], flush=True)
        for batch in iterators[0]:
            raise ValueError("of the loop")
        """
    )
    assert end.returncode == 1
    assert len(end.pids) == 4
    assert not end.left
    assert end.stderr.count("Traceback") == 1
    assert end.stderr.strip().endswith("ValueError: of the loop")


@pytest.mark.sampled(10)
@pytest.mark.parametrize("ending", ["pass", "sys.exit(0)", "del iterators", "iterators.append(iterators)"])
@pytest.mark.parametrize("thread", [False, True])
def test_an_orderly_end_is_silent(ending: str, thread: bool) -> None:
    begin = "threading.Thread(target=lambda: iterators.extend(begin(make(), make(persistent_workers=True))))"
    end = run(
        f"""
        iterators = []
        thread = {begin}
        thread.{"start" if thread else "run"}()
        thread.join() if {thread} else None
        print(*[process.pid for iterator in iterators for process in iterator._workers], flush=True)
        {ending}
        """
    )
    assert end.returncode == 0
    assert len(end.pids) == 4
    assert not end.left
    assert end.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_an_orderly_end_while_workers_are_blocked(block: str) -> None:
    """It waits for their samples some seconds, and no longer."""
    end = run(f"iterators = begin(make({BLOCKS[block]!r}))\nreport(iterators)")
    assert end.returncode == 0
    assert len(end.pids) == 2
    assert not end.left
    assert end.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if block != "holds the interpreter's lock"])
@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_other_start_methods(start_method: str, death: str, block: str) -> None:
    end = run(f"iterators = begin(make({BLOCKS[block]!r}, {start_method!r}))\nreport(iterators)\n{DEATHS[death]}")
    assert len(end.pids) == 2
    assert not end.left
    assert "Traceback" not in end.stderr


@pytest.mark.slow
def test_spawned_workers_that_hold_the_interpreters_lock() -> None:
    end = run(f"iterators = begin(make('hold_the_lock()', 'spawn'))\nreport(iterators)\n{DEATHS['SIGKILL']}")
    assert len(end.pids) == 2
    assert not end.left
