"""Ctrl-C at random moments: one KeyboardInterrupt in the parent, silence in the workers, and a loader that works on.

The signal goes to the whole process group, as a terminal sends it. Its moment is drawn from the steps that the script
reports, and from some microseconds after one.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.support import PATIENCE, run_file

PRELUDE = """
import gc, mmap, os, sys, threading, time
import torch
from torch.utils.data import Dataset
from shmloader import ShmDataLoader
from pathlib import Path

blocked = mmap.mmap(-1, 4096)  # shared with the workers

class Data(Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        if blocked[0] and index == 13:
            time.sleep(600)
        return index

def make(**arguments):
    return ShmDataLoader(Data(), **{"batch_size": 2, "num_workers": 2, **arguments})

def tell(letter):
    os.write(TOLD, letter)

def full_pass(loader):
    blocked[0] = 0
    labels = [int(label) for batch in loader for label in batch]
    assert labels == list(range(24)), labels

def go_round(loader):
    while True:
        iterator = iter(loader)
        tell(b".")
        for batch in iterator:
            tell(b".")
            if int(batch[0]) == 16:
                break
        del iterator
        tell(b".")

def steps(loader):
    for _ in iter(int, 1):
        for batch in loader:
            tell(b".")

def children():
    gc.collect()
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {*(task / "children").read_text().split()}
    return found

def play(loader, loop, rounds, blocks=False):
    for _ in range(rounds):
        caught = 0
        try:
            blocked[0] = blocks
            tell(b"s")
            loop(loader)
        except KeyboardInterrupt:
            caught += 1
        tell(b"i")
        full_pass(loader)
        tell(b"f")
    del loader
    assert not children(), children()

if __name__ == "__main__":
    TOLD = int(sys.argv[1])
"""


# Where there are other threads, such as numpy's, one of them takes a signal that the main thread has blocked.
ONE_THREAD = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Script:
    """A script that runs in a session of its own and tells of its steps."""

    def __init__(self, code: str, folder: str) -> None:
        file = Path(folder) / "script.py"
        file.write_text(PRELUDE + textwrap.indent(textwrap.dedent(code), "    "))
        self.steps, writer = os.pipe()
        self._errors = Path(folder) / "errors"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, file, str(writer)],
                pass_fds=[writer],
                stderr=errors,
                stdout=errors,
                start_new_session=True,
                env=ONE_THREAD,
            )
        os.close(writer)

    def wait_for(self, letter: bytes, count: int = 1) -> bool:
        """Blocks until the script has told something so many times; False when it has ended, or does not for long."""
        deadline = time.monotonic() + PATIENCE
        while count:
            ready, _, _ = select.select([self.steps], [], [], max(0.0, deadline - time.monotonic()))
            step = os.read(self.steps, 1) if ready else b""
            if not step:
                return False
            count -= step == letter
        return True

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int | None, str]:
        """Waits for the script's end; returns its exit code, None if it goes on for long, and what was printed."""
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(PATIENCE)
        self._kill()
        return code, self._errors.read_text()

    def close(self) -> None:
        """Ends the script and its workers, if they have not ended."""
        self._kill()
        os.close(self.steps)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def script(code: str) -> Iterator[Script]:
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Script(code, folder)) as running:
        yield running


def pause(draw: random.Random) -> None:
    until = time.perf_counter() + draw.choice([0, 0, draw.uniform(0, 0.0003), draw.uniform(0, 0.003)])
    while time.perf_counter() < until:
        pass


def interrupt_again_and_again(code: str, rounds: int, seed: int, most_steps: int = 30) -> None:
    """Interrupts each round of a script once, and asserts that each ends with a right pass and all in silence."""
    draw = random.Random(seed)
    with script(code) as running:
        done = 0
        for _ in range(rounds):
            if not (running.wait_for(b"s") and running.wait_for(b".", draw.randrange(most_steps) + 1)):
                break
            pause(draw)
            running.interrupt()
            if not running.wait_for(b"f"):
                break
            done += 1
        code_, printed = running.end()
        assert (done, code_, printed) == (rounds, 0, "")


LOOPS = {
    "rounds": "play(make(), go_round, {rounds})",
    "persistent rounds": "play(make(persistent_workers=True), go_round, {rounds})",
    "steps": "play(make(), steps, {rounds})",
    "persistent steps": "play(make(persistent_workers=True, prefetch_factor=3), steps, {rounds})",
    "with restarts": "play(make(worker_restarts=3), go_round, {rounds})",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("loop", LOOPS)
def test_interrupts(loop: str) -> None:
    interrupt_again_and_again(LOOPS[loop].format(rounds=10), 10, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("loop", LOOPS)
def test_many_interrupts(loop: str, seed: int) -> None:
    interrupt_again_and_again(LOOPS[loop].format(rounds=25), 25, seed)


def test_interrupts_while_samples_block() -> None:
    interrupt_again_and_again("play(make(), steps, 3, blocks=True)", 3, seed=3, most_steps=6)


@pytest.mark.long
@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupt_within_the_fork_beside_other_threads(nth: int) -> None:
    """The main thread has the signal blocked; the other one takes it, and its handler runs in the main one."""
    code = f"""
        import signal
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's of forks beside threads
        forks = 0
        fork = os.fork
        def interrupted():
            global forks
            forks += 1
            pid = fork()
            if pid and forks == {nth}:
                os.kill(os.getpid(), signal.SIGINT)
                os.read(taken, 1)  # the other thread has it
            return pid
        taken, takes = os.pipe()
        os.set_blocking(takes, False)
        signal.set_wakeup_fd(takes)
        loader = make()
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        os.fork = interrupted
        caught = 0
        try:
            iter(loader)
        except KeyboardInterrupt:
            caught = 1
        assert not children(), children()
        full_pass(loader)
        assert caught
    """
    with script(code) as running:
        assert running.end() == (0, "")


@pytest.mark.long
def test_a_spawned_worker_is_born_with_the_signal_blocked() -> None:
    """Else a Ctrl-C while it imports its modules ends it."""
    code = """
        iterator = iter(make(multiprocessing_context="spawn", num_workers=1))
        status = Path(f"/proc/{iterator._workers[0].pid}/status").read_text()
        blocked_signals = int(status.partition("SigBlk:")[2].split()[0], 16)
        caught_signals = int(status.partition("SigCgt:")[2].split()[0], 16)
        assert (blocked_signals | caught_signals) & 2, status
    """
    with script(code) as running:
        assert running.end() == (0, "")


@pytest.mark.parametrize(
    ("front", "arguments"),
    [
        ("loader", "multiprocessing_context='spawn'"),
        ("loader", "multiprocessing_context='forkserver'"),
        ("loader", "worker_type='thread'"),
        ("queue", "multiprocessing_context='spawn'"),
        ("queue", "multiprocessing_context='forkserver'"),
    ],
)
def test_a_ctrl_c_ends_the_pickling_of_a_dataset(front: str, arguments: str) -> None:
    """Or its copying for threads: it may take minutes, or wait for ever."""
    code = f"""
    import signal

    from torch.utils.data import IterableDataset

    from shmloader import JobQueue, ShmDataLoader

    class Data(IterableDataset):
        is_interrupted, went_on = True, False

        def __iter__(self):
            return iter(range(4))

        def __call__(self):
            return 7

        def __reduce__(self):
            if Data.is_interrupted:
                signal.raise_signal(signal.SIGINT)
                Data.went_on = True
            return Data, ()

    if __name__ == "__main__":
        handler = signal.getsignal(signal.SIGINT)
        loader = ShmDataLoader(Data(), num_workers=1, {arguments})
        jobs = JobQueue(Data(), num_workers=1, {arguments})
        try:
            iter(loader) if {front!r} == "loader" else jobs.start()
        except KeyboardInterrupt:
            print("interrupted", Data.went_on)
        assert signal.getsignal(signal.SIGINT) is handler
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        Data.is_interrupted = False
        if {front!r} == "loader":
            print([int(number) for number, in loader])
        else:
            jobs.put()
            print(jobs.get())
    """
    ran = run_file(code)
    end = "[0, 1, 2, 3]" if front == "loader" else "7"
    assert (ran.stdout.splitlines(), ran.stderr) == (["interrupted False", end], "")


def test_a_loader_in_another_thread_goes_on() -> None:
    """As in a notebook: the main thread has the KeyboardInterrupt, and what others do is theirs."""
    code = """
        loader = make(persistent_workers=True)
        problems = []
        def work(done, go, enough):
            go.wait()
            try:
                while not enough.is_set():
                    full_pass(loader)
                    tell(b".")
            except BaseException as error:
                problems.append(error)
            done.set()
        for _ in range(5):
            done, go, enough = threading.Event(), threading.Event(), threading.Event()
            thread = threading.Thread(target=work, args=(done, go, enough))
            try:
                thread.start()
                tell(b"s")
                go.set()
                done.wait()
                raise AssertionError(problems)
            except KeyboardInterrupt:
                pass
            enough.set()
            done.wait()  # a join that was interrupted takes the thread for ended
            assert not problems, problems
            tell(b"f")
    """
    interrupt_again_and_again(code, 5, seed=4, most_steps=15)


class Shell:
    """An interactive Python on a terminal of its own."""

    def __init__(self, file: Path) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-q", "-i", str(file)], {**ONE_THREAD, "TERM": "dumb"})

    def read_until(self, text: str) -> str:
        """Returns what is printed up to and with ``text``."""
        printed = b""
        while not printed.endswith(text.encode()):
            ready, _, _ = select.select([self.terminal], [], [], PATIENCE)
            assert ready, printed
            printed += os.read(self.terminal, 1)
        return printed.decode()

    def type(self, line: str) -> None:
        os.write(self.terminal, line.encode())

    def wait(self) -> int:
        """Waits for the shell's end; returns how it was."""
        with contextlib.suppress(OSError):  # the terminal's other side is closed
            while os.read(self.terminal, 1000):
                pass
        pid, self.pid = self.pid, 0
        return os.waitpid(pid, 0)[1]

    def close(self) -> None:
        """Ends the shell and what it has started."""
        if self.pid:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("arguments", ["", "persistent_workers=True"])
def test_an_interactive_shell(arguments: str) -> None:
    draw = random.Random(5)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.py"
        told = Path(folder) / "told"
        os.mkfifo(told)
        prelude = PRELUDE.partition("if __name__")[0]
        file.write_text(f"{prelude}\nTOLD = os.open({str(told)!r}, os.O_WRONLY)\nloader = make({arguments})\n")
        with contextlib.closing(Shell(file)) as shell, os.fdopen(os.open(told, os.O_RDONLY), "rb", 0) as reader:
            steps = reader.fileno()
            shell.read_until(">>> ")
            for _ in range(4):
                shell.type("go_round(loader)\n")
                for _ in range(draw.randrange(1, 40)):
                    os.read(steps, 1)
                pause(draw)
                shell.type("\x03")
                printed = shell.read_until(">>> ")
                assert printed.count("KeyboardInterrupt") == 1
                assert printed.count("Traceback") <= 1
                while select.select([steps], [], [], 0)[0] and os.read(steps, 4096):
                    pass
                shell.type("full_pass(loader); print('right' + 'ly')\n")
                assert "rightly" in shell.read_until(">>> ")
            shell.type("sys.last_traceback = sys.last_value = None; full_pass(loader); del loader; print(children())\n")
            assert "set()" in shell.read_until(">>> ")
            shell.type("exit()\n")
            assert shell.wait() == 0
