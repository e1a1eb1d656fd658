"""The beginning and the end of passes: what lies between the two looks at the clock, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import edges
from benchmarks.cells import Cell, Samples
from benchmarks.edges import CLOSE, FIRST, NEW, STAY, CellEdges, Edges, measure_cell, turns
from shmloader.cli.bench.figures import figure
from shmloader.cli.bench.memory import Memory
from tests.helpers.support import children


class _Logged:
    """A loader of two batches that notes what is done with it."""

    num_workers = 1
    prefetch_factor = 1

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[int]:
        self._log.append("begin")
        for number in range(2):
            self._log.append("batch")
            yield number
        self._log.append("end")

    def __del__(self) -> None:
        self._log.append("dropped")


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        (edges.next_pass, "begin batch batch CLOCK end begin batch CLOCK dropped"),
        (edges.close, "begin batch batch end CLOCK dropped CLOCK"),
    ],
)
def test_only_the_edge_is_timed(take: Callable[[Any], float], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def clock() -> float:
        log.append("CLOCK")
        return len(log)

    monkeypatch.setattr(edges, "time", SimpleNamespace(perf_counter=clock))
    assert take(lambda: _Logged(log)) == expected[expected.index("CLOCK") : expected.rindex("CLOCK")].count(" ")
    assert " ".join(log) == expected


def test_bare_processes_start_and_end() -> None:
    before = children()
    assert edges.bare(Samples([1]), 2) > 0
    assert children() == before


_TINY = Cell("tiny", lambda: [(np.ones((2, 3), np.uint8), 1)] * 4, 2)


def test_a_cell_is_measured() -> None:
    done: list[None] = []
    found = measure_cell(_TINY, 1, 2, lambda: done.append(None))
    assert len(done) == turns(2)
    assert {edge: set(took) for edge, took in found.seconds.items()} == {
        FIRST: {"ours", "stock", "bare"},
        STAY: {"ours", "stock"},
        NEW: {"ours", "stock"},
        CLOSE: {"ours", "stock"},
    }
    assert all(len(each.rounds) == 2 and each.low > 0 for took in found.seconds.values() for each in took.values())
    assert all(memory is None or memory.total > 0 for memory in found.memory.values())
    assert json.loads(json.dumps(found.as_dict()))["cell"] == "tiny"


def _found(cell: str, memory: Memory | None) -> CellEdges:
    took = {"ours": figure([1e-3, 2e-3, 3e-3]), "stock": figure([2e-3, 6e-3, 12e-3])}
    seconds = {edge: dict(took) for edge in (FIRST, STAY, NEW, CLOSE)}
    seconds[FIRST]["bare"] = figure([1e-3, 1e-3, 1e-3])
    return CellEdges(cell, seconds, {"ours": memory, "stock": memory})


def test_it_says_how_they_compare() -> None:
    found = Edges([_found("one", Memory(5_000_000, 0)), _found("two", None)], num_workers=2)
    text = "\n".join(found.lines())
    assert "| close, workers idle | 2.00 ms (1.00 ms to 3.00 ms) | 6.00 ms (2.00 ms to 12.0 ms) | 3.00x" in text
    assert "| first batch / processes alone | 2.00x (1.00x to 3.00x) |  |  |" in text
    assert "| memory added (PSS) | 5.00 MB | 5.00 MB |  |" in text
    assert "| shared memory in transit | not known | not known |  |" in text
    assert found.as_dict()["num_workers"] == 2
    assert found.as_dict()["cells"][1]["memory_bytes"] == {"ours": None, "stock": None}
