"""What a trace costs: stretches with and without one are measured, and a real trace is drawn."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import tracing
from benchmarks.cells import Cell
from benchmarks.tracing import Cost, Tracing, add_options, measure
from shmloader.cli.bench.figures import figure


def test_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_CELLS", {"gray28": Cell("gray28", lambda: [(bytes(4), 1)] * 64, 4)})
    monkeypatch.setattr(tracing, "_MEASURED", ("gray28",))
    parser = argparse.ArgumentParser()
    add_options(parser)
    found = measure(parser.parse_args(["--rounds", "2", "--milliseconds", "5"]))
    cost = found.costs["gray28"]
    assert all(len(one.rounds) == 2 and one.median >= 0 for one in vars(cost).values())


def test_the_ratio_is_that_of_pairs() -> None:
    others = figure([1e-6]), figure([1e-6]), figure([1e-6])
    found = Tracing({"cell": Cost(figure([1e-6, 2e-6]), figure([2e-6, 8e-6]), *others)})
    assert found.costs["cell"].ratio.median == pytest.approx(3)
    assert "| cell |" in found.lines()[2]
    assert json.loads(json.dumps(found.as_dict()))["cell"]["ratio"]["median"] == pytest.approx(3)


@pytest.mark.usefixtures("_matplotlib")
def test_a_training_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_DRAWN_BATCHES", 3)
    Tracing({}).draw(tmp_path, [])
    assert (tmp_path / "trace.png").read_bytes()[:4] == b"\x89PNG"
