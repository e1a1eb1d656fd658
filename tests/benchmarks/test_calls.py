"""Calls in background processes, beside other pools: all bring the same, and it is said how they compare."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pytest

from benchmarks import calls
from benchmarks.calls import CONTESTANTS, Calls, add_options, array_of, measure, seconds_a_call, touch
from shmloader.cli.bench.figures import figure


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["ours", "concurrent.futures", "torch.multiprocessing.Pool"])
def test_all_bring_the_same(name: str) -> None:
    with CONTESTANTS[name](1) as ask:
        waits = [ask(nbytes) for nbytes in (10, 5000)]
        for wait, nbytes in zip(waits, (10, 5000), strict=True):
            got: Any = np.asarray(wait())
            assert np.array_equal(got, array_of(nbytes))
            assert touch(got) == array_of(nbytes)[::4096].sum()
        assert seconds_a_call(ask, 10, 1) > 0


def test_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CONTESTANTS", {"ours": CONTESTANTS["ours"]})
    monkeypatch.setattr(calls, "_ROUND_CALLS", 8)
    parser = argparse.ArgumentParser()
    add_options(parser)
    found = measure(parser.parse_args(["--sizes", "10,1e3", "--rounds", "2", "--num-workers", "1"]))
    assert list(found.seconds) == [10, 1000]
    assert all(len(took["ours"].rounds) == 2 for took in found.seconds.values())
    with pytest.raises(SystemExit):
        parser.parse_args(["--sizes", "none"])


def test_it_says_how_they_compare() -> None:
    took = {name: figure([place * 1e-3, place * 2e-3]) for place, name in enumerate(CONTESTANTS, start=1)}
    found = Calls({1000: took}, 2)
    assert "| 1.00 kB | 1.50 ms (1.00 ms to 2.00 ms) | 3.00 ms" in "\n".join(found.lines())
    assert found.lines()[-1].endswith("| 2.00x (2.00x to 2.00x) |")
    assert json.loads(json.dumps(found.as_dict()))["best_to_ours"]["1000"]["median"] == 2
