"""A loader behind a training step: that the three epochs are of the same steps, and what is said of their times."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import hidden
from benchmarks.hidden import Epoch, Hidden


def test_an_epoch_waits_for_its_batches() -> None:
    clock = itertools.count()

    def batches() -> Iterator[int]:
        for _ in range(3):
            for _ in range(10):
                next(clock)
            yield 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hidden, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        found = hidden.epoch(batches(), lambda batch: None)
    assert found == Epoch(seconds=39, loading=34)


def test_all_three_take_the_same_steps_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(hidden, "Step", lambda: lambda batch: seen.append(int(batch[0].sum())))
    ends: list[int] = []
    found = hidden.measure_epochs(3, 2, done=lambda: ends.append(len(seen)))
    assert {name: len(epochs) for name, epochs in found.epochs.items()} == {"memory": 2, "ours": 2, "stock": 2}
    assert ends == [3 * number for number in range(1, 10)]
    epochs = {tuple(seen[end - 3 : end]) for end in ends}
    assert len(epochs) == 1
    assert len(set(seen)) == 3


def test_a_step_trains_on_one_thread() -> None:
    threads: list[int] = []
    before = torch.get_num_threads()

    class Spy(hidden.Step):
        def __call__(self, batch: Any) -> None:
            weight = next(self._network.parameters())
            start = weight.detach().clone()
            super().__call__(batch)
            assert not torch.equal(weight, start)
            threads.append(torch.get_num_threads())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hidden, "Step", Spy)
        hidden.measure_epochs(1, 1)
    assert threads == [1] * 6
    assert torch.get_num_threads() == before


def test_it_says_how_they_compare() -> None:
    def epochs(*seconds: float) -> list[Epoch]:
        return [Epoch(each, each / 100) for each in seconds]

    rounds = {"memory": epochs(1.0, 2.0, 4.0), "ours": epochs(1.03, 2.06, 4.12), "stock": epochs(1.5, 2.0, 8.0)}
    found = Hidden(10, rounds, Epoch(1e-3, 1e-3))
    assert found.ratios["ours"].rounds == (1.03, 1.03, 1.03)
    assert found.ratios["stock"].rounds == (1.5, 1.0, 2.0)
    text = "\n".join(found.lines())
    assert "| batches in memory | 2.00 s (1.00 s to 4.00 s) |  | 2.00 ms (1.00 ms to 4.00 ms) |" in text
    assert "| 2.00 s (1.50 s to 8.00 s) | 1.500x (1.000x to 2.000x) | 2.00 ms (1.50 ms to 8.00 ms) |" in text
    assert text.endswith("With no steps shmloader loads a batch in 100 us.")
    assert set(found.as_dict()) == {
        *("steps", "alone_seconds_per_batch", "seconds", "loading_seconds_per_step", "ratios")
    }
