"""Programs for which SIGPIPE is the end, since they set it to its default: no pipe of the loader's sends it.

Each case is a process of its own, in which workers end before the parent writes to them. It must go on, or end in the
error that says which worker has died, whatever SIGPIPE would do to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from shmloader import ShmDataLoader, WorkerTimeoutError
from shmloader.workers import wire
from shmloader.workers.wire import Outbox, Token, pipe
from tests.helpers.datasets import Mapped
from tests.helpers.support import run_file
from tests.promises.test_parent_death import run as run_until_death
from tests.promises.test_tight_machines import Runner

# What SIGPIPE may be to a program; the first is what matters most.
SETTINGS = {
    "default": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "ignored": "signal.signal(signal.SIGPIPE, signal.SIG_IGN)",
    "blocked": "signal.signal(signal.SIGPIPE, signal.SIG_DFL); "
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})",
}

each_setting = pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=[] if name == "default" else pytest.mark.slow) for name in SETTINGS]
)

PRELUDE = """
    import contextlib, select, signal
    from shmloader import PoolMemoryError, WorkerDiedError, WorkerRestartWarning
    warnings.simplefilter("ignore", WorkerRestartWarning)

    def is_blocked(): return signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def kill(iterator, worker):
        # It has ended when this returns, and nobody has asked for its exit code.
        pid = iterator._workers[worker].pid
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it had nothing left to do
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def wait_for_a_token(iterator):
        # Where one is going to come, though nobody is told anything.
        dispatcher = iterator._dispatcher
        schedule, asks = dispatcher._schedule, dispatcher._requests._asks
        if schedule.unmade() > len(asks) + len(schedule.stuck_behind(asks)):
            select.select([dispatcher._workers._up.fd], [], [])

    before = lambda: (signal.getsignal(signal.SIGPIPE), is_blocked(), signal.sigpending())
"""

LENGTH = 12

PASSES = f"""
    def passes(loader, count=2):
        # Yields each iterator and the number of batches that came, before each batch and after the last.
        for _ in range(count):
            seen = []
            iterator = iter(loader)
            while True:
                yield iterator, len(seen)
                try:
                    seen.append(int(next(iterator)[0]))
                except StopIteration:
                    break
            assert seen == list(range({LENGTH})), seen
"""


@pytest.fixture(scope="module")
def run() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


def script(setting: str, code: str) -> str:
    return (
        PRELUDE + PASSES + f"\n    {SETTINGS[setting]}\n    was = before()\n" + code + "\n    assert before() == was\n"
    )


@pytest.mark.sampled(12)
@each_setting
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_worker_that_has_died_before_any_write(
    run: Runner, restarts: int, persistent_workers: bool, setting: str
) -> None:
    """Jobs, the beginning of a pass, and the last word, to a worker that died before any batch or after the last."""
    run(
        script(
            setting,
            f"""
    deaths = 0
    for step in range({LENGTH} + 2):
        worker = step % 2
        loader = make({LENGTH}, 10, worker_restarts={restarts}, persistent_workers={persistent_workers})
        killed = False
        try:
            for iterator, count in passes(loader):
                if count == step and not killed:
                    killed = True
                    kill(iterator, worker)
                elif step == {LENGTH} + 1 and count == 1:
                    kill(iterator, worker)  # and nothing more is asked
                    break
        except WorkerDiedError as error:
            deaths += 1
            assert f"It was worker {{worker}} of 2" in str(error)
        del iterator, loader
    assert bool(deaths) == (not {restarts}), deaths
    print("all", 0)
    """,
        )
    ).assert_all(0)


@pytest.mark.long
@pytest.mark.sampled(2)
@each_setting
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_worker_that_has_died_before_it_was_granted_room(run: Runner, restarts: int, setting: str) -> None:
    """Where the cap is tight, workers ask for room, and their next jobs are told to make do with less."""
    run(
        script(
            setting,
            f"""
    for size in (300 * KIB, 600 * KIB, 900 * KIB, 1200 * KIB):
        for step in range({LENGTH}):
            loader = make({LENGTH}, size, worker_restarts={restarts}, max_pool_bytes=3 * MIB)
            killed = False
            try:
                for iterator, count in passes(loader, 1):
                    if count == step and not killed:
                        killed = True
                        wait_for_a_token(iterator)
                        kill(iterator, step % 2)
            except WorkerDiedError as error:
                assert not {restarts}, error
            del iterator, loader
    print("all", 0)
    """,
        )
    ).assert_all(0)


@pytest.mark.long
@pytest.mark.sampled(8)
@pytest.mark.parametrize("setting", ["default", pytest.param("blocked", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_have_sigpipe_as_the_program_has_it(method: str, setting: str) -> None:
    end = run_file(
        f"""
        import signal
        from shmloader import ShmDataLoader

        class Data:
            def __len__(self): return 2
            def __getitem__(self, index):
                return signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, [])

        if __name__ == "__main__":
            {SETTINGS[setting]}
            print(*ShmDataLoader(Data(), None, num_workers=1, multiprocessing_context={method!r}))
        """
    )
    assert (end.returncode, end.stderr) == (0, "")
    assert set(end.stdout.split()) == {str(setting == "blocked")}


@pytest.mark.sampled(2)
@each_setting
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_that_ends_before_it_has_read_what_it_is_given(method: str, setting: str) -> None:
    """As one does that cannot import the main module, with a dataset that is larger than a pipe."""
    end = run_file(
        f"""
        import os
        if __name__ == "__mp_main__":
            os._exit(3)
        import signal
        from shmloader import ShmDataLoader, WorkerDiedError
        {SETTINGS[setting]}
        try:
            list(ShmDataLoader(list(range(10**6)), num_workers=2, multiprocessing_context={method!r}))
        except WorkerDiedError as error:
            assert "imports the main module anew" in str(error)
            print("died")
        """
    )
    assert (end.returncode, end.stdout.strip(), end.stderr) == (0, "died", "")


@pytest.mark.long
@each_setting
def test_a_fork_servers_process_that_ends_at_once(setting: str) -> None:
    end = run_file(
        f"""
        import os, signal
        from multiprocessing import forkserver
        from shmloader import ShmDataLoader, WorkerDiedError

        def connect(fds):
            parent_r, child_w = os.pipe()
            child_r, parent_w = os.pipe()
            os.close(child_r)
            os.close(child_w)
            return parent_r, parent_w

        if __name__ == "__main__":
            {SETTINGS[setting]}
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            loader = ShmDataLoader(list(range(4)), num_workers=1, multiprocessing_context="forkserver")
            list(loader)
            connects, forkserver.connect_to_new_process = forkserver.connect_to_new_process, connect
            try:
                list(loader)
            except WorkerDiedError as error:
                assert "worker 0 of 1 ended while it was being started" in str(error)
                print("died")
            forkserver.connect_to_new_process = connects
            assert signal.sigpending() == set()
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
            print(len(list(loader)))
        """
    )
    assert (end.returncode, end.stdout.split(), end.stderr) == (0, ["died", "4"], "")


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_resource_tracker_that_has_died(method: str) -> None:
    end = run_file(
        f"""
        import os, signal, warnings
        from multiprocessing import resource_tracker
        from shmloader import ShmDataLoader

        if __name__ == "__main__":
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            loader = ShmDataLoader(list(range(4)), num_workers=1, multiprocessing_context={method!r})
            list(loader)
            pid = resource_tracker._resource_tracker._pid
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                print(len(list(loader)))
            assert signal.sigpending() == set()
        """
    )
    assert (end.returncode, end.stdout.strip(), end.stderr) == (0, "4", "")


# -- the worker's side -----------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_worker_whose_parent_is_gone_says_nothing(setting: str) -> None:
    """The parent's descriptors are closed before its workers are killed: here they are not killed at all."""
    end = run_until_death(
        f"""
        from shmloader.workers.processes import parent_watch
        import select

        def wait_for_the_end():
            pidfd = PARENT
            select.select([pidfd], [], [])

        {SETTINGS[setting]}
        parent_watch.end_with_parent = lambda *_: False
        globals().update(PARENT=os.pidfd_open(os.getpid()), wait_for_the_end=wait_for_the_end)
        iterators = begin(make("wait_for_the_end()"))
        report(iterators)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert len(end.pids) == 2
    assert not end.left
    assert end.stderr == ""


def test_a_way_up_that_nobody_reads() -> None:
    reader, writer = pipe(1)
    outbox = Outbox(writer.fd)
    reader.close()
    with pytest.raises(SystemExit) as caught:
        outbox.write(Token(wire.BATCH, 0, 0, 0))
    assert caught.value.code == 1
    outbox.close()


# -- what a pipe holds that nobody reads -----------------------------------------------------------------------------


def test_a_worker_that_never_reads_holds_nobody_up() -> None:
    """Each pass that it does not begin in time adds a token to its pipe, until that is full and gets no more."""
    loader = ShmDataLoader(
        Mapped(int, 8), batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )
    assert list(loader) == list(range(8))
    iterator: Any = loader._iterator
    pid = iterator._workers[1].pid
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    dispatcher = iterator._dispatcher
    texts = set()
    for _ in range(3000):
        with pytest.raises(WorkerTimeoutError) as caught:
            dispatcher.resume(None, 0, 1e-9)
        texts.add(str(caught.value).split("\n", 1)[0])
    assert any("does not read what it is sent" in text for text in texts), texts
    os.kill(pid, signal.SIGCONT)
    batches: list[int] = []
    while not batches:
        with contextlib.suppress(WorkerTimeoutError):
            batches = list(loader)
    assert batches == list(range(8))
    del iterator, dispatcher, caught


@pytest.mark.filterwarnings("ignore::shmloader.WorkerRestartWarning")
def test_both_ends_of_a_workers_pipe_are_closed_with_it() -> None:
    loader = ShmDataLoader(Mapped(int, 40), batch_size=None, num_workers=3, worker_restarts=9)
    iterator: Any = iter(loader)
    counts = []
    for step, _ in enumerate(iterator):
        counts.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
        if step in (3, 9, 15):
            os.kill(iterator._workers[step % 3].pid, signal.SIGKILL)
    assert max(counts) == counts[0]
