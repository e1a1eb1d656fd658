"""PermutationSampler: who gets which position, what a state means to other ranks, and loaders that read it."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import random
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler

from shmloader import PermutationSampler, ShmDataLoader
from shmloader.data.feistel import LONGEST
from tests.helpers.datasets import Mapped
from tests.helpers.support import assert_same_stream, let_stock_end


def taken(iterator: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(iterator, count))


def through_json(state: dict[str, int]) -> dict[str, int]:
    return json.loads(json.dumps(state))  # type: ignore[no-any-return]


def ranks(length: int, count: int, drop_last: bool = False, seed: int = 0) -> list[PermutationSampler]:
    return [PermutationSampler(length, seed, count, rank, drop_last) for rank in range(count)]


# -- who gets what -----------------------------------------------------------------------------------------------------


def test_every_index_once_as_plain_ints() -> None:
    for length in (1, 2, 100, 5000, 20_000):
        sampler = PermutationSampler(range(length), seed=length)
        assert isinstance(sampler, Sampler)
        found = list(sampler)
        assert sorted(found) == list(range(length))
        assert {type(index) for index in found} == {int}
        assert list(sampler) == found
        assert sampler.at(range(length)).tolist() == found
        assert len(sampler) == length


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_get_the_positions_that_distributed_sampler_gives(drop_last: bool) -> None:
    for length, count in itertools.product([*range(1, 14), 100, 4999, 5001], [1, 2, 3, 7, 20]):
        order = list(PermutationSampler(length, 3))
        for rank, ours in enumerate(ranks(length, count, drop_last, seed=3)):
            stock: Any = DistributedSampler(range(length), count, rank, shuffle=False, drop_last=drop_last)  # type: ignore[arg-type]
            assert list(ours) == [order[position] for position in stock]
            assert len(ours) == len(stock)


def test_blocks_do_not_show() -> None:
    sampler = PermutationSampler(99_999, 1, num_replicas=3, rank=1)
    assert list(sampler) == sampler.at(range(1, 99_999, 3)).tolist()


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    found = set()
    for seed, epoch in itertools.product([0, 1, -1, 1 << 64, -(1 << 100), 10**4000], [0, 1, 2, -1, 1 << 70]):
        sampler = PermutationSampler(50, seed)
        sampler.set_epoch(epoch)
        assert (sampler.seed, sampler.epoch) == (seed, epoch)
        found.add(tuple(sampler))
    assert len(found) == 30


def test_ints_of_other_libraries_are_ints() -> None:
    sampler = PermutationSampler(np.int64(50), np.uint8(3), torch.tensor(2), np.int32(1))  # type: ignore[arg-type]
    sampler.set_epoch(np.int64(4))  # type: ignore[arg-type]
    plain = PermutationSampler(50, 3, 2, 1)
    plain.set_epoch(4)
    assert list(sampler) == list(plain)
    json.dumps(sampler.state_dict())


@pytest.mark.parametrize("length", [10**9, LONGEST])
def test_memory_does_not_grow(length: int) -> None:
    sampler = PermutationSampler(length, num_replicas=2, rank=1)
    tracemalloc.start()
    try:
        for index in itertools.islice(sampler, 50_000):
            assert 0 <= index < length
        sampler.seek(length - 1)
        assert len(list(iter(sampler))) == 1  # list(sampler) would take memory for len(sampler)
        assert len(sampler) == length // 2
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_most_ranks_that_there_can_be() -> None:
    for rank in (0, LONGEST - 1):
        assert len(list(PermutationSampler(LONGEST, 0, LONGEST, rank))) == 1
        sampler = PermutationSampler(10, 0, LONGEST, rank)
        assert list(sampler) == [sampler.at(rank % 10)]
        assert list(PermutationSampler(10, 0, LONGEST, rank, drop_last=True)) == []


# -- iterators, epochs and positions -----------------------------------------------------------------------------------


def test_iterators_are_independent() -> None:
    sampler = PermutationSampler(1000)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append((iter(sampler), sampler.at(range(1000)).tolist()))
    sampler.seek(17, 9)
    found: list[list[int]] = [[] for _ in orders]
    for _ in range(10):
        for taker, (iterator, _) in zip(found, orders, strict=True):
            taker += taken(iterator, 100)
    assert found == [order for _, order in orders]


def test_a_position_is_for_one_iterator() -> None:
    sampler = PermutationSampler(100)
    order = list(sampler)
    older = iter(sampler)
    sampler.seek(60)
    unread, first, second = iter(sampler), iter(sampler), iter(sampler)
    assert list(older) == order
    assert list(first) == order[60:]
    assert list(second) == order
    assert list(unread) == order
    assert list(sampler) == order


def test_set_epoch_lets_a_position_in_that_epoch_stay() -> None:
    sampler = PermutationSampler(100)
    sampler.load_state_dict({**sampler.state_dict(), "epoch": 3, "position": 40})
    assert sampler.epoch == 3
    sampler.set_epoch(3)
    assert sampler.state_dict()["position"] == 40
    assert list(sampler) == sampler.at(range(40, 100)).tolist()
    sampler.seek(40)
    sampler.set_epoch(4)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["position"]) == (4, 0)
    assert list(sampler) == sampler.at(range(100)).tolist()
    sampler.set_epoch(3)
    assert len(list(sampler)) == 100


def test_the_end_of_an_epoch_is_a_position() -> None:
    for count, drop_last in itertools.product([1, 3, 200], [False, True]):
        for sampler in ranks(100, count, drop_last):
            whole = list(sampler)
            state = sampler.state_dict()
            assert state["position"] == (100 - 100 % count if drop_last else 100)
            sampler.load_state_dict(through_json(state))
            assert list(sampler) == []
            assert sampler.state_dict() == state
            assert list(sampler) == whole


def test_a_state_is_of_the_iterator_that_was_begun_last() -> None:
    sampler = PermutationSampler(1000, num_replicas=2, rank=1)
    assert sampler.state_dict() == {"version": 1, "length": 1000, "seed": 0, "epoch": 0, "position": 0}
    first = iter(sampler)
    taken(first, 300)
    second = iter(sampler)
    assert sampler.state_dict()["position"] == 600
    next(second)
    assert sampler.state_dict()["position"] == 2
    taken(first, 10)
    assert sampler.state_dict()["position"] == 2
    state = sampler.state_dict()
    next(second)
    assert state["position"] == 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize("walk", range(60))
def test_what_follows_a_state_is_shared_among_any_ranks(walk: int) -> None:
    """Goes through an epoch with other ranks again and again, beside a list that is cut."""
    draw = random.Random(walk)
    length = draw.choice([1, 2, 3, 10, 100, 4097, 9000])
    seed, epoch = draw.getrandbits(64), draw.randrange(5)
    state = {"version": 1, "length": length, "seed": seed, "epoch": epoch, "position": 0}
    sampler = PermutationSampler(length, seed)
    sampler.set_epoch(epoch)
    order = sampler.at(range(length)).tolist()
    position = 0
    for _ in range(6):
        count, drop_last = draw.choice([1, 2, 3, 8, min(length, 100) + 1]), draw.random() < 0.5
        group = ranks(length, count, drop_last, seed)
        for one in group:
            one.load_state_dict(through_json(state))
        left = length - position
        share = left // count if drop_last else -(-left // count)
        expected = [order[at % length] for at in range(position, position + share * count)]
        steps = draw.randint(0, min(share, draw.choice([1, 10, length])))
        iterators = [iter(one) for one in group]
        begun = [taken(iterator, steps) for iterator in iterators]
        states = [one.state_dict() for one in group]
        ended = [list(iterator) for iterator in iterators]
        assert [index for turn in zip(*begun, strict=True) for index in turn] == expected[: steps * count]
        assert [index for turn in zip(*ended, strict=True) for index in turn] == expected[steps * count :]
        position = min(length, position + steps * count)
        state = {**state, "position": position}
        assert states == [state] * count


@pytest.mark.parametrize("length", [100, 4097, 10**12])
def test_any_position_can_be_sought(length: int) -> None:
    sampler = PermutationSampler(length, -9)
    for position in (0, 1, length // 2, length - 3):
        sampler.seek(position, 2)
        assert (sampler.epoch, sampler.state_dict()["position"]) == (2, position)
        assert taken(iter(sampler), 3) == sampler.at([position, position + 1, position + 2]).tolist()


def test_indices_at_positions_have_the_shape_of_the_positions() -> None:
    sampler = PermutationSampler(100, 3, num_replicas=7, rank=4)
    order = list(PermutationSampler(100, 3))
    assert [sampler.at(position) for position in range(100)] == order
    assert type(sampler.at(np.int32(5))) is int
    found = sampler.at(np.array([[3, 99, 0], [0, 1, 2]], np.int16))
    assert found.dtype == np.int64
    assert found.tolist() == [[order[3], order[99], order[0]], order[:3]]
    assert sampler.at([]).shape == (0,)


def clones(sampler: PermutationSampler) -> list[PermutationSampler]:
    file = io.BytesIO()
    torch.save(sampler, file)
    file.seek(0)
    return [
        copy.copy(sampler),
        copy.deepcopy(sampler),
        pickle.loads(pickle.dumps(sampler)),
        torch.load(file, weights_only=False),
    ]


def test_copies_go_on_by_themselves() -> None:
    sampler = PermutationSampler(range(1000), 5, 2, 1)
    sampler.set_epoch(8)
    iterator = iter(sampler)
    taken(iterator, 300)
    state = sampler.state_dict()
    for clone in clones(sampler):
        next(iterator)
        assert clone.state_dict() == state
        assert list(clone) == list(copy.copy(clone))
    sampler.seek(700)
    for clone in clones(sampler):
        assert clone.state_dict()["position"] == 700
        assert len(list(clone)) == 150
        assert len(list(clone)) == 500
    assert len(list(sampler)) == 150


class Growing:
    """A dataset of which there is more later."""

    def __init__(self) -> None:
        self.length = 10

    def __len__(self) -> int:
        return self.length


def test_the_length_is_read_for_each_iterator() -> None:
    data = Growing()
    sampler = PermutationSampler(data)
    older = iter(sampler)
    next(older)
    data.length = 20
    assert len(list(older)) == 9
    assert sampler.state_dict()["length"] == 10
    assert sorted(sampler) == list(range(20))
    assert len(sampler) == 20
    sampler.seek(5)
    data.length = 30
    with pytest.raises(ValueError, match="data_source has length 30, and had 20 when position 5 was sought"):
        iter(sampler)
    data.length = 20
    assert len(list(sampler)) == 15
    data.length = 0
    with pytest.raises(ValueError, match="length of data_source must be from 1 to"):
        iter(sampler)


# -- loaders -----------------------------------------------------------------------------------------------------------

LOADED: dict[str, dict[str, Any]] = {
    "batches": {"batch_size": 7, "num_workers": 2},
    "no batches": {"batch_size": None, "num_workers": 2},
    "no workers": {"batch_size": 7},
    "neither": {"batch_size": None},
    "workers that stay": {"batch_size": 7, "num_workers": 1, "persistent_workers": True},
}


def identity(index: int) -> int:
    return index


def sought(position: int) -> PermutationSampler:
    sampler = PermutationSampler(100, 3)
    sampler.seek(position, 6)
    return sampler


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", LOADED)
def test_both_loaders_read_it(kind: str) -> None:
    batches, _, _ = assert_same_stream(
        lambda: Mapped(identity, 100), epochs=3, sampler=lambda: sought(30), **LOADED[kind]
    )
    found = [torch.as_tensor(batch).reshape(-1).tolist() for epoch in batches for batch in epoch]
    order = sought(0).at(range(100)).tolist()
    assert list(itertools.chain(*found)) == order[30:] + order + order


def test_it_goes_into_a_batch_sampler() -> None:
    def batches() -> BatchSampler:
        return BatchSampler(sought(90), 4, drop_last=True)

    found, _, _ = assert_same_stream(lambda: Mapped(identity, 100), epochs=2, batch_sampler=batches, num_workers=1)
    assert [len(epoch) for epoch in found] == [2, 25]


@pytest.mark.parametrize("kind", [DataLoader, ShmDataLoader])
def test_epochs_are_set_between_passes(kind: Callable[..., DataLoader[Any]]) -> None:
    sampler = PermutationSampler(20, num_replicas=2, rank=1)
    loader = kind(Mapped(identity), sampler=sampler, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert list(loader) == sampler.at(range(1, 20, 2)).tolist()
        assert sampler.state_dict()["position"] == 20
    del loader
    let_stock_end()


@pytest.mark.filterwarnings("ignore")  # its imports and its iterators warn of what torch has renamed
@pytest.mark.parametrize("kind", ["batches", "no batches", "no workers"])
@pytest.mark.parametrize("count", [0, 5, 15])
def test_torchdata_saves_and_restores_it(kind: str, count: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata, of the extra named peers")

    def made() -> Any:
        return stateful.StatefulDataLoader(Mapped(identity, 100), sampler=PermutationSampler(100, 3), **LOADED[kind])

    loader, restored = made(), made()
    iterator = iter(loader)
    for _ in range(count):
        next(iterator)
    restored.load_state_dict(loader.state_dict())
    rest = [torch.as_tensor(batch).tolist() for batch in iterator]
    assert [torch.as_tensor(batch).tolist() for batch in restored] == rest
    del loader, restored, iterator
    let_stock_end()


# -- bad input ---------------------------------------------------------------------------------------------------------


class Endless:
    """Longer than anything that can be counted."""

    def __len__(self) -> int:
        return (1 << 62) + 1


class Unsized:
    """Has no length."""


def made(*args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: PermutationSampler(*args, **kwargs)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no length": (made(Unsized()), TypeError, "data_source must have a length or be an int, and is of type Unsized"),
    "None": (made(None), TypeError, "data_source must have a length or be an int"),
    "a float": (made(10.0), TypeError, "data_source must have a length or be an int, and is of type float"),
    "a bool": (made(True), TypeError, "data_source must be an int, and is a bool"),
    "an array without an axis": (made(np.array(1.5)), TypeError, "data_source must be an int, and is of type ndarray"),
    "a tensor without an axis": (made(torch.tensor(0)), ValueError, "data_source must be from 1 to .*, and is 0"),
    "nothing": (made([]), ValueError, "the length of data_source must be from 1 to .*, and is 0"),
    "zero": (made(0), ValueError, "data_source must be from 1 to .*, and is 0"),
    "below zero": (made(-3), ValueError, "data_source must be from 1"),
    "too many": (made(LONGEST + 1), ValueError, f"data_source must be from 1 to {LONGEST}"),
    "a length too many": (made(Endless()), ValueError, f"data_source must be from 1 to {LONGEST}"),
    "seed": (made(10, 1.5), TypeError, "seed must be an int, and is of type float"),
    "seed, a bool": (made(10, True), TypeError, "seed must be an int, and is a bool"),
    "seed, None": (made(10, None), TypeError, "seed must be an int, and is of type NoneType"),
    "replicas": (made(10, 0, 0), ValueError, "num_replicas must be from 1 to .*, and is 0"),
    "replicas, None": (made(10, 0, None), TypeError, "num_replicas must be an int, and is of type NoneType"),
    "too many replicas": (made(10, 0, LONGEST + 1), ValueError, "num_replicas must be from 1"),
    "rank": (made(10, 0, 4, 4), ValueError, "rank must be from 0 to 3, and is 4"),
    "rank below zero": (made(10, 0, 4, -1), ValueError, "rank must be from 0 to 3, and is -1"),
    "rank, text": (made(10, 0, 4, "1"), TypeError, "rank must be an int, and is of type str"),
    "rank, several": (made(10, 0, 4, torch.ones(2)), TypeError, "rank must be an int, and is of type Tensor"),
    "drop_last": (made(10, drop_last="no"), TypeError, "drop_last must be a bool, and is of type str"),
    "epoch": (lambda: PermutationSampler(10).set_epoch(None), TypeError, "epoch must be an int"),  # type: ignore[arg-type]
    "epoch by hand": (lambda: setattr(PermutationSampler(10), "epoch", 3), AttributeError, "epoch|can't set"),
    "seek": (lambda: PermutationSampler(10).seek(11), ValueError, "position must be from 0 to 10, and is 11"),
    "seek back": (lambda: PermutationSampler(10).seek(-1), ValueError, "position must be from 0 to 10, and is -1"),
    "seek between": (lambda: PermutationSampler(10).seek(1.5), TypeError, "position must be an int"),  # type: ignore[arg-type]
    "seek never": (lambda: PermutationSampler(10).seek(1, "2"), TypeError, "epoch must be an int"),  # type: ignore[arg-type]
    "at the end": (lambda: PermutationSampler(10).at(10), IndexError, "from 0 to 9, and are from 10 to 10"),
    "at the last": (lambda: PermutationSampler(10).at([3, -1]), IndexError, "from 0 to 9, and are from -1 to 3"),
    "at a float": (
        lambda: PermutationSampler(10).at(np.array([3.0])),
        TypeError,
        "ints of 64 bits, and are of dtype float64",
    ),
    "at a bool": (lambda: PermutationSampler(10).at([True]), TypeError, "positions must be ints"),
    "at rows of two lengths": (lambda: PermutationSampler(10).at([[1], [2, 3]]), TypeError, "positions must be an int"),  # type: ignore[list-item]
    "at text": (lambda: PermutationSampler(10).at("ab"), TypeError, "positions must be ints"),  # type: ignore[arg-type]
    "far away": (lambda: PermutationSampler(10).at(1 << 70), TypeError, "positions must be ints of 64 bits"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_named(bad: str) -> None:
    call, error, text = BAD[bad]
    with pytest.raises(error, match=text):
        call()


GOOD = {"version": 1, "length": 10, "seed": 7, "epoch": 2, "position": 4}
BAD_STATES: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, TypeError, "the state must be a dict, and is of type NoneType"),
    "a list": ([GOOD], TypeError, "the state must be a dict, and is of type list"),
    "empty": ({}, ValueError, "it has no version, length, seed, epoch, position"),
    "another sampler's": ({"yielded": 3}, ValueError, "of no PermutationSampler: it has no version"),
    "incomplete": ({"version": 1, "length": 10, "seed": 7, "epoch": 2}, ValueError, "it has no position"),
    "version": ({**GOOD, "version": 2}, ValueError, "the state is of version 2, and this sampler's is 1"),
    "length": ({**GOOD, "length": 11}, ValueError, "the state is of length 11, and this sampler's is 10"),
    "seed": ({**GOOD, "seed": 8}, ValueError, "the state is of seed 8, and this sampler's is 7"),
    "seed, text": ({**GOOD, "seed": "7"}, TypeError, "the state's seed must be an int, and is of type str"),
    "position": ({**GOOD, "position": 11}, ValueError, "position must be from 0 to 10, and is 11"),
    "position below": ({**GOOD, "position": -1}, ValueError, "position must be from 0 to 10, and is -1"),
    "position, a float": ({**GOOD, "position": 4.0}, TypeError, "position must be an int, and is of type float"),
    "epoch": ({**GOOD, "epoch": "2"}, TypeError, "epoch must be an int, and is of type str"),
}


@pytest.mark.parametrize("bad", BAD_STATES)
def test_bad_states_are_refused_and_change_nothing(bad: str) -> None:
    state, error, text = BAD_STATES[bad]
    sampler = PermutationSampler(10, 7)
    sampler.load_state_dict(GOOD)
    with pytest.raises(error, match=text):
        sampler.load_state_dict(state)
    assert sampler.state_dict() == GOOD
    assert list(sampler) == sampler.at(range(4, 10)).tolist()
