"""Thousands of passes and batches: what is open, mapped and resident stays as it was after the first few.

An early and a late window of samples are compared by their medians, since any one sample may find a worker at its start
or the allocator at its most.
"""

from __future__ import annotations

import gc
import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from shmloader import LoaderStatistics, ShmDataLoader
from shmloader.cli.bench.memory import now
from shmloader.slots.limits import Memory
from tests.helpers.datasets import Images, Mapped
from tests.helpers.support import children, descriptors, mappings

KIB, MIB = 1 << 10, 1 << 20

# What allocators and Python's own caches may add between the windows, in all of the process tree.
TOLERANCE = 3 * MIB


@dataclass(frozen=True)
class Sample:
    """What this process holds at one time, and its tree's memory."""

    descriptors: int
    threads: int
    arenas: int
    mappings: int
    processes: int
    pss: int
    kinds: str  # of this process's memory

    @staticmethod
    def take() -> Sample:
        gc.collect()
        memory = now()
        return Sample(
            sum(descriptors().values()),
            threading.active_count(),
            mappings(),
            len(Path("/proc/self/maps").read_text().splitlines()),
            len(children()),
            0 if memory is None else memory.total,
            "" if memory is None else Path("/proc/self/smaps_rollup").read_text(),
        )


def assert_flat(samples: list[Sample], tolerance: int = TOLERANCE) -> None:
    """Asserts that the last third of the samples is as the second quarter is, by their medians."""
    count = len(samples)
    early, late = samples[count // 4 : count // 2], samples[-count // 3 :]

    def medians(read: Callable[[Sample], int]) -> tuple[float, float]:
        return statistics.median(map(read, early)), statistics.median(map(read, late))

    for read in (lambda s: s.descriptors, lambda s: s.threads, lambda s: s.arenas, lambda s: s.processes):
        before, after = medians(read)
        assert before == after, (early[-1], late[-1])
    before, after = medians(lambda sample: sample.mappings)
    assert after <= before + 8, "mappings: arenas of malloc and of Python come and go"
    before, after = medians(lambda sample: sample.pss)
    assert after <= before + tolerance, f"{(after - before) / MIB:.1f} MiB more\n{early[-1].kinds}\n{late[-1].kinds}"


def figures(loader: ShmDataLoader[Any]) -> LoaderStatistics:
    found = loader.statistics()
    assert found is not None
    return found


# The few of each test are for every run; the many are those of its name.
MANY = (pytest.mark.slow, pytest.mark.timeout(1800))


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize("iterators", [36, pytest.param(1000, marks=MANY)])
@pytest.mark.parametrize("fresh", [False, True], ids=["one loader", "a loader each"])
def test_iterators_that_are_dropped_in_the_middle(iterators: int, fresh: bool) -> None:
    data = Images(200, (64, 64))
    loader = ShmDataLoader(data, batch_size=4, num_workers=2)
    samples = []
    for number in range(iterators):
        if fresh:
            loader = ShmDataLoader(data, batch_size=4, num_workers=2)
        iterator = iter(loader)
        for step in range(1 + number % 5):
            assert int(next(iterator)[1][0]) == 4 * step
        del iterator
        # Without workers: how many of the parent's pages they have of their own depends on how far they have come.
        if number % (iterators // 36) == 0:
            samples.append(Sample.take())
    assert_flat(samples)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("passes", [30, pytest.param(100, marks=MANY), pytest.param(1000, marks=MANY)])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "left in the middle"])
def test_passes_of_persistent_workers(passes: int, whole: bool) -> None:
    loader = ShmDataLoader(Images(80, (64, 64)), batch_size=4, num_workers=2, persistent_workers=True)
    samples = []
    for number in range(passes):
        for step, (_, labels) in enumerate(loader):
            assert int(labels[0]) == 4 * step
            if not whole and step == 7:
                break
        assert step == (19 if whole else 7)
        if number % (passes // 30) == 0:
            samples.append(Sample.take())
    assert_flat(samples)
    assert figures(loader).copies == 0
    assert figures(loader).resident_bytes <= 12 * 5 * 4 * KIB


@pytest.mark.long
@pytest.mark.parametrize("batches", [40_000, pytest.param(1_000_000, marks=MANY)])
def test_tiny_batches(batches: int) -> None:
    loader: ShmDataLoader[Any] = ShmDataLoader(range(batches), batch_size=None, num_workers=2, prefetch_factor=8)  # type: ignore[arg-type]
    samples, step = [], 0
    for step, value in enumerate(loader):
        assert value == step
        if step % (batches // 40) == 0:
            samples.append(Sample.take())
    assert step == batches - 1
    assert_flat(samples)
    assert figures(loader).batches == batches


@pytest.mark.parametrize("batches", [6000, pytest.param(100_000, marks=MANY)])
@pytest.mark.parametrize("hold", [0, 3])
def test_an_outlier_now_and_then(batches: int, hold: int) -> None:
    """One batch in some is a thousand times as large: its memory goes back, each time.

    It does when two windows of 32 batches a slot have gone by without another one.
    """
    usual, every = 20 * KIB, 2000

    def sample(index: int) -> Any:
        # One element in many places, so that the worker's own heap, which malloc may keep, has no part in this.
        return torch.tensor([index % 251], dtype=torch.uint8).expand(
            usual * (1000 if index % every == every // 2 else 1)
        )

    loader = ShmDataLoader(Mapped(sample, batches), num_workers=2)
    held: list[Any] = []
    samples, most = [], 0
    for step, batch in enumerate(loader):
        assert batch[0, 0] == batch[0, -1] == step % 251
        held = [*held, batch][-hold:] if hold else []
        most = max(most, figures(loader).resident_bytes) if step % 50 == 0 or batch.numel() > usual else most
        if step % every == every - 1:
            assert figures(loader).resident_bytes < 2 * MIB
            samples.append(Sample.take())
    assert most >= usual * 1000
    assert figures(loader).copies == 0
    del batch
    held.clear()
    assert_flat(samples)


@pytest.mark.long
@pytest.mark.parametrize("loaders", [36, pytest.param(1000, marks=MANY)])
def test_batches_that_outlive_their_loaders(loaders: int) -> None:
    """The last batch of each loader is held until the next one's comes; memory and mappings end with it."""
    data = Images(40, (64, 64))
    samples = []
    kept: Any = None
    for number in range(loaders):
        iterator = iter(ShmDataLoader(data, batch_size=4, num_workers=1))
        old, kept = kept, next(iterator)
        del iterator
        assert old is None or int(old[1].sum()) == 6
        del old
        if number % (loaders // 36) == 0:
            samples.append(Sample.take())
    assert {sample.arenas for sample in samples} == {1}
    assert_flat(samples)
    del kept
    gc.collect()
    assert mappings() == 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("loaders", [36, pytest.param(900, marks=MANY)])
@pytest.mark.parametrize("memory", [24 << 30, 2 << 40], ids=["24 GB", "2 TB"])
def test_a_batch_of_each_loader_is_kept(loaders: int, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with it its mapping: on large machines some tens of them would have filled the address space."""
    monkeypatch.setattr("shmloader.slots.pool_cache.memory", lambda: Memory(memory, memory))
    data = Images(8, (64, 64))
    kept = []
    for _ in range(loaders):
        iterator = iter(ShmDataLoader(data, batch_size=4, num_workers=1))
        kept.append(next(iterator))
        del iterator
    gc.collect()
    assert mappings() == loaders
    assert {int(labels.sum()) for _, labels in kept} == {6}
    large = ShmDataLoader(Mapped(lambda index: torch.full((64 * MIB,), index, dtype=torch.uint8), 3), num_workers=2)
    for step, batch in enumerate(large):
        assert batch[0, 0] == batch[0, -1] == step


@pytest.mark.parametrize("rounds", [10, pytest.param(200, marks=MANY)])
def test_errors_in_every_pass(rounds: int) -> None:
    def sample(index: int) -> int:
        if index % 7 == 3:
            raise ValueError(index)
        return index

    loader = ShmDataLoader(Mapped(sample, 50), batch_size=None, num_workers=2)
    samples = []
    for _ in range(rounds):
        iterator, errors, seen = iter(loader), 0, 0
        while True:
            try:
                next(iterator)
                seen += 1
            except StopIteration:
                break
            except ValueError:
                errors += 1
        assert (seen, errors) == (43, 7)
        samples.append(Sample.take())
        del iterator
    assert_flat(samples)
