"""Slots in page-locked memory: what is registered with the driver when, and that none of it is left."""

from __future__ import annotations

import gc
import os
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmloader import FallbackWarning, HeldBatchesWarning, ShmDataLoader
from shmloader.device import cuda, pinned
from shmloader.slots import orphans
from shmloader.slots.pages import PAGE
from tests.helpers import simulated
from tests.helpers.datasets import Images, Mapped
from tests.helpers.support import assert_same, detached, mappings, run_file

LENGTH = 120


def loader(**arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(
        Images(LENGTH, (50, 70)), **{"batch_size": 4, "num_workers": 2, "pin_memory": True, **arguments}
    )


def expected(batch: int) -> list[torch.Tensor]:
    images = Images(LENGTH, (50, 70)).images
    return [torch.from_numpy(images[4 * batch : 4 * batch + 4]), torch.arange(4 * batch, 4 * batch + 4)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("in_order", [False, True])
def test_every_tensor_is_page_locked_where_it_is(
    driver: simulated.Driver, persistent_workers: bool, in_order: bool
) -> None:
    source = loader(persistent_workers=persistent_workers, in_order=in_order)
    for _ in range(3):
        seen = 0
        for batch in source:
            assert all(map(driver.covers, batch))
            assert_same(batch, expected(int(batch[1][0]) // 4))
            seen += 1
        assert seen == 30
    assert driver.pinned_by_torch == 0
    statistics = source.statistics()
    assert statistics is not None
    assert statistics.copies == 0


@pytest.mark.parametrize("is_pinned", [False, True])
def test_a_pool_that_is_garbage_together_with_its_batches(driver: simulated.Driver, is_pinned: bool) -> None:
    orphans.tidy()
    before = len(orphans._all)
    source = loader(pin_memory=is_pinned)
    box: list[Any] = [source, next(iter(source)), next(iter(source))]
    assert bool(driver.ranges) == is_pinned
    box.append(box)
    del source, box
    gc.collect()
    driver.device.finish()
    orphans.tidy()
    assert driver.ranges == {}
    assert len(orphans._all) <= before


@pytest.mark.long
@pytest.mark.usefixtures("_resource_tracker")
def test_spawned_workers(driver: simulated.Driver) -> None:
    source = loader(multiprocessing_context="spawn", num_workers=1)
    assert [int(batch[1][0]) for batch in source if driver.covers(batch[0])] == list(range(0, LENGTH, 4))


def test_declared_slots_are_page_locked_before_the_first_batch(driver: simulated.Driver) -> None:
    source = loader(sample_shapes=((50, 70), ()), sample_dtypes=(torch.uint8, torch.int64))
    iterator = iter(source)
    assert len(driver.ranges) == 6
    before = len(driver.log)
    for number, batch in enumerate(iterator):
        assert all(map(driver.covers, batch))
        assert_same(batch, expected(number))
    calls = [call[0] for call in driver.log[before:]]
    # One that waits for the device's word on its copies, at most, beside those that a plain loop uses.
    assert calls.count("register") <= 1 + calls.count("unregister")


def test_declared_batches_that_do_not_fit_leave_nothing(driver: simulated.Driver) -> None:
    source = loader(sample_shapes=((50, 70), ()), sample_dtypes=torch.int64, max_pool_bytes=1_000_000)
    with pytest.raises(MemoryError, match="max_pool_bytes"):
        iter(source)
    assert driver.ranges == {}
    assert mappings() == 0


def test_slots_that_grow_are_registered_anew_in_one_piece(driver: simulated.Driver) -> None:
    sizes = np.random.default_rng(2).integers(1, 60 * PAGE, 400)
    source = ShmDataLoader(
        Mapped(lambda index: np.full(sizes[index], index % 251, np.uint8), len(sizes)), num_workers=2, pin_memory=True
    )
    for number, batch in enumerate(source):
        assert driver.covers(batch)
        assert batch.shape == (1, sizes[number])
        assert batch.min() == batch.max() == number % 251
    registered = [call for call in driver.log if call[0] == "register"]
    by_slot: dict[int, list[int]] = {}
    for _, address, nbytes in registered:
        by_slot.setdefault(address, []).append(nbytes)
    assert all(series == sorted(set(series)) for series in by_slot.values())
    assert len(registered) < 12 * len(by_slot)  # records of some 60 random sizes each


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
def test_what_is_not_in_a_slot_is_page_locked_by_torch(driver: simulated.Driver) -> None:
    source = loader(num_slots=6)
    batches = list(source)
    assert_same(batches, [expected(number) for number in range(30)])
    statistics = source.statistics()
    assert statistics is not None
    assert statistics.copies > 10
    assert driver.pinned_by_torch == 2 * statistics.copies


class Wrapped:
    """A batch that pins itself."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.is_pinned = False

    def pin_memory(self) -> Wrapped:
        self.tensor, self.is_pinned = self.tensor.pin_memory(), True
        return self


def wrap(samples: list[Any]) -> Any:
    return Wrapped(torch.utils.data.default_collate(samples)[0])


def test_types_that_pin_themselves_do(driver: simulated.Driver) -> None:
    for number, batch in enumerate(loader(collate_fn=wrap)):
        assert batch.is_pinned
        assert driver.covers(batch.tensor)
        assert_same(batch.tensor, expected(number)[0])


def refused(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> str:
    driver.refuses = True
    return "CUDA_ERROR_OUT_OF_MEMORY"


def missing(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> str:
    def raises() -> None:
        raise cuda.MissingError("the CUDA driver is too old")

    monkeypatch.setattr(cuda, "driver", raises)
    return "the CUDA driver is too old"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("declared", [{}, {"sample_shapes": ((50, 70), ())}])
@pytest.mark.parametrize("fail", [refused, missing])
def test_where_it_fails_torch_copies(
    fail: Any, declared: dict[str, Any], driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one warning, and with no batch lost where warnings are errors."""
    text = fail(driver, monkeypatch)
    source = loader(**declared)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for number, batch in enumerate(source):
                assert_same(batch, expected(number))
    (found,) = [warning for warning in caught if warning.category is FallbackWarning]
    assert text in str(found.message)
    assert found.filename == __file__
    assert driver.pinned_by_torch == 2 * 60
    assert driver.ranges == {}


def test_where_it_fails_and_warnings_are_errors_no_batch_is_lost(driver: simulated.Driver) -> None:
    driver.refuses = True
    iterator = iter(loader())
    batches: list[Any] = []
    warned = 0
    while len(batches) < 30:
        try:
            batches.append(detached(next(iterator)))
        except FallbackWarning:
            warned += 1
    assert warned == 1
    assert_same(batches, [expected(number) for number in range(30)])


def test_a_slot_that_cannot_be_registered_as_far_as_it_is_used_is_not_at_all(driver: simulated.Driver) -> None:
    arena = pinned.PinnedArena(2, 1 << 20)
    arena.pin(0, 5 * PAGE)
    arena.pin(1, PAGE)
    driver.refuses = True
    arena.pin(0, 5 * PAGE)
    assert driver.ranges == {arena.address + arena.start(0): 5 * PAGE, arena.address + arena.start(1): PAGE}
    arena.pin(0, 6 * PAGE)
    assert driver.ranges == {arena.address + arena.start(1): PAGE}
    arena.unpin_all()


def test_memory_that_the_driver_does_not_let_go_of_is_not_given_back(
    driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = pinned.PinnedArena(2, 1 << 20)
    arena.memory[arena.start(1)] = 7
    arena.pin(1, PAGE)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "unregister", lambda address: False)
        arena.give_back(1)
        assert arena.memory[arena.start(1)] == 7
        arena.pin(1, 2 * PAGE)
    del arena
    gc.collect()
    assert mappings() == 1  # the device may still read it
    for left in list(pinned._all):
        left.unpin_all()
    del left
    assert mappings() == 0


def test_a_ctrl_c_within_a_registration_is_made_good(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it comes before the driver has done it or after: what is noted is undone."""
    register = driver.register
    arena = pinned.PinnedArena(2, 1 << 20)

    def interrupted(address: int, nbytes: int) -> str:
        register(address, nbytes)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "register", interrupted)
    with pytest.raises(KeyboardInterrupt):
        arena.pin(0, PAGE)
    arena.give_back(0)
    assert driver.ranges == {}


def test_batches_that_outlive_the_loader(driver: simulated.Driver) -> None:
    """The mapping stays while a tensor or a copy needs it, and not longer than until the next pool looks."""
    source = loader()
    batch = next(iter(source))
    copied = driver.copy("side", batch[0])
    want = batch[0].clone()
    del source
    gc.collect()
    orphans.tidy()
    assert len(driver.ranges) == 1
    assert driver.covers(batch[0])
    del batch
    orphans.tidy()
    assert len(driver.ranges) == 1
    assert mappings() == 1
    driver.device.finish()
    orphans.tidy()
    assert driver.ranges == {}
    assert mappings() == 0
    assert torch.equal(copied, want)


def test_a_copy_that_is_in_flight_when_the_loader_ends(driver: simulated.Driver) -> None:
    source = loader()
    copies = []
    for batch in source:
        copies.append(driver.copy("side", batch[0]))
        if len(copies) == 9:
            break
    del batch, source
    gc.collect()
    driver.device.finish()
    assert_same(copies, [expected(number)[0] for number in range(9)])


def test_a_loop_that_runs_far_ahead_of_its_device_gets_copies(driver: simulated.Driver) -> None:
    """Nothing waits: slots whose copies are not done count as lent, and batches come in memory of their own then."""
    source = loader(num_slots=12)
    copies = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in source:
            copies += [driver.copy("main", tensor) for tensor in batch]
            del batch
    statistics = source.statistics()
    assert statistics is not None
    assert statistics.copies > 10
    (found,) = [warning for warning in caught if warning.category is HeldBatchesWarning]
    assert "copies of them to a device are under way" in str(found.message)
    driver.device.finish()
    assert_same(copies, [tensor for number in range(30) for tensor in expected(number)])


def test_in_a_forked_process_nothing_is_done(driver: simulated.Driver) -> None:
    source = loader(persistent_workers=True)
    iterator = iter(source)
    batch = next(iterator)
    copied, calls = driver.copy("side", batch[0]), len(driver.log)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            del batch
            source.statistics()
            del iterator, source
            gc.collect()
            orphans.tidy()
            pinned._unpin_all()
            os.write(write, b"well" if len(driver.log) == calls else repr(driver.log[calls:]).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert os.read(read, 1000) == b"well"
    os.close(read)
    assert driver.covers(batch[0])
    del batch
    driver.device.finish()
    assert sum(1 for _ in iterator) == 29
    assert torch.equal(copied, expected(0)[0])


def test_other_accelerators_have_batches_copied(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    for number, batch in enumerate(loader()):
        assert_same(batch, expected(number))
    assert driver.log == []
    assert driver.pinned_by_torch == 60


def test_loaders_that_are_not_asked_to_call_no_driver(driver: simulated.Driver) -> None:
    assert len(list(loader(pin_memory=False, num_slots=40))) == 30
    assert driver.log == []


EXIT = """
    import atexit
    import sys

    @atexit.register  # before shmloader registers its own, so it is called after them
    def check():
        assert "finish" in [call[0] for call in driver.log[before:]]
        assert driver.ranges == {{}}
        assert torch.equal(copied, want)
        print("all is undone")

    sys.path.insert(0, {root!r})
    import pytest
    import torch
    from shmloader import ShmDataLoader
    from tests.helpers import simulated
    from tests.helpers.datasets import Images

    patch = pytest.MonkeyPatch()
    driver = simulated.install(patch)
    source = ShmDataLoader(Images(40, (50, 70)), batch_size=4, num_workers=2, pin_memory=True, persistent_workers=True)
    iterator = iter(source)
    batch = next(iterator)
    want = batch[0].clone()
    copied = driver.copy("side", batch[0])
    assert driver.ranges
    del {dropped}
    before = len(driver.log)
"""


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("dropped", ["batch", "iterator, source", "iterator, source, batch"])
def test_at_the_interpreters_exit_copies_are_awaited_and_all_is_unregistered(dropped: str) -> None:
    ended = run_file(textwrap.dedent(EXIT).format(root=str(Path(__file__).parents[2]), dropped=dropped))
    assert (ended.stderr, ended.stdout) == ("", "all is undone\n")
    assert ended.returncode == 0
