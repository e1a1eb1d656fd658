"""Growth, ragged batches and outliers, under a cap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from shmloader import LoaderStatistics, PoolMemoryError, ShmDataLoader
from shmloader.slots.ledger import MIN_SLOT_BYTES
from tests.helpers.datasets import Images, Mapped

KIB, MIB = 1 << 10, 1 << 20

# A pool that is this tight hands out copies, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")


def blob(nbytes: int, value: int) -> np.ndarray[Any, Any]:
    return np.full(nbytes, value % 251, np.uint8)


def figures(loader: ShmDataLoader[Any]) -> LoaderStatistics:
    statistics = loader.statistics()
    assert statistics is not None
    return statistics


def read(loader: ShmDataLoader[Any], sizes: list[int]) -> None:
    """Reads blobs one by one and checks each for its size and value."""
    count = 0
    for number, batch in enumerate(loader):
        assert batch.shape == (1, sizes[number])
        assert batch.min() == batch.max() == number % 251
        count += 1
    assert count == len(sizes)


def blobs(sizes: list[int], **arguments: Any) -> ShmDataLoader[Any]:
    arguments = {"num_workers": 2, **arguments}
    return ShmDataLoader(Mapped(lambda index: blob(sizes[index], index), len(sizes)), **arguments)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cap", [None, 12 * MIB, 20 * MIB, 64 * MIB])
def test_ragged_batches_under_a_cap(cap: int | None) -> None:
    sizes = [int(size) for size in np.random.default_rng(1).integers(1, 3 * MIB, 60)]
    loader = blobs(sizes, max_pool_bytes=cap)
    read(loader, sizes)
    assert figures(loader).resident_bytes <= (cap or 1 << 40)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("collate", ["default", "own"])
def test_one_batch_at_a_time_is_all_that_fits(num_workers: int, in_order: bool, collate: str) -> None:
    """Every batch takes nearly all of the cap: the others wait for room, and nothing is lost or stuck."""
    sizes = [5 * MIB] * 20
    arguments: dict[str, Any] = (
        {} if collate == "default" else {"collate_fn": lambda samples: torch.from_numpy(samples[0][None])}
    )
    loader = blobs(sizes, num_workers=num_workers, in_order=in_order, max_pool_bytes=7 * MIB, **arguments)
    seen = sorted(int(batch[0, 0]) for batch in loader)
    assert seen == list(range(20))
    assert figures(loader).resident_bytes <= 7 * MIB


def test_a_batch_that_waits_for_its_turn_makes_room() -> None:
    """The awaited batch needs the whole cap, while those after it are done and hold most of it."""
    done, proceed = os.pipe()

    def sample(index: int) -> Any:
        if index == 0:
            os.read(done, 1)  # until batch 1 is made
            return blob(6 * MIB, index)
        os.write(proceed, b"x")
        return blob(2 * MIB, index)

    loader = ShmDataLoader(Mapped(sample, 2), num_workers=2, max_pool_bytes=7 * MIB, prefetch_factor=1)
    assert [batch.numel() for batch in loader] == [6 * MIB, 2 * MIB]
    os.close(done)
    os.close(proceed)


@pytest.mark.parametrize("collate", ["default", "own"])
def test_a_batch_that_cannot_fit(collate: str) -> None:
    sizes = [100, 9 * MIB, 100, 100]
    arguments: dict[str, Any] = (
        {} if collate == "default" else {"collate_fn": lambda samples: torch.from_numpy(samples[0][None])}
    )
    loader = blobs(sizes, max_pool_bytes=4 * MIB, **arguments)
    iterator = iter(loader)
    assert next(iterator).numel() == 100
    with pytest.raises(PoolMemoryError, match="max_pool_bytes=4194304"):
        next(iterator)
    assert [batch.numel() for batch in iterator] == [100, 100]


def test_an_outliers_memory_is_given_back() -> None:
    sizes = [10 * KIB] * 5 + [50 * MIB] + [10 * KIB] * 1500
    loader = blobs(sizes)
    read(loader, sizes)
    assert figures(loader).resident_bytes < 5 * MIB


def test_the_pool_stays_from_pass_to_pass() -> None:
    loader = ShmDataLoader(Images(20, (100, 100)), batch_size=2, num_workers=2)
    addresses = [{images.data_ptr() for images, _ in loader} for _ in range(3)]
    assert addresses[0] & addresses[1] & addresses[2]


class Endless(IterableDataset[Any]):
    """Larger and larger samples."""

    def __iter__(self) -> Iterator[Any]:
        size = 1
        while True:
            yield blob(size, size)
            size *= 2


def test_growing_without_end_ends_in_a_clear_error() -> None:
    loader = ShmDataLoader(Endless(), num_workers=1, max_pool_bytes=16 * MIB)
    iterator = iter(loader)
    sizes: list[int] = []
    with pytest.raises(PoolMemoryError, match="max_pool_bytes"):
        sizes.extend(batch.numel() for batch in iterator)
    assert sizes == [1 << power for power in range(len(sizes))]
    assert sizes[-1] >= 4 * MIB


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_leaving_while_workers_wait_for_room(persistent_workers: bool) -> None:
    loader = blobs([5 * MIB] * 8, max_pool_bytes=7 * MIB, persistent_workers=persistent_workers)
    for _ in range(5):
        for batch in loader:
            assert batch.numel() == 5 * MIB
            break


def test_declared_shapes_are_resident_before_the_first_batch() -> None:
    loader = ShmDataLoader(
        Images(64, (64, 64)),
        batch_size=16,
        num_workers=2,
        sample_shapes=((64, 64), ()),
        sample_dtypes=(torch.uint8, torch.int64),
    )
    iterator = iter(loader)
    assert figures(loader).resident_bytes >= 6 * (16 * 64 * 64 + 16 * 8)
    before = figures(loader).resident_bytes
    for _ in iterator:
        pass
    assert figures(loader).resident_bytes == before


def test_a_declaration_that_does_not_fit_under_the_cap() -> None:
    loader = ShmDataLoader(
        Images(), batch_size=1000, num_workers=2, sample_shapes=((1000, 1000), ()), max_pool_bytes=64 * MIB
    )
    with pytest.raises(PoolMemoryError, match="max_pool_bytes=67108864"):
        iter(loader)


def test_indices_larger_than_a_slot() -> None:
    indices = [list(range(100_000))] * 3
    loader = ShmDataLoader(
        Mapped(lambda index: 0, 100_000),
        batch_sampler=indices,
        num_workers=1,
        prefetch_factor=1,
        collate_fn=len,
        max_pool_bytes=12 * MIN_SLOT_BYTES,
    )
    assert list(loader) == [100_000] * 3


def test_indices_larger_than_the_pool() -> None:
    loader = ShmDataLoader(
        Mapped(lambda index: 0, 10),
        batch_sampler=[[0], [0] * 1_000_000],
        num_workers=1,
        max_pool_bytes=12 * MIN_SLOT_BYTES,
    )
    with pytest.raises(PoolMemoryError, match=r"indices of one batch.*max_pool_bytes"):
        list(loader)


@pytest.mark.parametrize("in_order", [True, False])
def test_written_batches_that_wait_make_room_for_the_one_before_them(in_order: bool) -> None:
    """Slots that are large enough for the batches before, and a few bytes too small for the next, are waited for."""
    nbytes, slots, workers = 192_000, 5, 3

    def sample(index: int) -> Any:
        return index, np.full(nbytes, index % 251, np.uint8), "x" * (index % 50)

    cap = (slots + workers) * MIN_SLOT_BYTES + (1 << 18)
    loader = ShmDataLoader(
        Mapped(sample, 240),
        batch_size=1,
        num_workers=workers,
        prefetch_factor=1,
        num_slots=slots,
        max_pool_bytes=cap,
        in_order=in_order,
        persistent_workers=True,
    )
    for _ in range(5):
        seen = []
        for number, content, name in loader:
            seen.append(int(number))
            assert len(name[0]) == seen[-1] % 50
            assert content.min() == content.max() == seen[-1] % 251
        assert sorted(seen) == list(range(240))
    assert figures(loader).resident_bytes <= cap
