"""Worker threads beside other loaders: what is measured, and what is said of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import threads
from benchmarks.cells import WAITING, Cell
from benchmarks.threads import CellThreads, Threads, first_batches, run_cell
from shmloader.cli.bench.figures import figure
from tests.helpers.support import children

_TINY = Cell("tiny", lambda: [(np.ones((2, 3), np.uint8), 1)] * 4, 2)


def test_a_cell_is_measured() -> None:
    before = children()
    done: list[None] = []
    found = run_cell(_TINY, 1, 2, seconds=0.01, done=lambda: done.append(None))
    assert children() == before
    assert len(done) == 3 * 3
    assert set(found.seconds) == {"threads", "processes", "stock"}
    assert all(len(took.rounds) == 2 and took.low > 0 for took in found.seconds.values())


def test_first_batches_are_measured() -> None:
    assert {name: len(took.rounds) for name, took in first_batches(1, 2).items()} == {
        "threads": 2,
        "processes": 2,
        "stock": 2,
    }


def test_the_cells_are_what_threads_are_for() -> None:
    assert [cell.name for cell in threads._CELLS] == ["wait5", "gray28", "jpeg224"]
    assert WAITING.source()[0][0].shape == (28, 28)


@pytest.mark.parametrize("peers", [[], ["spdl-threads"]])
def test_it_says_how_they_compare(peers: list[str]) -> None:
    seconds = {"threads": figure([2e-3] * 3), "processes": figure([3e-3] * 3), "stock": figure([4e-3] * 3)}
    halved = {name: took.scaled(0.5) for name, took in seconds.items()}
    cells = [CellThreads("one", 1, {**seconds, **{name: figure([6e-3] * 3) for name in peers}})]
    cells.append(CellThreads("one", 2, halved))
    found = Threads(cells, {"threads": figure([1e-3])}, peers)
    text = "\n".join(found.lines())
    extra = " 3.00x (3.00x to 3.00x) |" if peers else ""
    assert (
        "| one | 1 | 2.00 ms (2.00 ms to 2.00 ms) | 1.50x (1.50x to 1.50x) | 2.00x (2.00x to 2.00x) |" + extra in text
    )
    assert "| 2.00x (2.00x to 2.00x) |\n\n" in text
    assert ("no way to load it" in text) == bool(peers)
    assert "| threads | 1.00 ms |" in text
    assert json.loads(json.dumps(found.as_dict()))["cells"][0]["cell"] == "one"
