"""What only a device can show: that its copies, streams, events and captures are as the simulated ones are."""

from __future__ import annotations

import mmap
import os
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from shmloader import ShmDataLoader
from shmloader.device import cuda
from shmloader.device.fence import Fence
from shmloader.slots import orphans
from tests.helpers.datasets import Images, Mapped
from tests.helpers.support import assert_same, children, mappings, run_file

pytestmark = [
    pytest.mark.skipif(not cuda.is_available(), reason="requires a CUDA device"),
    pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning"),
]

ELEMENTS = 1 << 18
CYCLES = 2_000_000  # about a millisecond


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """As everywhere, but for descriptors and threads, of which the driver has some."""
    yield
    torch.cuda.synchronize()
    orphans.tidy()
    assert not children()
    assert mappings() == 0


def filled(index: int) -> np.ndarray[Any, Any]:
    return np.full(ELEMENTS, index, np.int32)


def numbered(length: int, **arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(
        Mapped(filled, length), **{"batch_size": None, "num_workers": 2, "pin_memory": True, **arguments}
    )


def right(copied: torch.Tensor, number: int) -> torch.Tensor:
    """Returns, as a tensor on the device, whether the whole of a batch is its number."""
    return (copied == number).all()


def copies(source: ShmDataLoader[Any], copy: Callable[[torch.Tensor, int], list[torch.Tensor]]) -> int:
    """Runs a pass with the device a millisecond behind at each step, and returns how many copies were wrong."""
    verdicts: list[torch.Tensor] = []
    for number, batch in enumerate(source):
        verdicts += copy(batch, number)
        del batch
    torch.cuda.synchronize()
    return int((~torch.stack(verdicts)).sum())


def on_the_current_stream(batch: torch.Tensor, number: int) -> list[torch.Tensor]:
    torch.cuda._sleep(CYCLES)
    return [right(batch.to("cuda", non_blocking=True), number)]


def on_several_streams(batch: torch.Tensor, number: int) -> list[torch.Tensor]:
    verdicts = []
    for part in range(3):
        with torch.cuda.stream(STREAMS[(number + part) % len(STREAMS)]):
            torch.cuda._sleep(CYCLES * part)
            verdicts.append(right(batch[part * 1000 :].to("cuda", non_blocking=True), number))
    for stream in STREAMS:
        torch.cuda.current_stream().wait_stream(stream)
    return verdicts


def behind_a_side_stream(batch: torch.Tensor, number: int) -> list[torch.Tensor]:
    """On one that nobody waits for: nothing on the current stream follows the copy."""
    with torch.cuda.stream(STREAMS[0]):
        torch.cuda._sleep(CYCLES)
        verdict = right(batch.to("cuda", non_blocking=True), number)
        verdict.record_stream(torch.cuda.current_stream())
    return [verdict]


STREAMS = [torch.cuda.Stream() for _ in range(4)] if cuda.is_available() else []
COPIES = [on_the_current_stream, on_several_streams, behind_a_side_stream]


@pytest.mark.parametrize("copy", COPIES)
def test_thousands_of_copies_from_batches_that_are_dropped_at_once(copy: Any) -> None:
    source = numbered(3000, num_slots=40)
    assert copies(source, copy) == 0
    statistics = source.statistics()
    assert statistics is not None
    assert statistics.copies < 2900  # those prove nothing


@pytest.mark.parametrize("copy", COPIES)
def test_without_the_fence_copies_are_wrong(copy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "pass_on", lambda fence, freed: freed)
    assert copies(numbered(1000), copy) > 0


@pytest.mark.parametrize("declared", [{}, {"sample_shapes": ((50, 70), ()), "sample_dtypes": (torch.uint8, int)}])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_every_tensor_is_pinned_where_it_is(declared: dict[str, Any], persistent_workers: bool) -> None:
    """Also for workers that are forked when the memory is registered already, and write to it."""
    source = ShmDataLoader(
        Images(200, (50, 70)), 4, num_workers=2, pin_memory=True, persistent_workers=persistent_workers, **declared
    )
    for _ in range(3):
        for batch, stock in zip(source, DataLoader(Images(200, (50, 70)), 4), strict=True):
            assert all(tensor.is_pinned() for tensor in batch)
            assert_same(batch, stock)
            assert_same([tensor.to("cuda", non_blocking=True).cpu() for tensor in batch], stock)


def test_slots_that_grow() -> None:
    sizes = np.random.default_rng(2).integers(1, 1 << 20, 300)
    source = ShmDataLoader(
        Mapped(lambda index: np.full(sizes[index], index % 251, np.uint8), 300), num_workers=2, pin_memory=True
    )
    for number, batch in enumerate(source):
        assert batch.is_pinned()
        copied = batch.to("cuda", non_blocking=True)
        assert bool((copied == number % 251).all())


def test_a_mark_is_behind_all_streams_and_waits_for_nothing() -> None:
    driver = cuda.driver()
    torch.cuda.synchronize()
    for stream in (torch.cuda.current_stream(), *STREAMS):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200 * CYCLES)
        mark = driver.mark()
        assert mark is not None
        assert not driver.has_passed(mark)
        torch.cuda.synchronize()
        assert driver.has_passed(mark)


def test_a_batch_is_taken_within_a_capture() -> None:
    """Which neither spoils it, nor frees a slot too soon; and a captured copy reads a batch that is held."""
    iterator = iter(numbered(300))
    for number in range(10):
        on_the_current_stream(next(iterator), number)
    held = next(iterator)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        assert cuda.driver().is_capturing()
        copied = held.to("cuda", non_blocking=True)
        total = copied.sum()
        for _ in range(5):
            next(iterator)
    assert not cuda.driver().is_capturing()
    verdicts = []
    for number, batch in enumerate(iterator, 16):
        graph.replay()
        verdicts.append(total == 10 * ELEMENTS)
        verdicts += on_the_current_stream(batch, number)
        del batch
    torch.cuda.synchronize()
    assert bool(torch.stack(verdicts).all())
    del held


@pytest.mark.parametrize("depth", [0, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_on_the_device(depth: int, num_workers: int) -> None:
    """Handed out safe to use, with the loop's stream behind, and their memory used again as they are dropped."""
    source = numbered(1000, device="cuda", device_prefetch=depth, num_workers=num_workers, pin_memory=False)
    verdicts = []
    for number, batch in enumerate(source):
        assert batch.device == torch.device("cuda", torch.cuda.current_device())
        torch.cuda._sleep(CYCLES // 4)
        verdicts.append(right(batch, number))
        del batch
    torch.cuda.synchronize()
    assert bool(torch.stack(verdicts).all())


def test_batches_on_the_device_for_other_streams() -> None:
    verdicts = []
    iterator = iter(numbered(500, device="cuda"))
    for number in range(500):
        with torch.cuda.stream(STREAMS[number % 4]):
            batch = next(iterator)
            torch.cuda._sleep(CYCLES)
            verdicts.append(right(batch, number))
            del batch
    torch.cuda.synchronize()
    assert bool(torch.stack(verdicts).all())


def test_a_batch_is_not_moved_within_a_capture() -> None:
    iterator = iter(numbered(20, device="cuda"))
    next(iterator)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
            next(iterator)
        graph.capture_end()
    assert bool(right(next(iterator), 1))


def test_a_failed_registration_leaves_no_error_behind() -> None:
    assert cuda.driver().register(1 << 12, 1 << 12)  # which is nobody's memory
    assert int((torch.ones(3, device="cuda") + 1).sum()) == 6


def test_memory_that_is_unregistered_is_not_pinned() -> None:
    memory = mmap.mmap(-1, 1 << 20)
    array = np.ndarray(1 << 20, np.uint8, memory)
    address = array.__array_interface__["data"][0]
    tensor = torch.from_numpy(array)
    assert cuda.driver().register(address, 1 << 20) == ""
    assert tensor.is_pinned()
    assert cuda.driver().unregister(address)
    assert not tensor.is_pinned()
    assert cuda.driver().unregister(address)


EXIT = """
    import torch
    from shmloader import ShmDataLoader

    dataset = torch.utils.data.TensorDataset(torch.arange(1 << 20).reshape(64, -1))
    loader = ShmDataLoader(dataset, 4, num_workers=2, pin_memory=True, persistent_workers=True, {arguments})
    iterator = iter(loader)
    (batch,) = next(iterator)
    torch.cuda._sleep(200_000_000)
    copied = batch.to("cuda", non_blocking=True)
    {drop}
    print("well")
"""


@pytest.mark.parametrize("arguments", ["", "device='cuda'"])
@pytest.mark.parametrize("drop", ["del batch", "del iterator, loader", "del iterator, loader, batch", ""])
def test_at_the_interpreters_exit(arguments: str, drop: str) -> None:
    ended = run_file(textwrap.dedent(EXIT).format(arguments=arguments, drop=drop))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "well\n", "")


def test_in_a_forked_process_nothing_is_done() -> None:
    source = numbered(50)
    iterator = iter(source)
    batch = next(iterator)
    pid = os.fork()
    if pid == 0:
        try:
            del batch, iterator
            source.statistics()
            del source
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert batch.is_pinned()
    assert bool(right(batch.to("cuda", non_blocking=True), 0))
    del batch
    assert copies_left(iterator) == 49


def copies_left(iterator: Any) -> int:
    return sum(bool(right(batch.to("cuda", non_blocking=True), number)) for number, batch in enumerate(iterator, 1))
