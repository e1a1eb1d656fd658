"""The commands that time the steps of a batch, and ideas, print what they have timed."""

from __future__ import annotations

import os

import pytest

from benchmarks import budget, ideas


def test_the_steps_of_a_batch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(budget, "_RUNS", 3)
    monkeypatch.setattr(budget, "_ROUNDS", 1)
    assert budget.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("| us |")] == ["| parent | us |", "| worker | us |"]
    times = [line.split("|")[2].strip() for line in lines if line.startswith("| ")]
    assert all(float(time) > 0 for time in times if time not in ("us", "---:"))


@pytest.mark.parametrize("idea", ideas._IDEAS)
def test_ideas(idea: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(ideas, "_ROUNDS", 1)
    monkeypatch.setattr(ideas, "_IDEAS", {idea: ideas._IDEAS[idea]})
    assert ideas.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {idea} |")]
    assert len(rows) > 1
    assert all(float(row.split("|")[3]) > 0 for row in rows)
    assert os.sched_getaffinity(0) == before
