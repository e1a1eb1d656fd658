"""Samples of arrays, tensors and numbers, however nested in lists, tuples and dicts: these are their parts.

Their form is a pickle of the structure, and of each part's type, dtype and shape.
"""

from __future__ import annotations

import math
import pickle
from typing import Any, NamedTuple

import numpy as np
import torch

from shmloader.batches.dtypes import TO_NUMPY, TO_TORCH, carried, carrier
from shmloader.batches.packing import is_canonical
from shmloader.batches.structure import Join, NotPlainError, joiner, take_apart
from shmloader.batches.tensors import Array, as_rows, is_dense

from .shared_arrays import SharedArray

# One call reads so many parts at most, and a few more.
_MAX_PARTS = 1000

# One object each, so that alike samples have equal pickles.
_ARRAY, _TENSOR, _SCALAR, _NUMBER = "array", "tensor", "scalar", "number"
_NAMES = {dtype: str(dtype).rpartition(".")[2] for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_SCALARS = {dtype.type: dtype for dtype in TO_TORCH}
_NUMBERS = {int: torch.int64, float: torch.float64, bool: torch.bool}
_INT64 = range(-(1 << 63), 1 << 63)


class Part(NamedTuple):
    """What one part of a plain sample is.

    Attributes:
        kind: an array, a tensor, a NumPy scalar, or a number of Python's.
        dtype: the name of its torch dtype.
        shape: sizes of its axes.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def carrier(self) -> np.dtype[Any]:
        """The dtype of the array that has its elements."""
        return carrier(getattr(torch, self.dtype))

    def made_of(self, array: Array) -> Any:
        """Returns the part whose elements an array has, over the same memory."""
        if self.kind == _ARRAY:
            return array
        if self.kind == _TENSOR:
            dtype = getattr(torch, self.dtype)
            # Of no elements NumPy has other strides.
            return carried(array, dtype) if array.size else torch.empty(self.shape, dtype=dtype, device="cpu")
        return array[()] if self.kind == _SCALAR else array.item()


class PlainForm:
    """The form of samples that are nothing but arrays, tensors and numbers.

    Args:
        structure: a sample with a `Part` in each place of one.
    """

    def __init__(self, structure: Any) -> None:
        self._structure = structure
        self._parts: list[Part] = []
        self._join = joiner(structure, self._is_part)
        self._layout = [(part.shape, part.carrier) for part in self._parts]
        self.nbytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._layout)

    def _is_part(self, value: Any) -> bool:
        if type(value) is not Part:
            return False
        self._parts.append(value)
        return True

    def parts(self, nbytes: int) -> list[Array]:
        """Returns new arrays, each in memory of its own: one that is kept does not hold the others."""
        if nbytes != self.nbytes:
            raise ValueError(f"the parts take {self.nbytes} bytes, and not {nbytes}")
        return [np.empty(shape, dtype) for shape, dtype in self._layout]

    def sample(self, parts: list[Array]) -> Any:
        """Returns the sample, over the memory of its parts."""
        return self._join(iter([part.made_of(array) for part, array in zip(self._parts, parts, strict=True)]))

    def rows(self, out: Any, count: int) -> list[Array] | None:
        """Returns the places of a batch's samples as bytes: for each part an array of shape (count, bytes).

        None where ``out`` is not what ``count`` samples of this form are written to.
        """
        columns: list[Array] = []
        return columns if _match(self._structure, out, count, columns) else None


def _match(node: Any, out: Any, count: int, columns: list[Array]) -> bool:
    if type(node) is Part:
        if not isinstance(out, (np.ndarray, torch.Tensor)):
            return False
        column = as_rows(out) if isinstance(out, torch.Tensor) else out
        # Compared with the dtype that the loader has learned, so that no rule of torch's is repeated here.
        dtype = out.dtype if isinstance(out, torch.Tensor) else TO_TORCH.get(out.dtype)
        is_same = dtype in _NAMES and _NAMES[dtype] == node.dtype and column.shape == (count, *node.shape)
        if not (is_same and column.flags.c_contiguous and column.size):
            return False
        columns.append(column.reshape(count, -1).view(np.uint8))
        return True
    ours, its = take_apart(node), take_apart(out)
    if ours is None or its is None or type(node) is not type(out) or list(ours.keys) != list(its.keys):
        return False
    return all(_match(one, other, count, columns) for one, other in zip(ours.values, its.values, strict=True))


def take_plain(sample: Any) -> tuple[bytes, list[Array]]:
    """Copies a sample into parts, and returns the pickled structure and them.

    Raises:
        NotPlainError: there is something else in it.
        PicklingError, AttributeError: the class of a named tuple in it cannot be found by its name.
    """
    found: list[tuple[Part, Array]] = []
    seen: set[int] = set()

    def is_part(value: Any) -> bool:
        if isinstance(value, (str, bytes)):  # which differs from sample to sample
            raise NotPlainError
        pair = _as_part(value)
        if pair is None:
            return False
        if pair[0].kind in (_ARRAY, _TENSOR):
            if id(value) in seen:  # it would be two afterwards
                raise NotPlainError
            seen.add(id(value))
        found.append(pair)
        return True

    join: Join = joiner(sample, is_part)
    if len(found) > _MAX_PARTS:
        raise NotPlainError
    structure = join(iter([part for part, _ in found]))
    return pickle.dumps(structure, 5), [array for _, array in found]


def _as_part(value: Any) -> tuple[Part, Array] | None:
    """Returns what a part is, and a copy of its elements; None for what is no part."""
    kind: Any = type(value)
    if kind is np.ndarray or kind is SharedArray:
        # Of other orders than C and Fortran, pickle makes C too.
        is_plain = value.dtype in TO_TORCH and (value.flags.c_contiguous or not value.flags.f_contiguous)
        return _pair(_ARRAY, TO_TORCH[value.dtype], np.array(value, order="C", subok=False)) if is_plain else None
    if kind is torch.Tensor:
        if not is_dense(value) or not is_canonical(value, tuple(value.shape)) or value.__dict__:
            return None
        return _pair(_TENSOR, value.dtype, as_rows(value).copy())
    if kind in _SCALARS:
        return _pair(_SCALAR, TO_TORCH[_SCALARS[kind]], np.array(value))
    if kind in _NUMBERS and (kind is not int or value in _INT64):
        return _pair(_NUMBER, _NUMBERS[kind], np.array(value, TO_NUMPY[_NUMBERS[kind]]))
    return None


def _pair(kind: str, dtype: torch.dtype, array: Array) -> tuple[Part, Array]:
    return Part(kind, _NAMES[dtype], array.shape), array
