"""What random samples are made of.

All of it is what stock can send: a batch that cannot be pickled, or not unpickled, makes its loop wait for ever. A
tensor that is conjugated or negated only when it is read loses that in stock's queues, so there is none.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import fractions
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from tests.helpers.datasets import Point


class Draw(random.Random):
    """The random numbers of one sample."""

    index = 0


Make = Callable[[Draw], Any]


@dataclasses.dataclass
class Record:
    """An object of the user's own."""

    number: int
    tensor: torch.Tensor


@dataclasses.dataclass(slots=True)
class Slotted:
    """An object without a dict."""

    number: int
    array: Any


class Tagged(dict[str, Any]):
    """A mapping with something beside its items."""

    tag = "none"


class Listed(list[Any]):
    """A list with something beside its items."""

    tag = "none"


class Fixed(Mapping[str, Any]):
    """A mapping that cannot be changed."""

    def __init__(self, items: Any) -> None:
        self.items_of_mine = dict(items)

    def __getitem__(self, key: str) -> Any:
        return self.items_of_mine[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_of_mine)

    def __len__(self) -> int:
        return len(self.items_of_mine)


class Marked(torch.Tensor):
    """A tensor subclass."""


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64,
    torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
ARRAYS = [
    "bool", "int8", "uint8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128",
]  # fmt: skip


def _numbers(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw.getrandbits(64))


def _bits(draw: Draw, count: int, itemsize: int) -> Any:
    """Returns the bytes of random elements; in half of the cases the first one is zero or, of floats, a rare NaN."""
    found = np.frombuffer(_numbers(draw).bytes(count * itemsize), np.uint8).copy()
    if draw.random() < 0.5:
        found[:itemsize] = draw.choice([0x00, 0xFF])
    return found


def array(shape: tuple[int, ...], dtype: str) -> Make:
    """Makes arrays of random bits."""
    kind = np.dtype(dtype)

    def make(draw: Draw) -> Any:
        if kind == np.bool_ or kind == np.longdouble:  # of which not all bits are values
            return _numbers(draw).integers(0, 2, shape).astype(kind)
        return _bits(draw, math.prod(shape), kind.itemsize).view(kind).reshape(shape)

    return make


def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Make:
    """Makes tensors of random bits."""

    def make(draw: Draw) -> Any:
        if 0 in shape or dtype is torch.bool:
            return torch.from_numpy(array(shape, "bool")(draw)).to(dtype)
        return torch.from_numpy(_bits(draw, math.prod(shape), dtype.itemsize)).view(dtype).reshape(shape)

    return make


def numbered(*shape: int) -> Make:
    """Makes tensors whose elements differ from each other, and from those of the next sample."""
    return lambda draw: torch.arange(float(math.prod(shape))).reshape(shape) + 1000 * draw.randrange(1000)


def viewed(make: Make, view: Callable[[Any], Any]) -> Make:
    return lambda draw: view(make(draw))


def growing(unit: int, every: int, make_of: Callable[[tuple[int, ...]], Make]) -> Make:
    """Makes samples that are larger the further back they are, and a thousand times as large now and then."""

    def make(draw: Draw) -> Any:
        group = draw.index // every
        outlier = random.Random(group + unit).random() < 0.1
        return make_of((unit * (1 + group) * (1000 if outlier else 1),))(draw)

    return make


def with_note(thing: Any, note: int) -> Any:
    thing.tag = note
    return thing


SCALARS: list[Make] = [
    lambda draw: draw.randrange(-(2**40), 2**40),
    lambda draw: draw.random(),
    lambda draw: draw.choice([0.0, -0.0, math.inf, -math.inf, math.nan]),
    lambda draw: draw.random() < 0.5,
    lambda draw: draw.choice(["", "x" * draw.randrange(5), "\N{SNOWMAN}\0", "long " * 3000]),
    lambda draw: draw.randbytes(draw.choice([0, 1, 9, 20_000])),
    lambda draw: np.float32(draw.random()),
    lambda draw: np.int16(draw.randrange(100)),
    lambda draw: np.bool_(draw.random() < 0.5),
    lambda draw: np.str_("text"),
]
# Views: their strides are kept, but for those with wide gaps.
VIEWS: list[Make] = [
    viewed(numbered(3, 4), torch.t),
    viewed(numbered(3, 4), lambda whole: whole.T.numpy()),
    viewed(numbered(11), lambda whole: whole[::2]),
    viewed(numbered(6, 10), lambda whole: whole[:, :7]),
    viewed(numbered(10, 10), lambda whole: whole[:1, :3]),
    viewed(numbered(40, 9), lambda whole: whole[:, 0]),
    viewed(numbered(1000), lambda whole: whole[7:10]),
    viewed(numbered(2, 3, 4), lambda whole: whole.permute(2, 0, 1)),
    viewed(numbered(2, 3, 4, 5), lambda whole: whole.contiguous(memory_format=torch.channels_last)),
    viewed(numbered(1, 2, 3, 4, 5), lambda whole: whole.contiguous(memory_format=torch.channels_last_3d)),
    viewed(numbered(1), lambda whole: whole.expand(4)),
    viewed(numbered(3, 0, 2), lambda whole: whole.transpose(0, 2)),
    viewed(numbered(6), lambda whole: whole.numpy()[::-1]),
    viewed(numbered(12), lambda whole: whole.numpy()[::3]),
    viewed(numbered(2, 3), lambda whole: np.asfortranarray(whole.numpy())),
]
RAGGED: list[Make] = [
    lambda draw: tensor((draw.randrange(1, 4),), torch.float32)(draw),
    lambda draw: array((draw.randrange(3), 2), "float32")(draw),
    lambda draw: [1] * draw.randrange(3),
    lambda draw: tensor((2,), draw.choice(DTYPES))(draw),
    lambda draw: array((2,), draw.choice(ARRAYS))(draw),
    lambda draw: draw.choice([1, 2.5, True]),
    lambda draw: {name: draw.random() for name in "abc"[: draw.randrange(1, 4)]},
]
SPARSE: list[Make] = [
    viewed(numbered(3, 3), torch.Tensor.to_sparse),
    viewed(numbered(3, 3), torch.Tensor.to_sparse_csr),
    viewed(numbered(3, 3), torch.Tensor.to_sparse_csc),
    viewed(numbered(4, 4), lambda whole: whole.to_sparse_bsr((2, 2))),
    viewed(numbered(4, 4), lambda whole: whole.to_sparse_bsc((2, 2))),
    lambda draw: torch.zeros(2, draw.randrange(1, 3)).to_sparse(),
    lambda draw: torch.sparse_coo_tensor(torch.tensor([[0, 0, draw.randrange(3)]]), numbered(3)(draw), (3,)),
    lambda draw: torch.nested.nested_tensor([torch.rand(n, generator=_seeded(draw)) for n in (2, draw.randrange(4))]),
    lambda draw: torch.nested.nested_tensor([torch.ones(2), torch.ones(draw.randrange(1, 4))], layout=torch.jagged),
]
# What the default collate function refuses, or treats in a way of its own.
ODD: list[Make] = [
    lambda draw: None,
    lambda draw: Record(draw.randrange(9), torch.ones(2)),
    lambda draw: Slotted(draw.randrange(9), np.arange(draw.randrange(5))),
    lambda draw: Colour.BLUE,
    lambda draw: {1, draw.randrange(9)},
    lambda draw: frozenset("a"),
    lambda draw: fractions.Fraction(draw.randrange(1, 9), 7),
    lambda draw: datetime.date(2000, 1, draw.randrange(1, 29)),
    lambda draw: complex(draw.random(), -0.0),
    lambda draw: draw.randrange(2**62, 2**66),
    lambda draw: bytearray(draw.randbytes(3)),
    lambda draw: range(draw.randrange(1, 4)),
    lambda draw: collections.deque([torch.ones(draw.randrange(1, 3))], maxlen=4),
    lambda draw: torch.Size([draw.randrange(9)]),
    lambda draw: np.array(["text", "b" * draw.randrange(9)]),
    lambda draw: np.array([None, draw.random()], dtype=object),
    lambda draw: np.zeros(draw.randrange(3), dtype=[("a", "i4"), ("b", "f8")]),
    *[array((2, 3), kind) for kind in (">i4", ">f8", "longdouble")],
    lambda draw: np.datetime64(draw.randrange(9), "D"),
    lambda draw: np.ma.masked_array([1, 2, draw.randrange(9)], mask=[False, True, False]),
    lambda draw: numbered(2, 3)(draw).as_subclass(Marked),
    lambda draw: with_note(torch.ones(2).as_subclass(Marked), draw.randrange(9)),
    lambda draw: torch.nn.Parameter(numbered(3)(draw)),
    lambda draw: torch.ones(2, requires_grad=True),
    lambda draw: torch.ones(draw.randrange(4), device="meta"),
    lambda draw: [numbered(2)(draw)] * 2,
    *SPARSE, *SPARSE,
]  # fmt: skip


def _seeded(draw: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(draw.getrandbits(60))


def warn_once() -> None:
    """Draws the warnings that torch gives once in a process: the first of two loaders would have them to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for make in ODD:
            make(Draw(0))
        numbered(2)(Draw(0)).to(torch.complex32).to(torch.complex64).double()
        torch.from_numpy(np.frombuffer(b"1234", np.int32))
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (1,), check_invariants=False)


def schema(draw: random.Random, wild: bool, depth: int = 0) -> Make:
    """Returns a function that makes samples of one random structure; only ``wild`` ones may be hard to collate."""
    kinds = ["tensor", "array", "scalar"] * 2 + ["view", "growing"] + ["nest"] * (3 - depth)
    kind = draw.choice(kinds + ["odd", "odd", "ragged"] * wild)
    if kind == "nest":
        return _container(draw, wild, depth)
    if kind in ("scalar", "view", "odd", "ragged"):
        return draw.choice({"scalar": SCALARS, "view": VIEWS, "odd": ODD, "ragged": RAGGED}[kind])
    dtype, name = draw.choice(DTYPES), draw.choice(ARRAYS)
    if kind == "growing":
        makers: list[Callable[[tuple[int, ...]], Make]] = [
            lambda shape: tensor(shape, dtype),
            lambda shape: array(shape, name),
        ]
        return growing(draw.choice([1, 3]), draw.choice([1, 1, 2, 3, 5]), draw.choice(makers))
    shape = tuple(draw.choice([0, 1, 1, 2, 3, 7]) for _ in range(draw.randrange(4)))
    shape = draw.choice([shape, shape, shape, (500, 3), (40, 50, 2)])
    return tensor(shape, dtype) if kind == "tensor" else array(shape, name)


def _container(draw: random.Random, wild: bool, depth: int) -> Make:
    parts = [schema(draw, wild, depth + 1) for _ in range(draw.randrange(1, 4))]
    names = [f"field{number}" for number in range(len(parts))]
    builders: list[Callable[[list[Any]], Any]] = [
        tuple,
        list,
        lambda values: dict(zip(names, values, strict=True)),
        lambda values: dict(enumerate(values)),
        lambda values: collections.OrderedDict(zip(reversed(names), values, strict=True)),
        lambda values: collections.defaultdict(list, zip(names, values, strict=True)),
        lambda values: with_note(Tagged(zip(names, values, strict=True)), len(values)),
        lambda values: with_note(Listed(values), 3),
        lambda values: Fixed(zip(names, values, strict=True)),
        lambda values: Point(values[0], values[-1]),
        lambda values: _buried(values, 30),
    ]
    build = draw.choice(builders)
    return lambda inner: build([part(inner) for part in parts])


def alike(draw: random.Random, depth: int = 0) -> Make:
    """Returns a function that makes samples which differ in nothing but their elements."""
    kind = draw.choice(["tensor", "tensor", "array", "scalar", *["nest"] * (2 - depth)])
    if kind == "scalar":
        return draw.choice(SCALARS[:2] + SCALARS[3:4])
    if kind == "nest":
        parts = [alike(draw, depth + 1) for _ in range(draw.randrange(1, 4))]
        builders: list[Callable[[list[Any]], Any]] = [
            tuple,
            tuple,
            list,
            lambda values: {f"field{number}": value for number, value in enumerate(values)},
            lambda values: {f"field{number}": value for number, value in enumerate(values)},
            lambda values: Point(values[0], values[-1]),
        ]
        build = draw.choice(builders)
        return lambda inner: build([part(inner) for part in parts])
    shapes: list[tuple[int, ...]] = [(1,), (3,), (2, 3), (7, 1, 2), (30, 40), (30, 400)]
    shape = draw.choice(shapes) if draw.random() < 0.9 else draw.choice([(), (0, 2)])
    return tensor(shape, draw.choice(DTYPES)) if kind == "tensor" else array(shape, draw.choice(ARRAYS))


def _buried(value: Any, depth: int) -> Any:
    for level in range(depth):
        value = {"deeper": value} if level % 3 == 0 else [value]
    return value
