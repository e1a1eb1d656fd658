"""The words that a parent and its workers share: what is saved survives a death at any byte of it."""

from __future__ import annotations

import mmap
import random
import struct
from collections.abc import Iterator

import pytest

import shmloader.slots.shared_state as module
from shmloader.slots.shared_state import SharedState

PAIR = struct.Struct("<qq")


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SharedState.size(3)) as memory:
        yield memory


@pytest.fixture
def control(memory: mmap.mmap) -> SharedState:
    control = SharedState(memory, 3)
    for worker in range(3):
        control.idle(worker)
        control.forget(worker)
    return control


class Death(Exception):
    """Of the process that writes."""


class Mortal:
    """A mapping and a struct in one, whose user dies after ``left`` bytes."""

    size = PAIR.size

    def __init__(self, memory: mmap.mmap, left: int) -> None:
        self.memory = memory
        self.left = left

    def __setitem__(self, where: slice, data: bytes) -> None:
        assert where.stop - where.start == len(data)
        self._write(where.start, data)

    def pack_into(self, _: object, place: int, *values: int) -> None:
        self._write(place, PAIR.pack(*values))

    def _write(self, place: int, data: bytes) -> None:
        end = min(len(data), self.left)
        self.memory[place : place + end] = data[:end]
        self.left -= end
        if end < len(data):
            raise Death


def save_and_die(control: SharedState, worker: int, tag: int, data: bytes, after: int) -> None:
    """Saves, as a process does that dies when it has written ``after`` bytes of it."""
    memory = control._memory
    with pytest.MonkeyPatch.context() as patch:
        mortal = Mortal(memory, after)
        patch.setattr(control, "_memory", mortal)
        patch.setattr(module, "_SAVED", mortal)
        with pytest.raises(Death):
            control.save(worker, tag, data)


def some_bytes(draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice([1, 20, 300, 11_000]))


def test_nothing_is_there_at_first(control: SharedState) -> None:
    assert not control.stopped
    for worker in range(3):
        assert control.begun(worker) is None
        assert control.saved(worker, 10**9) is None


def test_what_was_begun(control: SharedState) -> None:
    control.begin(1, 7)
    begun = control.begun(1)
    assert begun is not None
    assert begun[0] == 7
    assert 0 <= begun[1] < 60
    control.begin(1, 8)
    begun = control.begun(1)
    assert begun is not None
    assert begun[0] == 8
    assert control.begun(0) is None
    assert control.begun(2) is None
    control.idle(1)
    assert control.begun(1) is None


def test_stopping_touches_nothing_else(control: SharedState) -> None:
    control.begin(0, 2**40)
    control.save(0, 0, b"a")
    control.stopped = True
    assert control.stopped
    assert control.begun(0) is not None
    assert control.saved(0, 0) == b"a"
    control.stopped = False
    assert not control.stopped


def test_the_newest_that_is_asked_for(control: SharedState) -> None:
    for tag in range(5):
        control.save(2, tag, bytes([tag]))
    assert control.saved(2, 4) == b"\x04"
    assert control.saved(2, 3) == b"\x03"
    assert control.saved(2, 99) == b"\x04"
    assert control.saved(2, 2) is None  # written over by the one after the next
    control.save(2, 4, b"again")
    assert control.saved(2, 4) == b"again"
    assert control.saved(1, 4) is None
    control.forget(2)
    assert control.saved(2, 99) is None


def test_what_is_too_large_is_dropped(control: SharedState) -> None:
    control.save(0, 1, b"small")
    control.save(0, 2, bytes(1 << 15))
    assert control.saved(0, 2) == b"small"
    largest = bytes((1 << 15) - PAIR.size)
    control.save(2, 1, largest)
    assert control.saved(2, 1) == largest
    assert control.saved(1, 9) is None


def test_words_take_whole_pages_and_grow_with_workers() -> None:
    for workers in range(200):
        size = SharedState.size(workers)
        assert size % mmap.PAGESIZE == 0
        assert size >= 64 * (1 + workers) + workers * 2 * (1 << 15)


@pytest.mark.parametrize("first_tag", [0, 1, 254, 255, 256, 65_535])
def test_a_death_at_any_byte_leaves_the_one_before(control: SharedState, first_tag: int) -> None:
    """The successor asks for the number of batches that came, which is that of the save before."""
    draw = random.Random(first_tag)
    datas = [some_bytes(draw)[:300] for _ in range(4)]
    for after in range(len(datas[3]) + 2 * PAIR.size):
        control.forget(1)
        for tag, data in enumerate(datas[:3], first_tag):
            control.save(1, tag, data)
        save_and_die(control, 1, first_tag + 3, datas[3], after)
        assert control.saved(1, first_tag + 2) == datas[2]
        assert control.saved(0, 10**9) is None
        assert control.saved(2, 10**9) is None


def test_after_a_death_the_successor_saves_under_the_same_number(control: SharedState) -> None:
    for after in range(2 * PAIR.size + 3):
        control.forget(0)
        control.save(0, 5, b"five")
        save_and_die(control, 0, 6, b"six!", after)
        control.save(0, 6, b"six?")
        assert control.saved(0, 5) == b"five"
        assert control.saved(0, 6) == b"six?"


@pytest.mark.parametrize("seed", range(20))
def test_random_walk(control: SharedState, seed: int) -> None:
    """Against a model that remembers everything, with deaths in the middle of saving."""
    draw = random.Random(seed)
    kept: list[dict[int, bytes]] = [{} for _ in range(3)]
    tags = [0, 0, 0]
    begun: list[int | None] = [None, None, None]
    for _ in range(600):
        worker = draw.randrange(3)
        action = draw.choice(["save", "save", "save", "save again", "die", "forget", "begin", "idle", "stop"])
        if action == "save":
            tags[worker] += 1
        if action in ("save", "save again"):
            kept[worker][tags[worker]] = data = some_bytes(draw)
            control.save(worker, tags[worker], data)
        elif action == "die":
            data = some_bytes(draw)
            save_and_die(control, worker, tags[worker] + 1, data, draw.randrange(len(data) + 2 * PAIR.size))
        elif action == "forget" and draw.random() < 0.1:
            control.forget(worker)
            kept[worker].clear()
            tags[worker] = draw.choice([0, tags[worker], 255])
        elif action == "begin":
            begun[worker] = seq = draw.randrange(2**40)
            control.begin(worker, seq)
        elif action == "idle":
            control.idle(worker)
            begun[worker] = None
        elif action == "stop":
            control.stopped = not control.stopped
        for number in range(3):
            word = control.begun(number)
            assert (None if word is None else word[0]) == begun[number]
            assert control.saved(number, tags[number]) == kept[number].get(tags[number])
