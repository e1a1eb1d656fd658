"""Keyed permutations: that they are permutations, that they are the network's, and that nothing of the key shows."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from shmloader.data import feistel
from shmloader.data.feistel import LONGEST, SORTED, Permutation, permutation

Words = np.ndarray[Any, np.dtype[np.uint64]]

# What belongs to no key, and to all lengths, in one of the two ways.
KINDS = ["as they come", "networks only"]


@pytest.fixture(params=KINDS)
def _each_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "networks only":
        monkeypatch.setattr(feistel, "SORTED", 0)


def words(values: Sequence[int]) -> Words:
    return np.array(values, np.uint64)


def whole(length: int, seed: int = 0, epoch: int = 0) -> Words:
    return permutation(length, seed, epoch)(np.arange(length, dtype=np.uint64))


def deviation(counts: Sequence[int] | np.ndarray[Any, Any]) -> float:
    """Returns how far counts are from equal: chi-square less its mean, in standard deviations."""
    found = np.asarray(counts, float).reshape(-1)
    expected, free = found.mean(), found.size - 1
    return float((((found - expected) ** 2 / expected).sum() - free) / math.sqrt(2 * free))


# -- permutations ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_each_kind")
def test_short_ranges_are_permuted() -> None:
    for length in range(1, 2001):
        assert np.array_equal(np.sort(whole(length, seed=length)), np.arange(length))


def test_longer_ranges_are_permuted() -> None:
    draw = random.Random(0)
    squares = [base**2 + more for base in (64, 65, 128, 255, 256) for more in (-1, 0, 1)]
    for length in [SORTED, SORTED + 1, 1 << 17, *squares, *(draw.randrange(2000, 300_000) for _ in range(30))]:
        assert np.array_equal(np.sort(whole(length, draw.getrandbits(64), draw.randrange(100))), np.arange(length))


def network_in_ints(length: int, seed: int, epoch: int, position: int) -> int:
    """What a network gives, by its definition and in Python's ints; it takes the keys from the module."""
    keys = [int(key) for key in feistel._keys(f"{length:x} {seed:x} {epoch:x}")[: feistel.ROUNDS]]
    rows = next(rows for rows in itertools.count(math.isqrt(length)) if rows * rows >= length and rows % 2 == 0)
    columns = (length + rows - 1) // rows
    while True:
        pair, sizes = list(divmod(position, columns)), [rows, columns]
        for number, key in enumerate(keys):
            moved, fixed = number % 2, 1 - number % 2
            mixed = (pair[fixed] + key) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ mixed >> 32) * 0x94D049BB133111EB % 2**64
            pair[moved] = (pair[moved] + (mixed >> 32) * sizes[moved] // 2**32) % sizes[moved]
        position = pair[0] * columns + pair[1]
        if position < length:
            return position


def test_a_network_is_what_it_is_by_its_definition() -> None:
    draw = random.Random(0)
    lengths = [SORTED + 1, LONGEST, LONGEST - 1, *(draw.randrange(SORTED + 1, 1 << bits) for bits in range(14, 63))]
    for length in lengths:
        seed, epoch = draw.getrandbits(70), draw.getrandbits(10)
        positions = [0, length - 1, *(draw.randrange(length) for _ in range(20))]
        expected = [network_in_ints(length, seed, epoch, position) for position in positions]
        assert permutation(length, seed, epoch)(words(positions)).tolist() == expected


@pytest.mark.parametrize("length", [10**9, 3 * 10**12, LONGEST - 1, LONGEST])
def test_of_long_ranges_no_element_comes_twice(length: int) -> None:
    draw = random.Random(length)
    positions = {*range(50_000), *range(length - 50_000, length), *(draw.randrange(length) for _ in range(100_000))}
    found = set(permutation(length, 1, 2)(words(sorted(positions))).tolist())
    assert len(found) == len(positions)
    assert max(found) < length


@pytest.mark.parametrize("length", [7, SORTED, SORTED + 1, 10**6])
def test_what_is_asked_together_is_what_is_asked_alone(length: int) -> None:
    order = permutation(length, -5, 3)
    asked = words([0, length - 1, 3, 3, length // 2])
    before = asked.copy()
    assert order(asked).tolist() == [int(order(words([one]))[0]) for one in asked.tolist()]
    assert np.array_equal(asked, before)
    assert order(words([])).tolist() == []


def test_the_order_is_the_same_in_every_release() -> None:
    # Whoever changes these changes the version of the sampler's state.
    assert whole(10, 6, 3).tolist() == [7, 8, 5, 9, 1, 3, 6, 0, 4, 2]
    assert permutation(10**6, 7, 3)(words([0, 1, 2, 999_999])).tolist() == [576025, 303346, 284420, 743971]
    far = [1239960013124001468, 3011809584016926900]
    assert permutation(LONGEST, -1, 1 << 80)(words([0, LONGEST - 1])).tolist() == far


# -- nothing of the key shows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "keys"), [(2, 4000), (3, 6000), (4, 12_000), (5, 24_000)])
def test_all_orders_of_few_are_equally_likely(length: int, keys: int) -> None:
    for name, of_key in BY_KEY.items():
        counts = Counter(tuple(of_key(length, key)(np.arange(length, dtype=np.uint64)).tolist()) for key in range(keys))
        assert len(counts) == math.factorial(length)
        assert abs(deviation(list(counts.values()))) < 4, name


BY_KEY: dict[str, Callable[[int, int], Permutation]] = {
    "seeds": lambda length, key: permutation(length, key, 0),
    "epochs": lambda length, key: permutation(length, 0, key),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("by", BY_KEY)
@pytest.mark.parametrize("length", [100, SORTED + 1, 10**6, LONGEST])
def test_an_element_is_anywhere_equally_often(length: int, by: str) -> None:
    positions = words([0, 1, length // 2, length - 1])
    found = np.array([BY_KEY[by](length, key)(positions) for key in range(4000)])
    bins = (found.astype(float) * (50 / length)).astype(int)
    for column in bins.T:
        assert abs(deviation(np.bincount(column, minlength=50))) < 4


def test_parity_is_not_fixed() -> None:
    even = 0
    for seed in range(200):
        order = whole(65 * 65, seed).tolist()
        seen, cycles = set[int](), 0
        for start in order:
            cycles += start not in seen
            while start not in seen:
                seen.add(start)
                start = order[start]
        even += (len(order) - cycles) % 2 == 0
    assert 70 < even < 130


def pairs(length: int, apart: int, keys: int) -> np.ndarray[Any, Any]:
    """Counts where two elements lie that are so far apart, each in one of 16 parts of the range."""
    counts = np.zeros((16, 16))
    for seed in range(keys):
        parts = (whole(length, seed) * 16 // length).astype(int)
        counts += np.bincount(16 * parts[:-apart] + parts[apart:], minlength=256).reshape(16, 16)
    # An element excludes its own place for the other.
    own = counts.sum() / (16 * length)
    return counts + np.diag(np.full(16, own))


# Neighbours; the distances of cells in one column of the network, and around it; half of the range.
COLUMNS = 63


@pytest.mark.parametrize("apart", [1, COLUMNS - 1, COLUMNS, COLUMNS + 1, 2 * COLUMNS, SORTED // 2])
def test_where_an_element_lies_says_nothing_about_another(apart: int) -> None:
    length = SORTED + 1
    order: Any = permutation(length, 0, 0)
    assert order._columns == COLUMNS
    assert abs(deviation(pairs(length, apart, 400))) < 4


@pytest.mark.parametrize("apart", [1, 2, 10, 50])
def test_in_short_ranges_neither(apart: int) -> None:
    orders = np.array([whole(100, seed) for seed in range(1000)]).astype(int)
    distances = (orders[:, apart:] - orders[:, :-apart]) % 100
    assert abs(deviation(np.bincount(distances.reshape(-1))[1:])) < 4


@pytest.mark.parametrize(("rounds", "shows"), [(2, True), (4, True), (6, False)])
def test_two_rounds_fewer_would_do_and_four_fewer_would_not(
    rounds: int, shows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feistel, "ROUNDS", rounds)
    found = deviation(pairs(SORTED + 1, COLUMNS, 400))
    assert (abs(found) > 20) if shows else (abs(found) < 4)


@pytest.mark.parametrize("length", [SORTED, SORTED + 1])
def test_keys_that_are_alike_have_nothing_in_common(length: int) -> None:
    keys = [(seed, epoch) for seed in (-1, 0, 1, 2, 1 << 64, (1 << 64) + 1) for epoch in (-1, 0, 1, 2, 16)]
    orders = [whole(length, *key) for key in keys]
    # Of two that are unrelated, one element on average has the same place in both. Steps are alike two times in three,
    # since short ones are more frequent than long ones.
    same, steps = [], []
    for one, other in itertools.combinations(orders, 2):
        same.append(int((one == other).sum()))
        steps.append(int((np.diff(one.astype(int)) == np.diff(other.astype(int))).sum()))
    for counts, expected in ((same, 1), (steps, 2 / 3)):
        assert abs(np.mean(counts) - expected) < 0.2
        assert max(counts) < 9


def test_lengths_that_are_alike_have_nothing_in_common() -> None:
    orders = [permutation(length, 0, 0)(np.arange(100_000, dtype=np.uint64)) for length in range(999_900, 1_000_000)]
    assert max(int((one == other).sum()) for one, other in itertools.pairwise(orders)) < 9
