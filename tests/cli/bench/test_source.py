"""What MODULE:CALLABLE may be, and the loaders that are made of it."""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from shmloader.cli.bench.source import build, loader_arguments
from shmloader.cli.console import UsageError


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
