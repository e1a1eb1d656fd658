"""Samplers that shuffle, measured: each in a process of its own, and lists only where there is room for them."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks import samplers
from benchmarks.samplers import CONTESTANTS, Contestant, Round, Samplers, in_a_process, measure, one_round
from shmloader import PermutationSampler
from tests.helpers.support import children


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda one: one.name)
@pytest.mark.parametrize("length", [1, 2, 1000])
def test_a_round_is_taken(contestant: Contestant, length: int) -> None:
    found = one_round(contestant, length)
    assert found.first > 0
    assert found.middle > 0
    assert found.further >= 0


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda one: one.name)
def test_all_begin_in_the_middle(contestant: Contestant) -> None:
    sampler = contestant.make(100)
    whole, half = set(sampler), list(contestant.begin(sampler, 50))
    assert len(half) == 50
    assert set(half) < whole == set(range(100))


def test_a_list_shows_in_the_memory_of_its_process() -> None:
    before = children()
    memory = {one.name: in_a_process(one, 1_000_000).memory for one in CONTESTANTS[:2]}
    assert memory["PermutationSampler"] < 8_000_000 < 20_000_000 < memory["RandomSampler"]
    assert children() == before


def dies(length: int) -> PermutationSampler:
    raise SystemExit(3)


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(EOFError):
        in_a_process(Contestant("dies", dies, lambda sampler, position: iter(sampler), False), 10)


def test_lists_that_do_not_fit_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "available_memory", lambda: 48 * 5000)
    found = measure(argparse.Namespace(lengths=[1000, 5000], rounds=2))
    assert [[len(took) for took in by_name.values()] for by_name in found.rounds.values()] == [[2, 2, 2], [2, 0, 0]]
    assert "| 5,000 | RandomSampler | not run: too large |  |  |  |" in found.lines()
    assert [each["length"] for each in json.loads(json.dumps(found.as_dict()))["lengths"]] == [1000, 5000]


def test_it_says_what_was_found() -> None:
    took = [Round(1e-3, 2e-7, 3.0, 4_000_000), Round(2e-3, 3e-7, 4.0, 5_000_000), Round(3e-3, 4e-7, 5.0, 6_000_000)]
    expected = (
        "| 1,000,000 | RandomSampler | 2.00 ms (1.00 ms to 3.00 ms) | 4.00 s (3.00 s to 5.00 s)"
        " | 300 ns (200 ns to 400 ns) | 5.00 MB (4.00 MB to 6.00 MB) |"
    )
    assert expected in Samplers({1_000_000: {"RandomSampler": took}}).lines()
