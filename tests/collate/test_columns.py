"""Samples that differ from those of the batches before make the batch, or the error, that stock makes."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, default_collate

from shmloader import ShmDataLoader
from shmloader.collate import columns
from tests.helpers.support import assert_same_stream

Sample = Any
Change = Callable[[Any], Any]

BATCH_SIZE = 4
BATCHES = 10


class Pair(NamedTuple):
    x: Any
    y: Any


class Kind(np.ndarray):
    pass


def array(index: int) -> Any:
    return np.full((2, 3), index % 100, np.int16)


def tensor(index: int) -> Any:
    return torch.full((2, 3), index % 100, dtype=torch.bfloat16)


ARRAYS: dict[str, Change] = {
    "other dtype": lambda a: a.astype(np.float32),
    "other byte order": lambda a: a.astype(">i2"),
    "no dtype of torch's": lambda a: a.astype(object),
    "as many elements": lambda a: a.reshape(3, 2).copy(),
    "as many bytes": lambda a: np.full((1, 3), 5, np.int32),
    "shorter": lambda a: a[:1].copy(),
    "more axes": lambda a: a[None],
    "no axes": lambda a: np.array(3, np.int16),
    "no elements": lambda a: a[:0],
    "negative strides": lambda a: a[::-1],
    "strides of no steps": lambda a: np.broadcast_to(a[:1].copy(), a.shape),
    "Fortran's order": np.asfortranarray,
    "gaps": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "a subclass": lambda a: a.view(Kind),
    "a tensor": torch.from_numpy,
    "a number": lambda a: 3,
    "a list": lambda a: a.tolist(),
    "nothing": lambda a: None,
}
NUMBERS: dict[str, Change] = {
    "a float": float,
    "a bool": bool,
    "too large": lambda n: 1 << 70,
    "numpy's": np.int64,
    "a text": str,
    "an array": lambda n: np.array([n]),
    "nothing": lambda n: None,
}
TENSORS: dict[str, Change] = {
    "other dtype": lambda t: t.float(),
    "other shape": lambda t: t.reshape(3, 2),
    "a gradient": lambda t: t.clone().requires_grad_(),
    "sparse": lambda t: t.to_sparse(),
    "transposed": lambda t: t.t().contiguous().t(),
    "expanded": lambda t: t[:1].expand(2, 3),
    "a parameter": lambda t: torch.nn.Parameter(t),
    "an array": lambda t: t.float().numpy(),
    "no elements": lambda t: t[:0],
}
TUPLES: dict[str, Change] = {
    "longer": lambda s: (*s, 1),
    "shorter": lambda s: s[:1],
    "a list": list,
    "a named tuple": lambda s: Pair(*s),
    "empty": lambda s: (),
    "the other way round": lambda s: s[::-1],
}
DICTS: dict[str, Change] = {
    "other order": lambda s: dict(reversed(s.items())),
    "one more": lambda s: {**s, "z": 1},
    "one less": lambda s: {"x": s["x"]},
    "an ordered one": OrderedDict,
    "numbers for keys": lambda s: dict(enumerate(s.values())),
    "empty": lambda s: {},
}


def in_tuple(change: Change, place: int) -> Change:
    return lambda sample: tuple(change(part) if at == place else part for at, part in enumerate(sample))


def in_dict(change: Change, key: str) -> Change:
    return lambda sample: {name: change(part) if name == key else part for name, part in sample.items()}


def nested(index: int) -> Any:
    return {"x": (array(index), index), "y": [tensor(index), {"z": index / 8}]}


CASES: dict[str, tuple[Callable[[int], Sample], Change]] = {
    **{f"array: {name}": (array, change) for name, change in ARRAYS.items()},
    **{f"number: {name}": (lambda index: index, change) for name, change in NUMBERS.items()},
    **{f"tensor: {name}": (tensor, change) for name, change in TENSORS.items()},
    **{f"tuple: {name}": (lambda index: (array(index), index), change) for name, change in TUPLES.items()},
    **{f"list: {name}": (lambda index: [index, True], change) for name, change in {"a tuple": tuple}.items()},
    **{f"dict: {name}": (lambda index: {"x": array(index), "y": index}, change) for name, change in DICTS.items()},
    **{f"first of two: {name}": (lambda i: (array(i), i), in_tuple(change, 0)) for name, change in ARRAYS.items()},
    **{f"second of two: {name}": (lambda i: (array(i), i), in_tuple(change, 1)) for name, change in NUMBERS.items()},
    **{f"nested: {name}": (nested, in_dict(change, "x")) for name, change in TUPLES.items()},
    **{f"nested array: {name}": (nested, in_dict(in_tuple(change, 0), "x")) for name, change in ARRAYS.items()},
}


class Mixed(Dataset[Any]):
    """Regular samples, but for some that are changed."""

    def __init__(self, make: Callable[[int], Sample], change: Change, changed: set[int]) -> None:
        self.make = make
        self.change = change
        self.changed = changed

    def __len__(self) -> int:
        return BATCH_SIZE * BATCHES

    def __getitem__(self, index: int) -> Sample:
        sample = self.make(index)
        return self.change(sample) if index in self.changed else sample


def batch(number: int) -> range:
    return range(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)


# The first of a batch, the last of one, all of one, all but the first of one; regular batches come between them.
CHANGED = {batch(2)[0], batch(4)[-1], *batch(6), *batch(8)[1:]}


@pytest.mark.sampled(12)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable", "ignore:Sparse")
@pytest.mark.parametrize("case", CASES)
def test_one_that_differs(case: str) -> None:
    make, change = CASES[case]
    assert_same_stream(lambda: Mixed(make, change, CHANGED), batch_size=BATCH_SIZE, num_workers=1)


@pytest.mark.parametrize("case", ["array: nothing", "first of two: nothing", "nested: empty"])
def test_alike_batches_are_collated_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = mmap.mmap(-1, 1)  # which the worker writes to

    def collate(samples: Any) -> Any:
        calls[0] += 1
        return default_collate(samples)

    monkeypatch.setattr(columns, "default_collate", collate)
    loader = ShmDataLoader(Mixed(CASES[case][0], CASES[case][1], set()), BATCH_SIZE, num_workers=1)
    assert sum(1 for _ in loader) == BATCHES
    assert calls[0] == 1
