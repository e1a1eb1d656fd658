"""Deadlines: what is left of them is a time that a wait can be told."""

from __future__ import annotations

import threading

import pytest

from shmloader import deadlines


def test_for_ever_has_no_deadline() -> None:
    assert deadlines.after(None) is None
    assert deadlines.left(None) is None
    assert not deadlines.is_over(None)


@pytest.mark.parametrize("seconds", [-1.0, 0.0])
def test_nothing_is_left_of_what_has_passed(seconds: float) -> None:
    deadline = deadlines.after(seconds)
    assert deadlines.left(deadline) == 0
    assert deadlines.is_over(deadline)


def test_what_is_left_is_no_more_than_was_given() -> None:
    deadline = deadlines.after(1000.0)
    first, second = deadlines.left(deadline), deadlines.left(deadline)
    assert first is not None
    assert second is not None
    assert 0 < second <= first <= 1000
    assert not deadlines.is_over(deadline)


def test_a_long_wait_is_told_in_parts() -> None:
    for seconds in (1e300, float("inf")):
        assert deadlines.left(deadlines.after(seconds)) == threading.TIMEOUT_MAX
        assert deadlines.left(deadlines.after(seconds), most=5.0) == 5
