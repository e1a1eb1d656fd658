"""Charts: that they are drawn, from what was measured now or before, and that a missing matplotlib is said at once."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from benchmarks import charts, output, suite_charts
from benchmarks.__main__ import main
from shmloader.cli.bench.figures import figure
from tests.benchmarks.test_suite import _result

_LABELS = charts.Labels("Title", ["a note", "another " * 40], "microseconds")
_FIGURES = {"one": figure([1.0, 2.0, 4.0]), "two": figure([30.0])}


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that has two cells, and has measured them before anybody asks."""
    results = [_result("rgb64", 786_432, 1e-3, 1e-4, 9e-5, 2e-5), _result("gray28", 50_000, 1e-3, 2e-5, 8e-6, 1e-5)]
    results[0].peers["grain"] = results[0].stock
    monkeypatch.setattr("benchmarks.__main__._run", lambda *arguments: results)


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:])
    return width, height


@pytest.mark.usefixtures("_matplotlib")
def test_charts_fit_a_page_and_grow_with_their_rows(tmp_path: Path) -> None:
    more = _FIGURES | {f"name{number}": figure([2.0]) for number in range(20)}
    for name, values in (("few", _FIGURES), ("many", more)):
        charts.bars(tmp_path / f"bars-{name}.png", _LABELS, values, mark=1)
        charts.dots(tmp_path / f"dots-{name}.png", _LABELS, {"ours": values, "theirs": {"one": values["one"]}})
        charts.curves(tmp_path / f"curves-{name}.png", _LABELS, {"ours": {1: figure([2.0]), 10: figure([1.0, 3.0])}})
    sizes = {path.stem: _png_size(path) for path in tmp_path.iterdir()}
    assert {width for width, _ in sizes.values()} == {900}
    assert sizes["bars-many"][1] > sizes["bars-few"][1]
    assert sizes["dots-many"][1] > sizes["dots-few"][1]


@pytest.mark.usefixtures("_matplotlib", "_measured")
def test_the_suite_draws_and_draws_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "3", "--json", "--plot", str(tmp_path / "made/now")]) == 0
    (tmp_path / "found.json").write_text(capsys.readouterr().out)
    assert suite_charts.main([str(tmp_path / "found.json"), str(tmp_path / "again")]) == 0
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "made/now").iterdir()}
    assert set(drawn) == {"ratio.png", "time.png", "cpu.png"}
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}


@pytest.mark.usefixtures("_measured")
def test_charts_say_what_was_run_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, tuple[charts.Labels, Any]] = {}

    def note(path: Path, labels: charts.Labels, shown: Any, mark: float = 0) -> None:
        drawn[path.name] = labels, shown

    monkeypatch.setattr(charts, "can_draw", lambda: True)
    monkeypatch.setattr(charts, "bars", note)
    monkeypatch.setattr(charts, "dots", note)
    assert main(["--plot", str(tmp_path), "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "python -m benchmarks --rounds 3"
    for labels, _ in drawn.values():
        assert "python -m benchmarks --rounds 3" in labels.notes[0]
        assert found["machine"]["cpu"] in labels.notes[1]
    assert drawn["ratio.png"][1]["gray28"] == figure(found["cells"][1]["ratio"]["rounds"])
    times = drawn["time.png"][1]
    assert list(times) == ["shmloader", "torch's DataLoader", "limit, without a loader", "grain"]
    assert times["shmloader"]["rgb64"].median == pytest.approx(100)
    assert list(times["grain"]) == ["rgb64"]
    assert set(drawn["cpu.png"][1]) == {"shmloader", "torch's DataLoader"}


def test_without_matplotlib_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(charts, "can_draw", lambda: False)
    with pytest.raises(SystemExit) as caught:
        main(["--plot", str(tmp_path)])
    assert caught.value.code == 2
    assert "matplotlib, which is in the extra [bench]" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(charts, "can_draw", lambda: True)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(["--plot", str(tmp_path / "file")])
    assert "no folder can be made there" in capsys.readouterr().err


def test_the_command_leaves_out_what_changes_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "can_draw", lambda: True)
    argv = ["--plot", str(tmp_path), "--cells", "a b", "--json", "--peers", "all"]
    assert output.command("benchmarks", argv) == "python -m benchmarks --cells 'a b' --peers all"
