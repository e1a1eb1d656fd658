"""The states of torch's, numpy's and Python's random generators as bytes, and a cheap look whether they have moved.

To copy them takes 60 us. After each batch of each worker that would be too much, where most datasets draw nothing, or
from one of the three. So what changes with each draw is compared in place: some bytes of each generator first.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from shmloader.torch_private import address_of

_get_bit_generator: Any = getattr(np.random, "get_bit_generator", None)  # since numpy 1.24

_LENGTHS = struct.Struct("<III")
_WORDS = 624  # of the Mersenne Twister, which both numpy and Python have
_NUMPY = struct.Struct(f"={_WORDS}Ii")  # the words, and the position in them
_PYTHON = struct.Struct(f"=i{_WORDS}I")  # the other way round
_RAW_BYTES = _NUMPY.size
_NORMAL = struct.Struct("=Bd")  # whether there is a normal number left over, and which
_TORCH_WORDS_START = 24  # in torch's state, where each takes 8 bytes; a seed and the position come before
_TORCH_SEARCHED = 256  # bytes of torch's object in which its words begin
_TORCH_LEFT_OVER = 24  # bytes behind the words, for normal numbers that are left over
_NUMPY_BYTES = _RAW_BYTES + _NORMAL.size
_TORCH_STATE = struct.Struct(
    "@24x4992x24xi4xf?3x"
)  # whether there are normal numbers left over, of float64 and float32


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
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
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
        self._torch_marks = _torch_marks()
        self._has_normal = False
        self.is_still: Callable[[], bool] = _never
        """Whether nothing was drawn since the last look for certain."""

    def look(self) -> bytes | None:
        """Returns the state if it is another than at the last call, else None; at the first call always the state.

        Takes some microseconds, and 30 more where numpy's generator has moved.
        """
        state = self._look()
        self.is_still = self._quick_look()
        return state

    def _look(self) -> bytes | None:
        of_torch = _torch_state() if self._torch_marks is None else self._torch_marks.read()
        seen = of_torch, self._look_at_numpy(), self._look_at_python()
        # numpy's legacy generator makes normal numbers in pairs. Taking the second does not move anything else.
        if seen == self._seen and not self._has_normal:
            return None
        before, self._seen = self._seen, seen
        parts = (
            self._parts[0] if seen[0] == before[0] else _torch_state(),
            self._parts[1] if seen[1] == before[1] and not self._has_normal else _numpy_state(),
            self._parts[2] if seen[2] == before[2] else _python_state(),
        )
        if parts == self._parts:
            return None
        self._parts = parts
        self._has_normal = len(parts[1]) == _NUMPY_BYTES and _NORMAL.unpack_from(parts[1], _RAW_BYTES)[0] != 0
        return _join(*parts)

    def _quick_look(self) -> Callable[[], bool]:
        """Returns what looks at the words that move with each draw, and at no others.

        Only a normal number that is left over can be drawn without moving them; so there may be none.
        """
        marks = self._torch_marks, self._numpy_marks, self._python_marks
        if None in marks or _has_normal(*self._parts):
            return _never
        of_torch, of_numpy, of_python, more_of_python = (cell for one in marks for cell in one.cells)  # type: ignore[union-attr]
        torchs, numpys, pythons, more = of_torch[0], of_numpy[0], of_python[0], more_of_python[0]
        generator, current = self._numpy, _get_bit_generator

        def is_still() -> bool:
            return (
                of_torch[0] == torchs
                and of_numpy[0] == numpys
                and of_python[0] == pythons
                and more_of_python[0] == more
                and current() is generator
            )

        return is_still

    def _look_at_numpy(self) -> Any:
        if _get_bit_generator is None:
            return repr(np.random.get_state(legacy=False))
        generator = _get_bit_generator()
        if generator is not self._numpy:
            self._numpy, self._numpy_marks = generator, None
            if type(generator) is np.random.MT19937:
                address = generator.ctypes.state_address
                position = address + 4 * _WORDS
                self._numpy_marks = _Marks(address, position, cells=[position - 4])  # the last word, and the position
        return repr(generator.state) if self._numpy_marks is None else (generator, *self._numpy_marks.read())

    def _look_at_python(self) -> Any:
        if self._python_marks is None:
            return random.getstate()
        return *self._python_marks.read(), random._inst.gauss_next  # type: ignore[attr-defined]


def _never() -> bool:
    return False


def _has_normal(of_torch: bytes, of_numpy: bytes, of_python: bytes) -> bool:
    """Whether a normal number is left over in any of them, or it cannot be told."""
    if len(of_torch) != _TORCH_STATE.size or len(of_numpy) != _NUMPY_BYTES:
        return True
    doubles, _, floats = _TORCH_STATE.unpack(of_torch)
    others = (_NORMAL.unpack_from(one, _RAW_BYTES)[0] for one in (of_numpy, of_python))
    return bool(doubles or floats or any(others))


class _Marks:
    """What changes with every number of a Mersenne Twister.

    Args:
        words: the address of its words.
        position: and that of its position.
        further: addresses of 8 bytes each that may change too.
        cells: addresses of 8 bytes that change with each draw and each seed, beside such normal numbers.

    Attributes:
        cells: these bytes, as numbers.
    """

    def __init__(self, words: int, position: int, further: Iterable[int] = (), cells: Iterable[int] = ()) -> None:
        self.cells = [_cell(address) for address in cells]
        self._position = ctypes.c_int.from_address(position)
        self._others = [ctypes.c_uint64.from_address(address) for address in (words, words + 8, *further)]

    def read(self) -> tuple[int, ...]:
        """Returns that."""
        return self._position.value, *[other.value for other in self._others]


def _cell(address: int) -> memoryview:
    # Its items take half as long to read as the value of a ctypes object.
    return memoryview(ctypes.c_uint64.from_address(address)).cast("B").cast("Q")


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


def _torch_marks() -> _Marks | None:
    """Returns those of torch's generator, or None where its object is not as it was found to be.

    Its state can be had as a copy only, which takes 5 KB out of the caches of a worker with nothing else to do. Where
    the words lie in the object is found out from a generator of our own, and that marks change with each draw is tried.
    """
    trial = torch.Generator()
    start = _torch_words(trial)
    if start is None or _torch_words(torch.default_generator) != start:
        return None
    marks = _marks_of_torch(trial, start)
    draws: list[Callable[[], object]] = [
        lambda: torch.rand(1, generator=trial),
        lambda: torch.randperm(3, generator=trial),
        *[lambda: torch.randn(1, generator=trial)] * 3,
        *[lambda: torch.randn(1, dtype=torch.float64, generator=trial)] * 3,
        lambda: torch.rand(_WORDS, generator=trial),
    ]
    for draw in draws:
        before = marks.read()
        draw()
        if marks.read() == before:
            return None
    return _marks_of_torch(torch.default_generator, start)


def _torch_words(generator: torch.Generator) -> int | None:
    """Returns where in torch's object the words of a generator begin."""
    address = address_of(generator)
    words = generator.get_state().numpy()[_TORCH_WORDS_START : _TORCH_WORDS_START + 8 * 16].view(np.uint64)
    if address is None:
        return None
    start = ctypes.string_at(address, _TORCH_SEARCHED).find(words.astype(np.uint32).tobytes())
    return start if start >= 0 else None


def _marks_of_torch(generator: torch.Generator, start: int) -> _Marks:
    words = (address_of(generator) or 0) + start
    end = words + 4 * _WORDS
    # The position, and the first word.
    return _Marks(words, words - 4, range(end, end + _TORCH_LEFT_OVER, 8), cells=[words - 4])


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
    position = id(generator) + start
    # The position and the first word, which is the same for all seeds; and two more.
    return _Marks(position + 4, position, cells=[position, position + 8])
