"""The command line of the benchmarks, and what all commands do with what they have measured."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import _COMMANDS, main
from benchmarks.output import Found

NAMES = [name for name in _COMMANDS if name != "gpu"]  # which says by itself that there is none


class _Nothing(Found):
    """What a command has found without looking."""

    def __init__(self, args: Namespace) -> None:
        self.args = args

    def as_dict(self) -> dict[str, Any]:
        return {"rounds": self.args.rounds}

    def lines(self) -> list[str]:
        return [f"found in {self.args.rounds} rounds"]

    def draw(self, folder: Path, notes: Sequence[str]) -> None:
        (folder / "notes").write_text("\n".join(notes))


@pytest.fixture(autouse=True)
def _commands_that_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setattr(_COMMANDS[name], "measure", _Nothing)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_a_command_prints_what_it_has_found(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--rounds", "3"]) == 0
    machine, *rest = capsys.readouterr().out.splitlines()
    assert "torch" in machine
    assert rest == ["", "found in 3 rounds"]
    assert main([*name.split(), "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = "python -m benchmarks --rounds 3" if name in ("", "suite") else f"python -m benchmarks {name} --rounds 3"
    assert (found["command"], found["rounds"]) == (expected, 3)
    assert found["machine"]["cpu"] in machine


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize("name", ["", "growth"])
def test_charts_say_what_was_run_and_where(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert main([*name.split(), "--plot", str(folder), "--rounds", "3"]) == 0
    what, where = (folder / "notes").read_text().split("\n")
    assert what.endswith(" ".join(["python -m benchmarks", *name.split(), "--rounds 3"]))
    assert "cores" in where


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for words in (
        "--cells",
        "--peers",
        "--plot",
        "all commands:",
        "edges Measures the beginning",
        "gpu Measures",
    ):
        assert words in " ".join(text.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "there is no 'nothing'; there are suite, edges, "),
        (["--cells", "rgb64,rgb65"], "there is no cell 'rgb65'; there are floats8"),
        (["--peers", "elsewhere"], "there is no peer 'elsewhere'; there are stateful"),
        (["edges", "--cells", "stream28"], "there is no cell whose passes end 'stream28'; there are floats8"),
        (["growth", "--axes", "slots,height"], "there is no axis 'height'; there are length, slots"),
        (["--rounds", "0"], "--rounds: must be 1 or more"),
        (["hidden", "--plot", "folder"], "unrecognized arguments: --plot folder"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert message in printed.err


def test_without_matplotlib_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.output.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["--plot", str(tmp_path)])
    assert "charts need matplotlib, which is in the extra [bench]" in capsys.readouterr().err


@pytest.mark.usefixtures("_matplotlib")
def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(["--plot", str(tmp_path / "file")])
    assert "no folder can be made there" in capsys.readouterr().err
