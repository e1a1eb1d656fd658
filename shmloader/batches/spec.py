"""Specs: the shape and dtype of every tensor in a sample, declared by the user.

Pure: declarations are read, measured and compared here; what happens then is decided elsewhere.

A declaration has the sample's own nested structure of mappings, sequences and namedtuples. Its leaves are

* a shape, a tuple or list of non-negative ints: ``(3, 224, 224)``, and ``()`` for a number or a 0-d array;
* a `TensorSpec`, which has its dtype with it;
* None, for what is not a tensor, a string say, and is not checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from shmloader.errors import SpecMismatchError

from .alignment import aligned
from .dtypes import TO_TORCH, as_torch_dtype
from .structure import leaves, take_apart

_ARRAYS = {torch.Tensor, np.ndarray, np.memmap}
_SCALARS: dict[type, torch.dtype] = {kind: as_torch_dtype(kind) for kind in (bool, int, float)}
_shape = attrgetter("shape")
_dtype = attrgetter("dtype")


@dataclass(frozen=True)
class TensorSpec:
    """The shape and dtype of one tensor, array or number of a sample.

    Attributes:
        shape: sizes of its axes; empty for a number.
        dtype: its torch dtype. A numpy dtype, a name, or ``bool``, ``int``, ``float`` is accepted and converted; None
            leaves the dtype open: it is not checked, and sized as torch's default dtype.

    Raises:
        TypeError: ``shape`` is no sequence of ints, or ``dtype`` is no dtype that torch has.
        ValueError: a size is negative, or the tensor would be larger than any memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not is_shape(self.shape):
            raise TypeError(f"a shape must be a sequence of ints, got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if any(size < 0 for size in self.shape):
            raise ValueError(f"a shape must not have negative sizes, got {self.shape}")
        if self.dtype is not None:
            object.__setattr__(self, "dtype", as_torch_dtype(self.dtype))
        if self.nbytes >= 1 << 47:
            raise ValueError(f"a tensor of shape {self.shape} would take {self.nbytes} bytes")

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor's elements take."""
        return math.prod(self.shape) * (self.dtype or torch.get_default_dtype()).itemsize

    def __str__(self) -> str:
        return f"shape {self.shape}" + (f", {self.dtype}" if self.dtype is not None else "")


def declare(shapes: Any, dtypes: Any = None) -> Any:
    """Reads ``sample_shapes`` and ``sample_dtypes`` into one tree of TensorSpec and None leaves.

    Args:
        shapes: the declaration, see the module's docstring.
        dtypes: the dtypes in the same structure, a single one for all leaves, or None.

    Raises:
        TypeError: something is neither a structure nor a leaf; the text names the knob and the place.
        ValueError: a shape is impossible, a dtype is given twice, or the two structures differ.
    """
    return _declare(shapes, dtypes, "")


def _declare(shapes: Any, dtypes: Any, path: str) -> Any:
    if shapes is None or isinstance(shapes, TensorSpec) or is_shape(shapes):
        return _declare_leaf(shapes, dtypes, path)
    fields = _fields(shapes)
    if fields is None:
        hint = f"; write ({shapes},) for one axis" if isinstance(shapes, int) else ""
        raise TypeError(
            f"sample_shapes{path} must be a shape, a TensorSpec, None or a structure of them, got {shapes!r}{hint}"
        )
    if dtypes is None or _is_dtype(dtypes):
        parts = [_declare(part, dtypes, path + name) for name, part in fields]
    else:
        others = dict(_fields(dtypes) or ())
        if [name for name, _ in fields] != list(others):
            raise ValueError(
                f"sample_dtypes{path} must have the structure of sample_shapes{path}: "
                f"{_names(shapes)} there, {_names(dtypes)} here"
            )
        parts = [_declare(part, others[name], path + name) for name, part in fields]
    return dict(zip(shapes, parts, strict=True)) if isinstance(shapes, Mapping) else tuple(parts)


def _declare_leaf(shape: Any, dtype: Any, path: str) -> TensorSpec | None:
    if shape is None:
        return None
    if dtype is not None and not _is_dtype(dtype):
        raise ValueError(
            f"sample_dtypes{path} must have the structure of sample_shapes{path}: one tensor there, {dtype!r} here"
        )
    if isinstance(shape, TensorSpec):
        if dtype is not None and shape.dtype not in (None, as_torch_dtype(dtype)):
            raise ValueError(f"sample_dtypes{path} is {dtype}, but sample_shapes{path} says {shape.dtype}")
        return shape if dtype is None else TensorSpec(shape.shape, dtype)
    try:
        return TensorSpec(shape, dtype)
    except ValueError as error:
        raise ValueError(f"sample_shapes{path}: {error}") from None


def is_shape(value: Any) -> bool:
    """Whether a leaf of a declaration is a shape: a tuple or list of ints, and not a namedtuple."""
    return (
        isinstance(value, (tuple, list))
        and not hasattr(value, "_fields")
        and all(isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in value)
    )


def batch_bytes(spec: Any, batch_size: int, alignment: int) -> int:
    """Returns the bytes that the tensors of a default-collated batch of ``batch_size`` samples take in a slot."""
    tensors = [leaf for leaf in leaves(spec) if leaf is not None]
    return sum(aligned(batch_size * tensor.nbytes, alignment) for tensor in tensors)


def check(spec: Any, samples: Sequence[Any], indices: Sequence[Any]) -> None:
    """Compares samples with their declaration.

    Args:
        spec: what `declare` returned.
        samples: what the dataset returned.
        indices: the samples' indices, for the error.

    Raises:
        SpecMismatchError: structure, shape or dtype of a sample differ; it is the first such sample.
    """
    if _all_fit(spec, samples):
        return
    for sample, index in zip(samples, indices, strict=True):
        _check(spec, sample, index, "")


def _all_fit(spec: Any, values: Sequence[Any]) -> bool:
    """Whether all values certainly fit. It looks at one field of all samples at a time, at a fraction of the cost."""
    if spec is None:
        return True
    kinds = set(map(type, values))
    if type(spec) is TensorSpec:
        if kinds <= _SCALARS.keys():
            return not spec.shape and (spec.dtype is None or {_SCALARS[kind] for kind in kinds} == {spec.dtype})
        if not kinds <= _ARRAYS or set(map(_shape, values)) != {spec.shape}:
            return False
        return spec.dtype is None or {TO_TORCH.get(dtype, dtype) for dtype in set(map(_dtype, values))} == {spec.dtype}
    if type(spec) is tuple:
        if not kinds <= {tuple, list} or set(map(len, values)) != {len(spec)}:
            return False
        return all(map(_all_fit, spec, zip(*values, strict=True)))
    if kinds != {dict} or not all(map(spec.keys().__eq__, map(dict.keys, values))):
        return False
    return all(_all_fit(part, [value[key] for value in values]) for key, part in spec.items())


def _check(spec: Any, value: Any, index: Any, path: str) -> None:
    if spec is None:
        return
    if type(spec) is TensorSpec:
        fits, expected = _fits(spec, value), str(spec)
    elif type(spec) is tuple:
        fits, expected = _is_sequence(value) and len(value) == len(spec), f"a sequence of {len(spec)}"
    else:
        fits = isinstance(value, Mapping) and value.keys() == spec.keys()
        expected = f"a mapping with keys {list(spec)}"
    if not fits:
        raise _mismatch(index, path, expected, describe(value))
    if type(spec) is not TensorSpec:
        keys = spec if type(spec) is dict else range(len(spec))
        for (name, part), key in zip(_fields(spec) or (), keys, strict=True):
            _check(part, value[key], index, path + name)


def _fits(spec: TensorSpec, value: Any) -> bool:
    scalar = _SCALARS.get(type(value))
    if scalar is not None:
        return not spec.shape and spec.dtype in (None, scalar)
    shape = getattr(value, "shape", None)
    if shape != spec.shape:
        return False
    dtype: Any = getattr(value, "dtype", None)
    return spec.dtype is None or dtype is spec.dtype or TO_TORCH.get(dtype) is spec.dtype


def describe(value: Any) -> str:
    """Says what a sample, or a field of one, is."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        dtype: Any = value.dtype
        return f"shape {tuple(value.shape)}, {TO_TORCH.get(dtype, dtype)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if _is_sequence(value):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if value is not None else "None"


def _mismatch(index: Any, path: str, expected: str, got: str) -> SpecMismatchError:
    field = f", field {path}" if path else ""
    return SpecMismatchError(
        f"sample {index!r}{field}: expected {expected}, got {got}; sample_shapes and sample_dtypes declare the former",
        index=index,
        path=path,
        expected=expected,
        got=got,
    )


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_dtype(value: Any) -> bool:
    if _fields(value) is not None:
        return False
    as_torch_dtype(value)
    return True


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    """Returns the parts of a structure with their paths, or None if ``value`` is no structure."""
    parts = take_apart(value)
    return None if parts is None else list(zip(parts.paths, parts.values, strict=True))


def _names(value: Any) -> str:
    fields = _fields(value)
    return "one leaf" if fields is None else f"fields {', '.join(name for name, _ in fields)}"
