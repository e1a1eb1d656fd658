"""The arena: sparse, populated, given back, gone with its last tensor."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shmloader import PoolMemoryError
from shmloader.slots.arena import Arena, _stride
from shmloader.slots.pages import PAGE, round_up
from tests.helpers.support import descriptors, mappings

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(slots=4, max_slot_bytes=1 << 35)
    yield arena
    vars(arena).clear()  # pytest holds on to the fixture's value


def resident(arena: Arena) -> int:
    return os.fstat(arena._fd).st_blocks * 512


def test_address_space_costs_no_memory(arena: Arena) -> None:
    assert arena.stride == 1 << 35
    assert resident(arena) <= 2 * PAGE


def test_slots_do_not_overlap(arena: Arena) -> None:
    for slot in range(4):
        arena.block(slot, 3 * PAGE)[:] = slot + 1
    for slot in range(4):
        assert set(arena.block(slot, 3 * PAGE)) == {slot + 1}
    assert not arena.shared_state.stopped


def test_populate_and_give_back(arena: Arena) -> None:
    before = resident(arena)
    arena.populate(1, 5 * MIB + 1)
    assert resident(arena) - before == round_up(5 * MIB + 1)
    arena.block(2, MIB)[:] = 7
    arena.give_back(1)
    assert resident(arena) - before == MIB
    assert not arena.block(1, MIB).any()
    assert arena.block(2, MIB).all()


def test_populate_without_the_system_call(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldKernel:
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    before = resident(arena)
    memory = arena.memory
    monkeypatch.setattr(arena, "memory", OldKernel())
    monkeypatch.setattr(arena, "block", lambda slot, n: np.ndarray((n,), np.uint8, memory, arena.start(slot)))
    arena.populate(0, MIB)
    assert resident(arena) - before == MIB


def test_memory_that_is_not_there(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def madvise(self, *_: int) -> None:
            raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(arena, "memory", Full())
    with pytest.raises(PoolMemoryError, match="resident"):
        arena.populate(0, MIB)


def test_the_mapping_lives_as_long_as_a_block() -> None:
    arena = Arena(2, MIB)
    block = arena.block(1, 10)
    block[:] = 5
    del arena
    gc.collect()
    assert mappings() == 1
    assert block.tolist() == [5] * 10


@pytest.mark.parametrize("likely", [0, 1 << 20], ids=["another file's", "closed"])
def test_another_thread_opens_a_file_before_mmap_does(likely: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor that workers are sent is the mapping's, whichever number it has got."""
    monkeypatch.setattr("shmloader.slots.arena._next_duplicate", lambda fd: likely)
    before = descriptors()
    arena = Arena(slots=4, max_slot_bytes=MIB)
    assert (descriptors() - before).total() == 1
    arena.block(3, 1)[:] = 7
    assert os.pread(arena._fd, 1, arena.start(3)) == b"\7"


def test_no_descriptors_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.listdir", lambda folder: pytest.fail(f"{folder} was listed"))
    first, second = Arena(slots=4, max_slot_bytes=MIB), Arena(slots=4, max_slot_bytes=MIB)
    assert not os.path.sameopenfile(first._fd, second._fd)


def test_a_limit_on_address_space_makes_slots_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    monkeypatch.setattr(resource, "getrlimit", lambda which: (pages * PAGE + 64 * MIB, 0))
    arena = Arena(4, 1 << 40)
    assert 1 * MIB < arena.stride <= 2 * MIB


def test_an_arena_that_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.slots.arena.addresses_left", lambda: 1 << 60)
    with pytest.raises(PoolMemoryError, match="max_pool_bytes"):
        Arena(4, 1 << 50)


@pytest.mark.parametrize("machine", [24 << 30, 256 << 30, 2 << 40])
@pytest.mark.parametrize("alive", [600, 3000])
def test_addresses_never_end(machine: int, alive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines have 128 TiB of addresses, whatever their memory: what each pool maps leaves most of what was left."""
    left = 1 << 47
    monkeypatch.setattr("shmloader.slots.arena.addresses_left", lambda: left)
    for _ in range(alive):
        stride = _stride(26, machine // 2, PAGE, 0)
        left -= 26 * stride
        assert left > 0
    assert stride > (2 << 30 if alive == 600 else 16 << 20)
