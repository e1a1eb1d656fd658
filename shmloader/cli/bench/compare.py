"""Whether two batches are equal bit for bit, and where not. Pure.

Equal means: the same structure, types, dtypes, shapes and bits. Bits are stricter than ``==`` (0.0 is not -0.0), and
a NaN equals the same NaN. How a tensor lies in memory, its strides, does not count.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def first_difference(one: Any, other: Any, place: str = "batch") -> str | None:
    """Returns the place of the first difference and what it is, or None if the two are equal.

    Args:
        one: tensors, arrays, numbers, strings, and containers and objects of them.
        other: what ``one`` should be equal to.
        place: what to call the whole.
    """
    return _difference(one, other, place, set())


def nbytes(value: Any) -> int:
    """Returns the bytes of all elements of the tensors and arrays in ``value``."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    return sum(nbytes(part) for part in _parts(value).values())


def _difference(one: Any, other: Any, place: str, seen: set[tuple[int, int]]) -> str | None:
    if one is other or (id(one), id(other)) in seen:
        return None
    if type(one) is not type(other):
        return f"{place}: {type(one).__qualname__} against {type(other).__qualname__}"
    if isinstance(one, torch.Tensor):
        return _tensor_difference(one, other, place)
    if isinstance(one, np.ndarray | np.generic):
        return _array_difference(np.asarray(one), np.asarray(other), place)
    parts, others = _parts(one), _parts(other)
    if not parts and not others:
        return None if _is_same(one, other) else f"{place}: {_short(one)} against {_short(other)}"
    seen.add((id(one), id(other)))
    return _first_of_parts(parts, others, place, seen)


def _first_of_parts(
    parts: dict[str, Any], others: dict[str, Any], place: str, seen: set[tuple[int, int]]
) -> str | None:
    if len(parts) != len(others):
        return f"{place}: {len(parts)} parts against {len(others)}"
    if list(parts) != list(others):
        return f"{place}: parts {_short(list(parts))} against {_short(list(others))}"
    for name, part in parts.items():
        found = _difference(part, others[name], place + name, seen)
        if found is not None:
            return found
    return None


def _parts(value: Any) -> dict[str, Any]:
    """Returns what ``value`` is made of, by the text that leads there; empty for what has no parts."""
    if isinstance(value, Mapping):
        return {f"[{key!r}]": part for key, part in value.items()}
    if isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)
        labels = [f".{name}" for name in names] if names else [f"[{number}]" for number in range(len(value))]
        return dict(zip(labels, value, strict=True))
    if isinstance(value, type) or inspect.isroutine(value):
        return {}
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name))
    return {f".{name}": getattr(value, name) for name in (*getattr(value, "__dict__", ()), *slots)}


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return struct.pack("dd", one.real, one.imag) == struct.pack("dd", other.real, other.imag)
    # Objects that compare by identity are never equal after a trip between processes; having no parts, they hold
    # nothing that could differ.
    by_identity: object = object.__eq__
    return type(one).__eq__ is by_identity or bool(one == other)


def _tensor_difference(one: torch.Tensor, other: torch.Tensor, place: str) -> str | None:
    for name in ("dtype", "layout", "is_nested", "device", "shape"):
        if name == "shape" and one.is_nested:
            continue
        mine, its = getattr(one, name), getattr(other, name)
        if mine != its:
            return f"{place}: {name} {_plain(mine)} against {_plain(its)}"
    if one.is_nested:
        return _first_of_parts(_parts(list(one.unbind())), _parts(list(other.unbind())), place, set())
    return _element_difference(_dense(one), _dense(other), place)


def _element_difference(one: torch.Tensor, other: torch.Tensor, place: str) -> str | None:
    bits, others = one.view(torch.uint8), other.view(torch.uint8)
    if torch.equal(bits, others):
        return None
    first = int((bits != others).nonzero()[0]) // one.element_size()
    return f"{place}: flat element {first} is {_short(one[first].item())} against {_short(other[first].item())}"


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the elements as a plain contiguous tensor of one dimension."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)


def _array_difference(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], place: str) -> str | None:
    for name in ("dtype", "shape"):
        mine, its = getattr(one, name), getattr(other, name)
        if mine != its:
            return f"{place}: {name} {_plain(mine)} against {_plain(its)}"
    if one.dtype.hasobject:
        return _difference(one.tolist(), other.tolist(), place, set())
    mine, its = one.tobytes(), other.tobytes()
    if mine == its:
        return None
    first = next(number for number, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b) // one.itemsize
    return f"{place}: flat element {first} is {_short(one.flat[first])} against {_short(other.flat[first])}"


def _plain(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, tuple) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
