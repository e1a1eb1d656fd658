"""A pass of each loader, compared: what is said of batches that differ, and how much is kept."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from shmloader.cli.bench.verify import Verdict, seed_all, verify
from tests.helpers.datasets import Mapped


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


def test_generators_among_the_arguments_are_seeded() -> None:
    def drawn(arguments: dict[str, Any]) -> list[list[int]]:
        loader = DataLoader(Mapped(int, 50), **arguments)
        found = []
        for _ in range(2):
            seed_all(3, arguments)
            found.append([int(number) for batch in loader for number in batch])
        return found

    def sampler() -> RandomSampler:
        return RandomSampler(range(50), generator=torch.Generator())

    for arguments in (
        {"shuffle": True, "generator": torch.Generator()},
        {"sampler": sampler()},
        {"batch_sampler": BatchSampler(sampler(), 5, False)},
    ):
        one, other = drawn(arguments)
        assert one == other != sorted(one)
