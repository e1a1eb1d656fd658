"""Caches side by side: that every way gives the same samples, and what is said of it."""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import Any

import numpy as np
import pytest

from benchmarks import cached
from benchmarks.cached import WAYS, Caches, Repeated, Round
from benchmarks.cells import jpegs
from shmloader.cli.console import UsageError


def installed(name: str) -> str:
    if name in cached._NEEDED:
        pytest.importorskip(cached._NEEDED[name])
    return name


@pytest.mark.parametrize("name", WAYS)
def test_each_way_gives_the_same_samples(name: str) -> None:
    dataset = Repeated(jpegs()[:3], 5)
    with contextlib.ExitStack() as stack:
        made = WAYS[installed(name)](dataset, stack)
        for _ in range(2):
            for index in range(5):
                picture, label = made[index]
                assert (np.array(picture) == dataset[index][0]).all()
                assert label == dataset[index][1]
        assert len(made) == 5
        del made


@pytest.mark.parametrize("name", ["no cache", "CachedDataset"])
def test_a_round(name: str) -> None:
    found = cached.in_a_process(name, Repeated(jpegs()[:3], 64))
    assert min(found.first, found.later, found.sample) > 0


def test_the_kernel_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "now", lambda: None)
    with pytest.raises(UsageError, match="not known here"):
        cached.measure(argparse.Namespace(length=1, rounds=1))


def test_it_says_how_they_compare() -> None:
    rounds: dict[str, Any] = {"no cache": [Round(600, 700, 1e-3, 10**8)], "LMDB": []}
    found = Caches(1024, rounds)
    text = "\n".join(found.lines())
    assert "| 1,024 pictures | first pass | later passes | one sample | memory |" in text
    assert "| no cache | 600/s | 700/s | 1.00 ms | 100 MB |" in text
    assert "| LMDB | not installed |" in text
    assert json.loads(json.dumps(found.as_dict()))["length"] == 1024
