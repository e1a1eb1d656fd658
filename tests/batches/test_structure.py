"""Nested structures, taken apart and made again."""

from __future__ import annotations

import copy
import random
from collections import Counter, OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from shmloader.batches.structure import NotPlainError, joiner, leaves, take_apart

Pair = namedtuple("Pair", "left right")  # noqa: PYI024


@dataclass(frozen=True)
class Fields:
    image: Any
    label: Any


class Leaf:
    pass


class Swapped(Pair):
    """A named tuple that is not what it is made of."""

    def __new__(cls, left: Any, right: Any) -> Any:
        return super().__new__(cls, right, left)


class Noted(Pair):
    """A named tuple that has more than its parts."""

    def __init__(self, left: Any, right: Any) -> None:
        self.note = left


class Maker(Pair):
    """A named tuple whose ``_make`` is not the generated one."""

    def __new__(cls, left: Any, right: Any) -> Any:
        return super().__new__(cls, right, left)

    @classmethod
    def _make(cls, parts: Any) -> Any:  # type: ignore[override]
        return tuple.__new__(cls, parts)


class Backwards(Pair):
    """A named tuple that is not what is read of it."""

    def __iter__(self) -> Any:
        return reversed(tuple(super().__iter__()))


class Swapping(type):
    def __call__(cls, left: Any, right: Any) -> Any:
        return super().__call__(right, left)


class Metaswapped(Pair, metaclass=Swapping):
    """A named tuple whose class is not called as others are."""


def is_leaf(part: Any) -> bool:
    return isinstance(part, Leaf)


def draw(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8) if depth < 4 else 0
    if kind < 3:
        return Leaf()
    if kind == 3:
        return rng.choice([None, 3, 2.5, "text", b"bytes", True])
    parts = [draw(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 4:
        return parts
    if kind == 5:
        return tuple(parts)
    if kind == 6:
        return Pair(draw(rng, depth + 1), draw(rng, depth + 1))
    return {rng.choice(["a", 1, 2.5, b"c"]): part for part in parts}


@pytest.mark.parametrize("seed", range(50))
def test_what_is_joined_is_the_structure_of_other_leaves(seed: int) -> None:
    whole = draw(random.Random(seed))
    old = [part for part in leaves(whole) if is_leaf(part)]
    new = [Leaf() for _ in old]
    joined = joiner(whole, is_leaf)(iter(new))
    assert [part for part in leaves(joined) if is_leaf(part)] == new
    assert joiner(joined, is_leaf)(iter(old)) == whole
    assert repr(type(joined)) == repr(type(whole)) or is_leaf(joined)


@pytest.mark.parametrize(
    "whole",
    [
        {"a": {1, 2}},
        [object()],
        {(1, 2): Leaf()},
        {None: Leaf()},
        OrderedDict(a=Leaf()),
        [complex(1)],
        Swapped(Leaf(), Leaf()),
        [Noted(Leaf(), Leaf())],
        Maker(Leaf(), Leaf()),
        Backwards(Leaf(), Leaf()),
        Metaswapped(Leaf(), Leaf()),
    ],
)
def test_what_is_not_plain_is_not_joined(whole: Any) -> None:
    with pytest.raises(NotPlainError):
        joiner(whole, is_leaf)


def test_what_occurs_twice_or_is_nested_deep_is_not_joined() -> None:
    part = [Leaf()]
    with pytest.raises(NotPlainError):
        joiner([part, part], is_leaf)
    deep: Any = Leaf()
    for _ in range(100):
        deep = [deep]
    with pytest.raises(NotPlainError):
        joiner(deep, is_leaf)


def test_leaves_of_what_is_nested_deeper_than_calls_can_be() -> None:
    leaf = Leaf()
    deep: Any = leaf
    for _ in range(100_000):
        deep = [deep]
    assert list(leaves(deep)) == [leaf]
    while isinstance(deep, list):  # or freeing it would go as deep
        deep = deep.pop()


@pytest.mark.parametrize(
    ("whole", "paths"),
    [
        ([1, 2], ["[0]", "[1]"]),
        (Pair(1, 2), ["[0]", "[1]"]),
        ({"a": 1, 2: 2}, ["['a']", "[2]"]),
        (UserDict(a=1), ["['a']"]),
        (Fields(1, 2), [".image", ".label"]),
    ],
)
def test_parts_have_paths_and_make_the_same_kind_again(whole: Any, paths: list[str]) -> None:
    parts = take_apart(whole, with_dataclasses=True)
    assert parts is not None
    before = copy.copy(whole)
    changed = parts.rebuilt([Leaf() for _ in parts.values])
    assert parts.paths == paths
    assert type(changed) is type(whole)
    assert whole == before
    assert all(is_leaf(part) for part in take_apart(changed, with_dataclasses=True).values)  # type: ignore[union-attr]


class Totals(dict[str, Any]):
    """A dict that has more than its items."""

    unit = "mm"


class Attributes(dict[str, Any]):
    """A dict whose items are its attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__ = self


def test_items_that_are_attributes_stay_so() -> None:
    parts = take_apart(Attributes(left=1))
    assert parts is not None
    changed = parts.rebuilt([2])
    assert (type(changed), changed.left, changed["left"]) == (Attributes, 2, 2)
    changed.left = 3
    assert changed["left"] == 3


@pytest.mark.parametrize("kind", [Swapped, Noted, Maker, Metaswapped, Totals, Counter, OrderedDict])
def test_no_class_makes_something_of_parts_once_more(kind: Any) -> None:
    whole = kind(left=3, right=4)
    if isinstance(whole, Totals):
        whole.unit = "cm"
    parts = take_apart(whole)
    assert parts is not None
    again = parts.rebuilt(parts.values)
    assert type(again) is type(whole)
    assert again == whole
    assert again is not whole
    assert vars(again) == vars(whole)
    changed = parts.rebuilt([30, 40])
    assert (list(changed.values()) if isinstance(changed, dict) else list(changed)) == [30, 40]


def test_a_tuple_of_a_class_of_cs_is_made_by_calling_it() -> None:
    whole = torch.ones(2, 3).max(0)
    parts = take_apart(whole)
    assert parts is not None
    again = parts.rebuilt(parts.values)
    assert type(again) is type(whole)
    assert again.indices is whole.indices


@pytest.mark.parametrize(
    "whole", ["text", b"bytes", bytearray(2), range(3), memoryview(b"x"), 1, None, Fields, Fields(1, 2), {1}]
)
def test_what_has_no_parts(whole: Any) -> None:
    assert take_apart(whole) is None
