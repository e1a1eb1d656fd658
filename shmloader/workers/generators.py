"""The states of torch's, numpy's and Python's random generators as bytes, and a cheap look whether they have moved.

`seeding.capture` takes 60 us. After each batch of each worker that would be too much, where most datasets draw nothing,
or from one of the three. So the memory of numpy's and of Python's generator is compared first, which takes a tenth of a
microsecond each; torch's state has no address, and is copied.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_get_bit_generator: Any = getattr(np.random, "get_bit_generator", None)  # since numpy 1.24

_LENGTHS = struct.Struct("<III")
_WORDS = 624  # of the Mersenne Twister, which both numpy and Python have
_NUMPY = struct.Struct(f"={_WORDS}Ii")  # the words, and the position in them
_PYTHON = struct.Struct(f"=i{_WORDS}I")  # the other way round
_RAW_BYTES = _NUMPY.size
_NORMAL = struct.Struct("=Bd")  # whether there is a normal number left over, and which
# torch's state begins with a seed, a position and its words, and ends with normal numbers that are left over.
_TORCH_HEAD = 64
_TORCH_BYTES = torch.default_generator.get_state().nbytes
_TORCH_TAIL_BYTES = min(64, _TORCH_BYTES - _TORCH_HEAD)
_TORCH_TAIL = _TORCH_BYTES - _TORCH_TAIL_BYTES
_NUMPY_BYTES = _RAW_BYTES + _NORMAL.size


def capture() -> bytes:
    """Returns the state of the three generators of this process; some 10 KB. Takes 60 us."""
    return _join(_torch_state(), _numpy_state(), _python_state())


def capture_torch() -> bytes:
    """Returns the state of torch's generator alone."""
    return _join(_torch_state(), b"", b"")


def restore(state: bytes) -> None:
    """Sets the generators to what was captured; what was not stays as it is.

    Raises:
        ValueError: these bytes are no such state.
    """
    try:
        of_torch, of_numpy, of_python = _split(state)
        if of_torch:
            torch.set_rng_state(torch.frombuffer(bytearray(of_torch), dtype=torch.uint8))
        if of_numpy:
            np.random.set_state(_numpy_from(of_numpy))
        if of_python:
            position, *words = _PYTHON.unpack_from(of_python)
            has_gauss, gauss = _NORMAL.unpack_from(of_python, _RAW_BYTES)
            random.setstate((3, (*words, position), gauss if has_gauss else None))
    except (struct.error, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"the state of a random generator is damaged: {error}") from error


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Sets the three generators back to what they were before the block."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


class Watch:
    """Tells whether the generators of this process have moved since it was asked last. For one thread.

    A Mersenne Twister moves a position with each number, and changes all of its words when that is at their end. So the
    position and the first words tell whether anything was drawn.
    """

    def __init__(self) -> None:
        self._seen: tuple[Any, ...] = (None, None, None)
        self._parts = b"", b"", b""
        self._numpy: Any = None
        self._numpy_marks: _Marks | None = None
        self._python_marks = _python_marks()
        self._has_normal = False

    def look(self) -> bytes | None:
        """Returns the state if it is another than at the last call, else None; at the first call always the state.

        Takes two microseconds where nothing was drawn, and 30 more where numpy's generator has moved.
        """
        state = torch.default_generator.get_state()
        address = state.data_ptr()
        of_torch = ctypes.string_at(address, _TORCH_HEAD), ctypes.string_at(address + _TORCH_TAIL, _TORCH_TAIL_BYTES)
        seen = of_torch, self._look_at_numpy(), self._look_at_python()
        # numpy's legacy generator makes normal numbers in pairs. Taking the second does not move anything else.
        if seen == self._seen and not self._has_normal:
            return None
        before, self._seen = self._seen, seen
        parts = (
            self._parts[0] if seen[0] == before[0] else state.numpy().tobytes(),
            self._parts[1] if seen[1] == before[1] and not self._has_normal else _numpy_state(),
            self._parts[2] if seen[2] == before[2] else _python_state(),
        )
        if parts == self._parts:
            return None
        self._parts = parts
        self._has_normal = len(parts[1]) == _NUMPY_BYTES and _NORMAL.unpack_from(parts[1], _RAW_BYTES)[0] != 0
        return _join(*parts)

    def _look_at_numpy(self) -> Any:
        if _get_bit_generator is None:
            return repr(np.random.get_state(legacy=False))
        generator = _get_bit_generator()
        if generator is not self._numpy:
            self._numpy, self._numpy_marks = generator, None
            if type(generator) is np.random.MT19937:
                address = generator.ctypes.state_address
                self._numpy_marks = _Marks(address, address + 4 * _WORDS)
        return repr(generator.state) if self._numpy_marks is None else (generator, *self._numpy_marks.read())

    def _look_at_python(self) -> Any:
        if self._python_marks is None:
            return random.getstate()
        return *self._python_marks.read(), random._inst.gauss_next  # type: ignore[attr-defined]


class _Marks:
    """What changes with every number of a Mersenne Twister.

    Args:
        words: the address of its words.
        position: and that of its position.
    """

    def __init__(self, words: int, position: int) -> None:
        self._words = ctypes.c_uint64.from_address(words), ctypes.c_uint64.from_address(words + 8)
        self._position = ctypes.c_int.from_address(position)

    def read(self) -> tuple[int, int, int]:
        """Returns that."""
        first, second = self._words
        return first.value, second.value, self._position.value


def _join(*parts: bytes) -> bytes:
    return _LENGTHS.pack(*map(len, parts)) + b"".join(parts)


def _split(state: bytes) -> list[bytes]:
    parts, start = [], _LENGTHS.size
    for length in _LENGTHS.unpack_from(state):
        parts.append(state[start : start + length])
        start += length
    if start != len(state):
        raise ValueError(f"it has {len(state)} bytes, and says {start}")
    return parts


def _torch_state() -> bytes:
    return bytes(torch.get_rng_state().numpy().tobytes())


def _numpy_state() -> bytes:
    state = np.random.get_state(legacy=False)
    inner = state["state"]
    if state["bit_generator"] == "MT19937":
        return _NUMPY.pack(*inner["key"].tolist(), inner["pos"]) + _NORMAL.pack(state["has_gauss"], state["gauss"])
    return json.dumps(state, default=_as_list).encode()


def _as_list(value: Any) -> Any:
    return value.tolist()


def _numpy_from(data: bytes) -> Any:
    if len(data) != _NUMPY_BYTES:
        return json.loads(data)
    *key, position = _NUMPY.unpack_from(data)
    return "MT19937", np.array(key, dtype=np.uint32), position, *_NORMAL.unpack_from(data, _RAW_BYTES)


def _python_state() -> bytes:
    _, (*words, position), gauss = random.getstate()
    return _PYTHON.pack(position, *words) + _NORMAL.pack(gauss is not None, gauss or 0.0)


def _python_marks() -> _Marks | None:
    """Returns those of Python's generator, or None where its memory is not as it is in CPython.

    `random.getstate` takes 8 us, nearly all of it for a tuple of 625 numbers.
    """
    generator = random._inst
    size = type(generator).__mro__[1].__basicsize__  # of the class in C: its object ends with position and words
    start = object.__basicsize__
    if start + _RAW_BYTES > size:
        return None
    position, *words = _PYTHON.unpack(ctypes.string_at(id(generator) + start, _RAW_BYTES))
    if (*words, position) != random.getstate()[1]:
        return None
    return _Marks(id(generator) + start + 4, id(generator) + start)
