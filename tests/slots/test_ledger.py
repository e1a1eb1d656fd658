"""The ledger against a naive model, over random walks, and its rules one by one."""

from __future__ import annotations

import random

import pytest

from shmloader.slots.ledger import MIN_SLOT_BYTES, Ledger, State

KIB = 1024


class Model:
    """What the ledger must be, in the plainest way: a state and two numbers a slot."""

    def __init__(self, slots: int) -> None:
        self.state = [State.FREE] * slots
        self.touched = [0] * slots

    def slots(self, state: State) -> list[int]:
        return [slot for slot, now in enumerate(self.state) if now is state]


@pytest.mark.parametrize("seed", range(30))
def test_random_walk(seed: int) -> None:
    draw = random.Random(seed)
    slots, in_flight = draw.choice([(6, 2), (10, 4), (14, 4), (5, 1)])
    most_retained = 2
    max_leased = slots - in_flight - most_retained
    cap = slots * draw.choice([64, 100, 300, 5000]) * KIB
    ledger, model = Ledger(slots, cap, in_flight, max_leased), Model(slots)
    for _ in range(3000):
        busy = model.slots(State.WRITING) + model.slots(State.READY)
        action = draw.choice(["claim", "grant", "ready", "hand over", "free", "retain", "let go", "surplus"])
        if action == "claim" and len(busy) < in_flight:
            need = draw.randrange(2 * cap)
            is_short = ledger.is_short_of(need)
            slot = ledger.claim()
            assert model.state[slot] is State.FREE
            model.state[slot] = State.WRITING
            assert ledger.allowance(slot) >= max(MIN_SLOT_BYTES, model.touched[slot])
            if draw.random() < 0.2:
                emptied = ledger.grant(slot, need)
                assert (emptied is None) == (is_short or need > cap)
                for other in emptied or ():
                    model.touched[other] = 0
            if draw.random() < 0.2:
                job = draw.randrange(ledger.allowance(slot) + 1)
                ledger.touch(slot, job)
                model.touched[slot] = max(model.touched[slot], job)
        elif action == "grant" and (writing := model.slots(State.WRITING)):
            slot, need = draw.choice(writing), draw.randrange(2 * cap)
            least = [
                MIN_SLOT_BYTES if model.state[other] is State.FREE else ledger.allowance(other)
                for other in range(slots)
                if other != slot
            ]
            emptied = ledger.grant(slot, need)
            assert (emptied is not None) == (sum(least) + need <= cap)
            if emptied is not None:
                assert ledger.allowance(slot) >= need
                for other in emptied:
                    assert model.state[other] is State.FREE
                    model.touched[other] = 0
        elif action == "ready" and (writing := model.slots(State.WRITING)):
            slot = draw.choice(writing)
            touched = draw.randrange(ledger.allowance(slot) + 1)
            ledger.ready(slot, touched)
            model.state[slot] = State.READY
            model.touched[slot] = max(model.touched[slot], touched)
        elif action == "hand over" and (ready := model.slots(State.READY)):
            slot = draw.choice(ready)
            if ledger.lend(slot):
                model.state[slot] = State.LEASED
            else:
                ledger.free(slot)
                model.state[slot] = State.FREE
        elif action == "free" and (leased := model.slots(State.LEASED)):
            slot = draw.choice(leased)
            ledger.free(slot)
            model.state[slot] = State.FREE
        elif action == "retain" and (held := model.slots(State.READY) + model.slots(State.LEASED)):
            if len(model.slots(State.RETAINED)) < most_retained:
                slot = draw.choice(held)
                ledger.retain(slot)
                model.state[slot] = State.RETAINED
        elif action == "let go" and (retained := model.slots(State.RETAINED)):
            slot = draw.choice(retained)
            ledger.free(slot)
            model.state[slot] = State.FREE
        elif action == "surplus":
            for slot in ledger.surplus():
                assert model.state[slot] is State.FREE
                ledger.empty(slot)
                model.touched[slot] = 0
        assert [ledger.state(slot) for slot in range(slots)] == model.state, repr(ledger)
        assert ledger.resident == sum(model.touched)
        assert ledger.committed == sum(ledger.allowance(slot) for slot in range(slots)) <= cap
        assert ledger.leased == len(model.slots(State.LEASED)) <= max_leased


def ready_slot(ledger: Ledger, nbytes: int) -> int:
    slot = ledger.claim()
    assert ledger.grant(slot, nbytes) is not None
    ledger.ready(slot, nbytes)
    return slot


def test_the_slot_that_was_freed_last_is_used_next() -> None:
    ledger = Ledger(4, 1 << 30, 2)
    first, second = ledger.claim(), ledger.claim()
    assert (first, second) == (0, 1)
    ledger.ready(second, 10)
    ledger.free(second)
    assert ledger.claim() == second


def test_slots_that_a_plain_loop_does_not_need_are_never_touched() -> None:
    ledger = Ledger(12, 1 << 30, 4)
    held: list[int] = []
    writing = [ledger.claim() for _ in range(4)]
    for _ in range(1000):
        slot = writing.pop(0)
        ledger.ready(slot, 1 << 20)
        assert ledger.lend(slot)
        held.append(slot)
        if len(held) > 2:
            ledger.free(held.pop(0))
        writing.append(ledger.claim())
    assert ledger.resident <= 7 << 20


def test_slots_in_flight_are_never_leased_away() -> None:
    ledger = Ledger(5, 1 << 30, 3)
    for _ in range(2):
        slot = ready_slot(ledger, 100)
        assert ledger.lend(slot)
    assert not ledger.lend(ready_slot(ledger, 100))
    ledger.claim()
    ledger.claim()


def test_leases_leave_bytes_for_one_more_batch() -> None:
    ledger = Ledger(8, 13 * MIN_SLOT_BYTES, 2)
    big = 3 * MIN_SLOT_BYTES
    slot = ready_slot(ledger, big)
    assert ledger.lend(slot)
    assert not ledger.lend(ready_slot(ledger, big))


def test_a_grant_empties_free_slots_before_it_gives_up() -> None:
    ledger = Ledger(4, 40 * MIN_SLOT_BYTES, 2)
    slot = ready_slot(ledger, 20 * MIN_SLOT_BYTES)
    ledger.free(slot)
    other = ledger.claim()
    assert other == slot
    third = ledger.claim()
    assert ledger.grant(third, 30 * MIN_SLOT_BYTES) is None
    ledger.ready(other, 1)
    ledger.free(other)
    assert ledger.grant(third, 30 * MIN_SLOT_BYTES) == [other]
    assert ledger.resident == 0


def test_no_slot_grows_beyond_its_own_cap() -> None:
    ledger = Ledger(4, 1 << 30, 2, slot_cap=1 << 20)
    slot = ledger.claim()
    assert ledger.grant(slot, (1 << 20) + 1) is None
    assert ledger.grant(slot, 1 << 20) == []
    assert ledger.allowance(slot) == 1 << 20


def test_what_an_outlier_took_is_given_back() -> None:
    ledger = Ledger(4, 1 << 34, 2)
    outlier = ready_slot(ledger, 1 << 30)
    ledger.free(outlier)
    emptied: list[int] = []
    for _ in range(32 * 4 * 3):
        slot = ready_slot(ledger, 1 << 20)
        ledger.free(slot)
        for surplus in ledger.surplus():
            ledger.empty(surplus)
            emptied.append(surplus)
    assert emptied == [outlier]
    assert ledger.resident <= 2 << 20


def test_slots_unused_for_long_are_given_back() -> None:
    ledger = Ledger(6, 1 << 30, 2)
    held = []
    for _ in range(4):
        held.append(ready_slot(ledger, 1 << 20))
        assert ledger.lend(held[-1])
    for slot in held:
        ledger.free(slot)
    for _ in range(32 * 6 * 4):
        ledger.free(ready_slot(ledger, 1 << 20))
        for surplus in ledger.surplus():
            ledger.empty(surplus)
    assert ledger.resident == 1 << 20


def test_ragged_batches_are_not_given_back_again_and_again() -> None:
    draw = random.Random(0)
    ledger = Ledger(4, 1 << 34, 2)
    for _ in range(2000):
        ledger.free(ready_slot(ledger, draw.randrange(1 << 20, 2 << 20)))
        assert ledger.surplus() == []


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (State.FREE, "ready"), (State.FREE, "lend"), (State.FREE, "free"), (State.FREE, "grant"),
        (State.FREE, "retain"), (State.WRITING, "lend"), (State.WRITING, "retain"), (State.WRITING, "empty"),
        (State.READY, "ready"), (State.READY, "grant"), (State.READY, "empty"), (State.LEASED, "lend"),
        (State.LEASED, "ready"), (State.LEASED, "grant"), (State.LEASED, "empty"),
        (State.RETAINED, "lend"), (State.RETAINED, "ready"), (State.RETAINED, "grant"), (State.RETAINED, "empty"),
        (State.RETAINED, "retain"),
    ],
)  # fmt: skip
def test_what_may_not_follow_what(state: State, action: str) -> None:
    ledger = Ledger(4, 1 << 30, 2)
    slot = 0
    if state is not State.FREE:
        slot = ledger.claim()
    if state in (State.READY, State.LEASED, State.RETAINED):
        ledger.ready(slot, 1)
    if state is State.LEASED:
        assert ledger.lend(slot)
    if state is State.RETAINED:
        ledger.retain(slot)
    arguments = (slot, 1) if action in ("ready", "grant") else (slot,)
    with pytest.raises(ValueError, match=f"slot {slot} is"):
        getattr(ledger, action)(*arguments)


def test_what_a_worker_holds_counts_for_the_cap_and_not_as_leased() -> None:
    ledger = Ledger(4, 8 * MIN_SLOT_BYTES, 1, max_leased=1)
    retained, lent = (ready_slot(ledger, 1) for _ in range(2))
    ledger.retain(retained)
    assert (ledger.state(retained), ledger.leased) == (State.RETAINED, 0)
    assert ledger.lend(lent)
    assert (ledger.state(lent), ledger.leased) == (State.LEASED, 1)
    ledger.free(retained)
    assert (ledger.state(retained), ledger.leased) == (State.FREE, 1)
    ledger.retain(lent)  # the consumer has dropped what a worker still holds
    assert (ledger.state(lent), ledger.leased) == (State.RETAINED, 0)
    assert ledger.lend(ready_slot(ledger, 1))


def test_a_cap_too_small() -> None:
    with pytest.raises(ValueError, match="too small for 4 slots"):
        Ledger(4, 4 * MIN_SLOT_BYTES - 1, 2)


def test_repr_tells_every_slot() -> None:
    ledger = Ledger(2, 4 * MIN_SLOT_BYTES, 1)
    ledger.claim()
    assert repr(ledger) == "<Ledger 152917/262144 0:writing:0/87381 1:free:0/65536>"
