"""The benchmark suite: what it runs and says, never how fast anything is."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bars
from benchmarks.__main__ import main as suite_main
from benchmarks.cells import CELLS, Cell, Samples, Stream, pad, pad_as_sequences
from benchmarks.limit import Limit, _filler
from benchmarks.peers import Peer
from benchmarks.suite import CellResult, run_cell, turns
from shmloader.cli.bench.compare import first_difference
from shmloader.cli.bench.measure import Round

_TINY = Cell("tiny", lambda: [(np.ones((2, 3), np.uint8), 1)] * 4, 8)


def test_the_limit_runs_and_ends() -> None:
    limit = Limit(_TINY, 2, buffers=3)
    took = limit.run(0.0)
    limit.close()
    assert took.batches == 2
    assert took.per_batch > 0


def test_a_cell_runs_to_its_end() -> None:
    steps: list[None] = []
    result = run_cell(_TINY, num_workers=1, rounds=2, seconds=0.004, done=lambda: steps.append(None))
    assert len(steps) == turns(2)
    assert [len(rounds) for rounds in (result.stock, result.ours, result.limit)] == [2, 2, 2]
    assert (result.batch_bytes, result.batch_tensors) == (8 * (6 + 8), 2)
    assert set(json.loads(json.dumps(result.as_dict()))) == {
        *("cell", "batch_bytes", "batch_tensors", "seconds_per_batch", "consumer_cpu_seconds_per_batch", "batches"),
        *("ratio", "share_of_limit", "peer_ratios"),
    }


def test_the_limit_makes_the_batches_that_loaders_make() -> None:
    for cell in CELLS:
        if cell.name.startswith("rgb224"):  # large, and of the same kind as rgb64
            continue
        if cell.name in ("batch100mb", "memmap64"):  # the same, and too large for a test
            continue
        dataset = cell.source()
        fill = _filler(cell, dataset)
        samples = [dataset[index] for index in range(cell.batch_size)]
        fill(samples)
        expected = (cell.collate or torch.utils.data.default_collate)(samples)
        assert first_difference(expected, cell.batch()) is None, cell.name
        assert sorted(_buffers(fill)) == sorted(_buffers_of(expected)), cell.name


def _buffers(fill: Any) -> Iterator[bytes]:
    """Yields what lies in the buffers that a filler closes over."""
    for cell in fill.__closure__ or ():
        held = cell.cell_contents
        if isinstance(held, np.ndarray):
            yield held.tobytes()
        elif isinstance(held, torch.Tensor):
            yield held[: held.numel() // 2].numpy().tobytes()
        elif isinstance(held, list | dict):
            for inner in held.values() if isinstance(held, dict) else held:
                yield from _buffers(inner)


def _buffers_of(batch: Any) -> Iterator[bytes]:
    if isinstance(batch, torch.Tensor):
        yield batch.numpy().tobytes()
    else:
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _buffers_of(part)


def test_both_ways_to_pad_agree() -> None:
    samples = [[1, 2, 3], [4], [5, 6]]
    assert first_difference(pad(samples), pad_as_sequences(samples)) is None
    assert len(Samples(samples)) > 10**9


def _result(cell: str, nbytes: int, stock: float, ours: float, limit: float, cpu: float, **more: Any) -> CellResult:
    rounds = ([Round(1, wall, used)] * 3 for wall, used in ((stock, 1.0), (ours, cpu), (limit, 0.0)))
    return CellResult(cell, nbytes, more.pop("tensors", 2), next(rounds), next(rounds), next(rounds), **more)


def _judged(*results: CellResult) -> dict[str, list[tuple[str, bool]]]:
    """Returns by the first words of each bar which cells it applies to, and whether it holds."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for outcome in bars.judge(results):
        found.setdefault(outcome.bar, []).append((outcome.cell, outcome.holds))
    return found


def test_bars_on_stock_go_by_the_kind_of_cell() -> None:
    found = _judged(
        _result("gray28", 50_000, 200, 10.0, 7.0, 15e-6),
        _result("single28", 800, 190, 10.0, 7.0, 15e-6),
        _result("rgb224", 9_633_792, 100, 10.0, 9.0, 15e-6),
        _result("fields200", 200_000, 49, 10.0, 9.0, 15e-6),
        _result("tensors28", 50_000, 600, 10.0, 9.0, 15e-6),
        _result("jpeg224", 4_800_000, 9, 10.0, 8.0, 15e-6),
    )
    assert found["at least 20x stock on samples of 28x28 and below"] == [("gray28", True), ("single28", False)]
    assert found["at least 10x stock on samples of 3x224x224"] == [("rgb224", True)]
    assert found["at least 5x stock on many fields and padded tokens"] == [("fields200", False)]
    assert found["at least 60x stock on a TensorDataset"] == [("tensors28", True)]
    assert [holds for _, holds in found["at least 1x stock on every cell"]] == [True] * 5 + [False]
    assert found["at least 0.9 of the limit where a batch is 1 MB or more"] == [("rgb224", True), ("jpeg224", False)]
    assert found["at least 0.7 of the limit for 64 samples of 28x28"] == [("gray28", True)]


def test_the_bar_on_the_loops_cpu_grows_with_the_tensors() -> None:
    results = [
        _result(f"{tensors} {cpu}", 1000, 1.0, 1e-5, 1e-5, cpu * 1e-6, tensors=tensors)
        for tensors, cpu in ((1, 15), (1, 15.1), (2, 15), (2, 15.1), (202, 314.9), (202, 315.1))
    ]
    (found,) = (cells for bar, cells in _judged(*results).items() if "CPU" in bar)
    assert [holds for _, holds in found] == [True, False] * 3


def test_the_bar_on_peers_goes_by_the_fastest() -> None:
    def peers(*times: float) -> dict[str, list[Round]]:
        return {f"peer{number}": [Round(1, wall)] * 3 for number, wall in enumerate(times)}

    results = [
        _result("gray28", 50_000, 1.0, 10.0, 9.0, 15e-6, peers=peers(90.0, 50.0)),
        _result("rgb64", 786_432, 1.0, 10.0, 9.0, 15e-6, peers=peers(90.0, 49.0)),
        _result("jpeg224", 4_800_000, 1.0, 10.0, 9.0, 15e-6, peers=peers(20.0)),
        _result("stream28", 50_000, 1.0, 10.0, 9.0, 15e-6),
    ]
    (found,) = (cells for bar, cells in _judged(*results).items() if "peer" in bar)
    assert found == [("gray28", True), ("rgb64", False)]


def test_a_bar_that_does_not_hold_is_said_plainly() -> None:
    good = _result("gray28", 50_000, 200, 10.0, 7.0, 15e-6)
    bad = _result("floats8", 1_000, 150, 10.0, 1.0, 16e-6)
    lines = bars.lines(bars.judge([good, bad]))
    assert lines == [
        "- at least 20x stock on samples of 28x28 and below: DOES NOT HOLD (gray28 20.00x; floats8 15.00x, not 20)",
        "- at least 1x stock on every cell: holds (gray28 20.00x; floats8 15.00x)",
        "- at least 0.7 of the limit for 64 samples of 28x28: holds (gray28 0.70)",
        f"- {bars.BARS[-2].text}: DOES NOT HOLD (gray28 15.00 us; floats8 16.00 us, not 15)",
    ]


def test_the_suite_prints_markdown_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [_result("rgb64", 786_432, 100e-6, 10e-6, 9e-6, 20e-6)]
    monkeypatch.setattr("benchmarks.__main__._run", lambda *arguments: results)
    assert suite_main(["--cells", "rgb64"]) == 0
    text = capsys.readouterr().out
    assert "| rgb64 | 786 kB | 100 (100 to 100) | 10.0 (10.0 to 10.0) | 10.0 (10.0 to 10.0) | 9.0" in text
    assert suite_main(["--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {
        *("command", "machine", "num_workers", "limit_buffers", "cells", "bars")
    }


def test_the_suite_knows_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        suite_main(["--cells", "rgb64,rgb65"])
    assert caught.value.code == 2
    assert "there is no cell 'rgb65'" in capsys.readouterr().err


def _endless(cell: Cell, num_workers: int) -> Iterator[Any]:
    source = cell.source()
    for start in itertools.count(0, cell.batch_size):
        yield torch.utils.data.default_collate([source[start + row] for row in range(cell.batch_size)])


def _unwilling(cell: Cell, num_workers: int) -> Iterator[Any]:
    raise AssertionError("a stream is not for it")


@pytest.mark.usefixtures("_resource_tracker")
def test_a_peer_is_measured_beside_the_loaders() -> None:
    steps: list[None] = []
    peers = [Peer("here", "json", _endless), Peer("there", "json", _endless)]
    cell = CELLS[0]  # one that a process of another's finds too
    result = run_cell(cell, num_workers=1, rounds=2, seconds=0.004, peers=peers, done=lambda: steps.append(None))
    assert len(steps) == turns(2, peers=2)
    assert set(result.peers) == set(result.peer_ratios) == {"here", "there"}
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


@pytest.mark.usefixtures("_resource_tracker")
def test_peers_that_are_not_installed_are_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = (Peer("here", "json", _endless), Peer("nowhere", "no.such", _endless))
    monkeypatch.setattr("benchmarks.__main__.PEERS", peers)
    assert suite_main(["--peers", "all", "--rounds", "1", "--cells", CELLS[0].name]) == 0
    printed = capsys.readouterr()
    assert "nowhere is left out: no.such is not installed" in printed.err
    assert "| cell | ours us/batch | here |" in printed.out
    with pytest.raises(SystemExit):
        suite_main(["--peers", "elsewhere"])
    assert "there is no peer 'elsewhere'; there are here, nowhere" in capsys.readouterr().err
