"""Figures of loaders, against what a naive count says."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import json
import operator
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from shmloader import ArrayDataset, ChunkedDataset, LoaderStatistics, ShmDataLoader, WorkerRestartWarning
from shmloader.observe import processors, table
from shmloader.observe.counts import Counts
from shmloader.observe.sinks import flat
from shmloader.observe.verdict import Kind
from tests.helpers.verdicts import told

LENGTH = 47


class Rows(Dataset[Any]):
    """Some of which cannot be read."""

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        if index == self.bad:
            raise ValueError("a bad sample")
        return torch.full((5,), index)


class Several(Rows):
    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        step = 1 if info is None else info.num_workers
        return map(torch.tensor, range(0 if info is None else info.id, LENGTH, step))


def chunks() -> Any:
    info = get_worker_info()
    for start in range(0, LENGTH, 10):
        if info is None or start // 10 % info.num_workers == info.id:
            yield np.arange(start, min(LENGTH, start + 10))


class Chunks:
    def __iter__(self) -> Iterator[Any]:
        yield from chunks()


def dataset(draw: random.Random) -> Any:
    kinds: list[Callable[[], Any]] = [
        Rows,
        Several,
        Stream,
        lambda: Rows(draw.randrange(LENGTH)),
        lambda: ArrayDataset(np.arange(2 * LENGTH).reshape(LENGTH, 2)),
        lambda: ChunkedDataset(Chunks()),
    ]
    return draw.choice(kinds)()


@dataclass
class Count:
    batches: int = 0
    samples: int = 0
    nbytes: int = 0

    def add(self, batch: Any, is_one: bool) -> None:
        batch = batch[0] if isinstance(batch, (list, tuple)) else batch
        self.batches += 1
        self.samples += 1 if is_one else len(batch)
        self.nbytes += batch.nbytes


def assert_sound(found: LoaderStatistics, num_workers: int) -> None:
    """Times are parts of a whole, and of life; whatever was done."""
    for one in (found, found.last_pass):
        parts = one.wait_seconds, one.own_seconds, one.loop_seconds, one.start_seconds, one.first_wait_seconds
        assert all(0 <= part <= one.seconds + 1e-9 for part in parts)
        ends = one.start_seconds - one.first_wait_seconds
        assert abs(one.wait_seconds + one.own_seconds + one.loop_seconds + ends - one.seconds) < 1e-6
        assert one.copies_for_room <= one.copies <= one.batches
        assert len(one.workers) in (0, max(1, num_workers))
        for worker in one.workers:
            assert min(worker.fetch_seconds, worker.collate_seconds, worker.idle_seconds, worker.room_seconds) >= 0
            assert worker.late_batches <= worker.batches
            assert worker.cpu_share is None or 0 <= worker.cpu_share <= 1
    for name in ("batches", "samples", "bytes", "copies", "seconds", "wait_seconds"):
        assert getattr(found.last_pass, name) <= getattr(found, name)
    if num_workers:
        assert sum(found.slots.values()) == found.num_slots + num_workers


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(24))
@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning", "ignore:Length of IterableDataset")
def test_counts_are_those_of_a_naive_count(seed: int) -> None:
    draw = random.Random(seed)
    num_workers = draw.choice([0, 1, 2, 2, 3])
    arguments: dict[str, Any] = {"batch_size": draw.choice([None, 1, 3, 4, 7]), "num_workers": num_workers}
    is_one = arguments["batch_size"] is None
    if not is_one:
        arguments["drop_last"] = draw.random() < 0.3
    if num_workers:
        arguments |= {
            "persistent_workers": draw.random() < 0.4,
            "in_order": draw.random() < 0.7,
            "worker_type": draw.choice(["process", "process", "thread"]),
            "prefetch_factor": draw.choice([1, 2, 3]),
        }
        if draw.random() < 0.3:
            arguments["num_slots"] = num_workers * arguments["prefetch_factor"] + 2
    if draw.random() < 0.3:
        arguments["epoch_size"] = draw.randrange(1, 20)
    loader = ShmDataLoader(dataset(draw), **arguments)
    life, held = Count(), []
    for _ in range(draw.randrange(1, 5)):
        this, steps, is_left = Count(), 0, False
        iterator = iter(loader)
        left_after = draw.choice([None, draw.randrange(1, 8)])
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except ValueError:  # of the bad sample
                continue
            for count in (life, this):
                count.add(batch, is_one)
            if draw.random() < 0.3:
                held.append(batch)
            if draw.random() < 0.1:
                found = loader.statistics()
                assert (found.batches, found.samples) == (life.batches, life.samples)
                assert (found.last_pass.batches, found.last_pass.samples) == (this.batches, this.samples)
                assert_sound(found, num_workers)
            steps += 1
            if steps == left_after:
                is_left = True
                break
        found = loader.statistics()
        if not is_left and "epoch_size" not in arguments:  # all that was made was handed out
            made = found.last_pass.workers
            assert sum(worker.batches for worker in made) == this.batches
            assert sum(worker.samples for worker in made) == this.samples
            assert sum(worker.bytes for worker in made) == found.last_pass.bytes
        del iterator
        found = loader.statistics()
        assert (found.batches, found.samples) == (life.batches, life.samples)
        assert (found.last_pass.batches, found.last_pass.samples) == (this.batches, this.samples)
        assert found.bytes >= life.nbytes if num_workers else found.bytes == 0
        assert found.bytes <= life.nbytes + 4096 * life.batches
        assert_sound(found, num_workers)
        assert pickle.loads(pickle.dumps(found)) == found
        assert str(found)
        del batch
        if draw.random() < 0.5:
            held.clear()


def test_before_the_first_pass_all_is_nothing() -> None:
    found = ShmDataLoader(Rows(), num_workers=2).statistics()
    assert found == LoaderStatistics(verdict=found.verdict)
    assert found.verdict.kind is Kind.UNKNOWN
    assert "batches" in str(found)


def test_a_copy_of_a_loader_has_figures_of_its_own() -> None:
    loader = ShmDataLoader(Rows(), batch_size=4, num_workers=1)
    assert len(list(loader)) == 12
    other = pickle.loads(pickle.dumps(loader))
    assert other.statistics().batches == 0
    assert len(list(other)) == 12
    assert (loader.statistics().batches, other.statistics().batches) == (12, 12)


def test_several_iterators_at_a_time_count_together() -> None:
    loader = ShmDataLoader(Rows(), batch_size=4, num_workers=2)
    one, other = iter(loader), iter(loader)
    for _ in range(5):
        next(one)
    for _ in range(3):
        next(other)
    assert loader.statistics().batches == 8
    del one
    assert loader.statistics().batches == 8
    assert len(list(other)) == 9
    found = loader.statistics()
    assert (found.batches, found.last_pass.batches) == (17, 17)
    assert_sound(found, 2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_slow_sampler_is_the_loaders_own_work(num_workers: int) -> None:
    def indices() -> Iterator[int]:
        for index in range(LENGTH):
            time.sleep(0.004)
            yield index

    class Sampler:
        def __iter__(self) -> Iterator[int]:
            return indices()

    loader = ShmDataLoader(
        Rows(), sampler=Sampler(), batch_size=1, num_workers=num_workers, persistent_workers=num_workers > 0
    )

    def figures() -> LoaderStatistics:
        for _batch in loader:
            pass
        return loader.statistics()

    found = told(Kind.OWN_WORK, figures)
    assert_sound(found, num_workers)
    assert found.own_seconds >= 0.004 * (LENGTH - 2)


def test_the_end_of_a_pass_counts_once() -> None:
    loader = ShmDataLoader(Rows(), num_workers=2)
    began = time.monotonic()
    for _batch in loader:
        pass
    took = time.monotonic() - began
    found = loader.statistics()
    assert_sound(found, 2)
    assert found.seconds <= took


@pytest.fixture
def busy_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy_switching")
def test_iterators_of_several_threads_lose_nothing() -> None:
    loader = ShmDataLoader(Rows(), batch_size=8)
    passes = 60

    def run() -> None:
        for number in range(passes):
            for _ in zip(loader, range(1 + number % 6), strict=False):
                pass

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = loader.statistics()
    # Of what is zipped the loader's comes first: it is asked once more than there are numbers, until it has ended.
    assert found.batches == len(threads) * sum(min(6, 2 + number % 6) for number in range(passes))
    assert loader._lifetime.meters._sum.live == ()  # else pools that nobody uses would stay
    assert_sound(found, 0)


@pytest.mark.usefixtures("busy_switching")
@pytest.mark.parametrize(
    "how", [{"num_workers": 0}, {"num_workers": 2, "persistent_workers": True, "worker_type": "thread"}]
)
def test_another_thread_never_sees_less_than_nothing(how: dict[str, Any]) -> None:
    loader = ShmDataLoader(Rows(), batch_size=4, **how)
    found: list[LoaderStatistics] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            found.append(loader.statistics())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(150):
            for _batch in loader:
                pass
    finally:
        is_over.set()
        thread.join()
    for one in found:
        for path, value in flat(one).items():
            assert not isinstance(value, (int, float)) or value >= 0, (path, value)


def test_an_iterator_that_is_collected_leaves_its_figures() -> None:
    loader = ShmDataLoader(Rows(), batch_size=4, num_workers=2)
    for step, _ in enumerate(loader):
        if step == 4:
            break
    gc.collect()
    assert loader.statistics().batches == 5


class Mortal(Rows):
    """Whose worker dies at one sample, once."""

    def __init__(self, flag: Path) -> None:
        super().__init__()
        self.flag = flag

    def __getitem__(self, index: int) -> Any:
        if index == 21 and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_takes_a_dead_ones_place_goes_on_with_its_figures(tmp_path: Path) -> None:
    loader = ShmDataLoader(Mortal(tmp_path / "died"), batch_size=4, num_workers=2, worker_restarts=1)
    with pytest.warns(WorkerRestartWarning):
        assert len(list(loader)) == 12
    found = loader.statistics()
    assert (found.batches, found.samples, found.restarts, found.last_pass.restarts) == (12, LENGTH, 1, 1)
    # One is made twice if it was there when its worker died, and not told.
    assert sum(worker.batches for worker in found.workers) in (12, 13)
    assert len(list(loader)) == 12
    found = loader.statistics()
    assert (found.batches, found.restarts, found.last_pass.restarts) == (24, 1, 0)


def test_an_error_that_closes_the_iterator_leaves_its_figures(tmp_path: Path) -> None:
    loader = ShmDataLoader(Mortal(tmp_path / "died"), batch_size=4, num_workers=1)
    count = 0
    with contextlib.suppress(RuntimeError):
        for _ in loader:
            count += 1
    assert count == 5
    assert loader.statistics().batches == 5


def test_a_pause_counts_as_a_pause() -> None:
    loader = ShmDataLoader(Rows(), batch_size=4, num_workers=2)
    iterator = iter(loader)
    next(iterator)
    loader.pause()
    for _ in range(5):
        next(iterator)
    loader.resume()
    assert sum(1 for _ in iterator) == 6
    assert_sound(loader.statistics(), 2)
    assert loader.statistics().batches == 12


def test_slots_by_state() -> None:
    loader = ShmDataLoader(Rows(), batch_size=4, num_workers=1, prefetch_factor=3)
    iterator: Any = iter(loader)
    held = [next(iterator), next(iterator)]
    while iterator._dispatcher._schedule.unmade():  # which blocks until a worker tells something
        iterator._dispatch_for(iterator._dispatcher.receive(0))
    found = loader.statistics()
    assert found.queue_depth == 3
    assert {name: count for name, count in found.slots.items() if count and name != "free"} == {"ready": 3, "leased": 2}
    assert found.leased == 2
    with pytest.raises(TypeError):
        found.slots["free"] = 1  # type: ignore[index]
    del held


@pytest.mark.parametrize("batches", [0, 3])
def test_figures_go_wherever_dataclasses_go(batches: int) -> None:
    loader = ShmDataLoader(Rows(), batch_size=4, num_workers=2, name="train")
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    found = loader.statistics()
    del iterator
    for same in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found)), dataclasses.replace(found)):
        assert same == found
        assert (same.verdict.kind, same.verdict.knob) == (found.verdict.kind, found.verdict.knob)
    assert len({found, copy.deepcopy(found)}) == 1
    fields = dataclasses.asdict(found)
    assert json.loads(json.dumps(fields))["slots"] == fields["slots"] == found.slots
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == json.loads(json.dumps({**fields, **plain}))
    assert plain["last_pass"]["batches"] == plain["batches"] == batches
    assert (plain["verdict"], plain["verdict_kind"], plain["verdict_knob"]) == (
        found.verdict,
        "too little to tell",
        None,
    )
    assert {type(value) for value in _leaves(plain)} <= {int, float, str, type(None)}


def _leaves(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else None
    if parts is None:
        yield value
    for part in parts or ():
        yield from _leaves(part)


def test_counts_cannot_be_changed() -> None:
    counts = Counts({"free": 1})
    changes: list[Callable[[Any], object]] = [
        lambda counts: counts.update(free=2),
        lambda counts: counts.pop("free"),
        lambda counts: counts.popitem(),
        lambda counts: counts.clear(),
        lambda counts: counts.setdefault("ready", 1),
        lambda counts: operator.setitem(counts, "free", 2),
        lambda counts: operator.delitem(counts, "free"),
        lambda counts: counts.__ior__({"free": 2}),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="cannot be changed"):
            change(counts)
    assert counts == {"free": 1}


def test_slowest_samples_are_named() -> None:
    class Slow(Rows):
        def __getitem__(self, index: int) -> Any:
            time.sleep(1.0 if index == 31 else 0.001)  # far longer than another program holds up a sample
            return torch.tensor(index)

    loader = ShmDataLoader(Slow(), batch_size=4, num_workers=1)
    for _ in loader:
        pass
    slowest = loader.statistics().slowest
    assert slowest[0].what == "index 31"
    assert slowest[0].worker == 0
    assert [one.seconds for one in slowest] == sorted((one.seconds for one in slowest), reverse=True)


def test_table() -> None:
    loader = ShmDataLoader(Rows(), batch_size=4, num_workers=2)
    list(loader)
    text = str(loader.statistics())
    for word in ("last pass", "all passes", "waited", "worker", "fetch", "collate", "idle", "slots", "Too little"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
    assert "worker  " not in str(ShmDataLoader(Rows()).statistics())
    loader = ShmDataLoader(Rows(), batch_size=4)
    list(loader)
    assert "bytes" in text
    assert "bytes" not in str(loader.statistics())


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (table.duration(1.234), "1.23 s"),
        (table.duration(0.0456), "45.6 ms"),
        (table.duration(2e-7), "200 ns"),
        (table.duration(0), "0"),
        (table.duration(0.9996e-3), "1.00 ms"),
        (table.duration(0.01), "10.0 ms"),
        (table.duration(0.09996), "100 ms"),
        (table.duration(4e-10), "0.4 ns"),
        (table.size(999), "999 B"),
        (table.size(999_600), "1.00 MB"),
        (table.size(1_234_567), "1.23 MB"),
        (table.size(5e15), "5000 TB"),
        (table.count(1234567.8), "1,234,568"),
        (table.count(12.34), "12.3"),
        (table.share(1, 3), "33 %"),
        (table.share(1, 0), "-"),
    ],
)
def test_how_values_are_written(made: str, text: str) -> None:
    assert made == text


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "200000 100000",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
    ],
)
def test_processors_of_a_control_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processors.cgroup_quota(tmp_path) == quota
    there_are = len(os.sched_getaffinity(0))
    assert processors.available(tmp_path) == (there_are if quota is None else max(1, min(there_are, -int(-quota // 1))))
