"""What seeding for each sample costs: all three are measured, and the difference is that of rounds."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks.seeding import Seeding, add_options, measure
from shmloader.cli.bench.figures import figure


def test_it_is_measured() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    found = measure(parser.parse_args(["--rounds", "2", "--samples", "100"]))
    assert len(found.seconds) == 3
    assert all(len(one.rounds) == 2 and one.median > 0 for one in found.seconds.values())


def test_it_says_what_is_added() -> None:
    seconds = {
        "one call that seeds": figure([1e-6]),
        'through a loader, seeding="worker"': figure([1e-6, 3e-6]),
        'through a loader, seeding="sample"': figure([5e-6, 9e-6]),
    }
    found = Seeding(seconds)
    assert found.added.median == pytest.approx(5e-6)
    assert "| added | 5.00 us (4.00 us to 6.00 us) |" in found.lines()
    assert json.loads(json.dumps(found.as_dict()))["added"]["median"] == pytest.approx(5e-6)
