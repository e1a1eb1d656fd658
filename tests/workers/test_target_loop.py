"""What a worker of a producer does, with the parent's side in the same process and thread."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shmloader import PoolMemoryError, TensorSpec
from shmloader.batches.alignment import ALIGNMENT
from shmloader.batches.item_layout import lay_out
from shmloader.slots.ledger import MIN_SLOT_BYTES, State
from shmloader.slots.pool import Pool
from shmloader.slots.results import Made, Retained
from shmloader.workers import wire
from shmloader.workers.brief import Brief, TargetSource
from shmloader.workers.target_loop import TargetLoop
from shmloader.workers.wire import Fields, Inbox, Token
from tests.helpers.support import in_threads

pytestmark = pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")

ROW = TensorSpec((1000,), torch.int64)


class Parent:
    """The parent of one target: it gives slots and takes items until it stops the worker.

    Args:
        target: what the worker calls.
        specs: of an item.
        items: after how many the worker is stopped.
        num_slots: how many are under way.
        consume: called with each item, which nothing else here holds.
        room: bytes of a slot that may be used; None: enough.
    """

    def __init__(
        self,
        target: Callable[..., object],
        specs: Any = ROW,
        items: int = 10,
        num_slots: int = 3,
        consume: Callable[[Any], object] | None = None,
        room: int | None = None,
    ) -> None:
        self.pool = Pool(num_slots + 5, num_slots, 64 << 20, num_workers=1, held_per_worker=3)
        source = TargetSource(target, (), {}, lay_out(specs, ALIGNMENT), None, 1)
        brief = Brief(0, 1, source, self.pool.arena, "the cap", 0, 0, False, 0)
        self.tokens: list[Token] = []
        self.items: list[Any] = []
        self.errors: list[Exception] = []
        self.slots: list[int] = []  # of items
        self.taken = 0
        self._consume = consume or self.items.append
        self._left = items
        self._num_slots = num_slots
        self._seq = self._under_way = 0
        self._waiting: list[int] = []
        self._room = room
        self.loop = TargetLoop(brief, source, Inbox(self.read), self)

    def run(self) -> Parent:
        self.loop.begin()
        self.loop.serve()
        return self

    def read(self) -> list[Token]:
        if self._left <= 0:
            return [Token(wire.STOP, 0, 0, 0)]
        if self.tokens and self.tokens[-1].kind == wire.ASK:
            return [Token(wire.GRANT, 0, 0, 0, self.tokens[-1].slot, self.tokens[-1].seq, 0)]
        if self.tokens and self.tokens[-1].kind == wire.ENDED:
            return []
        self.pool.collect()
        slot, room = self.pool.claim(b"")
        self._waiting.append(slot)
        self._seq += 1
        return [Token(wire.JOB, 0, 0, 0, slot, self._seq, room if self._room is None else self._room)]

    def write(self, fields: Fields) -> None:
        token = Token(*fields)
        self.tokens.append(token)
        if token.kind == wire.ENDED:
            assert (token.seq == wire.NO_SEQ) == (not self._waiting)
        if token.kind in (wire.ITEM, wire.BATCH, wire.FAULT):
            assert self._waiting.pop(0) == token.slot
            made = Made(token.slot, token.offset, token.nbytes, token.kind == wire.FAULT)
            self.pool.ready(made)
            if token.kind != wire.FAULT:
                self.slots.append(token.slot)
            if token.kind == wire.ITEM:
                self.pool.hold(token.slot, 0, bool(token.is_held))
            try:
                result = Retained(made, 0) if token.kind == wire.FAULT and token.is_held else made
                self._left -= 1
                self.taken += 1
                self._consume(self.pool.hand_over(result)[0])
            except Exception as error:
                self.errors.append(error)

    @property
    def kinds(self) -> list[int]:
        return [token.kind for token in self.tokens]


def test_items_arrive_as_they_were_written() -> None:
    addresses = []

    def target(slots: Any) -> None:
        for number, slot in enumerate(slots):
            with slot as arrays:
                addresses.append(arrays.__array_interface__["data"][0])
                arrays[:] = number

    parent = Parent(target).run()
    assert [item.unique().tolist() for item in parent.items] == [[number] for number in range(10)]
    assert [item.data_ptr() for item in parent.items[:5]] == addresses[:5]  # no copy, as long as there are slots
    assert parent.kinds == [wire.ITEM] * 10


def test_without_with() -> None:
    def target(slots: Any) -> None:
        for number, slot in enumerate(slots):
            slot.arrays["a"][:] = number
            slot.arrays["b"][0][...] = -number
            slot.ready()

    parent = Parent(target, {"a": (3,), "b": [TensorSpec((), torch.int16)]}).run()
    assert [(item["a"].tolist(), item["b"][0].item()) for item in parent.items] == [
        ([number] * 3, -number) for number in range(10)
    ]


def test_a_plain_target_uses_few_slots_and_nothing_is_retained() -> None:
    def target(slots: Any) -> None:
        for number, slot in enumerate(slots):
            with slot as (one, other):
                one[:] = number
                other[...] = number

    def check(item: Any) -> None:
        assert item[0].unique().tolist() == [item[1].item()]

    parent = Parent(target, (ROW, TensorSpec((), torch.int64)), items=300, consume=check).run()
    assert parent.taken == 300
    assert not parent.errors
    assert not any(token.is_held for token in parent.tokens)
    assert len(set(parent.slots)) <= 3  # the one that is written, the one that is on hold, and the consumer's


KEEPERS: dict[str, Callable[[Any], Any]] = {
    "array": lambda array: array,
    "slice": lambda array: array[10:],
    "memoryview": memoryview,
    "tensor": torch.from_numpy,
    "reversed": lambda array: array[::-1],
    "in a cycle": lambda array: in_a_cycle(array),
}


def in_a_cycle(array: Any) -> Any:
    box = [array]
    box.append(box)
    return box


def content(kept: Any) -> list[int]:
    numbers: list[int] = np.asarray(kept[0] if isinstance(kept, list) else kept).tolist()
    return numbers


@pytest.mark.parametrize("kind", KEEPERS)
@pytest.mark.parametrize("holds", [False, True])
def test_what_a_target_keeps_stays_as_it_was(kind: str, holds: bool) -> None:
    kept: list[tuple[Any, list[int]]] = []

    def target(slots: Any) -> None:
        for number, slot in enumerate(slots):
            with slot as array:
                array[:] = range(number, number + 1000)
                if number in (3, 4, 9):
                    kept.append((thing := KEEPERS[kind](array), content(thing)))
                    del thing
            del array, slot

    items: list[Any] = []
    parent = Parent(target, items=60, consume=items.append if holds else lambda item: None).run()
    assert not parent.errors
    for thing, before in kept:
        assert content(thing) == before
    assert sum(token.is_held for token in parent.tokens) == 1
    # From the second on they are private, and the first private one's predecessor may be kept, for all that is known.
    assert parent.kinds == [wire.ITEM] * 5 + [wire.BATCH] * 55
    assert not {*parent.slots[3:5]} & {*parent.slots[5:]}
    assert [item[0].item() for item in items] == (list(range(60)) if holds else [])
    del thing


def test_arrays_are_read_only_once_their_item_is_delivered() -> None:
    kept = []

    def target(slots: Any) -> None:
        for number, slot in enumerate(slots):
            with slot as arrays:
                arrays["a"][:] = number
                kept.append(arrays)

    parent = Parent(target, {"a": (3,)}).run()
    for number, (arrays, item) in enumerate(zip(kept, parent.items, strict=True)):
        with pytest.raises(ValueError, match="read-only"):
            arrays["a"][0] = 5
        assert arrays["a"].tolist() == item["a"].tolist() == [number] * 3


def test_an_item_whose_block_raised_is_not_delivered_and_its_slot_is_given_again() -> None:
    def target(slots: Any) -> None:
        for number, slot in enumerate(slots):
            try:
                with slot as array:
                    array[:] = number
                    if number % 3:
                        raise ValueError(number)
            except ValueError:
                pass

    parent = Parent(target).run()
    assert [item[0].item() for item in parent.items] == list(range(0, 30, 3))
    assert parent.kinds == [wire.ITEM] * 10
    assert parent._seq == 10


@pytest.mark.parametrize("leave", ["continue", "break", "return"])
def test_a_block_that_is_left_otherwise_delivers(leave: str) -> None:
    def fill(slots: Any, number: int) -> bool:
        for slot in slots:
            with slot as array:
                array[:] = number
                if leave == "continue":
                    number += 1
                    continue
                if leave == "break":
                    break
                return True
        return False

    def target(slots: Any) -> None:
        for number in range(5):
            fill(slots, number)

    parent = Parent(target, items=5).run()
    assert [item[0].item() for item in parent.items] == list(range(5))


def test_ready_within_the_block() -> None:
    def target(slots: Any) -> None:
        for number, slot in enumerate(slots):
            with slot as array:
                array[:] = number
                slot.ready()

    assert [item[0].item() for item in Parent(target).run().items] == list(range(10))


def test_a_slot_that_is_not_made_ready_is_given_again() -> None:
    addresses = set()

    def target(slots: Any) -> None:
        for number, slot in enumerate(slots):
            slot.arrays[:] = number
            if number % 4 == 3:
                slot.ready()
            else:
                addresses.add(slot.arrays.__array_interface__["data"][0])
            if number == 7:
                return

    parent = Parent(target).run()
    assert [item[0].item() for item in parent.items] == [3, 7]
    assert len(addresses) == 2


def test_random_walk() -> None:
    """Targets that keep, fail and skip, and consumers that hold: nobody's numbers ever change."""
    for seed in range(12):
        draw = random.Random(seed)
        kept: list[tuple[Any, list[int]]] = []
        delivered: list[int] = []
        held: list[tuple[int, torch.Tensor]] = []
        received: list[int] = []

        def target(
            slots: Any, draw: random.Random = draw, kept: list[Any] = kept, delivered: list[int] = delivered
        ) -> None:
            for number, slot in enumerate(slots):
                what = draw.random()
                if what < 0.1:
                    slot.arrays[:] = -1
                    continue
                try:
                    with slot as array:
                        array[:] = number
                        if what < 0.2:
                            raise KeyError(number)
                        if what < 0.22:
                            kept.append((array, array.tolist()))
                    delivered.append(number)
                except KeyError:
                    pass

        def consume(item: Any, draw: random.Random = draw, held: list[Any] = held, got: list[int] = received) -> None:
            got.append(item[0].item())
            held.append((got[-1], item))
            while len(held) > draw.randrange(1, 12):
                held.pop(draw.randrange(len(held)))
            assert all(bool((one == number).all()) for number, one in held)

        parent = Parent(target, items=200, consume=consume).run()
        assert not parent.errors
        assert received == delivered
        assert all(array.tolist() == before for array, before in kept)
        states = Counter(parent.pool._ledger.state(slot) for slot in range(parent.pool.arena.slots))
        assert states[State.RETAINED] <= 3


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_target_that_returns_ends_its_worker() -> None:
    def target(slots: Any) -> None:
        for number, slot in zip(range(3), slots, strict=False):
            with slot as array:
                array[:] = number

    parent = Parent(target).run()
    assert parent.kinds == [wire.ITEM] * 3 + [wire.ENDED]
    assert not parent.errors


def test_the_end_needs_no_slot() -> None:
    parent = Parent(lambda slots: None).run()
    assert parent.kinds == [wire.ENDED]
    assert parent.tokens[0].seq == wire.NO_SEQ


def test_arrays_of_an_open_slot_that_are_kept_at_the_end() -> None:
    kept = []

    def target(slots: Any) -> None:
        kept.append(next(slots).arrays)

    parent = Parent(target).run()
    (end,) = parent.tokens
    assert (end.kind, bool(end.is_held), end.seq) == (wire.ENDED, True, 1)
    assert kept[0].flags.writeable
    kept.clear()


def test_a_stop_ends_the_iteration_and_the_target_cleans_up() -> None:
    log = []

    def target(slots: Any) -> None:
        try:
            for slot in slots:
                with slot as array:
                    array[:] = 0
            log.append("ended")
            with pytest.raises(StopIteration):
                next(slots)
        finally:
            log.append("cleaned up")
        raise ValueError("nobody hears of it")

    parent = Parent(target).run()
    assert log == ["ended", "cleaned up"]
    assert parent.kinds == [wire.ITEM] * 10


def test_a_stop_while_the_target_asks_with_next() -> None:
    def target(slots: Any) -> None:
        while True:
            with next(slots) as array:
                array[:] = 0

    assert Parent(target).run().kinds == [wire.ITEM] * 10


# -- what a target does wrong ------------------------------------------------------------------------------------------


def raises_after_two(slots: Any) -> None:
    for number, slot in enumerate(slots):
        with slot as array:
            array[:] = number
            if number == 2:
                raise KeyError("some", "arguments")


def yields(slots: Any) -> Iterator[int]:
    yield from slots


async def awaits(slots: Any) -> None: ...


def takes_two(slots: Any) -> None:
    next(slots)
    next(slots)


def lists(slots: Any) -> None:
    list(slots)


def uses_the_one_before(slots: Any) -> None:
    first = next(slots)
    first.arrays[:] = 1
    next(slots).arrays[:] = 2
    first.ready()


def readies_twice(slots: Any) -> None:
    slot = next(slots)
    slot.arrays[:] = 1
    slot.ready()
    slot.ready()


def reads_after_ready(slots: Any) -> None:
    slot = next(slots)
    slot.ready()
    slot.arrays  # noqa: B018


def enters_again(slots: Any) -> None:
    slot = next(slots)
    with slot:
        pass
    with slot:
        pass


def takes_the_next_within_the_block(slots: Any) -> None:
    with next(slots):
        next(slots)


def asks_in_a_thread(slots: Any) -> None:
    in_threads(lambda: next(slots))


def readies_in_a_thread(slots: Any) -> None:
    slot = next(slots)
    slot.arrays[:] = 0
    in_threads(slot.ready)


def writes_another_shape(slots: Any) -> None:
    with next(slots) as array:
        array[:] = np.zeros(7)


def stops_by_itself(slots: Any) -> None:
    next(iter(()))


def raises_what_does_not_travel(slots: Any) -> None:
    class Local(Exception):
        pass

    raise Local("the text")


def raises_much(slots: Any) -> None:
    with next(slots) as array:
        array[:] = 0
        raise ValueError("x" * 100_000)


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        (raises_after_two, KeyError, "some"),
        (yields, TypeError, "returned a generator"),
        (awaits, TypeError, "returned a coroutine"),
        (takes_two, RuntimeError, "one slot at a time"),
        (lists, RuntimeError, "one slot at a time"),
        (uses_the_one_before, RuntimeError, "left for the next one"),
        (readies_twice, RuntimeError, "was made ready"),
        (reads_after_ready, RuntimeError, "was made ready"),
        (enters_again, RuntimeError, "was made ready"),
        (takes_the_next_within_the_block, RuntimeError, "left for the next one"),
        (asks_in_a_thread, RuntimeError, "thread in which the target was called"),
        (readies_in_a_thread, RuntimeError, "thread in which the target was called"),
        (writes_another_shape, ValueError, "broadcast"),
        (stops_by_itself, RuntimeError, "raised StopIteration"),
        (raises_what_does_not_travel, RuntimeError, "the text"),
        (raises_much, ValueError, "xxxx"),
    ],
)
def test_what_a_target_raises_arrives_behind_its_items(target: Any, error: type[Exception], text: str) -> None:
    parent = Parent(target).run()
    assert parent.kinds[-2:] == [wire.FAULT, wire.ENDED]
    assert set(parent.kinds[:-2]) <= {wire.ITEM}
    (raised,) = parent.errors
    with pytest.raises(error, match=text) as caught:
        raise raised
    assert "in Producer worker process 0" in str(caught.value)
    assert "Traceback" in str(caught.value)


def replaces(slots: Any, change: Callable[[Any], object]) -> None:
    with next(slots) as arrays:
        change(arrays)


CHANGES: dict[str, Callable[[Any], object]] = {
    "another array": lambda arrays: arrays.__setitem__("a", np.zeros(3, np.float32)),
    "a number": lambda arrays: arrays.__setitem__("a", 5),
    "in a list": lambda arrays: arrays["b"].__setitem__(0, np.zeros((), np.float32)),
    "fewer": lambda arrays: arrays.pop("a"),
    "more": lambda arrays: arrays.__setitem__("c", 5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_that_is_replaced_and_not_written_to_is_an_error(change: str) -> None:
    parent = Parent(lambda slots: replaces(slots, CHANGES[change]), {"a": (3,), "b": [()]}).run()
    (error,) = parent.errors
    assert isinstance(error, RuntimeError)
    assert "was replaced" in str(error)


def test_a_slot_that_may_not_be_used_as_far_as_an_item_goes_is_an_error() -> None:
    def target(slots: Any) -> None:
        for slot in slots:
            with slot as array:
                array[:] = 0

    parent = Parent(target, TensorSpec((1 << 20,), torch.uint8), room=MIN_SLOT_BYTES).run()
    assert parent.kinds == [wire.ASK, wire.FAULT, wire.ENDED]
    (error,) = parent.errors
    assert isinstance(error, PoolMemoryError)
    assert "do not fit under the cap" in str(error)


def test_a_target_may_catch_that_there_is_no_room() -> None:
    def target(slots: Any) -> None:
        with pytest.raises(PoolMemoryError):
            next(slots)

    parent = Parent(target, TensorSpec((1 << 20,), torch.uint8), room=MIN_SLOT_BYTES).run()
    assert parent.kinds == [wire.ASK, wire.ENDED]
    assert not parent.errors


def test_an_init_function_that_raises_comes_in_the_targets_place() -> None:
    def fail(worker: int) -> None:
        raise LookupError(worker)

    parent = Parent(lambda slots: pytest.fail("it was called"))
    object.__setattr__(parent.loop._source, "init_fn", fail)
    parent.run()
    assert parent.kinds == [wire.FAULT, wire.ENDED]
    assert isinstance(parent.errors[0], LookupError)
