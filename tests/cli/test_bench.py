"""The bench command and the benchmark suite: what they say, never how fast anything is."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import json
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks import bars
from benchmarks.__main__ import main as suite_main
from benchmarks.cells import CELLS, Cell, Samples, Stream, pad, pad_as_sequences
from benchmarks.limit import Limit, _filler
from benchmarks.peers import Peer
from benchmarks.suite import CellResult, run_cell, turns
from shmloader.__main__ import main
from shmloader.cli.bench import figures, memory, progress
from shmloader.cli.bench.compare import first_difference, nbytes, tensors
from shmloader.cli.bench.machine import machine, machine_line
from shmloader.cli.bench.measure import Round, Track, calibrate, interleave
from shmloader.cli.bench.options import UsageError
from shmloader.cli.bench.report import LoaderReport, Report
from shmloader.cli.bench.source import build, loader_arguments
from shmloader.cli.bench.verify import Verdict, verify
from tests.helpers.datasets import Mapped, Shards

Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024

_USER_MODULE = """
import os
import random

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset


class Images(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"image": np.full((3, 4), index, np.uint8), "noise": torch.rand(2), "name": f"number {index}"}


class Processes(Images):
    def __getitem__(self, index):
        return index, os.getpid()


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(24)


class Broken(Images):
    def __getitem__(self, index):
        raise KeyError("the dataset's own error")


class Namespace:
    images = Images


def arguments():
    return {"dataset": Images(), "batch_size": 4, "shuffle": True, "generator": torch.Generator()}


def with_slots():
    return {"dataset": Images(), "num_slots": 12}


def no_dataset():
    return {"batch_size": 4}


def misspelt():
    return {"dataset": Images(), "batchsize": 4}


def nothing():
    return None


def takes_one(path):
    return Images()


number = 3
"""

_numbers = itertools.count()


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's, in the current directory."""
    name = f"users_module_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(_USER_MODULE)
    (tmp_path / f"importing_{name}.py").write_text("import a_module_that_nobody_has")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    importlib.invalidate_caches()
    return name


_QUICK = ("--rounds", "2", "--batches", "2", "--batch-size", "4")


@pytest.fixture(autouse=True)
def _no_time_for_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.cli.bench.measure.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr("shmloader.cli.bench.memory.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr("shmloader.cli.bench.memory._SAMPLES", 2)


def _bench(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["bench", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# -- the command -------------------------------------------------------------------------------------------------------


def test_json_has_the_documented_keys(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, f"{user}:Images", *_QUICK, "--shuffle")
    assert set(found) == {
        *("dataset", "machine", "settings", "stock", "ours", "ratio"),
        *("equal", "compared_batches", "difference", "stock_repeats"),
    }
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


def test_the_table_says_it_all(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"{user}:Namespace.images", *_QUICK, "--prefetch-factor", "1", "--seed", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for text in ("time per batch", "stock / ours", "CPU per batch", "first batch", "memory added", "prefetch_factor=1"):
        assert text in captured.out
    assert captured.out.endswith("batches equal: yes, bit for bit (16 compared)\n")


def test_without_a_name_it_measures_images(capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(capsys, *_QUICK)
    assert found["dataset"] == "synthetic"
    assert found["equal"] is True


_BAD_USAGE = [
    (["no_such_module:make"], "no module no_such_module"),
    (["{user}.inside:make"], "no module users_module"),
    (["{user}"], "is not MODULE:CALLABLE"),
    ([".{user}:Images"], "is not MODULE:CALLABLE"),
    (["{user}:missing"], "has no missing"),
    (["{user}:number"], "is not callable, it is of type int"),
    (["{user}:takes_one"], "missing a required argument: 'path'"),
    (["{user}:nothing"], "but NoneType"),
    (["{user}:no_dataset"], "a dict without 'dataset'"),
    (["{user}:misspelt"], "unexpected keyword argument 'batchsize'"),
    (["{user}:arguments", "--batch-size", "3"], "sets batch_size itself, so --batch-size cannot be given"),
    (["{user}:Images", "--num-workers", "0", "--persistent-workers"], "persistent_workers option needs"),
    (["{user}:Images", "--batch-size", "32", "--batches", "1"], "a pass has 2 batches; timing takes 4 at least"),
    (["{user}:Images", "--rounds", "0"], "--rounds: must be 1 or more"),
    (["{user}:Images", "--num-workers", "-1"], "--num-workers: must be 0 or more"),
    (["{user}:Images", "--batches", "few"], "'few' is not a whole number"),
    (["{user}:Images", "--fast"], "unrecognized arguments: --fast"),
]


def test_bad_usage_is_one_line_and_code_2(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in _BAD_USAGE:
        with pytest.raises(SystemExit) as caught:
            main(["bench", *(argument.format(user=user) for argument in arguments)])
        captured = capsys.readouterr()
        assert (caught.value.code, captured.out, captured.err.count("\n")) == (2, "", 1), arguments
        assert message in captured.err


def test_errors_of_the_users_own_code_propagate(user: str) -> None:
    with pytest.raises(KeyError, match="the dataset's own error"):
        main(["bench", f"{user}:Broken", "--num-workers", "0"])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        main(["bench", f"importing_{user}:make"])


def test_help_and_module_entry() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "shmloader", "bench", "--help"], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    for option in ("MODULE:CALLABLE", "--batch-size", "--persistent-workers", "--seed", "--json"):
        assert option in shown.stdout


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_only_ours_gets_its_own_arguments(user: str) -> None:
    arguments = loader_arguments(f"{user}:with_slots", {"batch_size": None})
    assert arguments["num_slots"] == 12
    assert (arguments["batch_size"], arguments["num_workers"]) == (32, 2)
    assert build(DataLoader, arguments).num_workers == 2
    with pytest.raises(UsageError, match="num_slots"):
        build(functools.partial(DataLoader), arguments)


def test_a_batch_sampler_goes_without_a_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"dataset": [1, 2, 3], "batch_sampler": [[0, 1], [2]]}
    monkeypatch.setitem(sys.modules, "module_with_sampler", SimpleNamespace(make=lambda: made))
    arguments = loader_arguments("module_with_sampler:make", {"num_workers": 0})
    assert [batch.tolist() for batch in build(DataLoader, arguments)] == [[1, 2], [3]]


# -- comparing ---------------------------------------------------------------------------------------------------------


def _batch() -> Any:
    return {
        "point": Point(torch.arange(6).reshape(2, 3), [1, 2.5, float("nan"), None, True]),
        "text": ("a", b"b"),
        "half": torch.tensor([1.0, float("nan"), -0.0], dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "array": np.array([1.0, np.nan]),
        "words": np.array(["x", "yz"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "number": np.float32(1.5),
        "complex": complex(0.0, float("nan")),
        "own": SimpleNamespace(values=torch.ones(2), label="l"),
        "sparse": torch.eye(3).to_sparse(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "set": {1, 2},
    }


def test_equal_structures_have_no_difference() -> None:
    assert first_difference(_batch(), _batch()) is None


_CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (lambda b: b["point"].x.__setitem__((1, 0), 9), "batch['point'].x: flat element 3 is 3 against 9"),
    (lambda b: b["point"].y.__setitem__(2, 0.0), "batch['point'].y[2]: nan against 0.0"),
    (lambda b: b["point"].y.__setitem__(0, True), "batch['point'].y[0]: int against bool"),
    (lambda b: b["point"].y.append(1), "batch['point'].y: 5 parts against 6"),
    (lambda b: b.update(point=(1, 2)), "batch['point']: Point against tuple"),
    (lambda b: b.update(text=("a", b"c")), "batch['text'][1]: b'b' against b'c'"),
    (lambda b: b["half"].__setitem__(2, 0.0), "batch['half']: flat element 2 is -0.0 against 0.0"),
    (lambda b: b["half"].__setitem__(1, 0.0), "batch['half']: flat element 1 is nan against 0.0"),
    (lambda b: b.update(half=b["half"].float()), "batch['half']: dtype torch.bfloat16 against torch.float32"),
    (lambda b: b.update(scalar=torch.tensor([3])), "batch['scalar']: shape () against (1,)"),
    (lambda b: b.update(empty=torch.empty(4, 0)), "batch['empty']: shape (0, 4) against (4, 0)"),
    (lambda b: b["array"].__setitem__(1, 1), "batch['array']: flat element 1 is np.float64(nan)"),
    (lambda b: b.update(array=np.ones(2, np.float32)), "batch['array']: dtype float64 against float32"),
    (lambda b: b["words"].__setitem__(1, "ya"), "batch['words']: flat element 1 is"),
    (lambda b: b["objects"][0].update(a=2), "batch['objects'][0]['a']: 1 against 2"),
    (lambda b: b.update(number=np.float32(2)), "batch['number']: flat element 0 is"),
    (lambda b: b.update(complex=complex(-0.0, float("nan"))), "batch['complex']: nanj against (-0+nanj)"),
    (lambda b: setattr(b["own"], "label", "m"), "batch['own'].label: 'l' against 'm'"),
    (lambda b: b.update(sparse=torch.eye(3)), "batch['sparse']: layout torch.sparse_coo against torch.strided"),
    (lambda b: b.update(sparse=(2 * torch.eye(3)).to_sparse()), "batch['sparse']: flat element 0 is 1.0 against"),
    (lambda b: b["nested"].unbind()[1].__setitem__(0, 5), "batch['nested'][1]: flat element 0 is 1.0 against 5.0"),
    (lambda b: b.update(set={1, 3}), "batch['set']: {1, 2} against {1, 3}"),
    (lambda b: b.update(more=1), "batch: 14 parts against 15"),
    (lambda b: b.update({"more": b.pop("set")}), "batch: parts "),
]


def test_the_first_difference_is_named() -> None:
    for change, text in _CHANGES:
        changed = _batch()
        change(changed)
        assert (first_difference(_batch(), changed) or "").startswith(text), text


def test_comparison_of_unusual_objects() -> None:
    class Slotted:
        __slots__ = ("value",)

        def __init__(self, value: int) -> None:
            self.value = value

    loop: list[Any] = [1]
    loop.append(loop)
    other: list[Any] = [1]
    other.append(other)
    assert first_difference(loop, other) is None
    assert first_difference(Slotted(1), Slotted(1)) is None
    assert first_difference(Slotted(1), Slotted(2)) == "batch.value: 1 against 2"
    assert first_difference(object(), object()) is None
    assert first_difference(OrderedDict(a=1), {"a": 1}) == "batch: OrderedDict against dict"
    assert first_difference("x" * 100, "y") == f"batch: '{'x' * 56}... against 'y'"


def test_quantized_and_conjugated_tensors_are_compared() -> None:
    one = torch.tensor([1 + 2j, 3 - 1j])
    assert first_difference(one.conj(), torch.tensor([1 - 2j, 3 + 1j])) is None
    assert first_difference(one.conj(), one) == "batch: flat element 0 is (1-2j) against (1+2j)"
    assert first_difference(one.t(), one) is None


def test_bytes_and_tensors_of_a_batch() -> None:
    batch = {"a": torch.zeros(3, dtype=torch.int16), "b": [np.zeros(2), "text", 1], "c": (torch.zeros(0),)}
    assert nbytes(batch) == 6 + 16
    assert tensors(batch) == 2


# -- verifying ---------------------------------------------------------------------------------------------------------


def _loader(length: int, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(Mapped(float, length), **arguments)


def test_loaders_of_unequal_length_differ() -> None:
    def verdict(stock: int, ours: int) -> Verdict:
        return verify(lambda: _loader(stock), lambda: _loader(ours), lambda: None)

    assert verdict(3, 3) == Verdict(True, 3)
    assert verdict(3, 4) == Verdict(False, 3, "stock ended after 3 batches, the other goes on", True)
    assert verdict(4, 3) == Verdict(False, 4, "batch 3 is missing: the other loader has ended", True)


def test_only_so_much_is_kept_for_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    verifying = functools.partial(verify, lambda: _loader(9), lambda: _loader(9), lambda: None)
    monkeypatch.setattr("shmloader.cli.bench.verify.BATCHES", 4)
    assert verifying() == Verdict(True, 4)
    monkeypatch.setattr("shmloader.cli.bench.verify.BYTES", 16)
    assert verifying() == Verdict(True, 3)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_batches_that_cannot_be_copied_deeply_are_verified() -> None:
    def nested(samples: list[Any]) -> Any:
        return torch.nested.nested_tensor([torch.full((int(sample) + 1,), sample) for sample in samples])

    def make() -> DataLoader[Any]:
        return _loader(6, batch_size=2, collate_fn=nested)

    assert verify(make, make, lambda: None) == Verdict(True, 3)


# -- measuring ---------------------------------------------------------------------------------------------------------


class _Scripted:
    """A loader of which a test sees every step."""

    num_workers = 2
    prefetch_factor = 2

    def __init__(self, lengths: list[int], declared: int | None = None) -> None:
        self.lengths = lengths
        self.declared = declared
        self.taken: list[int] = []

    def __len__(self) -> int:
        if self.declared is None:
            raise TypeError
        return self.declared

    def __iter__(self) -> Iterator[int]:
        length = self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]
        self.taken.append(0)
        for number in range(length):
            self.taken[-1] += 1
            yield number


def _track(lengths: list[int], declared: int | None = None) -> tuple[Track, list[int]]:
    loader = _Scripted(lengths, declared)
    return Track(loader), loader.taken


def test_a_round_is_timed_in_steady_state() -> None:
    track, taken = _track([1000], 1000)
    took = track.run(30)
    assert (took.batches, len(took.first_batches), taken) == (30, 1, [16 + 30])
    took = track.run(29)
    assert (took.batches, took.first_batches, taken) == (30, [], [46 + 8 + 30])
    track.stop()
    assert track.run(2).batches == 2
    assert taken[1:] == [18]


def test_short_passes_are_halved_and_repeated() -> None:
    track, taken = _track([11], 11)
    took = track.run(10)
    assert took.batches == 10
    assert len(took.first_batches) == 2
    assert taken == [10, 8]  # 4 untimed and 6 timed, 4 untimed and 4 timed


def test_an_unexpected_end_is_not_timed() -> None:
    track, taken = _track([24])
    took = track.run(12)
    assert took.batches == 12
    assert taken[0] == 24
    assert sum(taken[1:]) == (12 + 12)
    track, _ = _track([3])
    with pytest.raises(UsageError, match="a pass has 3 batches; timing takes 4 at least"):
        track.run(4)


def test_passes_that_change_their_length_come_to_an_end() -> None:
    track, _ = _track([40, 30, 20, 8], 50)
    assert track.run(20).batches == 20


def test_real_loaders_are_tracked() -> None:
    track = Track(DataLoader(Shards((9, 9)), batch_size=2, num_workers=1))
    took = track.run(3)
    assert (took.batches, took.wall > 0, took.per_batch > 0, took.cpu_per_batch >= 0) == (3, True, True, True)
    assert calibrate(track, 0.0) >= 10
    track.stop()


def test_turns_change_their_order() -> None:
    log: list[str] = []

    def turn(name: str) -> Round:
        log.append(name)
        return Round(1)

    found = interleave([functools.partial(turn, name) for name in "abc"], 3, done=lambda: log.append("."))
    assert "".join(log) == "a.b.c.b.c.a.c.a.b."
    assert [len(rounds) for rounds in found] == [3, 3, 3]


def test_memory_is_found_in_the_process_tree() -> None:
    found = memory.growth(lambda: _loader(12, num_workers=1, batch_size=2))
    assert found is not None
    assert found.pss > 0
    assert memory.Memory(5, 3).since(memory.Memory(1, 1)) == memory.Memory(4, 2)
    assert memory.growth(lambda: _loader(0)) is None


def test_memory_is_not_known_without_the_kernels_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert memory.now() is None
    assert memory.growth(lambda: _loader(1)) is None


# -- figures and reports -----------------------------------------------------------------------------------------------


def test_figures() -> None:
    assert figures.figure([3.0, 1.0, 2.0]) == figures.Figure(2.0, 1.0, 3.0, (3.0, 1.0, 2.0))
    assert figures.ratio([10, 30, 40], [1, 2, 10]).rounds == (10, 15, 4)
    assert figures.ratio([10, 30, 40], [1, 2, 10]).median == 10
    assert figures.figure([1.0]).text(figures.times) == "1.00x"
    assert figures.figure([1.0, 2.0]).text(figures.times) == "1.50x (1.00x to 2.00x)"
    with pytest.raises(ValueError, match="at least one"):
        figures.figure([])
    with pytest.raises(ValueError, match="shorter"):
        figures.ratio([1.0, 2.0], [1.0])


def test_units() -> None:
    assert [figures.duration(value) for value in (2.5e-6, 12.34e-6, 0.5, 1.0)] == [
        *("2.50 us", "12.3 us", "500 ms", "1.00 s")
    ]
    assert [figures.size(value) for value in (12, 12_345, 1e6, 2.5e9, -3e6)] == [
        *("12 B", "12.3 kB", "1.00 MB", "2.50 GB", "-3.00 MB")
    ]


def test_a_report_says_no_plainly() -> None:
    rounds = [Round(10, 1e-3, 1e-4, [0.1])]
    verdict = Verdict(False, 7, "batch 3: 1 against 2", stock_repeats=True)
    report = Report("m:f", {}, {}, LoaderReport(rounds, None), LoaderReport(rounds, None), verdict)
    assert "not known" in report.text()
    assert "batches equal: NO, batch 3: 1 against 2 (stock against ours); stock's own batches are the" in report.text()
    assert json.loads(json.dumps(report.as_dict()))["stock_repeats"] is True


def test_the_machine_is_one_line() -> None:
    assert "\n" not in machine_line()
    assert f"torch {torch.__version__}" in machine_line()
    assert machine_line(machine()) == machine_line()


@pytest.mark.parametrize("installed", [True, False])
def test_progress_with_and_without_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], installed: bool
) -> None:
    log: list[Any] = []
    bar = SimpleNamespace(update=lambda: log.append(1), set_description=log.append, close=lambda: log.append("end"))
    fake = SimpleNamespace(tqdm=lambda **arguments: bar) if installed else None
    monkeypatch.setitem(sys.modules, "tqdm", fake)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.shown(2) as shown:
        shown.begin("work")
        shown.step()
    assert log == (["work", 1, "end"] if installed else [])
    assert capsys.readouterr().err == ""


# -- the suite ---------------------------------------------------------------------------------------------------------

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
