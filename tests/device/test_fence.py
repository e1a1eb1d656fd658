"""No slot is used again while a device may still copy from it: random walks on a simulated one."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch

from shmloader import HeldBatchesWarning, PoolMemoryError
from shmloader.batches.packing import Packer
from shmloader.device.fence import Fence
from shmloader.device.pinned import PinnedArena, PinnedMemory
from shmloader.slots import orphans
from shmloader.slots.arena import Arena
from shmloader.slots.pool import Pool
from shmloader.slots.results import Made, Result
from shmloader.slots.writer import SlotWriter
from tests.helpers import simulated
from tests.helpers.packing import pack

STREAMS = ("main", "side", "other")
MIB = 1 << 20


class Walk:
    """A pool, its worker and its loop in one process, and a device; each step does something that one of them may do.

    Args:
        seed: of the random choices.
        driver: of the device.
    """

    def __init__(self, seed: int, driver: simulated.Driver) -> None:
        self.draw = random.Random(seed)
        self.driver = driver
        self.pool = Pool(10, 4, 8 * MIB, memory=PinnedMemory())
        self.writer = SlotWriter(self.pool.arena, "the cap")
        self.packer = Packer()
        self.ready: list[tuple[Result, int]] = []
        self.held: list[tuple[Any, int]] = []
        self.copies: list[tuple[torch.Tensor, int]] = []
        self.made = self.lent = 0
        self.slot = -1

    def _grow(self, need: int) -> int:
        return self.pool.grant(self.slot, need) or 0

    def make(self) -> None:
        if len(self.ready) == 4:
            return
        self.made += 1
        size = self.draw.choice([10, 1000, 10_000, 100_000, 300_000 if self.made % 7 == 0 else 5000])
        batch = {"a": torch.full((size,), self.made, dtype=torch.int32), "b": torch.full((3,), self.made)}
        self.slot, room = self.pool.claim(b"job")
        self.writer.open(self.slot, room)
        try:
            packed = pack(self.packer, batch, self.writer, self.slot, self._grow)
        except PoolMemoryError:  # what waits for its turn would be moved out now, which has a step of its own here
            self.pool.withdraw(self.slot)
            return
        finally:
            self.writer.close()
        self.pool.ready(packed)
        self.ready.append((packed, self.made))

    def take(self) -> None:
        self.pool.collect()
        if self.ready:
            packed, value = self.ready.pop(0)
            batch, _ = self.pool.hand_over(packed)
            if isinstance(packed, Made) and self.driver.covers(batch["a"]):
                assert self.driver.covers(batch["b"])
                self.lent += 1
            self.held.append((batch, value))

    def copy(self) -> None:
        if self.held:
            batch, value = self.draw.choice(self.held)
            tensor = batch[self.draw.choice("ab")]
            if self.draw.random() < 0.5:
                tensor = tensor[self.draw.randrange(len(tensor)) :]
            self.copies.append((self.driver.copy(self.draw.choice(STREAMS), tensor), value))

    def drop(self) -> None:
        if self.held:
            del self.held[self.draw.randrange(len(self.held))]

    def copy_and_drop(self) -> None:
        self.copy()
        self.drop()

    def advance(self) -> None:
        self.driver.device.advance(self.draw.choice(STREAMS), self.draw.randrange(1, 4))

    def capture(self) -> None:
        self.driver.capturing = not self.driver.capturing

    def spill(self) -> None:
        if self.ready:
            place = self.draw.randrange(len(self.ready))
            self.ready[place] = self.pool.spill(self.ready[place][0]), self.ready[place][1]

    def step(self) -> None:
        kinds = [self.make, self.take, self.copy_and_drop, self.copy, self.drop, self.advance, self.capture, self.spill]
        self.draw.choices(kinds, [8, 8, 6, 4, 3, 5, 1, 1])[0]()
        if len(self.held) > 5:
            self.drop()
        if self.driver.capturing and self.draw.random() < 0.2:
            self.capture()

    def check(self) -> None:
        """Asserts that all copies have brought what was in the batch that they were made of."""
        self.driver.device.finish()
        for copied, value in self.copies:
            assert set(copied.tolist()) == {value}
        self.copies.clear()

    def end(self) -> None:
        self.driver.capturing = False
        self.held.clear()
        self.ready.clear()
        self.pool.close()
        self.driver.device.finish()
        orphans.tidy()

    def unpin(self) -> None:
        """Unregisters what is left where an error came in the middle of a step; at exit it would be."""
        assert isinstance(self.pool.arena, PinnedArena)
        self.pool.arena.unpin_all()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> simulated.Driver:
    return simulated.install(monkeypatch)


def run(walk: Walk, steps: int = 2500) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeldBatchesWarning)
        for number in range(steps):
            walk.step()
            if number % 200 == 199:
                walk.check()
    walk.check()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(12))
def test_every_copy_brings_its_own_batch(seed: int, driver: simulated.Driver) -> None:
    """2,500 steps each: batches of all sizes, copies and slices on three streams, captures, and growth under a cap."""
    walk = Walk(seed, driver)
    run(walk)
    assert walk.made > 400
    assert walk.lent > 200  # views of slots, and not copies, which would prove nothing
    walk.end()
    assert driver.ranges == {}


def failed_of_four(driver: simulated.Driver) -> int:
    failed = 0
    for seed in range(4):
        walk = Walk(seed, driver)
        try:
            run(walk)
        except AssertionError:
            failed += 1
        driver.forget()
        walk.end()
        walk.unpin()
    return failed


def test_the_walk_notices_when_there_is_no_fence(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "pass_on", lambda fence, freed: freed)
    assert failed_of_four(driver) == 4


def test_the_walk_notices_a_mark_on_one_stream_only(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "mark", lambda: driver.device.position("main"))
    assert failed_of_four(driver) == 4


def test_memory_is_unregistered_before_it_is_given_back(
    driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_back = Arena.give_back
    given = 0

    def watched(arena: Arena, slot: int, keep: int = 0) -> None:
        nonlocal given
        given += 1
        start = arena.address + arena.start(slot)
        assert not any(start <= address < start + arena.stride for address in driver.ranges)
        give_back(arena, slot, keep)

    monkeypatch.setattr(Arena, "give_back", watched)
    walk = Walk(1, driver)
    run(walk)
    before = given
    assert before > 3
    walk.end()
    assert given > before


def test_one_mark_for_all_that_was_dropped_together(driver: simulated.Driver) -> None:
    walk = Walk(0, driver)
    for _ in range(4):
        walk.make()
    for _ in range(4):
        walk.take()
    driver.copy("side", walk.held[0][0]["a"])
    walk.held.clear()
    marks = driver.log.count(("mark",))
    assert walk.pool.leased == 4
    assert walk.pool.leased == 4
    assert driver.log.count(("mark",)) == marks + 1
    driver.device.finish()
    assert walk.pool.leased == 0
    walk.end()


def test_nothing_is_asked_of_the_device_while_a_graph_is_captured(driver: simulated.Driver) -> None:
    walk = Walk(0, driver)
    walk.make()
    walk.take()
    driver.capturing = True
    walk.held.clear()
    assert walk.pool.leased == 1
    assert ("mark",) not in driver.log
    driver.capturing = False
    assert walk.pool.leased == 0
    walk.end()


def test_a_mark_that_cannot_be_had_now(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(0, driver)
    walk.make()
    walk.take()
    with monkeypatch.context() as patch:
        patch.setattr(driver, "mark", lambda: None)
        walk.held.clear()
        assert walk.pool.leased == 1
    assert walk.pool.leased == 0
    walk.end()
