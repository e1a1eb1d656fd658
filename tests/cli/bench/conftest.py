"""A module of the user's, and measuring without waiting for accuracy."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from shmloader.cli.bench import plot
from shmloader.cli.bench.measure import Round
from shmloader.cli.bench.report import LoaderReport, Report
from shmloader.cli.bench.sweep import Sweep
from shmloader.cli.bench.verify import Verdict

_USER_MODULE = """
import os
import random
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from shmloader import ShmDataLoader


def collate(samples):
    return default_collate(samples)


class Images(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"image": np.full((3, 4), index, np.uint8), "noise": torch.rand(2), "name": f"number {index}"}


class Processes(Images):
    def __getitem__(self, index):
        return index, os.getpid()


class Chatty(Images):
    def __init__(self):
        print("made")

    def __getitem__(self, index):
        print("reading", index)
        return index


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(24)


class Slow(Images):
    def __len__(self):
        return 160

    def __getitem__(self, index):
        time.sleep(0.002)
        return index


class Counted(Images):
    made = 0

    def __init__(self):
        Counted.made += 1
        assert Counted.made == 1


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


def a_class():
    return Images


class Unsized(Dataset):
    def __getitem__(self, index):
        return index


def unsized_but_sampled():
    return {"dataset": Unsized(), "sampler": range(40)}


def loader():
    return DataLoader(Images(), batch_size=4, shuffle=True, num_workers=1)


def none_at_all():
    return {"dataset": None}


def no_order():
    return {"dataset": Images(), "sampler": 5}


def no_function():
    return {"dataset": Images(), "collate_fn": "stack"}


def interrupted():
    raise KeyboardInterrupt


def numbers():
    yield 1


number = 3
dataset = Images()
one_loader = DataLoader(Images(), batch_size=8, num_workers=1, drop_last=True, collate_fn=collate)
own_loader = ShmDataLoader(Images(), batch_size=8, num_workers=1, num_slots=9)
in_a_dict = {"dataset": dataset, "batch_size": 16}
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


@pytest.fixture(scope="session")
def _matplotlib(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Matplotlib, which keeps the files of its fonts open once it has drawn."""
    pytest.importorskip("matplotlib")
    loader = LoaderReport([Round(1, 1.0, 1.0, [1.0])], None)
    report = Report("name", {"num_workers": 1, "batch_size": 1}, {}, loader, loader, Verdict(True, 1))
    plot.save(Sweep([report]), tmp_path_factory.mktemp("plot") / "first.png")


@pytest.fixture(autouse=True)
def _no_time_for_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.cli.bench.measure.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr("shmloader.cli.bench.memory.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr("shmloader.cli.bench.memory._SAMPLES", 2)
    monkeypatch.setattr("shmloader.cli.bench.steps.SECONDS", 0.0)
    monkeypatch.setattr("shmloader.cli.bench.steps.STARTS", 0)
    monkeypatch.setattr("shmloader.cli.bench.steps.FEWEST_BATCHES", 4)
