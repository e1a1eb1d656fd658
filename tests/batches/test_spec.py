"""Declarations of samples: how they are read, what they measure, and what differs from them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from shmloader import SpecMismatchError, TensorSpec
from shmloader.batches.spec import batch_bytes, check, declare
from tests.helpers.datasets import Point

IMAGE = TensorSpec((3, 4), torch.uint8)
LABEL = TensorSpec((), torch.int64)


@pytest.mark.parametrize(
    ("shapes", "dtypes", "expected"),
    [
        ((3, 4), torch.uint8, IMAGE),
        ([3, 4], "uint8", IMAGE),
        (torch.Size([3, 4]), np.uint8, IMAGE),
        ((np.int64(3), 4), np.dtype("u1"), IMAGE),
        ((), int, LABEL),
        (IMAGE, None, IMAGE),
        (TensorSpec((3, 4)), torch.uint8, IMAGE),
        (None, None, None),
        (((3, 4), ()), (torch.uint8, torch.int64), (IMAGE, LABEL)),
        ([[3, 4], []], [torch.uint8, torch.int64], (IMAGE, LABEL)),
        ((IMAGE, ()), (None, int), (IMAGE, LABEL)),
        ((IMAGE, None), None, (IMAGE, None)),
        ({"a": (3, 4), "b": {"c": ()}}, {"a": "uint8", "b": {"c": int}}, {"a": IMAGE, "b": {"c": LABEL}}),
        (((3, 4), (3, 4)), torch.uint8, (IMAGE, IMAGE)),
        (Point((3, 4), ()), Point("uint8", "int64"), (IMAGE, LABEL)),
        (((2,), (3,)), None, (TensorSpec((2,)), TensorSpec((3,)))),
    ],
)
def test_declarations(shapes: Any, dtypes: Any, expected: Any) -> None:
    assert declare(shapes, dtypes) == expected


@pytest.mark.parametrize(
    ("shapes", "dtypes", "error", "text"),
    [
        ((3, -1), None, ValueError, "sample_shapes.*negative"),
        (((3, 4), (2, -2)), None, ValueError, r"sample_shapes\[1\].*negative"),
        ((1 << 40, 1 << 40), None, ValueError, "bytes"),
        (5, None, TypeError, r"sample_shapes must be .* write \(5,\)"),
        ("image", None, TypeError, "sample_shapes must be"),
        ({"a": 3.5}, None, TypeError, r"sample_shapes\['a'\]"),
        (((3,), "x"), None, TypeError, r"sample_shapes\[1\]"),
        ((3, 4), "no dtype", TypeError, "no torch dtype"),
        ((3, 4), object, TypeError, "no torch dtype"),
        ((3, 4), (torch.uint8,), ValueError, "structure"),
        (((3,), ()), (torch.uint8,), ValueError, "structure"),
        ({"a": (3,)}, {"b": int}, ValueError, "structure"),
        (IMAGE, torch.float32, ValueError, "sample_dtypes is torch.float32, but sample_shapes says torch.uint8"),
    ],
)
def test_impossible_declarations(shapes: Any, dtypes: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        declare(shapes, dtypes)


@pytest.mark.parametrize("shape", [5, "ab", (1.5,), (True,), None, ((1,),)])
def test_shapes_that_are_none(shape: Any) -> None:
    with pytest.raises(TypeError, match="a shape must be"):
        TensorSpec(shape)


def test_sizes() -> None:
    assert IMAGE.nbytes == 12
    assert TensorSpec((5,)).nbytes == 20
    assert batch_bytes({"a": (IMAGE, None), "b": LABEL}, 64, 64) == 768 + 512
    assert batch_bytes((IMAGE, LABEL), 64, 64) == 768 + 512
    assert batch_bytes((IMAGE, LABEL), 1, 64) == 128


GOOD: list[tuple[Any, Any]] = [
    (IMAGE, torch.zeros(3, 4, dtype=torch.uint8)),
    (IMAGE, np.zeros((3, 4), np.uint8)),
    (LABEL, 3),
    (LABEL, np.int64(3)),
    (LABEL, np.array(3)),
    (LABEL, torch.tensor(3)),
    (TensorSpec((), float), 1.5),  # type: ignore[arg-type]
    (TensorSpec((), bool), True),  # type: ignore[arg-type]
    (TensorSpec(()), True),
    (TensorSpec((3,)), np.zeros(3, np.int8)),
    ((IMAGE, LABEL), (np.zeros((3, 4), np.uint8), 1)),
    ((IMAGE, LABEL), [np.zeros((3, 4), np.uint8), 1]),
    ((LABEL, LABEL), Point(1, 2)),
    ({"a": LABEL}, {"a": 1}),
    ({"a": LABEL}, OrderedDict(a=1)),
    ((LABEL, None), (1, "text")),
    (None, object()),
]


@pytest.mark.parametrize(("spec", "sample"), GOOD)
def test_samples_that_fit(spec: Any, sample: Any) -> None:
    check(spec, [sample, sample], [0, 1])


BAD: list[tuple[Any, Any, str, str, str]] = [
    (IMAGE, np.zeros((3, 5), np.uint8), "", "shape (3, 4), torch.uint8", "shape (3, 5), torch.uint8"),
    (IMAGE, torch.zeros(3, 4), "", "shape (3, 4), torch.uint8", "shape (3, 4), torch.float32"),
    (IMAGE, None, "", "shape (3, 4), torch.uint8", "None"),
    (IMAGE, "text", "", "shape (3, 4), torch.uint8", "a str"),
    (LABEL, 1.5, "", "shape (), torch.int64", "a float"),
    (LABEL, True, "", "shape (), torch.int64", "a bool"),
    (LABEL, torch.zeros(1, dtype=torch.int64), "", "shape (), torch.int64", "shape (1,), torch.int64"),
    ((IMAGE, LABEL), (np.zeros((3, 4), np.uint8), np.float32(1)), "[1]", "shape (), torch.int64",
     "shape (), torch.float32"),
    ((IMAGE, LABEL), (np.zeros((3, 4), np.uint8),), "", "a sequence of 2", "a tuple of 1"),
    ((IMAGE, LABEL), {"a": 1}, "", "a sequence of 2", "a dict with keys ['a']"),
    ({"a": LABEL}, {"b": 1}, "", "a mapping with keys ['a']", "a dict with keys ['b']"),
    ({"a": LABEL}, [1], "", "a mapping with keys ['a']", "a list of 1"),
    ({"a": (LABEL, {"b": IMAGE})}, {"a": (1, {"b": 2})}, "['a'][1]['b']", "shape (3, 4), torch.uint8", "a int"),
    (LABEL, np.array(["a"]), "", "shape (), torch.int64", "shape (1,), <U1"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "sample", "path", "expected", "got"), BAD)
def test_samples_that_do_not_fit(spec: Any, sample: Any, path: str, expected: str, got: str) -> None:
    good = next(candidate for declared, candidate in GOOD if declared == spec) if spec in [s for s, _ in GOOD] else None
    samples, indices = ([good, sample], [10, 42]) if good is not None else ([sample], [42])
    with pytest.raises(SpecMismatchError) as caught:
        check(spec, samples, indices)
    error = caught.value
    assert (error.index, error.path, error.expected, error.got) == (42, path, expected, got)
    assert all(part in str(error) for part in ("sample 42", path, expected, got, "sample_shapes"))


@pytest.mark.parametrize("spec", [spec for spec, _ in GOOD])
def test_no_samples_fit_any_declaration(spec: Any) -> None:
    check(spec, [], [])
