"""Many workers and many ranks: that they all run, end, and are counted."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from benchmarks import scale
from benchmarks.scale import Round, Scale, one_round, run_ranks
from tests.helpers.support import children


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "WAIT_SECONDS", 1e-3)


@pytest.mark.parametrize("name", ["ours", "torch's"])
def test_a_round_is_taken(name: str) -> None:
    before = children()
    found = one_round(name, 3)
    assert min(found.first, found.per_batch, found.cpu, found.close) > 0
    assert found.descriptors > 3  # one a worker, and more
    assert children() == before


def test_ranks_run_at_the_same_time() -> None:
    before = children()
    found = run_ranks("ours", 3, 2)
    assert len(found) == 3
    assert all(one.per_batch > 0 for one in found)
    assert children() == before


def _dies(name: str, workers: int, meet: Callable[[], object]) -> Round:
    raise SystemExit(3)


def test_a_rank_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    monkeypatch.setattr(scale, "one_round", _dies)
    with pytest.raises(EOFError):
        run_ranks("ours", 2, 1)
    assert children() == before


def test_it_says_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "WAIT_SECONDS", 0.1)
    rounds = [Round(0.2, 30, 10**7, 0.05, 1e-4, 0.01), Round(0.4, 31, 3 * 10**7, 0.1, 3e-4, 0.03)]
    found = Scale({("ours", 2): rounds}, {"ours": [rounds]}, 2, 2)
    text = "\n".join(found.lines())
    first, cpu = "300 ms (200 ms to 400 ms)", "200 us (100 us to 300 us)"
    expected = f"| 2 | ours | {first} | 31 | 20.0 MB | {cpu} | 0.75 (0.50 to 1.00) | 20.0 ms (10.0 ms to 30.0 ms) |"
    assert expected in text
    assert "| 2 x 2 | ours | 400 ms | 31 | 40.0 MB | 200 us | 0.75 | 30.0 ms |" in text
    assert json.loads(json.dumps(found.as_dict()))["num_ranks"] == 2
