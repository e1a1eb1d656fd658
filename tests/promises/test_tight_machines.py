"""Machines that give little: descriptors, address space, file sizes, /dev/shm, and memory control groups.

Each case runs in a process of its own, which is limited first: forked from one that has torch imported, since that
takes longer than the case. It must load rightly or end in a Python error that says what there was and what to change;
never hang, and leave nobody behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1 << 20

PRELUDE = """
    import gc, multiprocessing, os, resource, sys, traceback, warnings
    import numpy as np
    import torch
    from torch.utils.data import Dataset
    from shmloader import HeldBatchesWarning, ShmDataLoader

    KIB, MIB = 1 << 10, 1 << 20
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", HeldBatchesWarning)
    warnings.filterwarnings("ignore", "This DataLoader will create")

    class Blobs(Dataset):
        # Samples that say which they are, of a size each.
        def __init__(self, length, size): self.length, self.size = length, size
        def __len__(self): return self.length
        def __getitem__(self, index):
            return np.full(self.size(index) if callable(self.size) else self.size, index % 251, np.uint8)

    def limit(name, value):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))

    def mapped():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    def make(length, size, **arguments):
        return ShmDataLoader(Blobs(length, size), **{"num_workers": 2, "batch_size": None, **arguments})

    def read(loader, hold=False):
        # Reads all batches, and says how far it came and what came then.
        held, count = [], 0
        try:
            for count, batch in enumerate(loader, 1):
                assert batch.min() == batch.max() == (count - 1) % 251, (count, batch)
                held += [batch] * hold
        except (MemoryError, OSError, RuntimeError) as error:
            print(type(error).__name__, count, str(error).replace(chr(10), " "))
        else:
            print("all", count)
        for number, batch in enumerate(held):
            assert batch.min() == batch.max() == number % 251
"""


@dataclass(frozen=True)
class End:
    """How a process ended and what it said."""

    code: int
    said: str
    errors: str

    def assert_all(self, count: int) -> None:
        """Asserts that all batches came, with nothing on standard error."""
        assert (self.code, self.said, self.errors) == (0, f"all {count}", "")

    def assert_error(self, name: str, *words: str) -> None:
        """Asserts that a Python error of this name ended the loop, and that its text has these words."""
        assert (self.code, self.errors) == (0, ""), self
        assert self.said.startswith(name), self.said
        assert all(word in self.said for word in words), self.said


# Runs scripts, which come as lines of JSON, in children, and answers with how each ended.
SERVER = """
    import json
    for line in sys.stdin:
        script, *files = json.loads(line)
        pid = os.fork()
        if pid == 0:
            for number, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY), number)
            exec(script)
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Runner:
    """A process that has imported all, and runs scripts in children of its own."""

    def __init__(self, *before: str) -> None:
        code = textwrap.dedent(PRELUDE) + textwrap.dedent(SERVER)
        self._process = subprocess.Popen(
            [*before, sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, script: str) -> End:
        """Runs a script, and returns how it ended. Blocks until then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as errors:
            self._process.stdin.write(json.dumps([textwrap.dedent(script), out.name, errors.name]) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return End(code, out.read().strip(), errors.read().strip())

    def close(self) -> None:
        """Ends the process, and whatever a script that did not end has left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture(scope="module")
def run() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


# -- descriptors -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.sampled(10)
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_slots", [None, 310])
def test_64_descriptors_are_enough_for_300_batches_of_100_tensors(
    run: Runner, num_slots: int | None, method: str, persistent_workers: bool
) -> None:
    run(
        f"""
        limit("NOFILE", 64)
        loader = ShmDataLoader(
            [[np.full(2, index)] * 100 for index in range(300)], num_workers=2, num_slots={num_slots},
            persistent_workers={persistent_workers}, multiprocessing_context={method!r},
        )
        for _ in range(2):
            held = list(loader)
            assert [[set(map(int, field[0])) for field in batch] for batch in held] == [
                [{{number}}] * 100 for number in range(300)
            ]
        print("all", len(held))
        """
    ).assert_all(300)


TOO_FEW_DESCRIPTORS = """
    def lost():
        gc.collect()
        return len(os.listdir("/proc/self/fd")) - before

    def at_multiprocessings_own_pipes(error):  # of which it leaves two open if the second pair cannot be had
        return traceback.extract_tb(error.__traceback__)[-1].filename.endswith("popen_fork.py")

    list(make(4, 10))  # what torch opens for good
    before = lost_before = 0
    before = lost()
    for spare in range(24):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        top = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + spare, limits[1]))
        own, kind = 0, "all"
        try:
            list(make(4, 10))
        except Exception as error:
            own, kind = 2 * at_multiprocessings_own_pipes(error), type(error).__name__
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert multiprocessing.active_children() == []
        more = lost() - lost_before
        lost_before += more
        print(kind, "lost" if more > own else "kept")
"""


def too_few_descriptors(run: Runner) -> list[list[str]]:
    end = run(TOO_FEW_DESCRIPTORS)
    assert (end.code, end.errors) == (0, "")
    outcomes = [line.split() for line in end.said.splitlines()]
    assert outcomes[0][0] != "all"
    assert outcomes[-1][0] == "all"
    return outcomes


@pytest.mark.long
def test_no_descriptor_is_lost_where_there_are_too_few(run: Runner) -> None:
    assert {state for _, state in too_few_descriptors(run)} == {"kept"}


@pytest.mark.long
def test_too_few_descriptors_are_called_so(run: Runner) -> None:
    assert {kind for kind, _ in too_few_descriptors(run)} == {"OSError", "all"}


# -- resource limits -------------------------------------------------------------------------------------------------


@pytest.mark.sampled(5)
@pytest.mark.parametrize("more", [200, 2000, 5_000_000])
@pytest.mark.parametrize("arguments", ["", "num_slots=40"])
def test_a_limit_on_address_space(run: Runner, more: int, arguments: str) -> None:
    run(f"limit('AS', mapped() + {more} * MIB); read(make(100, 100 * KIB, {arguments}))").assert_all(100)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("more", [0, 1, 2, 4, 8, 16])
def test_next_to_no_address_space(run: Runner, more: int) -> None:
    """Where nothing can be had, any of Python's errors will do: fork, imports, numpy and the pool all need some."""
    end = run(f"limit('AS', mapped() + {more} * MIB); read(make(20, 4 * MIB))")
    assert end.code == 0, end
    assert end.said.split()[0] in ("PoolMemoryError", "MemoryError", "RuntimeError", "WorkerDiedError", "OSError"), end


@pytest.mark.sampled(5)
@pytest.mark.parametrize("loaders", [1, 3, 6])
@pytest.mark.parametrize("fate", ["alive", "gone, but for a batch"])
def test_loaders_leave_the_program_most_of_a_limited_address_space(run: Runner, fate: str, loaders: int) -> None:
    run(
        f"""
        limit('AS', mapped() + 2000 * MIB)
        if {fate!r} == "alive":
            streams = zip(*[iter(make(40, 100 * KIB)) for _ in range({loaders})])
        else:
            kept = [next(iter(make(40, 100 * KIB, num_workers=1))) for _ in range({loaders})]
            gc.collect()
            streams = zip(iter(make(40, 100 * KIB)))
        for step, batches in enumerate(streams):
            assert all(batch.min() == batch.max() == step for batch in batches)
            if step == 5:
                used = np.empty(1200 * MIB, np.uint8)  # 60 % of what there was
        print("all", step + 1)
        """
    ).assert_all(40)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        ("", 250),
        ("max_pool_bytes=4 * MIB", 14 * 4),
        ("sample_shapes=(100 * KIB,), sample_dtypes=torch.uint8", 250),
        ("num_slots=8, max_pool_bytes=4 * MIB", 10 * 4),
    ],
)
def test_a_pool_takes_no_more_of_a_limited_address_space_than_it_can_use(
    run: Runner, arguments: str, most: int
) -> None:
    run(
        f"""
        limit('AS', mapped() + 2000 * MIB)
        loader = make(20, 100 * KIB, {arguments})
        iterator = iter(loader)
        assert len(iterator._pool.arena.memory) <= ({most} + 8) * MIB  # with what workers tell of themselves
        del iterator
        read(loader)
        """
    ).assert_all(20)


@pytest.mark.long
def test_what_is_declared_has_room_under_a_limit_on_address_space(run: Runner) -> None:
    """Undeclared, it would not: a slot has a fourteenth of an eighth."""
    limit = "limit('AS', mapped() + 2000 * MIB)"
    run(f"{limit}; read(make(20, 40 * MIB))").assert_error("PoolMemoryError 0 ", "ulimit -v")
    run(f"{limit}; read(make(20, 40 * MIB, sample_shapes=(40 * MIB,), sample_dtypes=torch.uint8))").assert_all(20)


@pytest.mark.long
def test_a_limit_on_address_space_while_batches_are_held(run: Runner) -> None:
    run("limit('AS', mapped() + 300 * MIB); read(make(400, MIB), hold=True)").assert_error("MemoryError")
    run("limit('AS', mapped() + 2000 * MIB); read(make(400, MIB), hold=True)").assert_all(400)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mib", [10, 1000])
@pytest.mark.parametrize("declared", ["", "sample_shapes=(100 * KIB,), sample_dtypes=torch.uint8"])
def test_a_limit_on_file_sizes(run: Runner, mib: int, declared: str) -> None:
    run(f"limit('FSIZE', {mib} * MIB); read(make(100, 100 * KIB, {declared}))").assert_all(100)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("kib", [4, 64, 300, 800])
def test_files_that_may_be_next_to_nothing(run: Runner, kib: int) -> None:
    run(f"limit('FSIZE', {kib} * KIB); read(make(100, 1000))").assert_error("PoolMemoryError 0 ", "slots")


@pytest.mark.parametrize("kib", [4, 300])
def test_too_small_files_are_called_so(run: Runner, kib: int) -> None:
    run(f"limit('FSIZE', {kib} * KIB); read(make(100, 1000))").assert_error("PoolMemoryError 0 ", "ulimit -f")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", ["read(make(4, 40 * MIB))", "read(make(4, 40 * MIB, sample_shapes=(40 * MIB,)))"])
@pytest.mark.parametrize("limit", ["limit('AS', mapped() + 500 * MIB)", "limit('FSIZE', 100 * MIB)"])
def test_a_batch_that_is_too_large_for_the_limit_names_the_limit(run: Runner, limit: str, what: str) -> None:
    run(f"{limit}; {what}").assert_error("PoolMemoryError 0 ", "ulimit")


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", ["MEMLOCK", "SIGPENDING", "RTPRIO"])
@pytest.mark.parametrize("declared", ["", "sample_shapes=(100 * KIB,), sample_dtypes=torch.uint8"])
def test_limits_that_do_not_matter(run: Runner, name: str, declared: str) -> None:
    run(f"limit('{name}', 0); read(make(100, 100 * KIB, {declared}), hold=True)").assert_all(100)


# -- /dev/shm --------------------------------------------------------------------------------------------------------


def own_mounts(size: str) -> list[str]:
    """Returns a command that runs another with a /dev/shm of its own, or skips the test."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    for unshare in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        command = [*unshare, "sh", "-c", mount, "sh"]
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
        ):
            return command
    pytest.skip("this machine lets nobody mount a /dev/shm of their own (unshare --mount)")


@pytest.fixture(scope="module")
def run_without_shm() -> Iterator[Runner]:
    runner = Runner(*own_mounts("16m"))
    yield runner
    runner.close()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("arguments", ["", "num_slots=310", "sample_shapes=(MIB,), sample_dtypes=torch.uint8"])
def test_a_tiny_dev_shm(run_without_shm: Runner, arguments: str) -> None:
    run_without_shm(
        f"""
        assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize <= 16 * MIB
        read(make(300, MIB, {arguments}), hold=True)
        assert os.listdir("/dev/shm") == []
        """
    ).assert_all(300)


# -- control groups --------------------------------------------------------------------------------------------------


class Group:
    """A memory control group below this process's."""

    def __init__(self, runner: Runner, path: Path, limit_file: str) -> None:
        self.path = path
        self._runner = runner
        self._limit_file = path / limit_file

    def run(self, mib: int, script: str) -> End:
        """Runs a script in this group with a limit, from when all modules are imported, until nobody is left in it."""
        self._limit_file.write_text(str(mib * MIB))
        members = str(self.path / "cgroup.procs")
        end = self._runner(f"os.system(f'echo {{os.getpid()}} > {members}')\n" + textwrap.dedent(script))
        self.wait_until_empty()
        return end

    def wait_until_empty(self) -> None:
        """Blocks until every process of the group has ended; the suite's time limit bounds it."""
        for pid in (self.path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(int(pid))
                select.select([pidfd], [], [])
                os.close(pidfd)


@pytest.fixture
def group(run: Runner) -> Iterator[Group]:
    name = f"shmloader-test-{os.getpid()}"
    for parent, limit_file in parents():
        path = parent / name
        with contextlib.suppress(OSError):
            path.mkdir()
            if (path / limit_file).exists():
                break
            path.rmdir()
    else:
        pytest.skip("this machine lets nobody make a memory control group below their own")
    found = Group(run, path, limit_file)
    yield found
    found.wait_until_empty()
    path.rmdir()


def parents() -> Iterator[tuple[Path, str]]:
    """Yields the groups that this process is in, and the name of the file that limits their memory."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield Path("/sys/fs/cgroup/memory") / path.lstrip("/"), "memory.limit_in_bytes"
        elif not controllers:
            yield Path("/sys/fs/cgroup") / path.lstrip("/"), "memory.max"


def test_the_default_cap_is_half_of_the_groups_limit(group: Group) -> None:
    group.run(
        400, "loader = make(20, MIB); read(loader); assert loader.statistics().max_bytes == 200 * MIB"
    ).assert_all(20)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("arguments", ["", "max_pool_bytes=4 << 30", "num_slots=14, max_pool_bytes=1 << 40"])
def test_batches_that_fit_in_a_small_group(group: Group, arguments: str) -> None:
    group.run(400, f"read(make(60, 20 * MIB, {arguments}))").assert_all(60)


def test_a_pool_that_takes_its_cap_again_and_again(group: Group) -> None:
    """Batches of a quarter of the cap, with private copies of some: what is in flight waits for room."""
    group.run(400, "read(make(60, lambda index: (10 + index * 7 % 30) * MIB))").assert_all(60)


def test_many_small_batches_held_in_a_small_group(group: Group) -> None:
    group.run(400, "read(make(250, MIB), hold=True)").assert_all(250)


def test_declared_shapes_that_do_not_fit_under_the_cap(group: Group) -> None:
    declared = "sample_shapes=(100 * MIB,), sample_dtypes=torch.uint8"
    end = group.run(400, f"read(make(20, 100 * MIB, {declared}))")
    end.assert_error("PoolMemoryError 0 ", "6 batches", "max_pool_bytes=209715200", "batch_size")


def test_declared_shapes_that_fit_under_a_cap_that_the_group_does_not(group: Group) -> None:
    """Known before a page is touched: the kernel would end the process, and say nothing."""
    declared = "sample_shapes=(100 * MIB,), sample_dtypes=torch.uint8, max_pool_bytes=4 << 30"
    end = group.run(400, f"read(make(20, 100 * MIB, {declared}))")
    end.assert_error("PoolMemoryError 0 ", "6 batches", "max_pool_bytes")


KILLED = ("WorkerDiedError", "out-of-memory killer", "memory is limited to 0.419 GB", "max_pool_bytes")

# Batches that the group cannot hold however they are made: a worker's own memory is what the kernel finds too large.
TOO_LARGE = {
    "a batch larger than the group": "make(20, 500 * MIB)",
    "a batch larger than the cap": "make(20, 250 * MIB)",
    "collated": "make(20, 500 * MIB, batch_size=1)",
    "growing": "make(40, lambda index: 1 << min(index + 16, 31))",
    "growing under a cap that is none": "make(40, lambda index: 1 << min(index + 16, 31), max_pool_bytes=4 << 30)",
    "a large one after small ones": "make(100, lambda index: 600 * MIB if index == 50 else 1000)",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", TOO_LARGE)
def test_a_worker_that_takes_more_than_the_group_has_is_named(group: Group, what: str) -> None:
    group.run(400, f"read({TOO_LARGE[what]})").assert_error(*KILLED)


# Here many processes hold some, and it is the kernel's choice whom it ends.
TOO_MUCH = {
    "batches of a quarter of the group": "read(make(20, 100 * MIB))",
    "the same, held": "read(make(20, 100 * MIB), hold=True)",
    "a cap that is none": "read(make(40, 60 * MIB, max_pool_bytes=4 << 30))",
}
TOO_MUCH_HELD = {
    "as copies": "read(make(40, 20 * MIB), hold=True)",
    "in slots": "read(make(40, 20 * MIB, num_slots=60, max_pool_bytes=4 << 30), hold=True)",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", TOO_MUCH)
def test_nobody_is_left_when_all_together_take_too_much(group: Group, what: str) -> None:
    end = group.run(400, TOO_MUCH[what])
    assert end.code in (0, -9)
    if not end.code and not end.said.startswith("all "):
        assert end.said.startswith(("WorkerDiedError", "PoolMemoryError", "MemoryError")), end


@pytest.mark.parametrize("what", TOO_MUCH_HELD)
def test_the_loop_survives_when_it_holds_too_much(group: Group, what: str) -> None:
    end = group.run(400, TOO_MUCH_HELD[what])
    assert end.code == 0
    assert end.said.startswith(("WorkerDiedError", "PoolMemoryError")), end
    assert "memory" in end.said
