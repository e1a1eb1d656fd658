"""Keyed permutations of a range: any element on its own, in memory that does not grow with the range. Pure.

A Feistel network over ``rows x columns`` cells, which are as many as the range is long, or a few more. A position is a
row and a column. Each round moves the one along its axis by what a keyed hash makes of the other. That can be undone,
so the whole is a permutation of the cells. A cell beyond the range is put through the network once more, until one
within it comes out; that is a permutation of the range.

Ranges so short that a network's order would show are sorted by a keyed hash instead, and that order is kept.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Protocol

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint64]]

# Rows and columns are multiplied by 32 bits of a hash, in words of 64.
LONGEST = 1 << 62

# The last length that is sorted: 32 kB, and less than a millisecond. A network mixes the less the fewer rows it has.
SORTED = 4096

# With four, two neighbours' places depend on each other enough to be seen over a million keys, at the shortest length
# that is not sorted; with six that was not seen any more.
ROUNDS = 8

_HALF = np.uint64(32)
_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Permutation(Protocol):
    """A bijection of 0 to ``length - 1``."""

    def __call__(self, positions: Words) -> Words:
        """Returns the elements at some positions: uint64, shape (n,), a new array; each must be below the length."""


def permutation(length: int, seed: int, epoch: int) -> Permutation:
    """Returns the permutation of a range that belongs to a key; what two keys give has nothing in common.

    Args:
        length: of the range; 1 to 2^62.
        seed: one part of the key, any int.
        epoch: the other part, any int.
    """
    keys = _keys(f"{length:x} {seed:x} {epoch:x}")
    return _Order(length, keys[0]) if length <= SORTED else _Network(length, keys)


def _keys(text: str) -> Words:
    """Returns eight words that are the same on every machine; hex digits have no limit, as decimal ones have."""
    return np.frombuffer(hashlib.sha512(text.encode()).digest(), "<u8").astype(np.uint64)


class _Order:
    """The order of the hashes of a short range; all orders are equally likely."""

    def __init__(self, length: int, key: np.uint64) -> None:
        hashes = np.arange(length, dtype=np.uint64)
        hashes *= _STEP
        _hash(hashes, key, hashes)
        self._order: Words = np.argsort(hashes, kind="stable").astype(np.uint64)

    def __call__(self, positions: Words) -> Words:
        return self._order[positions]


class _Network:
    """Rounds over rows and columns, which are nearly as many."""

    def __init__(self, length: int, keys: Words) -> None:
        # An odd number of rows and of columns would make even permutations only.
        rows = math.isqrt(length - 1) + 1
        rows += rows & 1
        self._length = np.uint64(length)
        self._rows = np.uint64(rows)
        self._columns = np.uint64(-(-length // rows))
        self._keys = keys[:ROUNDS]

    def __call__(self, positions: Words) -> Words:
        found = self._cells(positions)
        # Fewer than one row of cells lies beyond the range.
        beyond = np.flatnonzero(found >= self._length)
        while beyond.size:
            again = self._cells(found[beyond])
            found[beyond] = again
            beyond = beyond[again >= self._length]
        return found

    def _cells(self, cells: Words) -> Words:
        """Puts cells through all rounds once. Without ``out`` this would take twice the time."""
        moved = cells // self._columns
        fixed = cells - moved * self._columns
        modulus, other = self._rows, self._columns
        by = np.empty_like(cells)
        for key in self._keys:
            _hash(fixed, key, by)
            by >>= _HALF
            by *= modulus
            by >>= _HALF
            moved += by
            np.subtract(moved, modulus, out=by)
            np.minimum(moved, by, out=moved)  # what is below 0 is huge
            moved, fixed, modulus, other = fixed, moved, other, modulus
        moved *= self._columns
        moved += fixed
        return moved


def _hash(words: Words, key: np.uint64, out: Words) -> None:
    """Writes hashes of words to ``out``, which may be ``words``; the upper half of each is the better one."""
    np.add(words, key, out=out)
    out *= _FIRST
    out ^= out >> _HALF
    out *= _SECOND
