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
    """Tells whether the generators of this process have moved since it was asked last. For one thread."""

    def __init__(self) -> None:
        self._seen: tuple[Any, ...] = ()
        self._parts = b"", b"", b""
        self._numpy: Any = None
        self._numpy_memory: Any = None
        self._python = _python_memory()
        self._has_normal = False

    def look(self) -> bytes | None:
        """Returns the state if it is another than at the last call, else None; at the first call always the state.

        Takes two microseconds where nothing was drawn, and 30 more where numpy's generator has moved.
        """
        seen = self._look()
        # numpy's legacy generator makes normal numbers in pairs. Taking the second does not move its memory.
        if seen == self._seen and not self._has_normal:
            return None
        before = self._seen or (None, None, None)
        self._seen = seen
        _, of_numpy, of_python = self._parts
        if seen[1] != before[1] or self._has_normal:
            of_numpy = _numpy_state()
            self._has_normal = len(of_numpy) == _NUMPY_BYTES and _NORMAL.unpack_from(of_numpy, _RAW_BYTES)[0] != 0
        if seen[2] != before[2]:
            of_python = _python_state() if self._python is None else _python_part(*seen[2])
        parts = seen[0], of_numpy, of_python
        if parts == self._parts:
            return None
        self._parts = parts
        return _join(*parts)

    def _look(self) -> tuple[Any, ...]:
        of_torch = torch.default_generator.get_state().numpy().tobytes()
        return of_torch, self._look_at_numpy(), self._look_at_python()

    def _look_at_numpy(self) -> Any:
        if _get_bit_generator is None:
            return repr(np.random.get_state(legacy=False))
        generator = _get_bit_generator()
        if generator is not self._numpy:
            self._numpy, self._numpy_memory = generator, None
            if type(generator) is np.random.MT19937:
                address = generator.ctypes.state_address
                self._numpy_memory = (ctypes.c_char * _RAW_BYTES).from_address(address)
        return repr(generator.state) if self._numpy_memory is None else self._numpy_memory.raw

    def _look_at_python(self) -> Any:
        if self._python is None:
            return random.getstate()
        return self._python.raw, random._inst.gauss_next  # type: ignore[attr-defined]


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
    _, internal, gauss = random.getstate()
    *words, position = internal
    return _python_part(_PYTHON.pack(position, *words), gauss)


def _python_part(raw: bytes, gauss: float | None) -> bytes:
    return raw + _NORMAL.pack(gauss is not None, gauss or 0.0)


def _python_memory() -> Any:
    """Returns the memory of Python's generator, or None where it does not lie as it does in CPython.

    `random.getstate` takes 8 us, nearly all of it for a tuple of 625 numbers.
    """
    generator = random._inst
    size = type(generator).__mro__[1].__basicsize__  # of the class in C: its object ends with position and words
    start = object.__basicsize__
    if start + _RAW_BYTES > size:
        return None
    memory = (ctypes.c_char * _RAW_BYTES).from_address(id(generator) + start)
    position, *words = _PYTHON.unpack(memory.raw)
    return memory if (*words, position) == random.getstate()[1] else None
