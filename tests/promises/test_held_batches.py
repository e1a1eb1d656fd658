"""A batch in the user's hands is never overwritten, and a plain loop copies nothing."""

from __future__ import annotations

import copy
import gc
import io
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from shmloader import HeldBatchesWarning, ShmDataLoader
from shmloader.batches.packing import Packer
from shmloader.slots import leases, orphans
from shmloader.slots.pool import Pool
from shmloader.slots.writer import SlotWriter
from tests.helpers.datasets import Images, Mapped
from tests.helpers.keeping import KEEPERS, expect_to_stay, expect_views_of_few_slots
from tests.helpers.packing import pack
from tests.helpers.support import assert_same, checksum, mappings

LENGTH = 400


def loader(**arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(Images(LENGTH, (5, 7)), **{"batch_size": 4, "num_workers": 2, **arguments})


def expected(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = Images(LENGTH, (5, 7)).images
    return torch.from_numpy(images[4 * batch : 4 * batch + 4]), torch.arange(4 * batch, 4 * batch + 4)


def test_a_plain_loop_gets_views_of_few_slots() -> None:
    expect_views_of_few_slots(loader())


def with_addresses(samples: list[Any]) -> Any:
    batch = torch.utils.data.default_collate(samples)
    return batch, [tensor.data_ptr() for tensor in batch]


def test_default_collation_writes_where_the_loop_reads() -> None:
    """A forked worker has the arena at the parent's addresses, so equal ones mean that nothing was copied."""
    for batch, addresses in loader(collate_fn=with_addresses):
        assert [tensor.data_ptr() for tensor in batch] == addresses


def test_writing_to_a_batch_changes_no_other() -> None:
    for number, batch in enumerate(loader()):
        assert_same(batch, list(expected(number)))
        for tensor in batch:
            tensor.zero_()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KEEPERS)
def test_what_is_kept_stays_as_it_was(kind: str) -> None:
    expect_to_stay(KEEPERS[kind], lambda: loader(num_slots=120))  # cycles are collected late


def test_gradients_through_a_batch_of_long_ago() -> None:
    weights = torch.ones(5, 7, requires_grad=True)
    losses = [(images.float() * weights).sum() for images, _ in loader(num_slots=8)]
    for number, loss in enumerate(losses):
        (gradient,) = torch.autograd.grad(loss, weights)
        assert torch.equal(gradient, expected(number)[0].float().sum(0))


@pytest.mark.parametrize("num_slots", [6, None, 200])
def test_a_list_of_all_batches(num_slots: int | None) -> None:
    source = loader(num_slots=num_slots)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(source)
    assert_same(batches, [list(expected(number)) for number in range(100)])
    statistics = source.statistics()
    assert statistics is not None
    held = [warning for warning in caught if warning.category is HeldBatchesWarning]
    if num_slots == 200:
        assert (statistics.copies, held) == (0, [])
    else:
        assert statistics.copies > 50
        assert len(held) == 1
        assert "num_slots" in str(held[0].message)
        assert held[0].filename == __file__


def test_the_warning_comes_once_a_loader_and_loses_no_batch_where_it_is_an_error() -> None:
    source = loader()
    kept: list[Any] = []
    iterator = iter(source)
    warned = 0
    while True:
        try:
            kept.append(next(iterator))
        except HeldBatchesWarning:
            warned += 1
        except StopIteration:
            break
    assert warned == 1
    assert_same(kept, [list(expected(number)) for number in range(100)])


def test_copies_do_not_hold_each_other() -> None:
    source = loader(num_slots=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeldBatchesWarning)
        batches = list(source)
    images, labels = batches[-1]
    assert images.untyped_storage().data_ptr() != labels.untyped_storage().data_ptr()
    assert images.untyped_storage().nbytes() == images.nbytes
    assert labels.untyped_storage().nbytes() == labels.nbytes


def test_zip_of_a_loader_with_itself() -> None:
    source = loader()
    for number, (one, other) in enumerate(zip(source, source, strict=True)):
        assert one[0].data_ptr() != other[0].data_ptr()
        assert_same(one, list(expected(number)))
        assert_same(other, one)


def test_a_saved_tensor_is_of_its_own_size() -> None:
    for images, labels in loader():
        for tensor in (images, labels):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
        file = io.BytesIO()
        torch.save(images, file)
        assert file.tell() < images.nbytes + 2000
        break


def test_deep_copies_release_the_slot() -> None:
    source = loader()
    iterator = iter(source)
    kept = [copy.deepcopy(next(iterator)) for _ in range(50)]
    statistics = source.statistics()
    assert statistics is not None
    assert statistics.copies == 0
    assert_same(kept, [list(expected(number)) for number in range(50)])


def test_batches_outlive_the_loader_and_their_memory_does_not_outlive_them() -> None:
    source = loader()
    kept = next(iter(source))
    before = checksum(kept)
    del source
    gc.collect()
    assert mappings() == 1
    assert checksum(kept) == before
    del kept
    assert mappings() == 0


def test_one_small_batch_does_not_hold_the_memory_of_others_after_the_loader() -> None:
    pool = Pool(8, 2, 1 << 30)
    writer = SlotWriter(pool.arena, "the cap")
    batches = []
    for nbytes in (100, 1 << 24):
        slot, room = pool.claim(b"")
        writer.open(slot, room)
        made = pack(Packer(), torch.ones(nbytes, dtype=torch.uint8), writer, slot)
        pool.ready(made)
        batches.append(pool.hand_over(made)[0])
    fd = os.dup(pool.arena._fd)
    pool.close()
    del pool, writer
    assert os.fstat(fd).st_blocks * 512 > 1 << 24
    batches.pop()
    Pool(8, 2, 1 << 30)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20
    assert batches[0].sum() == 100
    os.close(fd)


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_an_iterator_ends_with_its_last_reference(persistent_workers: bool) -> None:
    """Not with some later garbage collection: it has processes."""
    gc.disable()
    try:
        source = loader(persistent_workers=persistent_workers)
        iterator = iter(source)
        next(iterator)
        reference = weakref.ref(iterator)
        del iterator, source
        assert reference() is None
    finally:
        gc.enable()


def test_batches_dropped_in_another_thread() -> None:
    source = loader(batch_size=1)
    box: list[Any] = []
    seen = []
    for number, batch in enumerate(source):
        seen.append(int(batch[1]))
        box.append(batch)
        del batch
        if number % 3 == 0:
            thread = threading.Thread(target=box.clear)
            thread.start()
            thread.join()
    assert seen == list(range(LENGTH))
    statistics = source.statistics()
    assert statistics is not None
    assert statistics.copies == 0


CACHE: list[Any] = []


def keep_in_worker(samples: list[Any]) -> Any:
    """A collate function that holds on to what it has returned, and looks at it again later."""
    batch = torch.utils.data.default_collate(samples)
    assert not any(tensor.is_shared() for tensor in batch)
    CACHE.append((batch, checksum(batch)))
    assert all(checksum(old) == before for old, before in CACHE)
    return batch


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_that_code_in_the_worker_holds(num_workers: int) -> None:
    source = loader(collate_fn=keep_in_worker, num_workers=num_workers)
    for _ in range(3):
        for number, batch in enumerate(source):
            assert_same(batch, list(expected(number)))
            del batch
    statistics = source.statistics()
    assert statistics is not None
    # Each worker keeps one slot, and then writes its batches elsewhere first.
    assert statistics.leased <= num_workers


@pytest.mark.sampled(3)
@pytest.mark.parametrize("held", [0, 1, 100])
@pytest.mark.parametrize("first_kept", [0, 20])
def test_workers_and_the_loop_hold_all_that_they_can(held: int, first_kept: int) -> None:
    def keep_later(samples: list[Any]) -> Any:
        if samples[0][1] >= first_kept:
            return keep_in_worker(samples)
        return torch.utils.data.default_collate(samples)

    source = loader(collate_fn=keep_later, num_workers=4, prefetch_factor=1, num_slots=6)
    batches: deque[Any] = deque(maxlen=held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeldBatchesWarning)
        for number, batch in enumerate(source):
            batches.append(batch)
            for back, kept in enumerate(reversed(batches)):
                assert_same(kept, list(expected(number - back)))
    assert number == 99


def keep_and_fail(samples: list[Any]) -> Any:
    class Local(Exception):
        pass

    assert all(checksum(old) == before for old, before in CACHE)
    batch = torch.utils.data.default_collate(samples)
    if CACHE:
        return batch
    CACHE.append((batch, checksum(batch)))
    raise Local


def test_a_batch_that_is_kept_and_then_fails_with_what_cannot_be_pickled() -> None:
    iterator = iter(loader(collate_fn=keep_and_fail, num_workers=1))
    with pytest.raises(RuntimeError, match="Local itself cannot be sent"):
        next(iterator)
    assert len([None for _ in iterator]) == 99


class KeepsAndEnds(IterableDataset[Any]):
    """A stream that collates, keeps what it has collated, and ends."""

    def __iter__(self) -> Iterator[Any]:
        assert all(checksum([old]) == before for old, before in CACHE)
        yield torch.ones(10)
        kept = torch.utils.data.default_collate([torch.full((10,), float(len(CACHE)))])
        CACHE.append((kept, checksum([kept])))


def test_a_stream_that_ends_with_a_tensor_in_hand() -> None:
    source = ShmDataLoader(KeepsAndEnds(), num_workers=2, persistent_workers=True)
    for _ in range(5):
        assert [batch.sum().item() for batch in source] == [10, 10]


def keep_a_cycle(samples: list[Any]) -> Any:
    batch = {"data": torch.utils.data.default_collate(samples)}
    batch["self"] = batch
    return batch


def test_reference_cycles_in_workers_and_in_the_loop() -> None:
    for number, batch in enumerate(loader(collate_fn=keep_a_cycle, num_slots=120)):
        assert batch["self"] is batch
        assert_same(batch["data"], list(expected(number)))


def test_both_ends_agree_on_memory_formats() -> None:
    def sample(index: int) -> torch.Tensor:
        return torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)[index % 2 :]

    ours = ShmDataLoader(Mapped(sample), batch_size=None, num_workers=1)
    stock = DataLoader(Mapped(sample), batch_size=None, num_workers=1)
    for one, other in zip(ours, stock, strict=True):
        assert one.stride() == other.stride()
        assert one.untyped_storage().nbytes() == one.nbytes


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_batches_of_a_loader_that_is_garbage_with_its_iterator(worker_type: str) -> None:
    """A garbage collection clears the weak references that are in a cycle, though what they refer to is alive."""
    data: Any = range(400)
    before = set(leases._reachable)
    loader = ShmDataLoader(data, batch_size=100, num_workers=1, worker_type=worker_type)
    iterator = iter(loader)
    held = [next(iterator) for _ in range(3)]
    cycle: list[Any] = [loader, iterator]
    cycle.append(cycle)
    del loader, iterator, cycle
    gc.collect()
    next(iter(ShmDataLoader(data, batch_size=100, num_workers=1)))
    assert [batch.tolist() for batch in held] == [list(range(start, start + 100)) for start in (0, 100, 200)]
    del held
    orphans.tidy()
    leases.Leases()  # forgets those that ended when their pool was gone
    assert not leases._reachable.keys() - before
