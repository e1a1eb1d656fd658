"""What workers hold of slots: no slot is used again while the consumer, the parent or a worker has it."""

from __future__ import annotations

import random
from collections import deque
from typing import TypeVar

import pytest
import torch

from shmloader.batches.packing import Packer
from shmloader.slots.ledger import State
from shmloader.slots.pool import Pool
from shmloader.slots.results import Made, Result, Retained
from shmloader.slots.writer import SlotWriter
from tests.helpers.packing import pack

T = TypeVar("T")

WORKERS = 3
IN_FLIGHT = 4
SPARE = 5

pytestmark = pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")


class Walk:
    """A pool, and in the plainest way who has which slot."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.pool = Pool(IN_FLIGHT + SPARE, IN_FLIGHT, 64 << 20, num_workers=WORKERS, held_per_worker=2)
        self.writer = SlotWriter(self.pool.arena, "the cap")
        self.packer = Packer()
        self.number = 0
        self.writing: list[int] = []
        self.made: list[tuple[int, int, Result]] = []  # slot, number, what it is
        self.consumed: deque[tuple[int, int, torch.Tensor]] = deque()  # slot, or -1 for a copy; number
        self.last: dict[int, int] = {}  # by worker: the slot that it may hold
        self.kept: dict[int, set[int]] = {worker: set() for worker in range(WORKERS)}

    def claim(self) -> None:
        if len(self.writing) + len(self.made) < IN_FLIGHT:
            slot, room = self.pool.claim(b"")
            assert slot not in self.owned()
            self.writing.append(slot)
            self.writer.open(slot, room)
            self.number += 1

    def item(self) -> None:
        if not self.writing:
            return
        slot = self.take(self.writing)
        room = 1 << 20
        assert self.pool.grant(slot, room) is not None
        self.writer.open(slot, room)
        made = pack(self.packer, torch.full((2000,), self.number), self.writer, slot)
        worker = self.draw.randrange(WORKERS)
        self.pool.ready(made)
        if self.draw.random() < 0.05 and len(self.kept[worker]) < 1 and worker not in self.last:
            self.made.append((slot, self.number, Retained(made, worker)))
            self.kept[worker].add(slot)
        else:
            holds_last = self.draw.random() < 0.2 and worker in self.last and not self.kept[worker]
            self.pool.hold(slot, worker, holds_last)
            if holds_last:
                self.kept[worker].add(self.last[worker])
            self.last[worker] = slot
            self.made.append((slot, self.number, made))
        self.number += 1

    def hand_over(self) -> None:
        if not self.made:
            return
        slot, number, result = self.take(self.made)
        copies = self.pool.copies
        item, lease = self.pool.hand_over(result)
        assert (lease is None) == (self.pool.copies > copies or isinstance(result, Retained))
        self.consumed.append((slot if lease is not None else -1, number, item))

    def drop(self) -> None:
        if self.consumed:
            self.consumed.rotate(self.draw.randrange(len(self.consumed)))
            self.consumed.pop()
            self.pool.collect()

    def release(self) -> None:
        if self.made:
            _, _, result = self.take(self.made)
            self.pool.release(result)

    def spill(self) -> None:
        if self.made:
            _, number, result = self.take(self.made)
            spilled = self.pool.spill(result)
            item, _ = self.pool.hand_over(spilled)
            self.consumed.append((-1, number, item))
            if isinstance(result, Retained):
                assert spilled is result

    def die(self) -> None:
        if self.draw.random() < 0.2:
            worker = self.draw.randrange(WORKERS)
            self.made = [
                (slot, number, result.made if isinstance(result, Retained) and result.worker == worker else result)
                for slot, number, result in self.made
            ]
            self.pool.inherit(worker, [])
            self.last.pop(worker, None)
            self.kept[worker].clear()

    def take(self, things: list[T]) -> T:
        return things.pop(self.draw.randrange(len(things)))

    def owned(self) -> set[int]:
        owned = {*self.writing, *self.last.values()}
        owned |= {slot for slot, _, _ in self.made}
        owned |= {slot for slot, _, _ in self.consumed if slot >= 0}
        return owned.union(*self.kept.values())

    def check(self) -> None:
        states = [self.pool._ledger.state(slot) for slot in range(self.pool.arena.slots)]
        taken = {slot for slot, state in enumerate(states) if state is not State.FREE}
        assert taken == self.owned()
        leased = {slot for slot, _, _ in self.consumed if slot >= 0}
        assert {slot for slot, state in enumerate(states) if state is State.LEASED} == leased
        for _, number, item in self.consumed:
            assert bool((item == number).all())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(10))
def test_random_walk(seed: int) -> None:
    draw = random.Random(seed)
    walk = Walk(draw)
    actions = [walk.claim, walk.item, walk.hand_over] * 3 + [walk.drop, walk.drop, walk.release, walk.spill, walk.die]
    for _ in range(1500):
        draw.choice(actions)()
        walk.check()
    walk.pool.abandon()
    walk.consumed.clear()
    walk.pool.collect()
    assert {walk.pool._ledger.state(slot) for slot in range(walk.pool.arena.slots)} == {State.FREE}
    walk.pool.close()


def test_an_item_that_is_handed_out_as_a_copy_keeps_its_slot_from_others_until_the_next() -> None:
    pool = Pool(2, 2, 64 << 20, num_workers=1, held_per_worker=2)  # none to lend
    writer, slots = SlotWriter(pool.arena, "the cap"), []
    for number in range(5):
        slot, room = pool.claim(b"")
        writer.open(slot, room)
        made = pack(Packer(), torch.full((9,), number), writer, slot)
        pool.ready(made)
        pool.hold(slot, 0, holds_last=number == 2)
        item, lease = pool.hand_over(made)
        assert lease is None
        assert item.tolist() == [number] * 9
        assert pool._ledger.state(slot) is State.RETAINED
        slots.append(slot)
    assert slots[2] == slots[0]  # nobody had it when the next item had come
    assert slots[1] not in slots[2:]  # the worker has kept it
    assert pool._ledger.count(State.RETAINED) == 2  # that one, and the last one
    pool.inherit(0, [])
    assert pool._ledger.count(State.FREE) == pool.arena.slots
    pool.close()


def test_a_pool_that_is_closed_while_workers_hold_slots_keeps_nothing_of_them() -> None:
    pool = Pool(4, 2, 64 << 20, num_workers=1)
    slot, _ = pool.claim(b"")
    made = Made(slot, 100, 10)
    pool.ready(made)
    pool.hold(slot, 0, holds_last=False)
    pool.release(made)
    assert pool._ledger.state(slot) is State.RETAINED
    pool.close()
