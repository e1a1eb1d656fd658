"""Which workers that have died are replaced."""

from __future__ import annotations

import random

import pytest

from shmloader.passes.restarts import RestartPolicy


def test_policy_without_restarts() -> None:
    policy = RestartPolicy(0)
    assert policy.refusal(None) == ""
    assert policy.refusal(3) == ""
    assert policy.count == 0


def test_policy_ends_with_its_number() -> None:
    policy = RestartPolicy(2)
    assert policy.refusal(None) is None
    assert policy.refusal(7) is None
    assert policy.count == 2
    refusal = policy.refusal(None)
    assert refusal is not None
    assert "All 2 of worker_restarts are used up" in refusal
    assert policy.count == 2


def test_policy_ends_with_the_second_death_at_a_batch() -> None:
    policy = RestartPolicy(100)
    assert [policy.refusal(batch) for batch in (0, 1, None, None, 2)] == [None] * 5
    refusal = policy.refusal(0)
    assert refusal is not None
    assert "batch 0" in refusal
    assert policy.count == 5


@pytest.mark.parametrize("seed", range(20))
def test_policy_by_a_random_walk(seed: int) -> None:
    draw = random.Random(seed)
    policy = RestartPolicy(limit := draw.randint(1, 9))
    deaths: list[int | None] = []
    for _ in range(30):
        batch = draw.choice([None, *range(12)])
        is_fatal = batch is not None and batch in deaths
        refusal = policy.refusal(batch)
        assert (refusal is None) == (not is_fatal and len(deaths) < limit)
        if refusal is None:
            deaths.append(batch)
        else:
            assert ("second worker" if is_fatal else "used up") in refusal
        assert policy.count == len(deaths)
