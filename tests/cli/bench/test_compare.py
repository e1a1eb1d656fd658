"""Equality of batches: bit for bit, and the place of the first difference."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from shmloader.cli.bench.compare import first_difference, nbytes

Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024


def _batch() -> Any:
    return {
        "point": Point(torch.arange(6).reshape(2, 3), [1, 2.5, float("nan"), None, True]),
        "text": ("a", b"b"),
        "half": torch.tensor([1.0, float("nan"), -0.0], dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "array": np.array([1.0, np.nan]),
        "words": np.array(["x", "yz"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "number": np.float32(1.5),
        "complex": complex(0.0, float("nan")),
        "own": SimpleNamespace(values=torch.ones(2), label="l"),
        "sparse": torch.eye(3).to_sparse(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "set": {1, 2},
    }


def test_equal_structures_have_no_difference() -> None:
    assert first_difference(_batch(), _batch()) is None


_CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (lambda b: b["point"].x.__setitem__((1, 0), 9), "batch['point'].x: flat element 3 is 3 against 9"),
    (lambda b: b["point"].y.__setitem__(2, 0.0), "batch['point'].y[2]: nan against 0.0"),
    (lambda b: b["point"].y.__setitem__(0, True), "batch['point'].y[0]: int against bool"),
    (lambda b: b["point"].y.append(1), "batch['point'].y: 5 parts against 6"),
    (lambda b: b.update(point=(1, 2)), "batch['point']: Point against tuple"),
    (lambda b: b.update(text=("a", b"c")), "batch['text'][1]: b'b' against b'c'"),
    (lambda b: b["half"].__setitem__(2, 0.0), "batch['half']: flat element 2 is -0.0 against 0.0"),
    (lambda b: b["half"].__setitem__(1, 0.0), "batch['half']: flat element 1 is nan against 0.0"),
    (lambda b: b.update(half=b["half"].float()), "batch['half']: dtype torch.bfloat16 against torch.float32"),
    (lambda b: b.update(scalar=torch.tensor([3])), "batch['scalar']: shape () against (1,)"),
    (lambda b: b.update(empty=torch.empty(4, 0)), "batch['empty']: shape (0, 4) against (4, 0)"),
    (lambda b: b["array"].__setitem__(1, 1), "batch['array']: flat element 1 is np.float64(nan)"),
    (lambda b: b.update(array=np.ones(2, np.float32)), "batch['array']: dtype float64 against float32"),
    (lambda b: b["words"].__setitem__(1, "ya"), "batch['words']: flat element 1 is"),
    (lambda b: b["objects"][0].update(a=2), "batch['objects'][0]['a']: 1 against 2"),
    (lambda b: b.update(number=np.float32(2)), "batch['number']: flat element 0 is"),
    (lambda b: b.update(complex=complex(-0.0, float("nan"))), "batch['complex']: nanj against (-0+nanj)"),
    (lambda b: setattr(b["own"], "label", "m"), "batch['own'].label: 'l' against 'm'"),
    (lambda b: b.update(sparse=torch.eye(3)), "batch['sparse']: layout torch.sparse_coo against torch.strided"),
    (lambda b: b.update(sparse=(2 * torch.eye(3)).to_sparse()), "batch['sparse']: flat element 0 is 1.0 against"),
    (lambda b: b["nested"].unbind()[1].__setitem__(0, 5), "batch['nested'][1]: flat element 0 is 1.0 against 5.0"),
    (lambda b: b.update(set={1, 3}), "batch['set']: {1, 2} against {1, 3}"),
    (lambda b: b.update(more=1), "batch: 14 parts against 15"),
    (lambda b: b.update({"more": b.pop("set")}), "batch: parts "),
]


def test_the_first_difference_is_named() -> None:
    for change, text in _CHANGES:
        changed = _batch()
        change(changed)
        assert (first_difference(_batch(), changed) or "").startswith(text), text


def test_comparison_of_unusual_objects() -> None:
    class Slotted:
        __slots__ = ("value",)

        def __init__(self, value: int) -> None:
            self.value = value

    loop: list[Any] = [1]
    loop.append(loop)
    other: list[Any] = [1]
    other.append(other)
    assert first_difference(loop, other) is None
    assert first_difference(Slotted(1), Slotted(1)) is None
    assert first_difference(Slotted(1), Slotted(2)) == "batch.value: 1 against 2"
    assert first_difference(object(), object()) is None
    assert first_difference(OrderedDict(a=1), {"a": 1}) == "batch: OrderedDict against dict"
    assert first_difference("x" * 100, "y") == f"batch: '{'x' * 56}... against 'y'"


def test_quantized_and_conjugated_tensors_are_compared() -> None:
    one = torch.tensor([1 + 2j, 3 - 1j])
    assert first_difference(one.conj(), torch.tensor([1 - 2j, 3 + 1j])) is None
    assert first_difference(one.conj(), one) == "batch: flat element 0 is (1-2j) against (1+2j)"
    assert first_difference(one.t(), one) is None


def test_bytes_of_a_batch() -> None:
    batch = {"a": torch.zeros(3, dtype=torch.int16), "b": [np.zeros(2), "text", 1], "c": (torch.zeros(0),)}
    assert nbytes(batch) == 6 + 16
