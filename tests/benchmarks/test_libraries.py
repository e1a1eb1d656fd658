"""Other libraries' batches: what is measured, and what is said of it."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.cells import Cell
from benchmarks.libraries import LIBRARIES, Libraries, Rows, run_cell
from shmloader.cli.bench.figures import figure
from tests.helpers.support import children

_TINY = Cell("tiny", lambda: [(np.ones((2, 3), np.uint8), 1)] * 4, 2)


def test_a_cell_is_measured() -> None:
    before = children()
    done: list[None] = []
    found = run_cell(_TINY, 1, 2, seconds=0.01, done=lambda: done.append(None))
    assert children() == before
    assert len(done) == 2 * 3
    assert {name: len(rounds) for name, rounds in found.items()} == {"shmloader": 2, "stock": 2}


def test_the_table_and_the_json_say_how_much_faster() -> None:
    seconds = {"shmloader": figure([1e-3, 1e-3]), "stock": figure([2e-3, 4e-3])}
    found = Libraries({"rows": seconds}, {"rows": {"shmloader": figure([1e-3]), "stock": figure([5e-3])}})
    assert found.lines()[-1] == (
        "| rows | 3.00 ms (2.00 ms to 4.00 ms) | 1.00 ms (1.00 ms to 1.00 ms) | 3.00x (2.00x to 4.00x) "
        "| 5.00 ms | 1.00 ms |"
    )
    assert json.loads(json.dumps(found.as_dict()))["faster"]["rows"]["median"] == 3


class ManyAtATime(list[int]):
    """Is read by a list of indices."""

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [self[index] for index in indices]


def test_rows_come_over_and_over() -> None:
    rows = Rows(ManyAtATime([5, 6, 7]))
    assert rows.__getitems__([0, 2, 3, 1000 * 3 + 1]) == [5, 7, 5, 6]


def test_cells_have_names_of_their_own() -> None:
    assert len({library.name for library in LIBRARIES}) == len(LIBRARIES)
