"""Lines of figures come when they are due, from the loop's own steps, and no sink stops the loop."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import logging
import os
import pickle
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from tqdm import tqdm

import shmloader
from shmloader import CsvSink, LoaderStatistics, LogSink, ShmDataLoader, TensorBoardSink, TqdmSink
from shmloader.observe import report as report_module
from shmloader.observe import sinks
from shmloader.passes.lifetime import Lifetime
from tests.helpers.support import bits


class Clock:
    """A time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(report_module, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def _says_all(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # it would start a thread
    with caplog.at_level(logging.INFO, "shmloader"):
        yield


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "shmloader"]


def loader_of(batches: int = 20, **arguments: Any) -> ShmDataLoader[Any]:
    dataset = TensorDataset(torch.arange(4 * batches))
    return ShmDataLoader(dataset, batch_size=4, **{"num_workers": 1, "worker_type": "thread", **arguments})


def run(loader: ShmDataLoader[Any]) -> int:
    """Returns how many batches came; none is held."""
    return sum(1 for _ in loader)


def raise_in(report: Any, loader: ShmDataLoader[Any], clock: Clock) -> None:
    with report:
        for _, _ in zip(range(3), loader, strict=False):
            clock.now += 1
        raise LookupError


@dataclasses.dataclass(frozen=True)
class Worker:
    batches: int
    state: str


@dataclasses.dataclass(frozen=True)
class Figures:
    """Statistics with all that a line may have."""

    name: str
    batches: int
    samples: int
    wait_seconds: float
    verdict: str = ""
    copies: int = 0
    restarts: int = 2
    is_open: bool = True
    workers: tuple[Worker, ...] = (Worker(3, "busy"), Worker(4, "idle"))
    rates: dict[str, float] = dataclasses.field(default_factory=lambda: {"batches": 1.5})
    bytes: int | None = None


class Fake:
    """A loader that says what it is told to."""

    name = "train"

    def __init__(self) -> None:
        self._lifetime = Lifetime()
        self.batches, self.waited, self.verdict = 0, 0.0, ""

    def statistics(self) -> Any:
        return Figures(self.name, self.batches, 4 * self.batches, self.waited, self.verdict)

    def step(self, batches: int, waited: float) -> None:
        self.batches += batches
        self.waited += waited
        self._lifetime.steps.tell()


FIGURES: Any = Figures("val", 7, 28, 3.14)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_line_when_it_is_due_and_at_the_end_of_each_pass(
    clock: Clock, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    loader = loader_of(name="train", num_workers=num_workers)
    got: list[LoaderStatistics] = []
    with shmloader.report(loader, every=10, to=got.append):
        for _ in range(2):
            for number, _ in enumerate(loader):
                if number == 9:
                    clock.now += 9
                    assert len(lines(caplog)) % 2 == 0
                    clock.now += 3
            clock.now += 1
    assert [one.batches for one in got] == [10, 20, 30, 40]
    assert len(lines(caplog)) == 4, "nothing new came after the last pass"
    assert lines(caplog)[0].startswith("train: 10 batches, 10 in the last 12 s (0.833/s)")
    assert loader._lifetime.steps.listeners == ()


def test_a_pass_that_is_left_has_its_line_at_the_end_of_the_block(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    loader = loader_of()
    with pytest.raises(LookupError):
        raise_in(shmloader.report([loader], every=10), loader, clock)
    assert len(lines(caplog)) == 1
    assert lines(caplog)[0].startswith("TensorDataset: 3 batches, 3 in the last 3 s (1/s)")


def test_a_pass_that_is_under_way_is_reported(clock: Clock) -> None:
    loader = loader_of()
    iterator = iter(loader)
    next(iterator)
    got: list[LoaderStatistics] = []
    with shmloader.report(loader, every=1, to=got.append):
        for _ in range(3):
            clock.now += 2
            next(iterator)
    del iterator
    assert [one.batches for one in got] == [2, 3, 4]


def test_several_loaders_each_have_their_own_clock(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    train, val = loader_of(name="train"), loader_of(name="val")
    with shmloader.report([train, val], every=10):
        both = iter(train), iter(val)
        next(both[0]), next(both[1])
        clock.now += 11
        next(both[1])
        assert [line.split(":")[0] for line in lines(caplog)] == ["val"]
        next(both[0])
        assert [line.split(":")[0] for line in lines(caplog)] == ["val", "train"]
    del both


def test_loaders_without_names_and_of_one_name_are_told_apart(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    loaders = [loader_of(), loader_of(name="train"), loader_of(), loader_of(name="train")]
    names = ["TensorDataset", "train", "TensorDataset (2)", "train (2)"]
    got: list[LoaderStatistics] = []
    tags: set[str] = set()

    class Writer:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            tags.add(tag)

    with shmloader.report(loaders, to=[got.append, TensorBoardSink(Writer())]):
        for loader in loaders:
            assert sum(1 for _ in loader) == 20
    assert [line.split(":")[0] for line in lines(caplog)] == names
    assert [one.name for one in got] == names
    assert {tag.split("/")[1] for tag in tags} == set(names)
    assert [one.batches for one in got] == [20] * 4


def test_a_line_is_about_the_time_since_the_pass_began(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    loader = loader_of()
    with shmloader.report(loader, every=10):
        clock.now += 100
        for _ in range(2):
            for _ in loader:
                clock.now += 0.25
            clock.now += 100  # the loop does something else
    assert len(lines(caplog)) == 2
    assert all("batches, 20 in the last 5 s (4/s)" in line for line in lines(caplog))


def test_reports_within_reports(clock: Clock) -> None:
    outer: list[Any] = []
    inner: list[Any] = []
    loader = loader_of()
    with shmloader.report(loader, every=10, to=outer.append):
        with shmloader.report(loader, every=10, to=inner.append):
            run(loader)
        run(loader)
    assert (len(outer), len(inner)) == (2, 1)


def test_batches_are_those_that_came_without(clock: Clock) -> None:
    expected = [bits(batch[0]) for batch in loader_of()]

    def moving(statistics: LoaderStatistics) -> None:
        clock.now += 1

    with shmloader.report(loader := loader_of(), every=0.5, to=[moving]):
        clock.now += 1
        assert [bits(batch[0]) for batch in loader] == expected


def test_a_lag_is_warned_of_at_most_once_in_ten_lines(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake()
    fake.verdict = "raise num_workers"
    with shmloader.report(fake, every=10):
        for _ in range(25):
            clock.now += 10
            fake.step(100, 5)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    assert warnings[0].getMessage() == (
        "train: loading lags behind: the loop has waited for batches 50 % of the last 10 s; raise num_workers"
    )
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(said) == 25
    assert said[0] == ("train: 100 batches, 100 in the last 10 s (10/s), 40 samples/s, 50% waiting")
    assert caplog.records.index(warnings[0]) == 2, "the first line is of workers that were just started"


def test_the_last_line_has_the_verdict(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake()
    fake.verdict = "raise num_workers"
    with shmloader.report(fake, every=10):
        for _ in range(2):
            clock.now += 10
            fake.step(100, 0)
        clock.now += 1
        fake.batches += 1
    assert [line.endswith("; raise num_workers") for line in lines(caplog)] == [False, False, True]


def test_no_warning_where_the_loop_hardly_waits(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake()
    with shmloader.report(fake, every=10):
        for _ in range(5):
            clock.now += 10
            fake.step(100, 1)
    assert all(record.levelno == logging.INFO for record in caplog.records)


def test_figures_that_begin_anew(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake()
    with shmloader.report(fake, every=10):
        clock.now += 10
        fake.step(100, 1)
        fake.batches, fake.waited = 0, 0.0
        clock.now += 10
        fake.step(30, 1)
    assert "30 batches, 30 in the last 10 s (3/s)" in lines(caplog)[1]


def test_a_sink_that_raises_is_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Any] = []

    def failing(statistics: LoaderStatistics) -> None:
        calls.append(statistics)
        raise ConnectionError("no network")

    others: list[Any] = []
    loader = loader_of()
    with shmloader.report(loader, every=10, to=[failing, others.append]):
        for _ in loader:
            clock.now += 10
    assert len(calls) == len(others) > 10
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "failing" in errors[0].getMessage()
    assert "ConnectionError: no network" in errors[0].getMessage()
    assert errors[0].exc_info is None, "it would hold the iterator"


def test_an_interrupt_in_a_sink_loses_no_batch(clock: Clock) -> None:
    interrupts = [KeyboardInterrupt()]

    def interrupted(statistics: LoaderStatistics) -> None:
        if interrupts:
            raise interrupts.pop()

    iterator = iter(loader := loader_of())
    with shmloader.report(loader, every=10, to=interrupted):
        got = [next(iterator)[0].tolist()]
        clock.now += 11
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
        got += [batch[0].tolist() for batch in iterator]
    assert [number for batch in got for number in batch] == list(range(80))


def test_a_sink_that_iterates_the_loader(clock: Clock) -> None:
    loader = loader_of()
    firsts: list[Any] = []

    def peeking(statistics: LoaderStatistics) -> None:
        firsts.append(next(iter(loader))[0].tolist())

    with shmloader.report(loader, every=10, to=peeking):
        for _ in loader:
            clock.now += 10
    assert firsts
    assert all(first == [0, 1, 2, 3] for first in firsts)


def test_without_workers_there_is_no_harm() -> None:
    loader = loader_of(num_workers=0, worker_type="process")
    with shmloader.report(loader, every=1e-9):
        assert run(loader) == 20


def test_a_forked_process_reports_nothing(clock: Clock) -> None:
    reader, writer = os.pipe()
    loader = loader_of()

    def say(statistics: LoaderStatistics) -> None:
        os.write(writer, b"%d " % os.getpid())

    with shmloader.report(loader, every=1, to=say):
        next(iter(loader))
        if not (child := os.fork()):
            try:
                clock.now += 5
                os._exit(0 if run(loader) == 20 else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    os.close(writer)
    assert set(os.read(reader, 1000).split()) == {b"%d" % os.getpid()}
    os.close(reader)


def test_a_copy_of_a_loader_is_not_reported() -> None:
    loader = loader_of()
    with shmloader.report(loader):
        assert copy.copy(loader)._lifetime.steps.listeners == ()
        assert pickle.loads(pickle.dumps(loader))._lifetime.steps.listeners == ()


def test_a_report_is_for_one_block_at_a_time() -> None:
    loader = loader_of()
    again = shmloader.report(loader)
    with again, pytest.raises(RuntimeError, match="already"):
        again.__enter__()
    with again:
        pass
    assert loader._lifetime.steps.listeners == ()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"loader": 3}, "report takes a ShmDataLoader"),
        ({"loader": [object()]}, "report takes a ShmDataLoader"),
        ({"loader": torch.utils.data.DataLoader(TensorDataset(torch.ones(1)))}, "report takes a ShmDataLoader"),
        ({"every": 0}, "every must be a positive"),
        ({"every": -(10**400)}, "every must be a positive"),
        ({"every": float("nan")}, "every must be a positive"),
        ({"every": "1"}, "every must be a number"),
        ({"to": 3}, "to must be a function"),
        ({"to": ["x"]}, "to must be a function"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        shmloader.report(**{"loader": Fake(), **arguments})


@pytest.mark.parametrize("every", [np.int64(3), np.float32(0.5), Fraction(1, 3), 10**400])
def test_numbers_of_other_kinds_are_seconds_too(every: Any) -> None:
    with shmloader.report(Fake(), every=every):
        pass


# -- sinks ---------------------------------------------------------------------------------------------------------


def test_figures_by_name() -> None:
    assert sinks.flat(FIGURES) == {
        "name": "val",
        "batches": 7,
        "samples": 28,
        "wait_seconds": 3.14,
        "verdict": "",
        "copies": 0,
        "restarts": 2,
        "is_open": True,
        "workers/0/batches": 3,
        "workers/0/state": "busy",
        "workers/1/batches": 4,
        "workers/1/state": "idle",
        "rates/batches": 1.5,
        "bytes": None,
    }


NUMBERS = {f"shmloader/val/{name}": value for name, value in sinks.flat(FIGURES).items() if type(value) in (int, float)}


def test_tensorboard(tmp_path: Path) -> None:
    class Writer:
        def __init__(self) -> None:
            self.got: list[tuple[Any, ...]] = []

        def add_scalar(self, *args: Any) -> None:
            self.got.append(args)

    writer = Writer()
    TensorBoardSink(writer)(FIGURES)
    assert writer.got == [(tag, value, 7) for tag, value in NUMBERS.items()]


def test_functions_of_a_dict() -> None:
    got: list[Any] = []

    def log(figures: dict[str, float], commit: bool) -> None:
        got.append((figures, commit))

    LogSink(log, commit=False)(FIGURES)
    assert got == [(NUMBERS, False)]


def test_files_of_values(tmp_path: Path) -> None:
    path = tmp_path / "loader.csv"
    CsvSink(path)(FIGURES)
    more = dataclasses.replace(FIGURES, verdict='say "no, thanks"\n', workers=(Worker(5, "x"),) * 3)
    CsvSink(str(path))(more)
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert {name: value for name, value in first.items() if name != "time"} == {
        name: "" if value is None else str(value) for name, value in sinks.flat(FIGURES).items()
    }
    assert second["verdict"] == 'say "no, thanks"\n'
    assert second["workers/1/batches"] == "5"
    assert float(second["time"]) >= float(first["time"])


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match="is not a file of CsvSink's"):
        CsvSink(path)(FIGURES)
    assert path.read_text() == "epoch,loss\n1,2\n"
    with pytest.raises(OSError, match="no such"):
        CsvSink(tmp_path / "no such" / "x.csv")(FIGURES)
    CsvSink("/dev/null")(FIGURES)
    with pytest.raises(OSError, match="No space left"):  # and its endless first row is not read
        CsvSink("/dev/full")(FIGURES)


def test_a_row_that_was_cut_is_not_gone_on_with(tmp_path: Path) -> None:
    """Wherever that was, also within a text with commas."""
    path = tmp_path / "loader.csv"
    figures = dataclasses.replace(FIGURES, verdict='many, many "workers"')
    CsvSink(path)(figures)
    header = len(path.read_bytes().splitlines(keepends=True)[0])
    CsvSink(path)(figures)
    whole = path.read_bytes()
    second = whole.index(b"\n", header) + 1
    for size in range(second, len(whole)):
        path.write_bytes(whole[:size])
        CsvSink(path)(dataclasses.replace(figures, batches=99))
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert (rows[0]["batches"], rows[0]["verdict"]) == ("7", figures.verdict)
        assert (rows[-1]["batches"], rows[-1]["verdict"]) == ("99", figures.verdict)
        assert len(rows) == (2 if size == second else 3)


def test_names_that_were_cut_are_told(tmp_path: Path) -> None:
    path = tmp_path / "loader.csv"
    CsvSink(path)(FIGURES)
    names = path.read_bytes().splitlines(keepends=True)[0]
    for size in range(1, len(names)):
        path.write_bytes(names[:size])
        with pytest.raises(ValueError, match="cut in its first row"):
            CsvSink(path)(FIGURES)
        assert path.read_bytes() == names[:size]


def test_progress_bars() -> None:
    with tqdm(total=3, file=io.StringIO()) as bar:
        TqdmSink(bar)(FIGURES)
        assert bar.postfix == "restarts=2, waited=3.1s" or bar.postfix == "waited=3.1s, restarts=2"


@pytest.mark.parametrize("sink", [TensorBoardSink, LogSink, TqdmSink])
def test_sinks_that_cannot_write(sink: Any) -> None:
    with pytest.raises(TypeError, match=sink.__name__):
        sink(object())


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_all_sinks_take_what_a_loader_says(worker_type: str, tmp_path: Path) -> None:
    got: list[Any] = []
    loader = loader_of(worker_type=worker_type, name="train")
    with (
        tqdm(total=3, file=io.StringIO()) as bar,
        shmloader.report(loader, to=[TqdmSink(bar), CsvSink(tmp_path / "x.csv"), LogSink(got.append)]),
    ):
        run(loader)
    assert any(key.endswith("/batches") and value == 20 for key, value in got[0].items())
