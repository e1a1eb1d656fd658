"""The suite: what it runs and says, never how fast anything is."""

from __future__ import annotations

import dataclasses
import itertools
import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import suite
from benchmarks.cells import CELLS, Cell, Stream
from benchmarks.output import Labels
from benchmarks.peers import Peer
from benchmarks.suite import CellResult, SuiteResult, measure, run_cell, turns
from shmloader.cli.bench.figures import Figure, figure
from shmloader.cli.bench.measure import Round
from tests.helpers.support import children

_TINY = Cell("tiny", lambda: [(np.ones((2, 3), np.uint8), 1)] * 4, 8)


def test_a_cell_runs_to_its_end() -> None:
    steps: list[None] = []
    result = run_cell(_TINY, num_workers=1, rounds=2, seconds=0.004, done=lambda: steps.append(None))
    assert len(steps) == turns(2)
    assert [len(rounds) for rounds in (result.stock, result.ours, result.limit)] == [2, 2, 2]
    assert result.batch_bytes == 8 * (6 + 8)
    assert all(took.wall > 0 for took in (*result.stock, *result.ours, *result.limit))


def test_others_are_busy_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    beside: list[int] = []

    def run_cell(cell: Cell, *arguments: Any, **more: Any) -> CellResult:
        beside.append(len(children() - before))
        return _result(cell.name)

    monkeypatch.setattr(suite, "run_cell", run_cell)
    found = measure(Namespace(cells=CELLS[:2], peers=[], rounds=1, num_workers=1, busy=3))
    assert beside == [3, 3]
    assert children() == before
    assert found.as_dict()["busy"] == 3


def _result(cell: str, **peers: list[Round]) -> CellResult:
    stock, ours, limit = ([Round(1, wall, cpu)] * 3 for wall, cpu in ((1e-4, 1e-4), (1e-5, 2e-5), (9e-6, 0.0)))
    return CellResult(cell, 786_432, stock, ours, limit, peers)


def _suite(peers: tuple[str, ...] = ()) -> SuiteResult:
    times = {peer: [Round(1, 3e-4)] * 3 for peer in peers[:1]}
    return SuiteResult([_result("rgb64", **times), _result("gray28", **times)], [*peers], num_workers=2, busy=0)


def test_it_says_how_they_compare() -> None:
    text = "\n".join(_suite().lines())
    assert "| rgb64 | 786 kB | 100 (100 to 100) | 10.0 (10.0 to 10.0) | 10.0 (10.0 to 10.0) | 9.0" in text
    text = "\n".join(_suite(("grain", "dali")).lines())
    assert "| cell | ours us/batch | grain | dali |" in text
    assert "| gray28 | 10.0 (10.0 to 10.0) | 300 us, 30.0 (30.0 to 30.0)x | no way to load it |" in text
    found = json.loads(json.dumps(_suite(("grain",)).as_dict()))
    assert set(found) == {"num_workers", "busy", "cells"}
    assert set(found["cells"][0]) == {
        *("cell", "batch_bytes", "seconds_per_batch", "consumer_cpu_seconds_per_batch"),
        *("ratio", "share_of_limit", "peer_ratios"),
    }


def test_charts_have_every_contestant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Mapping[str, Mapping[str, Figure]]] = {}

    def note(path: Path, labels: Labels, series: Mapping[str, Mapping[str, Figure]]) -> None:
        assert labels.notes == ["a note"]
        drawn[path.name] = series

    monkeypatch.setattr(suite, "dots", note)
    _suite(("grain",)).draw(tmp_path, ["a note"])
    assert set(drawn) == {"ratio.png", "time.png"}
    assert drawn["ratio.png"]["ratio"]["gray28"].median == pytest.approx(10)
    assert list(drawn["time.png"]) == ["shmloader", "torch's DataLoader", "limit, without a loader", "grain"]
    assert drawn["time.png"]["shmloader"] == {cell: figure([10.0] * 3) for cell in ("rgb64", "gray28")}


def _endless(cell: Cell, num_workers: int) -> Iterator[Any]:
    source = cell.source()
    for start in itertools.count(0, cell.batch_size):
        yield torch.utils.data.default_collate([source[start + row] for row in range(cell.batch_size)])


def _unwilling(cell: Cell, num_workers: int) -> Iterator[Any]:
    raise AssertionError("a stream is not for it")


@pytest.mark.usefixtures("_resource_tracker")
def test_a_peer_is_measured_beside_the_loaders() -> None:
    steps: list[None] = []
    cell = CELLS[0]  # one that a process of another's finds too
    peer = Peer("here", "json", _endless)
    result = run_cell(cell, num_workers=1, rounds=2, seconds=0.004, peers=[peer], done=lambda: steps.append(None))
    assert len(steps) == turns(2, peers=1)
    assert result.peer_ratios["here"].rounds[0] == result.peers["here"][0].per_batch / result.ours[0].per_batch


@pytest.mark.usefixtures("_resource_tracker")
def test_a_peer_that_fails_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EOFError):
        run_cell(CELLS[0], num_workers=1, rounds=1, seconds=0.004, peers=[Peer("here", "json", _unwilling)])
    assert "AssertionError: a stream is not for it" in capfd.readouterr().err


def test_a_peer_that_cannot_load_a_cell_is_left_out() -> None:
    stream = dataclasses.replace(_TINY, arrange=Stream)
    result = run_cell(stream, num_workers=1, rounds=1, seconds=0.004, peers=[Peer("here", "json", _unwilling)])
    assert result.peers == {}


def test_peers_that_are_not_installed_are_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "run_cell", lambda cell, *_, peers, **__: _result(cell.name))
    peers = [Peer("here", "json", _endless), Peer("nowhere", "no.such", _endless)]
    found = measure(Namespace(cells=CELLS[:1], peers=peers, rounds=1, num_workers=1, busy=0))
    assert found.peers == ["here"]
    assert "nowhere is left out: no.such is not installed" in capsys.readouterr().err
