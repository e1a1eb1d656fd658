"""Processes and threads of the user's own, in the middle of a pass.

Whatever the user forks, starts or runs beside the loop, the loop's stream goes on as it was, nothing is printed, and a
loader that a forked process has inherited does nothing there.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from shmloader import ShmDataLoader
from shmloader.slots import fork_copies
from tests.helpers.datasets import Images
from tests.helpers.support import PATIENCE, assert_same, checksum, children, run_file

LENGTH = 60


@pytest.fixture(autouse=True, scope="module")
def _resource_tracker() -> Iterator[None]:
    """multiprocessing's own process, which whoever first spawns one leaves behind."""
    resource_tracker.ensure_running()
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def loader(length: int = LENGTH, **arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(Images(length), **{"batch_size": 2, "num_workers": 2, **arguments})


def numbers(batches: Any) -> list[int]:
    """Returns the number of every sample in the batches, whose images are as they should be."""
    images = Images(LENGTH).images
    found: list[int] = []
    for pictures, labels in batches:
        assert torch.equal(pictures, torch.from_numpy(images[labels.numpy()]))
        found += labels.tolist()
    return found


def square(number: int) -> int:
    return number * number


def square_in_a_child() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def square_in_a_subprocess() -> None:
    assert subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, check=True).stdout == b"7\n"


def square_in_a_pool(method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def square_in_an_executor(method: str) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]


def square_in_a_process() -> None:
    process = multiprocessing.get_context("fork").Process(target=square, args=(3,))
    process.start()
    process.join()
    assert process.exitcode == 0


MEANWHILE: dict[str, Callable[[], None]] = {
    "os.fork": square_in_a_child,
    "a subprocess": square_in_a_subprocess,
    "os.system": lambda: None if os.system("exit 0") == 0 else pytest.fail("it did not end well"),
    "a process": square_in_a_process,
    "a forked pool": lambda: square_in_a_pool("fork"),
    "a spawned pool": lambda: square_in_a_pool("spawn"),
    "a forked executor": lambda: square_in_an_executor("fork"),
    "another loader": lambda: assert_same(numbers(loader()), list(range(LENGTH))),
    "torch's loader": lambda: assert_same(numbers(DataLoader(Images(LENGTH), 2, num_workers=1)), list(range(LENGTH))),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("what", MEANWHILE)
def test_what_runs_beside_a_pass(what: str, persistent_workers: bool, capfd: pytest.CaptureFixture[str]) -> None:
    source = loader(persistent_workers=persistent_workers)
    for _ in range(2 if persistent_workers else 1):
        seen: list[int] = []
        held: list[tuple[Any, int]] = []
        for step, batch in enumerate(source):
            seen += numbers([batch])
            if step in ((0, 9) if "spawned" not in what else (5,)):
                held.append((batch, checksum(batch)))
                MEANWHILE[what]()
        assert seen == list(range(LENGTH))
        assert all(checksum(batch) == before for batch, before in held)
    assert capfd.readouterr().err == ""


def test_a_pool_that_lives_longer_than_the_loader() -> None:
    """Its processes have inherited all that the loader has; they do not keep it from ending, nor does it them."""
    source = loader()
    iterator = iter(source)
    next(iterator)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
        assert numbers(iterator) == list(range(2, LENGTH))
        del iterator, source
        gc.collect()
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
        assert numbers(loader()) == list(range(LENGTH))


# -- in a forked child -----------------------------------------------------------------------------------------------

PRELUDE = """
    import gc, os, sys, threading
    import numpy as np
    import torch
    from torch.utils.data import Dataset
    from shmloader import ShmDataLoader

    class Data(Dataset):
        def __len__(self): return 40
        def __getitem__(self, index): return np.full(100, index)

    def make(): return ShmDataLoader(Data(), batch_size=2, num_workers=2, persistent_workers={persistent})

    def number(batch): return int(batch[0, 0])

    loader = make()
    iterator = iter(loader)
    held = [next(iterator), next(iterator)]
    ends = []
    for number_of_child, child in enumerate({children!r}):
        pid = os.fork()
        if pid == 0:
            try:
                exec(child)
            finally:
                if {at_once}:
                    sys.stderr.flush()
                    os._exit(sys.exc_info()[0] is not None)
            sys.exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert number(next(iterator)) == 2 * number_of_child + 4
        assert [number(batch) for batch in held] == [0, 2]
    rest = range(2 * len(ends) + 4, 40, 2)
    assert [number(batch) for batch in iterator] == list(rest)
    del iterator
    assert [number(batch) for batch in loader] == list(range(0, 40, 2))
    print(ends)
"""

IN_THE_CHILD = {
    "nothing": "pass",
    "drops all": "del iterator, loader, held; gc.collect()",
    "drops the iterator": "del iterator; gc.collect()",
    "drops the batches": "held.clear(); gc.collect()",
    "reads the batches": "assert [number(batch) for batch in held] == [0, 2]",
    "asks for statistics": "assert loader.statistics().leased == 2",
    "makes a pass": "assert [number(batch) for batch in loader] == list(range(0, 40, 2))",
    "drops all and makes a loader": (
        "del iterator, loader; assert [number(batch) for batch in make()] == list(range(0, 40, 2))"
    ),
    "leaves a pass in the middle": "again = iter(loader); assert number(next(again)) == 0",
    "makes a pass in a thread": "t = threading.Thread(target=lambda: [None for _ in loader]); t.start(); t.join()",
    "forks again": "grandchild = os.fork(); grandchild and os.waitpid(grandchild, 0)",
    "collects cycles": "box = [iterator, loader, held]; box.append(box); del iterator, loader, held, box; gc.collect()",
}


def run_with_children(*children: str, persistent: bool = True, at_once: bool = False) -> Any:
    """Runs a script that forks these children in the middle of a pass, and returns what came of it."""
    return run_file(PRELUDE.format(children=children, persistent=persistent, at_once=at_once))


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("persistent_workers", "first", "at_once"),
    [
        # Python's end takes a while, with torch in it.
        pytest.param(
            persistent, first, at_once, marks=[] if (persistent == at_once) != (first == 4) else pytest.mark.slow
        )
        for persistent in (False, True)
        for first in (0, 4, 8)
        for at_once in (False, True)
    ],
)
def test_an_inherited_loader_is_inert(persistent_workers: bool, first: int, at_once: bool) -> None:
    """Whatever a child does with it, and whether it then exits as Python does or at once."""
    names = list(IN_THE_CHILD)[first : first + 4]
    children = [IN_THE_CHILD[name] for name in names]
    result = run_with_children(*children, persistent=persistent_workers, at_once=at_once)
    assert (result.returncode, result.stderr) == (0, ""), names
    assert result.stdout.splitlines()[-1] == str([0] * len(names)), names


def test_an_exception_in_the_child_is_its_own() -> None:
    result = run_with_children("raise ValueError('of the child')")
    assert (result.returncode, result.stdout) == (0, "[1]\n"), result.stderr
    assert result.stderr.strip().endswith("ValueError: of the child")
    assert result.stderr.count("Traceback") == 1


def test_an_inherited_iterator_that_is_stepped_does_not_take_the_parents_batches() -> None:
    """There is no right answer for the child; it must not be one that the parent notices, nor a hang."""
    result = run_with_children("next(iterator)", persistent=False)
    assert result.returncode == 0, result.stderr


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 8])
def test_loaders_in_many_threads_at_once(threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        passes = [pool.submit(lambda: numbers(loader(num_workers=1))) for _ in range(2 * threads)]
        assert [each.result() for each in passes] == [list(range(LENGTH))] * 2 * threads


def test_a_loader_that_goes_from_thread_to_thread() -> None:
    """Each thread makes one step and ends; the workers that the first one has started live on."""
    iterator = iter(loader())
    seen: list[int] = []
    for _ in range(LENGTH // 2):
        thread = threading.Thread(target=lambda: seen.extend(numbers([next(iterator)])))
        thread.start()
        thread.join()
    assert seen == list(range(LENGTH))
    with pytest.raises(StopIteration):
        next(iterator)


def test_passes_begun_in_threads_that_have_ended() -> None:
    box: list[Iterator[Any]] = []
    for _ in range(4):
        thread = threading.Thread(target=lambda: box.append(iter(loader())))
        thread.start()
        thread.join()
    assert [numbers(iterator) for iterator in box] == [list(range(LENGTH))] * 4


def test_a_persistent_loader_whose_passes_are_in_threads() -> None:
    source = loader(persistent_workers=True)
    results: list[Future[list[int]]] = []
    for _ in range(6):
        with ThreadPoolExecutor(1) as pool:
            results.append(pool.submit(lambda: numbers(source)))
    assert [result.result() for result in results] == [list(range(LENGTH))] * 6


def test_threads_that_start_processes_while_others_load() -> None:
    def start_some(_: int) -> None:
        square_in_a_child()
        square_in_a_subprocess()

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(start_some, number) for number in range(8)]
        passes = [pool.submit(lambda: numbers(loader(num_workers=1))) for _ in range(8)]
        assert [each.result() for each in passes] == [list(range(LENGTH))] * 8
        assert all(other.result() is None for other in others)


def test_loaders_that_are_dropped_in_other_threads() -> None:
    for _ in range(10):
        iterators = [iter(loader(num_workers=1))]
        assert numbers([next(iterators[0])]) == [0, 1]
        thread = threading.Thread(target=iterators.clear)
        thread.start()
        thread.join()


@pytest.mark.parametrize("count", [2, 5])
def test_loaders_in_turn(count: int) -> None:
    iterators = [iter(loader(num_workers=1 + number % 2)) for number in range(count)]
    for step, batches in enumerate(zip(*iterators, strict=True)):
        assert numbers(batches) == [2 * step, 2 * step + 1] * count
    assert step == LENGTH // 2 - 1


# -- loaders in workers ----------------------------------------------------------------------------------------------


class Nested(Dataset[Any]):
    """Samples that are made with a loader of their own."""

    def __init__(self, make: Callable[..., Any], **arguments: Any) -> None:
        self.make, self.arguments = make, arguments

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return [labels for _, labels in self.make(Images(4), batch_size=2, **self.arguments)]


@pytest.mark.parametrize("declared", [{}, {"sample_shapes": ((3, 4), ()), "sample_dtypes": (torch.uint8, torch.int64)}])
def test_a_loader_without_workers_inside_a_worker(declared: dict[str, Any]) -> None:
    outer = ShmDataLoader(Nested(ShmDataLoader, num_workers=0, **declared), batch_size=3, num_workers=2)
    stock = DataLoader(Nested(DataLoader, num_workers=0), batch_size=3)
    assert_same(list(outer), list(stock))


def test_a_loader_with_workers_inside_a_worker_is_torchs_error() -> None:
    texts = []
    for inner in (ShmDataLoader, DataLoader):
        with pytest.raises(AssertionError, match="daemonic processes are not allowed to have children") as caught:
            list(ShmDataLoader(Nested(inner, num_workers=1), num_workers=1))
        texts.append(str(caught.value).splitlines()[-1])
        del caught
    assert texts[0] == texts[1]


class Streamed(IterableDataset[Any]):
    """What a loader without workers yields, inside a worker."""

    def __iter__(self) -> Iterator[Any]:
        for _, labels in ShmDataLoader(Images(10), batch_size=5):
            yield labels


def test_a_stream_that_is_a_loader() -> None:
    assert torch.cat(list(ShmDataLoader(Streamed(), batch_size=None, num_workers=1))).tolist() == list(range(10))


def test_a_ctrl_c_while_a_fork_copies_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python forgets what a fork's hook raises: it is raised behind the fork, and the child has its copies."""
    held = list(loader(8))
    sums = [checksum(batch) for batch in held]
    copy, due = fork_copies._copy, [signal.SIGINT]

    def interrupted(block: Any) -> Any:
        if due:
            signal.raise_signal(due.pop())
        return copy(block)

    monkeypatch.setattr(fork_copies, "_copy", interrupted)
    reader, writer = os.pipe()
    pid = -1
    try:
        pid = os.fork()
        if pid == 0:
            os.read(reader, 1)  # the parent has written to its batches
            os._exit([checksum(batch) for batch in held] != sums)
        time.sleep(PATIENCE)  # which the interrupt ends, if it was not there before
        pytest.fail("the interrupt is lost")
    except KeyboardInterrupt:
        pass
    assert not due
    pid = pid if pid > 0 else int(children().pop())
    for images, _ in held:
        images.zero_()
    os.write(writer, b".")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(reader)
    os.close(writer)


def test_samples_that_fork_in_the_worker() -> None:
    class Forks(Images):
        def __getitem__(self, index: int) -> Any:
            square_in_a_child()
            return super().__getitem__(index)

    assert numbers(ShmDataLoader(Forks(LENGTH), batch_size=2, num_workers=2)) == list(range(LENGTH))
