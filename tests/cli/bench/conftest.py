"""A module of the user's, and measuring without waiting for accuracy."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

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


@pytest.fixture(autouse=True)
def _no_time_for_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.cli.bench.measure.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr("shmloader.cli.bench.memory.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr("shmloader.cli.bench.memory._SAMPLES", 2)
