"""The part of a worker that makes batches, with nobody to send anything to."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, default_collate

from shmloader import PoolMemoryError
from shmloader.collate import default
from shmloader.errors import WorkerFault
from shmloader.slots.ledger import MIN_SLOT_BYTES
from shmloader.slots.pool import Pool
from shmloader.slots.results import Made
from shmloader.torch_private import collate_fn_map
from shmloader.workers.batch_maker import BatchMaker, Contents, Outcome, Shortage
from shmloader.workers.brief import BatchSource, Brief
from tests.helpers.datasets import Mapped
from tests.helpers.support import assert_same

Grow = Callable[[int, int], int]  # from the slot and the bytes that it needs to those that it may use


class Maker:
    """A batch maker and the parent's side of its slots, in one process."""

    def __init__(self, dataset: Any, collate_fn: Any = default_collate, is_stream: bool = False) -> None:
        self.pool = Pool(num_slots=6, in_flight=2, max_bytes=32 << 20, num_workers=1)
        source = BatchSource(dataset, int(is_stream), True, collate_fn, False, None, 1, None, None)
        self.maker = BatchMaker(Brief(0, 1, source, self.pool.arena, "the cap", 0, 0, False, 0))
        self.maker.begin_first_pass()
        self.shortages: list[Shortage] = []
        self._seq = 0

    def run(self, indices: list[Any], grow: Grow | None = None, room: int | None = None) -> tuple[int, Outcome]:
        """Returns the slot of a job and what has become of it."""
        job = pickle.dumps(indices)
        slot, allowed = self.pool.claim(job)
        self._seq += 1
        done = self.maker.make(slot, self._seq, allowed if room is None else room, len(job))
        while isinstance(done, Shortage):
            self.shortages.append(done)
            done = self.maker.go_on((grow or self._grant)(slot, done.need))
        return slot, done

    def take(self, indices: list[Any], grow: Grow | None = None, room: int | None = None) -> Any:
        """Returns the batch, as the loop gets it."""
        slot, done = self.run(indices, grow, room)
        made = Made(slot, done.offset, done.nbytes, done.contents is Contents.FAULT)
        self.pool.ready(made)
        return self.pool.hand_over(made)[0]

    def _grant(self, slot: int, need: int) -> int:
        return self.pool.grant(slot, need) or 0


def refuse(slot: int, need: int) -> int:
    return 0


def sample(index: int) -> Any:
    return np.full((index % 7 + 3, 5), index, np.float32), index, {"name": f"sample {index}"}


@pytest.fixture
def own_collation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Maker], None]]:
    """Has a maker's functions in torch's map while a test runs, as in a worker's process."""
    before = dict(collate_fn_map)
    monkeypatch.setattr(default, "_of_process", None)
    yield lambda maker: maker.maker.collation.install()
    collate_fn_map.clear()
    collate_fn_map.update(before)


def test_batches_are_what_the_collate_function_makes() -> None:
    maker = Maker(Mapped(sample, 100), lambda samples: list(samples))
    for start in range(0, 50, 3):
        indices = list(range(start, start + 3))
        assert_same(maker.take(indices), [sample(index) for index in indices])
    assert not maker.shortages


def test_the_default_function_writes_into_the_slot(own_collation: Callable[[Maker], None]) -> None:
    maker = Maker(Mapped(lambda index: (np.full(9, index), index), 100))
    own_collation(maker)
    first = maker.maker.writer
    for start in range(5):  # the first is made and packed, the others follow its template
        batch = maker.take([start, start + 1])
        assert_same(batch, [torch.full((2, 9), start) + torch.tensor([[0], [1]]), torch.tensor([start, start + 1])])
    assert first.shortage == 0


def test_what_does_not_fit_is_asked_for_once_and_goes_on() -> None:
    maker = Maker(Mapped(lambda index: torch.full((60_000,), index), 9), lambda samples: samples)
    assert_same(maker.take([3, 4], room=MIN_SLOT_BYTES), [torch.full((60_000,), 3), torch.full((60_000,), 4)])
    (shortage,) = maker.shortages
    assert shortage.need > 2 * 60_000 * 8
    assert shortage.to_stay == 0


def test_a_refusal_is_an_exception_in_the_batchs_place_and_the_next_one_comes() -> None:
    maker = Maker(Mapped(lambda index: torch.full((60_000,), index), 9), lambda samples: samples)
    with pytest.raises(PoolMemoryError, match=r"do not fit under the cap"):
        maker.take([3, 4], grow=refuse, room=MIN_SLOT_BYTES)
    assert_same(maker.take([5]), [torch.full((60_000,), 5)])


def test_an_exception_that_does_not_fit_comes_as_what_fits_of_its_text() -> None:
    def fail(index: int) -> Any:
        raise ValueError("x" * 300_000)

    maker = Maker(Mapped(fail, 9))
    with pytest.raises(ValueError, match="Caught ValueError") as caught:
        maker.take([1], room=MIN_SLOT_BYTES)
    assert "x" * 300_000 in str(caught.value)
    del caught
    assert len(maker.shortages) == 1
    with pytest.raises(RuntimeError, match="ValueError itself cannot be sent"):
        maker.take([1], grow=refuse, room=MIN_SLOT_BYTES)


def test_an_exception_is_a_fault_in_the_slot() -> None:
    def fail(index: int) -> Any:
        raise KeyError(index)

    maker = Maker(Mapped(fail, 9))
    slot, done = maker.run([1])
    assert done.contents is Contents.FAULT
    made = Made(slot, done.offset, done.nbytes, is_fault=True)
    maker.pool.ready(made)
    assert isinstance(maker.pool._copy(made, made), WorkerFault)


class Two(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


def test_a_stream_that_ends_says_so_once_and_begins_again() -> None:
    maker = Maker(Two(), is_stream=True)
    for _ in range(2):
        assert maker.take([None, None]).tolist() == [1, 2]
        slot, done = maker.run([None])
        assert done == Outcome(Contents.NOTHING, 0, 0, False)
        assert maker.maker.has_ended
        maker.pool.withdraw(slot)
        maker.maker.begin_pass(0, 0)
        assert not maker.maker.has_ended


def test_what_user_code_holds_of_a_slot_is_told_and_never_lent_again(own_collation: Callable[[Maker], None]) -> None:
    kept = []

    def collate(samples: list[Any]) -> Any:
        kept.append(default_collate(samples))
        return kept[-1]

    maker = Maker(Mapped(lambda index: np.full(100, index), 9), collate)
    own_collation(maker)
    assert maker.run([1])[1].is_held
    assert not maker.run([2])[1].is_held  # made elsewhere, and copied
    assert [one[0, 0].item() for one in kept] == [1, 2]
