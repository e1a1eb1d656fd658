"""The bench command: what it says, never how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shmloader import ShmDataLoader
from shmloader.cli.bench import steps
from shmloader.cli.bench.source import loader_arguments
from shmloader.cli.main import main
from shmloader.observe.verdict import Kind

_QUICK = ("--rounds", "2", "--batches", "2", "--batch-size", "4")


def _bench(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["bench", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_json_has_the_documented_keys(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, f"{user}:Images", *_QUICK, "--shuffle")
    assert set(found) == {
        *("dataset", "machine", "settings", "stock", "ours", "ratio"),
        *("equal", "compared_batches", "difference", "stock_repeats", "verdict"),
    }
    assert set(found["verdict"]) == {"step_seconds", "kind", "knob", "text"}
    for loader in ("stock", "ours"):
        assert set(found[loader]) == {
            *("batches_per_round", "seconds_per_batch", "consumer_cpu_seconds_per_batch", "first_batch_seconds"),
            *("memory_bytes", "memory_in_transit_bytes"),
        }
        assert found[loader]["batches_per_round"] == 2
        assert set(found[loader]["seconds_per_batch"]) == {"median", "low", "high", "rounds"}
    assert len(found["ratio"]["rounds"]) == 2
    assert found["settings"] == {
        "batch_size": 4,
        "num_workers": 2,
        "prefetch_factor": 2,
        "persistent_workers": False,
    }
    assert (found["equal"], found["compared_batches"], found["difference"]) == (True, 16, None)


def test_unequal_batches_are_reported_with_the_place(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, f"{user}:Processes", *_QUICK)
    assert found["equal"] is False
    assert found["stock_repeats"] is False
    assert found["difference"].startswith("batch 0[1]: flat element 0 is ")


def test_a_dict_sets_the_loaders_arguments(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, f"{user}:arguments", "--rounds", "1", "--batches", "1", "--persistent-workers")
    assert found["equal"] is True
    assert found["settings"]["batch_size"] == 4
    assert found["settings"]["persistent_workers"] is True


def test_a_stream_of_unknown_length_is_timed(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, f"{user}:Stream", *_QUICK, "--num-workers", "1")
    assert found["equal"] is True
    assert found["compared_batches"] == 6


def test_json_is_all_that_stdout_gets(user: str, capfd: pytest.CaptureFixture[str]) -> None:
    for workers in ("0", "1"):
        assert main(["bench", f"{user}:Chatty", *_QUICK, "--num-workers", workers, "--json"]) == 0
        captured = capfd.readouterr()
        assert json.loads(captured.out)["equal"] is True
        assert "made\n" in captured.err
        assert "reading 0\n" in captured.err


def test_the_table_says_it_all(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"{user}:Namespace.images", *_QUICK, "--prefetch-factor", "1", "--step", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for text in ("time per batch", "stock / ours", "CPU per batch", "first batch", "memory added", "prefetch_factor=1"):
        assert text in captured.out
    assert "batches equal: yes, bit for bit (16 compared)\n\nFor steps of 1.00 ms: Too little to tell" in captured.out


def test_without_a_name_it_measures_images(capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, *_QUICK)
    assert found["dataset"] == "synthetic"
    assert found["equal"] is True


@pytest.mark.parametrize("name", ["loader", "own_loader"])
def test_a_loader_is_compared_with_its_own_arguments(user: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, f"{user}:{name}", "--rounds", "1", "--batches", "1")
    assert found["equal"] is True
    assert found["compared_batches"] == 64 // found["settings"]["batch_size"]
    assert found["settings"] == {
        "batch_size": {"loader": 4, "own_loader": 8}[name],
        "num_workers": 1,
        "prefetch_factor": 2,
        "persistent_workers": False,
    }


def test_a_sampler_stands_for_a_length(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench(capsys, f"{user}:unsized_but_sampled", *_QUICK)["compared_batches"] == 10


_BAD_USAGE = [
    (["no_such_module:make"], "no module no_such_module"),
    (["{user}.inside:make"], "no module users_module"),
    (["{user}"], "is not MODULE:CALLABLE"),
    ([".{user}:Images"], "is not MODULE:CALLABLE"),
    (["{user}.py:Images"], "a module is named as in an import, with no path and no .py"),
    (["./{user}:Images"], "is not MODULE:CALLABLE"),
    (["folder/{user}:Images"], "a module is named as in an import, with no path and no .py"),
    (["{user}:missing"], "has no missing"),
    (["{user}:Images.missing"], "has no Images.missing"),
    (
        ["{user}:number"],
        "cannot be called and is neither a dataset, nor a DataLoader, nor a dict of its arguments, but int",
    ),
    (["{user}:takes_one"], "missing a required argument: 'path'"),
    (["{user}:nothing"], "returned neither a dataset, nor a DataLoader, nor a dict of its arguments, but NoneType"),
    (["{user}:a_class"], "nor a dict of its arguments, but type"),
    (["{user}:numbers"], "nor a dict of its arguments, but generator"),
    (["{user}:Unsized"], "a dataset without a length"),
    (["{user}:no_dataset"], "gives a dict without 'dataset'"),
    (["{user}:none_at_all"], "gives a 'dataset' that is none, but of type NoneType"),
    (["{user}:no_order"], "gives a sampler that cannot be iterated over: 5"),
    (["{user}:no_function"], "gives a collate_fn that cannot be called: 'stack'"),
    (["{user}:misspelt"], "unexpected keyword argument 'batchsize'"),
    (["{user}:arguments", "--batch-size", "3"], "sets batch_size itself, so --batch-size cannot be given"),
    (["{user}:one_loader", "--num-workers", "3"], "sets num_workers itself, so --num-workers cannot be given"),
    (["{user}:loader", "--shuffle"], "sampler option is mutually exclusive with shuffle"),
    (["{user}:Images", "--num-workers", "0", "--persistent-workers"], "persistent_workers option needs"),
    (["{user}:Images", "--num-workers", "0", "--prefetch-factor", "2"], "prefetch_factor option could only be"),
    (["{user}:Stream", "--shuffle"], "expected unspecified shuffle option"),
    (["{user}:Images", "--batch-size", "32", "--batches", "1"], "a pass has 2 batches; timing takes 4 at least"),
    (["{user}:Images", "--rounds", "0"], "--rounds: must be 1 or more"),
    (["{user}:Images", "--num-workers", "-1"], "--num-workers: must be 0 or more"),
    (["{user}:Images", "--step", "-1"], "--step: must be 0 or more"),
    (["{user}:Images", "--step", "nan"], "--step: must be 0 or more"),
    (["{user}:Images", "--step", "long"], "--step: 'long' is not a number"),
    (["{user}:Images", "--num-workers", "1,2,1"], "--num-workers: names a number twice"),
    (["{user}:Images", "--num-workers", "1,,2"], "'' is not a whole number"),
    (["{user}:arguments", "--num-workers", "0,2", "--prefetch-factor", "2"], "prefetch_factor option could only be"),
    (["{user}:one_loader", "--num-workers", "1,2"], "sets num_workers itself, so --num-workers cannot be given"),
    (["{user}:Images", "--plot", "out.mp3"], "a picture's name ends in one of ."),
    (["{user}:Images", "--plot", "no/such/out.png"], "there is no folder no/such"),
    (["{user}:Images", "--batches", "few"], "'few' is not a whole number"),
    (["{user}:Images", "--seed", str(1 << 64)], "--seed: must be less than 2**64"),
    (["{user}:Images", "--fast"], "unrecognized arguments: --fast"),
]


def test_bad_usage_is_one_line_and_code_2(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in _BAD_USAGE:
        with pytest.raises(SystemExit) as caught:
            main(["bench", *(argument.format(user=user) for argument in arguments)])
        captured = capsys.readouterr()
        assert (caught.value.code, captured.out, captured.err.count("\n")) == (2, "", 1), arguments
        assert message in captured.err


def test_several_numbers_of_workers(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, f"{user}:Counted", *_QUICK, "--num-workers", "2,0,1")
    assert set(found) == {"dataset", "machine", "runs", "enough_workers"}
    assert [run["settings"]["num_workers"] for run in found["runs"]] == [0, 1, 2]
    alone = _bench(capsys, f"{user}:Images", *_QUICK, "--num-workers", "1")
    assert all({*run, "dataset", "machine"} == set(alone) for run in found["runs"])
    assert all(run["equal"] for run in found["runs"])
    assert found["enough_workers"] in (0, 1, 2)


def test_the_table_of_several_numbers(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    many = min((os.cpu_count() or 1) + 1, 24)  # of which torch warns, and the user has asked for them
    arguments = ("--rounds", "1", "--batches", "1", "--batch-size", "1")
    assert main(["bench", f"{user}:Images", *arguments, "--num-workers", f"0,{many}"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("batches equal: yes, bit for bit") == 1
    table = captured.out.split("\n\n")[1].splitlines()
    assert [row.split()[0] for row in table] == ["workers", "0", str(many)]
    assert main(["bench", f"{user}:Processes", *arguments, "--num-workers", "0,1"]) == 0
    said = capsys.readouterr().out
    assert "0 workers: batches equal: yes" in said
    assert "1 workers: batches equal: NO" in said


def test_the_verdict_is_that_of_a_loop_with_such_steps(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "FEWEST_BATCHES", 40)
    monkeypatch.setattr(steps, "STARTS", 20)
    arguments = loader_arguments(f"{user}:Slow", {"batch_size": 4, "num_workers": 2})
    for step, is_kept_busy in ((0.03, True), (0.0, False)):
        found = steps.judge(lambda: ShmDataLoader(**arguments), step)
        assert (found.is_kept_busy, found.knob is None, found.step) == (is_kept_busy, is_kept_busy, step)
        assert found.kind in {kind.value for kind in Kind}
    empty = steps.judge(lambda: ShmDataLoader([], num_workers=1), 0.0)  # type: ignore[arg-type]
    assert empty.text.startswith("Too little to tell")


@pytest.mark.usefixtures("_matplotlib")
def test_a_picture(user: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for counts, name in (("1", "one.svg"), ("0,1", "two.png")):
        assert main(["bench", f"{user}:Images", *_QUICK, "--num-workers", counts, "--plot", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 1000
    assert "<svg" in (tmp_path / "one.svg").read_text()


def test_without_matplotlib_nothing_is_measured(
    user: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["bench", f"{user}:interrupted", "--plot", "out.png"])
    assert "needs matplotlib, which is in the extra [plot]" in capsys.readouterr().err


def test_progress_is_shown_on_a_terminal_only(
    user: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["bench", f"{user}:Images", *_QUICK]) == 0
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert shown[1:3] == ["[0/8] comparing batches", "[1/8] comparing batches"]
    assert shown[-2:] == ["[8/8] asking for a verdict", ""]


def test_errors_of_the_users_own_code_propagate(user: str) -> None:
    with pytest.raises(KeyError, match="the dataset's own error"):
        main(["bench", f"{user}:Broken", "--num-workers", "0"])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        main(["bench", f"importing_{user}:make"])


def test_an_interrupt_needs_no_traceback(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"{user}:interrupted"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.long
def test_a_reader_that_has_gone_needs_no_traceback(user: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        command = [sys.executable, "-m", "shmloader", "bench", f"{user}:Images", *_QUICK, "--num-workers", "0"]
        ended = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_help_and_module_entry() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "shmloader", "bench", "--help"], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    for option in ("MODULE:CALLABLE", "--batch-size", "--persistent-workers", "--seed", "--json"):
        assert option in shown.stdout
