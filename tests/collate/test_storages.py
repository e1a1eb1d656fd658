"""Collate functions that stack into shared memory of their own, as torch's does: what they ask for lies in the slot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from tests.helpers.keeping import lies_in_a_slot

SHAPE = 3, 40, 50
KINDS = pytest.mark.parametrize("worker_type", ["process", "thread"])


class Filled(torch.Tensor):
    """A tensor of a class that torch's function stacks as any other, but for the class."""


class Pictures(Dataset[Any]):
    def __init__(self, kind: type[torch.Tensor] = torch.Tensor) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        return torch.full(SHAPE, float(index)).as_subclass(self.kind)


def stack(samples: list[Any]) -> Any:
    """Stacks as torch's own function does in a worker, and as libraries do that have one like it."""
    first = samples[0]
    storage = first._typed_storage()._new_shared(sum(one.numel() for one in samples), device=first.device)
    return torch.stack(samples, out=first.new(storage).resize_(len(samples), *first.size()))


def stack_bytes(samples: list[Any]) -> Any:
    first = samples[0]
    storage = first.untyped_storage()._new_shared(len(samples) * first.nbytes, device=first.device)
    return torch.stack(samples, out=first.new(storage).resize_(len(samples), *first.size()))


def told(collate: Any) -> Any:
    def with_place(samples: list[Any]) -> Any:
        batch = collate(samples)
        return batch, batch.is_shared()

    return with_place


@KINDS
@pytest.mark.parametrize("collate", [stack, stack_bytes])
def test_what_is_stacked_lies_in_the_slot(worker_type: str, collate: Any) -> None:
    loader: Any = ShmDataLoader(
        Pictures(), 8, num_workers=2, collate_fn=told(collate), worker_type=worker_type, num_slots=20
    )
    for _ in range(2):
        iterator = iter(loader)
        for number, (batch, was_shared) in enumerate(iterator):
            assert lies_in_a_slot(batch, iterator)
            assert not was_shared
            assert batch.flatten(1).unique(dim=1).flatten().tolist() == list(range(8 * number, 8 * number + 8))


@KINDS
def test_a_subclass_of_tensors_is_stacked_there_too(worker_type: str) -> None:
    expected = [batch.as_subclass(torch.Tensor) for batch in DataLoader(Pictures(Filled), 8)]
    loader: Any = ShmDataLoader(Pictures(Filled), 8, num_workers=1, worker_type=worker_type)
    iterator = iter(loader)
    for batch, wanted in zip(iterator, expected, strict=True):
        assert type(batch) is Filled
        assert lies_in_a_slot(batch, iterator)
        assert torch.equal(batch.as_subclass(torch.Tensor), wanted)


class Keeping:
    """Keeps what it has stacked, and says whether any of it has changed since."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, Any]] = []

    def __call__(self, samples: list[Any]) -> Any:
        batch = stack(samples)
        self.kept.append((batch, batch.clone()))
        return batch, all(torch.equal(one, other) for one, other in self.kept)


@KINDS
def test_what_a_collate_function_keeps_does_not_change(worker_type: str) -> None:
    loader: Any = ShmDataLoader(Pictures(), 4, num_workers=1, collate_fn=Keeping(), worker_type=worker_type)
    assert [is_same for _, is_same in loader] == [True] * 12


class Shares(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> bool:
        return bool(torch.UntypedStorage._new_shared(16).is_shared())


@KINDS
def test_a_dataset_that_shares_memory_is_given_shared_memory(worker_type: str) -> None:
    loader: Any = ShmDataLoader(Shares(), 4, num_workers=1, worker_type=worker_type)
    assert [batch.tolist() for batch in loader] == [[True] * 4]


def test_a_storage_on_another_device_is_torchs() -> None:
    def elsewhere(samples: list[Any]) -> Any:
        empty = torch.UntypedStorage._new_shared(0)
        return torch.UntypedStorage._new_shared(8, device="meta").device.type, empty.nbytes()

    loader: Any = ShmDataLoader(Shares(), 4, num_workers=1, collate_fn=elsewhere)
    assert list(loader) == [("meta", 0)]
