"""The soak run itself: it passes where all is well, and notices a damaged byte, a lost batch and one too many."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import soak
from shmloader.passes.iterator import ShmIterator

# It is told to ignore them, and the suite's own filters come after it.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--minutes", "1", "--passes", "6"]) == 0
    figures = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert figures["passes"] == "6"
    assert int(figures["batches"].replace(",", "")) > 100
    assert int(figures["workers replaced"].replace(",", "")) > 0


def test_no_time_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--minutes", "0"]) == 0
    assert "threads at the end: 1" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["byte", "loss", "repetition"])
def test_damage_is_noticed(damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    step, seen = ShmIterator._step, []

    def damaged(iterator: ShmIterator) -> Any:
        batch = step(iterator)
        seen.append(batch)
        if len(seen) == 3 and damage == "byte":
            batch[0][0][0] += 1
        if len(seen) == 3 and damage == "loss":
            return step(iterator)
        return seen[1] if len(seen) == 3 and damage == "repetition" else batch

    monkeypatch.setattr(ShmIterator, "_step", damaged)
    assert soak.main(["--minutes", "1", "--passes", "2", "--seed", "4"]) == 1
    assert "pass --seed 4 --passes 1: AssertionError" in capsys.readouterr().err
    seen.clear()
