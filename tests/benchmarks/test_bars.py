"""What is left of the bars: that each experiment measures what it says, leaves nothing, and says what it has found."""

from __future__ import annotations

import contextlib
import itertools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.bars import PARTS, Bars, closing, holding, least, passes, profile, waking
from benchmarks.bars.holding import Holding
from benchmarks.bars.least import LIMIT, OURS, PIPES, Least
from benchmarks.bars.passes import Pass, Passes
from benchmarks.bars.pipes import Pipes
from benchmarks.bars.waking import Waking
from benchmarks.cells import Cell
from shmloader.cli.bench.figures import figure
from shmloader.cli.bench.measure import Round
from tests.helpers.support import children


def _samples() -> list[Any]:
    return [(np.full((2, 3), number, np.uint8), number) for number in range(4)]


TINY = Cell("tiny", _samples, 2)


def test_pipes_give_batches_in_turn_and_end() -> None:
    before = children()
    with contextlib.closing(Pipes(TINY, 2)) as pipes:
        assert len(list(itertools.islice(pipes, 50))) == 50
        assert len(children() - before) == 2
    assert children() == before


def test_pipes_of_which_nobody_reads_end() -> None:
    before = children()
    Pipes(TINY, 2).close()
    assert children() == before


def test_a_cell_is_measured_beside_pipes_and_the_limit() -> None:
    before, done = children(), list[None]()
    rounds, faults = least.measure_cell(TINY, 1, 2, 0.02, lambda: done.append(None))
    assert set(rounds) == {OURS, PIPES, LIMIT}
    assert all(len(took) == 2 and took[0].per_batch > 0 for took in rounds.values())
    assert faults >= 0
    assert len(done) == 9
    assert children() == before


def test_small_samples_come_in_batches_as_long_as_those_of_pictures() -> None:
    sizes = {cell.batch_size for cell in least.LEAST_CELLS}
    assert {cell.batch_size for cell in least.LEAST_CELLS if cell.name.startswith("floats8")} >= sizes - {32}


def test_what_comes_before_the_lines_is_not_in_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def clock() -> float:
        log.append("clock")
        return len(log)

    monkeypatch.setattr(waking, "time", SimpleNamespace(thread_time=clock))
    monkeypatch.setattr(waking, "lines_of_python", lambda: log.append("lines"))
    monkeypatch.setattr(waking, "_REPEATS", 2)
    assert waking._pair(lambda: log.append("before"), None) == (2, 2)
    assert log == ["before", "clock", "lines", "clock", "lines", "clock"] * 2


def test_others_run_beside_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    monkeypatch.setattr(waking, "_REPEATS", 1)
    first, second = waking._pair(lambda: None, waking._calculate)
    assert min(first, second) > 0
    assert children() == before


def test_libraries_are_grouped() -> None:
    report = "60.50% ;libpython3.11.so.1.0  \n 20.25;[kernel.kallsyms]\n10.00%;libtorch_cpu.so\n9.25;something.so\n\n"
    shares = profile.grouped(report)
    assert shares == pytest.approx(
        {"Python": 0.605, "kernel": 0.2025, "libc": 0, "torch": 0.1, "numpy": 0, "others": 0.0925}
    )
    assert profile.grouped("no data") is None


@pytest.mark.parametrize("is_there", [True, False])
def test_a_profile_is_taken_where_perf_is_there(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    if not is_there:
        monkeypatch.setattr("benchmarks.bars.profile.shutil.which", lambda name: None)
    found = profile.measure(1, seconds=0.1, cells=(TINY,))
    assert found.cpu["tiny"] > 0
    shares = found.shares["tiny"]
    assert shares is None or sum(shares.values()) == pytest.approx(1, abs=0.05)
    assert is_there or shares is None
    assert children() == before


def test_passes_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    found = passes.measure(2, batches=60)
    assert [len(each) for each in found.loaders] == [5, 5]
    assert all(one.wall > 0 and one.faults >= 0 for each in found.loaders for one in each)
    assert all(each[0].workers_faults > 0 for each in found.loaders)  # they have started
    assert "| 1 |" in "\n".join(found.lines())
    assert children() == before


def test_processes_that_share_memory_end() -> None:
    before = children()
    assert closing.end_of_processes(2, 0) > 0
    assert all(closing.end_of_processes(2, 1 << 20, early=early) > 0 for early in (False, True))
    assert children() == before


def test_an_end_is_measured() -> None:
    done: list[None] = []
    found = closing.measure(2, lambda: done.append(None), cell=TINY)
    assert len(done) == closing.turns(2)
    assert found.nbytes > 0
    assert all(len(took.rounds) == 2 and took.low > 0 for took in found.seconds.values())


def test_memory_is_measured_with_batches_held_and_dropped() -> None:
    done: list[None] = []
    found = holding.measure(1, lambda: done.append(None), cell=TINY)
    assert len(done) == holding.turns(1)
    assert set(found.added) == {(name, drops) for name in ("ours", "torch's") for drops in (False, True)}
    assert json.loads(json.dumps(found.as_dict()))["batch_bytes"] == 2 * (6 + 8)


def test_it_says_what_was_found() -> None:
    took = [Round(10, 0.002, 0.001), Round(10, 0.004, 0.001)]
    parts: dict[str, Any] = {
        "waking": Waking({"right after themselves": [(2e-6, 1e-6), (4e-6, 2e-6)]}),
        "profile": profile.Profile(
            {"cell": 2e-4, "other": 1e-5},
            {"cell": {"Python": 0.7, "kernel": 0.2, "libc": 0, "torch": 0.1, "numpy": 0, "others": 0}, "other": None},
        ),
        "least": Least({"cell": {OURS: took, PIPES: took, LIMIT: took}}, {"cell": 0.25}),
        "passes": Passes([[Pass(2e-5, 1e-5, 0.02, 10, 20)] * 5] * 2),
        "closing": closing.Closing(10**6, {"ours": figure([1e-3, 2e-3])}),
        "holding": Holding(10**6, {("ours", False): 6 * 10**6, ("ours", True): None}
                           | dict.fromkeys([("torch's", False), ("torch's", True)], 5 * 10**6)),
    }  # fmt: skip
    found = Bars(parts)
    text = "\n".join(found.lines())
    for line in (
        "| right after themselves | 3.0 (2.0 to 4.0) | 1.5 (1.0 to 2.0) | 2.00x (2.00x to 2.00x) |",
        "| cell | 300 (200 to 400) | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) | 100 (100 to 100) |",
        "| cell | 200.0 | 70% | 20% | 0% | 10% | 0% | 0% |",
        "| other | 10.0 | not known |",
        "| 5 | 20.0 (20.0 to 20.0) | 1.00x (1.00x to 1.00x) | 10.0 (10.0 to 10.0) | 10 | 20 | 20.0 |",
        "| ours | 1.50 ms (1.00 ms to 2.00 ms) |",
        "| holds its batch until it has the next | 6.00 MB, 6.0 batches | 5.00 MB, 5.0 batches |",
        "| drops its batch before it asks | not known | 5.00 MB, 5.0 batches |",
    ):
        assert line in text
    assert set(json.loads(json.dumps(found.as_dict()))) == {part.name for part in PARTS}


def test_each_part_counts_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "_REPEATS", 1)
    done: list[None] = []
    waking.measure(1, lambda: done.append(None))
    assert len(done) == waking.turns(1)
    assert passes.turns(3) == 15
