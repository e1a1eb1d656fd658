"""Random datasets and arguments through both loaders; a scenario is made of its seed alone.

A failure names the seed: ``python -m pytest tests/test_fuzz.py -k "scenario and 123"`` plays it again if it is among
those that run, and ``play(seed)`` does in any case.
"""

from __future__ import annotations

import dataclasses
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, IterableDataset, RandomSampler, default_collate, get_worker_info

from .datasets import Point
from .support import assert_same_stream

# Of torch, about read-only arrays, prototypes, more workers than processors; and ours, about held batches.
pytestmark = pytest.mark.filterwarnings("ignore")

Make = Callable[[random.Random], Any]


@dataclasses.dataclass
class Record:
    """An object of the user's own."""

    number: int
    tensor: torch.Tensor


class Tagged(dict[str, Any]):
    """A mapping with something beside its items."""

    tag = "none"


class Marked(torch.Tensor):
    """A tensor subclass."""


def _generator(draw: random.Random) -> np.random.Generator:
    return np.random.default_rng(draw.getrandbits(32))


def _tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Make:
    return lambda draw: torch.from_numpy(_generator(draw).integers(0, 2, shape)).to(dtype)


def _array(shape: tuple[int, ...], dtype: str) -> Make:
    return lambda draw: np.asarray(_generator(draw).integers(0, 100, shape)).astype(dtype)


DTYPES = [
    torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip
ARRAYS = [
    "bool",
    "uint8",
    "int16",
    "int64",
    "uint16",
    "float16",
    "float32",
    "float64",
    "complex64",
    ">i4",
    "longdouble",
]
SCALARS: list[Make] = [
    lambda draw: draw.randrange(-(2**40), 2**40),
    lambda draw: draw.random(),
    lambda draw: draw.random() < 0.5,
    lambda draw: "x" * draw.randrange(5),
    lambda draw: bytes([draw.randrange(256)]),
    lambda draw: np.float32(draw.random()),
    lambda draw: np.int16(draw.randrange(100)),
    lambda draw: np.bool_(draw.random() < 0.5),
    lambda draw: float("nan"),
]
# What the default collate function refuses, or treats in a way of its own.
ODD: list[Make] = [
    lambda draw: None,
    lambda draw: Record(draw.randrange(9), torch.ones(2)),
    lambda draw: {1, 2},
    lambda draw: np.array(["text"]),
    lambda draw: np.array([None, 1], dtype=object),
    lambda draw: torch.eye(3).mul(draw.randrange(1, 9)).to_sparse(),
    lambda draw: torch.ones(2, 3).as_subclass(Marked),
    lambda draw: torch.nn.Parameter(torch.ones(3)),
    lambda draw: torch.ones(draw.randrange(1, 4)),
    lambda draw: np.ones(draw.randrange(1, 4), np.float32),
    lambda draw: [1] * draw.randrange(3),
    lambda draw: torch.ones(2, dtype=draw.choice(DTYPES)),
    lambda draw: np.ones(2, draw.choice(ARRAYS[:8])),
    lambda draw: np.arange(6)[::-1],
    lambda draw: draw.choice([1, 2.5, True]),
    lambda draw: draw.randrange(2**62, 2**66),
    lambda draw: torch.arange(12.0).reshape(3, 4).t(),
    lambda draw: torch.arange(11)[::2],
    lambda draw: torch.rand(1, 2, 3, 3).contiguous(memory_format=torch.channels_last),
    lambda draw: torch.ones(1).expand(4),
    lambda draw: np.asfortranarray(np.arange(6).reshape(2, 3)),
]


def schema(draw: random.Random, depth: int = 0) -> Make:
    """Returns a function that makes samples of one random structure."""
    kinds = ["tensor", "array", "scalar", "tensor", "array", "odd"] + ["nest"] * (3 - depth)
    kind = draw.choice(kinds)
    if kind == "nest":
        return _container(draw, depth)
    if kind == "scalar":
        return draw.choice(SCALARS)
    if kind == "odd":
        return draw.choice(ODD)
    shape = tuple(draw.choice([0, 1, 2, 3, 7]) if draw.random() < 0.9 else 500 for _ in range(draw.randrange(4)))
    return _tensor(shape, draw.choice(DTYPES)) if kind == "tensor" else _array(shape, draw.choice(ARRAYS))


def _container(draw: random.Random, depth: int) -> Make:
    parts = [schema(draw, depth + 1) for _ in range(draw.randrange(1, 4))]
    names = [f"field{number}" for number in range(len(parts))]
    builders: list[Callable[[list[Any]], Any]] = [
        tuple,
        list,
        lambda values: dict(zip(names, values, strict=True)),
        lambda values: OrderedDict(zip(reversed(names), values, strict=True)),
        lambda values: Tagged(zip(names, values, strict=True)),
        lambda values: defaultdict(list, zip(names, values, strict=True)),
        lambda values: Point(values[0], values[-1]),
    ]
    build = draw.choice(builders)
    return lambda inner: build([part(inner) for part in parts])


def _fail(draw: random.Random) -> Callable[[], None]:
    error: BaseException = draw.choice(
        [ValueError("bad"), KeyError("key"), IndexError(3), OSError(2, "no"), RuntimeError()]
    )

    def fail() -> None:
        raise error

    return fail


@dataclasses.dataclass
class Plan:
    """What a scenario's dataset does."""

    seed: int
    length: int
    make: Make
    uses_random: bool
    failing: dict[int, Callable[[], None]]

    def sample(self, index: int) -> Any:
        if index in self.failing:
            self.failing[index]()
        value = self.make(random.Random(self.seed * 1_000_003 + index))
        return (value, torch.rand(2), random.random(), np.random.rand()) if self.uses_random else value


class Map(Dataset[Any]):
    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.length

    def __getitem__(self, index: int) -> Any:
        return self.plan.sample(index)


class Gather(Map):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self.plan.sample(index) for index in indices]


class Stream(IterableDataset[Any]):
    """Uneven shards, each of which may fail in the middle."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker = info.id if info is not None else 0
        for index in range(random.Random(self.plan.seed + worker).randrange(self.plan.length + 1)):
            yield self.plan.sample(1000 * worker + index)


def first_of(samples: Any) -> Any:
    return samples[0] if isinstance(samples, list) and samples else samples


COLLATES: list[Callable[[Any], Any] | None] = [
    None, None, None, None,
    lambda samples: samples,
    first_of,
    lambda samples: {"batch": default_collate(samples), "size": len(samples)},
    lambda samples: (samples, torch.arange(5)[::2]),
]  # fmt: skip


def scenario(seed: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a function that makes the dataset, and the arguments of a run."""
    draw = random.Random(seed)
    length = draw.choice([0, 1, 2, 5, 13, 24])
    failing = {index: _fail(draw) for index in draw.sample(range(24), draw.choice([0, 0, 0, 1, 3]))}
    plan = Plan(seed, length, schema(draw), draw.random() < 0.4, failing)
    workers = draw.choice([0, 1, 1, 2, 2, 3])
    arguments: dict[str, Any] = {
        "num_workers": workers,
        "batch_size": draw.choice([None, 1, 2, 3, 5]),
        "collate_fn": draw.choice(COLLATES),
        "epochs": draw.choice([1, 1, 2, 3]),
        "stop_after": draw.choice([None, None, None, 0, 1, 3]),
        "seed": seed,
    }
    if workers:
        arguments["prefetch_factor"] = draw.choice([None, 1, 2, 4])
        arguments["persistent_workers"] = draw.random() < 0.4
    if draw.random() < 0.3:
        arguments["generator"] = lambda: torch.Generator().manual_seed(seed)
    if draw.random() < 0.2:
        arguments["worker_init_fn"] = lambda worker: torch.manual_seed(worker)
    if arguments["batch_size"] is not None and draw.random() < 0.2:
        arguments["drop_last"] = True
    if draw.random() < 0.25:
        # How far ahead the workers of a stream are when a pass is left depends on when the ends of others were seen,
        # in stock too: then there must be no random numbers.
        plan.uses_random = plan.uses_random and arguments["stop_after"] is None
        return lambda: Stream(plan), arguments
    _choose_sampler(draw, length, arguments)
    kind = draw.choice([Map, Map, Gather])
    return lambda: kind(plan), arguments


def _choose_sampler(draw: random.Random, length: int, arguments: dict[str, Any]) -> None:
    choice = draw.random()
    if choice < 0.3 and length:
        arguments["shuffle"] = True
    elif choice < 0.4 and length:
        arguments["sampler"] = lambda: RandomSampler(range(length), replacement=True, num_samples=9)
    elif choice < 0.5 and length:
        arguments.pop("drop_last", None)
        arguments["batch_size"] = 1
        arguments["batch_sampler"] = lambda: BatchSampler(RandomSampler(range(length)), 4, drop_last=True)


def play(seed: int) -> None:
    """Runs one scenario through both loaders and asserts that all is equal."""
    make_dataset, arguments = scenario(seed)
    assert_same_stream(make_dataset, **arguments)


@pytest.mark.parametrize("seed", range(60))
def test_scenario(seed: int) -> None:
    play(seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", range(10))
def test_many_scenarios(block: int) -> None:
    for seed in range(1000 + 200 * block, 1200 + 200 * block):
        try:
            play(seed)
        except BaseException as error:
            error.add_note(f"in scenario {seed}") if hasattr(error, "add_note") else None
            raise
