"""What recording costs: both kinds are measured in processes of their own, and the difference is that of rounds."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks.recording import Cost, Recording, add_options, measure
from shmloader.cli.bench.figures import figure
from shmloader.workers.recorder import Recorder


def test_it_is_measured() -> None:
    before = Recorder.end
    parser = argparse.ArgumentParser()
    add_options(parser)
    found = measure(parser.parse_args(["--rounds", "1", "--batches", "20"]))
    assert set(found.costs) == {"single28", "gray28"}
    # The kernel counts a process's time up to when it was last looked at, which may be before a short stretch.
    assert all(side.median >= 0 for cost in found.costs.values() for side in vars(cost).values())
    assert all(cost.loop.median > 0 for cost in found.costs.values())
    assert Recorder.end is before


def test_it_says_what_is_added() -> None:
    cost = Cost(figure([20e-6, 24e-6]), figure([19e-6, 25e-6]), figure([12e-6, 12e-6]), figure([11e-6, 10e-6]))
    assert [one.rounds for one in cost.added] == [pytest.approx((1e-6, -1e-6)), pytest.approx((1e-6, 2e-6))]
    found = Recording({"single28": cost})
    assert found.lines()[-1].endswith("| 0.0 (-1.0 to 1.0) | 1.5 (1.0 to 2.0) |")
    assert json.loads(json.dumps(found.as_dict()))["single28"]["added_worker"]["median"] == pytest.approx(1.5e-6)
