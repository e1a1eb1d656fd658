"""Loaders on a busy machine: what is measured beside what, and what is said of it. What comes out is the machine's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks import busy
from benchmarks.busy import Found, Job, Load
from shmloader.cli.bench.figures import figure
from tests.helpers.datasets import Images
from tests.helpers.support import children

CONTESTANTS = {"SCHED_OTHER", "SCHED_BATCH", "stock", "bare"}


@pytest.mark.parametrize("step", [0, 1])
def test_all_contestants_take_turns(step: int) -> None:
    turns: list[int] = []
    job = Job("images", lambda: Images(4000), 4, step=step)
    load = Load("all", loops=1, loaders=1, is_apart=True)
    found = busy.measure(job, load, rounds=2, seconds=0.02, done=lambda: turns.append(len(children())))
    assert set(found.rounds) == CONTESTANTS
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in found.rounds.values())
    assert len(turns) == 3 * len(CONTESTANTS)
    assert set(turns) == {2 + 4 * 2}
    assert not children()


def test_bare_processes_make_as_many_as_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    read: list[int] = []
    monkeypatch.setattr(
        busy,
        "os",
        SimpleNamespace(write=lambda fd, _: written.append(fd), read=lambda fd, _: read.append(fd)),
    )
    assert busy._Bare(busy.JOBS[0], [(1, 2), (3, 4)]).run(6) > 0
    assert written == [1, 3] * 7
    assert read == [2, 4] * 7


def test_a_woken_process_tells_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_WAKES", 3)
    assert {name: len(one.rounds) for name, one in busy.wakes().items()} == {"SCHED_OTHER": 3, "SCHED_BATCH": 3}
    assert not children()


def test_it_prints_markdown_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = {"SCHED_OTHER": [1e-3], "SCHED_BATCH": [2e-3], "stock": [3e-3], "bare": [1e-3]}
    monkeypatch.setattr(busy, "measure", lambda job, load, *_: Found(job.name, load.name, rounds))
    monkeypatch.setattr(busy, "wakes", lambda: {"SCHED_OTHER": figure([5e-5]), "SCHED_BATCH": figure([2e-3])})
    assert busy.main(["--jobs", "gray28", "--loads", "2-loops"]) == 0
    text = capsys.readouterr().out
    assert "| SCHED_OTHER | 50.0 |\n| SCHED_BATCH | 2000 |" in text
    assert "| gray28 | 2-loops | 3000 | 1000, 3.00x | 2000, 1.50x | 1000, 3.00x |" in text
    assert busy.main(["--json", "--jobs", "gray28", "--loads", "nothing", "--rounds", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "python -m benchmarks.busy --jobs gray28 --loads nothing --rounds 3"
    assert found["found"][0]["stock_to_others"]["SCHED_BATCH"]["median"] == 1.5


def test_a_job_that_needs_what_is_not_installed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(busy, "wakes", dict)
    monkeypatch.setattr(busy, "JOBS", (Job("missing", lambda: Images(), 4, needs="no_such_module"),))
    assert busy.main([]) == 0
    assert "missing is left out: no_such_module is not installed" in capsys.readouterr().err
