"""Producers beside queues: everything is measured, ends, and is said."""

from __future__ import annotations

import json

import pytest

from benchmarks.producers import CONTESTANTS, LIMIT, OURS, ProducersFound, SizeFound, measure_size
from shmloader.cli.bench.figures import figure
from tests.helpers.support import children


def test_a_size_is_measured() -> None:
    before = children()
    done: list[None] = []
    found = measure_size(5000, 1, 2, seconds=0.01, done=lambda: done.append(None))
    assert len(done) == 3 * len(CONTESTANTS)
    assert set(found.rates) == set(CONTESTANTS)
    assert all(len(rate.rounds) == 2 and rate.low > 0 for rate in found.rates.values())
    assert children() == before
    assert json.loads(json.dumps(found.as_dict()))["nbytes"] == 5000


def test_it_says_how_they_compare() -> None:
    rates = {OURS: figure([100.0, 200.0, 300.0]), LIMIT: figure([200.0, 400.0, 300.0])}
    found = ProducersFound([SizeFound(10_000_000, rates)], 2)
    assert found.lines()[2:] == [
        "| 10.0 MB, Producer | 200 (100 to 300) | 2.00 GB (1.00 GB to 3.00 GB) |  |",
        "| 10.0 MB, limit | 300 (200 to 400) | 3.00 GB (2.00 GB to 4.00 GB) | 0.50x (0.50x to 1.00x) |",
    ]
    assert found.as_dict()["sizes"][0]["ours_to"][LIMIT]["median"] == pytest.approx(0.5)
