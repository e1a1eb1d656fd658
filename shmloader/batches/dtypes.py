"""The dtypes that numpy and torch share, and how the others borrow a numpy dtype of their size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TO_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.bool: np.dtype(np.bool_),
    torch.uint8: np.dtype(np.uint8),
    torch.int8: np.dtype(np.int8),
    torch.int16: np.dtype(np.int16),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
    torch.uint16: np.dtype(np.uint16),
    torch.uint32: np.dtype(np.uint32),
    torch.uint64: np.dtype(np.uint64),
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.complex64: np.dtype(np.complex64),
    torch.complex128: np.dtype(np.complex128),
}
TO_TORCH: dict[np.dtype[Any], torch.dtype] = {numpy: dtype for dtype, numpy in TO_NUMPY.items()}

# bfloat16, the float8 family and other dtypes unknown to numpy travel as integers of the same width and are viewed as
# themselves at either end. complex32 has numpy's width of 4 bytes and none of its dtypes.
_CARRIERS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int16),
    4: np.dtype(np.int32),
    8: np.dtype(np.int64),
}

# Elements of these are copied as integers. torch has no kernel that copies a sub-byte dtype, and of a bool, which may
# be any byte, it makes 0 or 1.
_BITS: dict[torch.dtype, torch.dtype] = {
    dtype: TO_TORCH[_CARRIERS[dtype.itemsize]]
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and (dtype is torch.bool or dtype not in TO_NUMPY)
}

# torch makes tensors of these from others only, with a scale, or not at all, and computes next to nothing with them.
_CONVERTED = {
    dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and name.startswith(("qint", "quint", "bits"))
}

_PYTHON_SCALARS: dict[object, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}


def is_filled_by_elements(dtype: torch.dtype) -> bool:
    """Whether elements are all there is to a tensor of it, which can be written: no quantized, no bits dtype."""
    return dtype not in _CONVERTED


def carrier(dtype: torch.dtype) -> np.dtype[Any]:
    """Returns the numpy dtype whose elements carry those of ``dtype``: its twin, or an integer of its width."""
    twin: np.dtype[Any] | None = TO_NUMPY.get(dtype)
    return _CARRIERS[dtype.itemsize] if twin is None else twin


def carried(array: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    """Returns the tensor of ``dtype`` whose elements ``array`` carries, over the same memory."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype is dtype else tensor.view(dtype)


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a dense tensor over the same memory that torch can copy bit by bit."""
    dtype = _BITS.get(tensor.dtype)
    return tensor if dtype is None else tensor.view(dtype)


def as_torch_dtype(dtype: object) -> torch.dtype:
    """Returns the torch dtype that ``dtype`` means: a torch or numpy dtype, a numpy type, a name, or bool/int/float.

    A Python type means what the default collate function makes of its values: int64 for int, float64 for float.

    Raises:
        TypeError: there is no such torch dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if isinstance(dtype, str) and isinstance(named := getattr(torch, dtype, None), torch.dtype):
        return named
    try:
        return _PYTHON_SCALARS.get(dtype) or TO_TORCH[np.dtype(dtype)]  # type: ignore[call-overload]
    except (TypeError, KeyError):
        raise TypeError(f"no torch dtype corresponds to {dtype!r}") from None


# Every torch dtype in one order, the same in all processes of a loader: a dtype's place is how it travels.
ALL: tuple[torch.dtype, ...] = tuple(
    sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
)
CODES: dict[torch.dtype, int] = {dtype: code for code, dtype in enumerate(ALL)}
