"""Small tensors beside large ones have memory of their own, so that keeping labels costs labels.

And what is said of loops that keep so many batches that they get copies.
"""

from __future__ import annotations

import gc
import itertools
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from shmloader import HeldBatchesWarning, ShmDataLoader
from shmloader.batches.place import small_ranges
from tests.helpers.datasets import Images, Mapped
from tests.helpers.support import assert_same, detached

LENGTH, SIZE = 640, 8


def loader(dataset: Any = None, **arguments: Any) -> ShmDataLoader[Any]:
    source = Images(LENGTH, (64, 64)) if dataset is None else dataset
    return ShmDataLoader(source, **{"batch_size": SIZE, "num_workers": 2, **arguments})


def lies_in_a_slot(tensor: Any, iterator: Any) -> bool:
    address = tensor.data_ptr() if isinstance(tensor, torch.Tensor) else tensor.__array_interface__["data"][0]
    arena = iterator._pool.arena
    return bool(arena.address <= address < arena.address + arena.start(arena.slots))


@pytest.mark.filterwarnings("error::shmloader.HeldBatchesWarning")
@pytest.mark.parametrize("num_slots", [None, 6])
def test_kept_labels_do_not_hold_their_images(num_slots: int | None) -> None:
    source = loader(num_slots=num_slots)
    iterator = iter(source)
    labels, addresses = [], set()
    for images, its_labels in iterator:
        assert lies_in_a_slot(images, iterator)
        assert not lies_in_a_slot(its_labels, iterator)
        addresses.add(images.data_ptr())
        labels.append(its_labels)
    assert len(addresses) <= 6
    statistics = source.statistics()
    assert statistics is not None
    assert (statistics.batches, statistics.copies) == (LENGTH // SIZE, 0)
    assert torch.equal(torch.cat(labels), torch.arange(LENGTH))
    del images, its_labels
    assert source.statistics().leased == 0


def test_kept_images_are_still_lent_and_never_written_over() -> None:
    source = loader()
    iterator = iter(source)
    kept = [next(iterator)[0] for _ in range(10)]
    for last in iterator:
        del last
    assert source.statistics().leased == 10
    for number, images in enumerate(kept):
        assert_same(images, torch.from_numpy(Images(LENGTH, (64, 64)).images[SIZE * number : SIZE * number + SIZE]))


def large(index: int) -> torch.Tensor:
    return torch.full((4000,), float(index))


# What a sample is, and for each part of a batch of it whether it is lent.
STRUCTURES: dict[str, tuple[Callable[[int], Any], list[bool]]] = {
    "a label behind": (lambda index: (large(index), index), [True, False]),
    "a label before": (lambda index: (index, large(index)), [False, True]),
    "labels around": (lambda index: (index, large(index), index / 3), [False, True, False]),
    "several side by side": (lambda index: (large(index), index, index / 3, index > 4), [True, False, False, False]),
    "a dtype that numpy lacks": (
        lambda index: (large(index), torch.full((2,), index / 3, dtype=torch.bfloat16)),
        [True, False],
    ),
    "no element": (lambda index: (large(index), torch.empty(0), index), [True, False, False]),
    "nothing large": (lambda index: (torch.full((3,), index), index), [True, True]),
    "many small ones": (lambda index: tuple(torch.full((50,), index + part) for part in range(20)), [True] * 20),
    "nothing small": (lambda index: (large(index), large(index + 1)), [True, True]),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("what", STRUCTURES)
def test_which_parts_are_lent(what: str) -> None:
    make, lent = STRUCTURES[what]
    iterator = iter(loader(Mapped(make, 60)))
    kept = list(iterator)
    assert_same(kept, list(DataLoader(Mapped(make, 60), batch_size=SIZE)))
    assert [lies_in_a_slot(part, iterator) for part in kept[0]] == lent


def test_arrays_are_parts_too() -> None:
    def with_arrays(samples: list[Any]) -> Any:
        return [np.stack([sample[0] for sample in samples]), np.array([sample[1] for sample in samples])]

    source = loader(collate_fn=with_arrays)
    iterator = iter(source)
    labels = []
    for images, its_labels in iterator:
        assert lies_in_a_slot(images, iterator)
        assert not lies_in_a_slot(its_labels, iterator)
        its_labels += 1  # it is the loop's own
        labels.append(its_labels)
    assert source.statistics().copies == 0
    assert np.concatenate(labels).tolist() == list(range(1, LENGTH + 1))


def test_parts_that_share_memory_still_do() -> None:
    def with_a_row(samples: list[Any]) -> Any:
        images, labels = default_collate(samples)
        return images, images[3], labels, labels[2:4]

    for images, row, labels, two in loader(collate_fn=with_a_row):
        row.fill_(1)
        assert (images[3] == 1).all()
        two.fill_(-1)
        assert (labels[2:4] == -1).all()


@pytest.mark.parametrize("seed", range(20))
def test_small_ranges(seed: int) -> None:
    """Against what they are: of parts that do not overlap, those up to 16 KB, if they are an eighth at most."""
    draw = random.Random(seed)
    extents, end = [], 0
    for _ in range(draw.randrange(1, 12)):
        nbytes = draw.choice([0, 1, 64, 500, 5000, 16 * 1024, 16 * 1024 + 1, 300_000])
        extents.append((end, nbytes))
        end += -(-nbytes // 64) * 64
    draw.shuffle(extents)
    small = {offset for offset, nbytes in extents if 0 < nbytes <= 16 * 1024}
    total = sum(nbytes for _, nbytes in extents)
    if 8 * sum(nbytes for offset, nbytes in extents if offset in small) > total:
        small = set()
    ranges = small_ranges(extents)
    assert {offset for offset, nbytes in extents if nbytes and any(offset in one for one in ranges)} == small
    assert sum(map(len, ranges)) <= sum(nbytes + 64 for offset, nbytes in extents if offset in small)
    assert all(before.stop < after.start for before, after in itertools.pairwise(ranges))


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("share", ["share_memory_", "pickled"])
def test_views_of_private_memory_outlive_its_move_to_shared_memory(share: str, copied: bool) -> None:
    """Of what is small, and of batches that are copied since the loop keeps many."""
    source = loader(num_slots=6)
    views, wanted = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeldBatchesWarning)
        keep = []
        for images, labels in source:
            if copied:
                keep.append((images, labels))
            for part in (images, labels):
                wanted.append(detached(part))
                views.append((part.numpy(), torch.utils.dlpack.from_dlpack(part), part[1:]))
                if share == "share_memory_":
                    part.share_memory_()
                else:
                    part.untyped_storage()._share_fd_cpu_()  # what pickling for another process calls
    keep.clear()
    gc.collect()
    noise = [torch.full((8,), -1) for _ in range(1000)]  # in what would be free
    for (array, imported, tail), part in zip(views, wanted, strict=True):
        assert_same(torch.from_numpy(array), part)
        assert_same(imported, part)
        assert torch.equal(tail, part[1:])
    del noise


# -- what is said --------------------------------------------------------------------------------------------------


def warned(source: ShmDataLoader[Any], hold: int) -> list[str]:
    """Returns the texts of the warnings to a loop that keeps the last ``hold`` batches."""
    kept: list[Any] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in source:
            kept = [*kept, batch][-hold:] if hold else []
            del batch
    return [str(warning.message) for warning in caught if warning.category is HeldBatchesWarning]


@pytest.mark.parametrize("hold", [0, 1, 2, 8, 16])
def test_a_loop_that_holds_the_batches_of_one_step_is_not_warned(hold: int) -> None:
    source = loader()
    assert warned(source, hold) == []
    assert source.statistics().copies == 0


@pytest.mark.parametrize("num_slots", [6, 9])
def test_where_slots_are_short_they_are_named_and_memory_is_not(num_slots: int) -> None:
    (text,) = warned(loader(num_slots=num_slots), 50)
    assert text.startswith(f"you hold {num_slots - 4} batches, or tensors of them")
    assert "Clone what you hold" in text
    assert "num_slots" in text
    assert "bytes" not in text


def test_where_memory_is_short_its_cap_is_named() -> None:
    source = loader(
        Mapped(lambda index: torch.full((1 << 18,), index, dtype=torch.uint8), 200), max_pool_bytes=40 << 20
    )
    (text,) = warned(source, 50)
    held = int(text.split()[2])
    assert text.startswith(f"you hold {held} batches, or tensors of them")
    assert held > 1
    assert f"max_pool_bytes={40 << 20}" in text
    assert "num_slots" not in text


def test_where_one_batch_is_too_large_to_be_lent_nothing_is_said_of_keeping() -> None:
    source = loader(
        Mapped(lambda index: torch.full((1 << 20,), index, dtype=torch.uint8), 30),
        batch_size=1,
        num_workers=1,
        prefetch_factor=1,
        max_pool_bytes=(1 << 20) + (1 << 19),
    )
    (text,) = warned(source, 0)
    assert text.startswith(f"a batch takes {(1 << 20)}"[:-3])
    assert "keep" not in text
    assert "max_pool_bytes" in text
