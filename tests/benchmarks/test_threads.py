"""Worker threads beside other loaders: what is measured, and what is said of it."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from benchmarks import threads
from benchmarks.bare_threads import BareThreads
from benchmarks.cells import WAITING, Cell
from benchmarks.threads import CellThreads, Threads, first_batches, run_cell
from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import figure
from tests.helpers.datasets import Mapped
from tests.helpers.support import children

_TINY = Cell("tiny", lambda: [(np.ones((2, 3), np.uint8), 1)] * 4, 2)


def test_a_cell_is_measured() -> None:
    before = children()
    done: list[None] = []
    found = run_cell(_TINY, 1, 2, seconds=0.01, done=lambda: done.append(None))
    assert children() == before
    assert len(done) == 3 * 4
    assert set(found.seconds) == {"threads", "bare threads", "processes", "stock"}
    assert all(len(took.rounds) == 2 and took.low > 0 for took in found.seconds.values())


def test_first_batches_are_measured() -> None:
    assert {name: len(took.rounds) for name, took in first_batches(1, 2).items()} == {
        "threads": 2,
        "bare threads": 2,
        "processes": 2,
        "stock": 2,
    }


@pytest.mark.parametrize("num_workers", [1, 3])
def test_bare_threads_load_what_the_others_do(num_workers: int) -> None:
    before = threading.enumerate()
    dataset = Mapped(lambda index: (np.full((2, 3), index, np.uint8), index), 26)
    batches = [[array.tolist() for array in batch] for batch in BareThreads(dataset, 4, num_workers=num_workers)]
    ours = ShmDataLoader(dataset, 4, num_workers=num_workers, drop_last=True)
    assert batches == [[image.tolist(), label.tolist()] for image, label in ours]
    assert threading.enumerate() == before


def test_bare_threads_of_one_number_a_sample_that_are_left_early() -> None:
    before = threading.enumerate()
    iterator = iter(BareThreads(range(1 << 40), 4, num_workers=2))
    assert [next(iterator)[0].tolist() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    del iterator
    assert threading.enumerate() == before


def test_bare_threads_raise_what_the_dataset_does() -> None:
    before = threading.enumerate()
    with pytest.raises(ZeroDivisionError):
        list(BareThreads(Mapped(lambda index: 1 // (index - 9), 100), 4, num_workers=2))
    assert threading.enumerate() == before


def test_the_cells_are_what_threads_are_for() -> None:
    assert [cell.name for cell in threads._CELLS] == ["wait5", "gray28", "jpeg224"]
    assert WAITING.source()[0][0].shape == (28, 28)


@pytest.mark.parametrize("peers", [[], ["spdl-threads"]])
def test_it_says_how_they_compare(peers: list[str]) -> None:
    took = {"threads": 2e-3, "bare threads": 1e-3, "processes": 3e-3, "stock": 4e-3}
    seconds = {name: figure([each] * 3) for name, each in took.items()}
    halved = {name: each.scaled(0.5) for name, each in seconds.items()}
    cells = [CellThreads("one", 1, {**seconds, **{name: figure([6e-3] * 3) for name in peers}})]
    cells.append(CellThreads("one", 2, halved))
    found = Threads(cells, {"threads": figure([1e-3])}, peers)
    text = "\n".join(found.lines())
    extra = " 3.00x (3.00x to 3.00x) |" if peers else ""
    to_threads = " | ".join(f"{each} ({each} to {each})" for each in ("0.50x", "1.50x", "2.00x"))
    assert f"| one | 1 | 2.00 ms (2.00 ms to 2.00 ms) | {to_threads} |{extra}" in text
    assert "| 2.00x (2.00x to 2.00x) |\n\n" in text
    assert ("no way to load it" in text) == bool(peers)
    assert "| threads | 1.00 ms |" in text
    assert json.loads(json.dumps(found.as_dict()))["cells"][0]["cell"] == "one"
