"""What is told at the end: figures of loaders that are gone, of torch's own iterators, and where loaders were made."""

from __future__ import annotations

import contextlib
import gc
import inspect
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

import shmloader
from shmloader import ShmDataLoader, torch_private
from shmloader.cli.run import births, figures, report, stock_meter
from shmloader.cli.run.ranks import rank, with_rank
from shmloader.observe import trace
from shmloader.passes import lifetime
from shmloader.patching.patched_loader import beside
from shmloader.patching.record import On, record
from tests.helpers.datasets import Images


@pytest.fixture(autouse=True)
def _nobody_listens() -> Iterator[None]:
    record.clear()
    yield
    record.clear()


def told(number: int | None = None) -> str:
    return report.text(record.entries(), record.begun, number, 7)


def make(**arguments: Any) -> Any:
    return DataLoader(Images(12), **{"batch_size": 4, "num_workers": 1, **arguments})


@pytest.mark.parametrize("is_batched", [False, True])
def test_figures_outlive_a_loader_and_hold_nothing_of_it(is_batched: bool) -> None:
    record.listeners = (figures.keep,)
    with shmloader.patch():
        batches = BatchSampler(range(12), 4, drop_last=False)
        loader = make(batch_size=1, batch_sampler=batches) if is_batched else make()
        for _ in range(2):
            list(loader)
        there, dataset = weakref.ref(loader), weakref.ref(loader.dataset)
        expected = beside(loader).statistics()
        del loader
        gc.collect()
        assert (there(), dataset()) == (None, None)
    (entry,) = record.entries()
    found = entry.figures.statistics()
    for name in ("batches", "samples", "bytes", "seconds", "wait_seconds", "last_pass", "verdict"):
        assert getattr(found, name) == getattr(expected, name), name
    assert (found.batches, found.last_pass.batches) == (6, 3)


def test_loaders_that_are_alike_are_put_together_where_they_are_many() -> None:
    record.listeners = (figures.keep,)
    with shmloader.patch():
        list(make())
        for _ in range(5):
            list(make(num_workers=0))
        for _ in range(2):
            list(make(num_workers=0))
    text = told()
    assert text.startswith("shmloader, process 7: 8 loaders have begun a pass\n\n")
    assert text.count("1 pass, begun at") == 3
    together = text[text.index("5 of torch.utils.data.dataloader.DataLoader of Images: the loop's process") :]
    assert "5 passes, begun at" in together.splitlines()[0]
    assert next(line for line in together.splitlines() if line.startswith("batches")).split() == ["batches", "3", "15"]


def test_figures_of_several_loaders_are_their_sums() -> None:
    kept = []
    for number in range(3):
        loader = ShmDataLoader(Images(12), batch_size=4, num_workers=1 + number)
        for _ in range(1 + number):
            list(loader)
        lifetime.of(loader).meters.restarts.total = number
        kept.append((figures.Figures(loader), loader.statistics()))
        kept[-1][0].look(loader)
    found = figures.Figures.together([one for one, _ in kept])
    each = [one for _, one in kept]
    for name in ("batches", "samples", "bytes", "passes", "restarts", "waits"):
        assert getattr(found, name) == sum(getattr(one, name) for one in each), name
        assert getattr(found.last_pass, name) == getattr(each[-1].last_pass, name), name
    assert [worker.batches for worker in found.workers] == [
        sum(one.workers[number].batches for one in each[number:]) for number in range(3)
    ]
    assert found.last_pass.workers == each[-1].last_pass.workers


def test_nothing_ran() -> None:
    assert told() == "shmloader, process 7: no loader has begun a pass"
    assert told(3) == "[rank 3] shmloader, rank 3 (process 7): no loader has begun a pass"


def test_figures_that_cannot_be_had_do_not_stop_the_report() -> None:
    class Broken:
        def statistics(self) -> Any:
            raise OSError("gone")

    loader: Any = make()
    entry = record.begins(loader)
    entry.note(On.OURS)
    entry.figures = Broken()
    assert told(1).splitlines()[-1] == "[rank 1] (no figures: OSError: gone)"


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_stream_that_takes_no_report(is_closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(sys, "stderr", Closed() if is_closed else None)
    report._print("text")


@pytest.fixture
def _measured() -> Iterator[None]:
    seams = stock_meter.measure(is_all=True)
    yield
    seams.remove()


@pytest.mark.usefixtures("_measured")
@pytest.mark.parametrize("arguments", [{}, {"num_workers": 0}, {"persistent_workers": True}])
def test_torchs_own_iterators_are_measured(arguments: dict[str, Any]) -> None:
    loader = make(**arguments)
    for _ in range(2):
        iterator = iter(loader)
        assert type(iterator).__module__ == "torch.utils.data.dataloader"
        assert len(list(iterator)) == 3
    del iterator
    (entry,) = record.entries()
    assert entry.ran is not None
    assert (entry.ran.on, entry.ran.passes) == (On.IN_PROCESS if arguments.get("num_workers") == 0 else On.STOCK, 2)
    found = entry.figures.statistics()
    last = found.last_pass
    nbytes = 12 * (12 + 8)  # an image and a label
    assert (found.batches, found.samples, found.bytes) == (6, 24, 2 * nbytes)
    assert (last.batches, last.samples, last.bytes) == (3, 12, nbytes)
    assert 0 < last.wait_seconds <= last.seconds <= found.seconds
    assert last.first_wait_seconds <= last.start_seconds
    assert "the loop was in next for" in found.verdict
    together = stock_meter.StockMeter.together([entry.figures, entry.figures])
    assert (together.batches, together.last_pass.batches) == (12, 3)


@pytest.mark.usefixtures("_measured")
def test_our_own_loaders_among_torchs() -> None:
    record.listeners = (figures.keep,)
    loader = ShmDataLoader(Images(12), batch_size=4, num_workers=1)
    list(loader)
    (entry,) = record.entries()
    assert entry.ran is not None
    assert entry.ran.on is On.OURS
    assert entry.figures.statistics().batches == 3


def test_what_looks_at_torch_once_is_no_loader_of_the_scripts() -> None:
    torch_private.difference.cache_clear()
    seams = stock_meter.measure(is_all=True)
    try:
        list(ShmDataLoader(Images(12), batch_size=4, num_workers=1))
    finally:
        seams.remove()
    assert [ran.kind for ran in record.all()] == ["shmloader.loader.ShmDataLoader"]


@pytest.mark.usefixtures("_measured")
@pytest.mark.parametrize("is_on", [True, False])
def test_an_iterator_that_is_none_of_torchs(is_on: bool) -> None:
    class Odd(DataLoader[Any]):
        def _get_iterator(self) -> Any:
            return iter([1, 2])

    with shmloader.patch() if is_on else contextlib.nullcontext():
        assert list(Odd(Images(12))) == [1, 2]
        assert list(Odd(Images(12), num_workers=1, persistent_workers=True)) == [1, 2]
    assert record.entries() == []


def test_a_class_that_keeps_torchs_workers_is_measured_beside_ours() -> None:
    class Own(DataLoader[Any]):
        def _get_iterator(self) -> Any:
            return torch.utils.data.dataloader._MultiProcessingDataLoaderIter(self)

    with shmloader.patch():
        seams = stock_meter.measure(is_all=False)
        try:
            with pytest.warns(shmloader.StockLoaderWarning):
                list(Own(Images(12), batch_size=4, num_workers=1))
        finally:
            seams.remove()
    (entry,) = record.entries()
    assert entry.figures.statistics().samples == 12


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(3, 4), (3, 48)),
        ([torch.zeros(3), {"a": (np.zeros((3, 2), np.uint8), "text")}], (3, 18)),
        (torch.tensor(1.0), (1, 4)),
        ("text", (1, 0)),
        ([], (1, 0)),
    ],
)
def test_the_size_of_a_batch(batch: Any, expected: tuple[int, int]) -> None:
    assert stock_meter.size_of(batch) == expected


@pytest.fixture
def framework() -> Any:
    """A module that is installed, as far as its file's name says, and builds loaders anew."""
    module = types.ModuleType("some_framework")
    code = "def rebuilt(kind, loader):\n    return kind(loader.dataset, batch_size=2)\n"
    exec(compile(code, "/usr/lib/python3/site-packages/some_framework.py", "exec"), vars(module))
    return module


class Derived(DataLoader[Any]):
    def __init__(self, dataset: Any, **arguments: Any) -> None:
        super().__init__(dataset, **arguments)


def test_where_loaders_were_made_and_of_what(framework: Any) -> None:
    signature = inspect.signature(DataLoader.__init__)
    seams = births.Births().watch()
    try:
        assert inspect.signature(DataLoader.__init__) == signature
        data = TensorDataset(torch.arange(4))
        with shmloader.patch():
            ours, here = ShmDataLoader(data), f"{Path(__file__).name}:{inspect.currentframe().f_lineno}"  # type: ignore[union-attr]
            loaders = [ours, Derived(Images(2)), framework.rebuilt(DataLoader, ours), framework.rebuilt(Derived, ours)]
            for loader in loaders:
                list(loader)
    finally:
        seams.remove()
    notes = [entry.notes for entry in record.entries()]
    assert [len(one) for one in notes] == [1, 1, 2, 1]
    assert notes[0][0].startswith("made at ")
    assert notes[0][0].endswith(here)
    assert Path(__file__).name in notes[1][0]
    assert notes[2][0].startswith("made by some_framework of a shmloader.loader.ShmDataLoader, which was made at ")
    assert notes[2][0].endswith(here)
    assert notes[2][1] == "what that one had beyond torch's arguments is not there any more"
    assert "DataLoader" in notes[3][0]
    assert notes[2][1] in told()


def test_one_trace_of_several_loaders(tmp_path: Path) -> None:
    shared = trace.SharedTrace(tmp_path / "trace.json", trace.DEFAULT_BYTES)
    loaders = [ShmDataLoader(Images(12), num_workers=1, name=name) for name in ("a", "a", "b")]
    loaders.append(ShmDataLoader(Images(12), name="c"))
    for loader in loaders:
        shared.follow(lifetime.of(loader).watch, str(loader.name))
        list(loader)
    shared.close()
    shared.close()
    shared.follow(lifetime.of(loaders[0]).watch, "after the end")
    assert not any(lifetime.of(loader).watch.is_kept for loader in loaders)
    from shmloader.cli.trace.reading import read
    from shmloader.cli.trace.timeline import timelines

    found = timelines(read(tmp_path / "trace.json").events)
    assert sorted((one.label, len(one.steps)) for one in found) == [("a", 12), ("a (2)", 12), ("b", 12), ("c", 12)]


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8"}, 3),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 1),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, 1),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, 2),
        ({"RANK": "first", "WORLD_SIZE": "2"}, None),
    ],
)
def test_the_rank(environment: dict[str, str], number: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank() == number
    mark = "" if number is None else f".rank{number}"
    assert with_rank(Path("a/trace.json.gz")) == Path(f"a/trace{mark}.json.gz")
