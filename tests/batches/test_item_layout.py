"""Items of declared shapes: what an array over a slot is in the worker, a tensor at the same place is in the parent."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from shmloader import PoolMemoryError, TensorSpec
from shmloader.batches.dtypes import ALL, TO_NUMPY, as_bits, is_filled_by_elements
from shmloader.batches.item_layout import ItemLayout, lay_out
from shmloader.batches.place import arrays_over
from shmloader.batches.structure import leaves
from shmloader.batches.unpacking import Unpacker
from tests.helpers.support import assert_same

ALIGNMENT = 64


class Pair(NamedTuple):
    image: Any
    label: Any


def in_a_slot(layout: ItemLayout) -> tuple[Any, Callable[[], Any]]:
    """Returns the arrays of an item, and what returns the item as the parent gets it then."""
    block = np.zeros(layout.nbytes, np.uint8)
    arrays = layout.joiner()(arrays_over(layout.places, block))
    block[layout.tail_offset :] = np.frombuffer(layout.tail, np.uint8)
    return arrays, lambda: Unpacker().views(block, layout.tail_offset, len(layout.tail))


@pytest.mark.parametrize(
    "specs",
    [
        (3, 4),
        [3, 4],
        (),
        TensorSpec((5,), torch.uint8),
        {"image": TensorSpec((3, 8, 8), torch.uint8), "label": TensorSpec((), torch.int64)},
        [TensorSpec((2,), torch.bool), (0, 3), {"a": [(1,), TensorSpec((2, 2), torch.float16)]}],
        Pair(TensorSpec((40, 40), torch.bfloat16), TensorSpec((40,), torch.int64)),
        OrderedDict(b=(2,), a=(3,)),
        ((2,), TensorSpec((100, 100), torch.complex64)),
        {(1, 2): (3,), None: (4,)},
        [TensorSpec((0,))],
    ],
    ids=repr,
)
def test_what_is_written_to_the_arrays_arrives(specs: Any) -> None:
    layout = lay_out(specs, ALIGNMENT)
    arrays, read = in_a_slot(layout)
    expected = []
    for number, (spec, there) in enumerate(zip(leaves(layout.structure), leaves(arrays), strict=True)):
        assert isinstance(there, np.ndarray) == (spec.dtype in TO_NUMPY)
        assert tuple(there.shape) == spec.shape
        there[...] = 1 if spec.dtype is torch.bool else number + 1
        expected.append(torch.full(spec.shape, 1 if spec.dtype is torch.bool else number + 1, dtype=spec.dtype))
    item = read()
    assert type(item) is (type(arrays) if not isinstance(arrays, np.ndarray) else torch.Tensor)
    assert_same(list(leaves(item)), expected)


def test_every_dtype() -> None:
    for dtype in ALL:
        if not is_filled_by_elements(dtype):
            with pytest.raises(TypeError, match=rf"specs\['x'\]: .*{dtype}"):
                lay_out({"x": TensorSpec((2, 3), dtype)}, ALIGNMENT)
            continue
        layout = lay_out({"x": TensorSpec((2, 3), dtype), "y": TensorSpec((), dtype)}, ALIGNMENT)
        item = in_a_slot(layout)[1]()
        assert item["x"].dtype is item["y"].dtype is dtype
        assert as_bits(item["x"]).shape == (2, 3)


def test_parts_are_apart_and_aligned() -> None:
    draw = random.Random(1)
    for _ in range(50):
        specs = [
            TensorSpec((draw.randrange(1, 400),), draw.choice(list(TO_NUMPY))) for _ in range(draw.randrange(1, 9))
        ]
        layout = lay_out(specs, ALIGNMENT)
        ranges = sorted((place.offset, place.offset + place.nbytes) for place in layout.places)
        assert all(start % ALIGNMENT == 0 for start, _ in ranges)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))
        assert ranges[-1][1] == layout.end <= layout.tail_offset
        assert layout.nbytes == layout.tail_offset + len(layout.tail)


def test_a_shape_has_torchs_default_dtype() -> None:
    assert lay_out((2,), ALIGNMENT).places[0].dtype is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        layout = lay_out({"x": (2,)}, ALIGNMENT)
    finally:
        torch.set_default_dtype(torch.float32)
    assert layout.places[0].dtype is torch.float64


def nested(depth: int) -> Any:
    specs: Any = (3,)
    for _ in range(depth):
        specs = [specs]
    return specs


@pytest.mark.parametrize(
    ("specs", "error", "text"),
    [
        (None, TypeError, "specs must be a shape"),
        ({"a": (3,), "b": None}, TypeError, r"specs\['b'\] must be a shape.* has to be known"),
        ([(3,), "float32"], TypeError, r"specs\[1\] must be"),
        (5, TypeError, r"write \(5,\) for one axis"),
        ({"a": 5}, TypeError, r"specs\['a'\].*write \(5,\)"),
        (torch.zeros(3), TypeError, "specs must be"),
        (np.zeros(3), TypeError, "specs must be"),
        ((3.5,), TypeError, r"specs\[0\] must be"),
        ((3, None), TypeError, r"specs\[0\] must be"),
        ({"a": (3, -1)}, ValueError, r"specs\['a'\].*negative"),
        ({"a": (1 << 50,)}, ValueError, r"specs\['a'\].*bytes"),
        ({}, ValueError, "must have a shape"),
        ({"a": {}}, ValueError, "must have a shape"),
        ({"a": (1 << 40, 1 << 4)}, PoolMemoryError, "an item takes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_declares_no_item(specs: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        lay_out(specs, ALIGNMENT)


def test_what_is_nested_too_deep() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        lay_out(nested(5000), ALIGNMENT)
