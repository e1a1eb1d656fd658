"""What states and resumed passes cost: each sampler is measured in all rounds."""

from __future__ import annotations

import argparse
import json

from benchmarks.resuming import Resuming, Sampled, add_options, measure
from shmloader.cli.bench.figures import figure


def test_it_is_measured() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    found = measure(parser.parse_args(["--rounds", "2", "--batches", "30"]))
    assert found.batches == 30
    assert list(found.sampled) == ["PermutationSampler", "RandomSampler"]
    for one in found.sampled.values():
        assert len(one.begun.rounds) == len(one.resumed.rounds) == 2
        assert one.state.median > 0
        assert one.nbytes > 0


def test_it_says_where_the_pass_is_resumed() -> None:
    found = Resuming(1000, {"X": Sampled(figure([1e-6]), 928, figure([1e-3]), figure([2e-3]))})
    assert found.lines()[0].endswith("first batch behind 1,000 |")
    assert json.loads(json.dumps(found.as_dict()))["samplers"]["X"]["resumed"]["median"] == 2e-3
