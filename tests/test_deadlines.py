"""Deadlines: what is left of them is a time that a wait can be told."""

from __future__ import annotations

import queue
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
        assert deadlines.next_part(deadlines.after(seconds)) == deadlines.PART_SECONDS
    assert deadlines.next_part(None) == deadlines.PART_SECONDS
    assert deadlines.next_part(deadlines.after(-1)) == 0
    assert 0 < deadlines.next_part(deadlines.after(0.9)) <= 0.9


def test_a_queue_is_waited_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "PART_SECONDS", 0.001)
    items: queue.SimpleQueue[int] = queue.SimpleQueue()
    with pytest.raises(queue.Empty):
        deadlines.get(items, deadlines.after(0.01))
    timer = threading.Timer(0.01, items.put, [7])
    timer.start()
    assert deadlines.get(items, None) == 7
    timer.join()
