"""Python objects in shared memory: pickled one by one, and made anew whenever one is read.

The pickles lie in a file one behind the other, and behind them a table of where each begins. Processes map the file for
the table alone: what they read of the pickles would else count as their memory, and look like a leak. Reading an item
takes one system call in its place. No object is there for all processes, so there is no reference count to write to,
and no page that is copied for it.
"""

from __future__ import annotations

import os
import pickle
from array import array
from collections.abc import Iterable, Sequence
from multiprocessing import reduction
from pickle import loads
from typing import Any, TypeVar, overload

from shmloader.batches.unpicklable import describe

from .shared_arrays import is_returned_by_a_worker
from .shared_memory import Segment, expect, mapped, new_file, seal

_T = TypeVar("_T")

# What is written at a time.
_CHUNK = 1 << 20

# What the kernel reads at a time is a little more.
_MOST_READ = 1 << 30

_OFFSET_BYTES = 8
_PROTOCOL = 5


class SharedSequence(Sequence[_T]):
    """A read-only sequence of objects that lie in shared memory.

    Each item is an object of its own each time that it is read: writing to it changes nothing in the sequence. A slice
    is such a sequence over the same memory. It is equal to a list, a tuple or another one with equal items.

    multiprocessing sends it by descriptor. Pickled otherwise, and returned by a loader's worker, it is a list.

    Args:
        segment: where they lie.
        table: the offset of the table in it.
        length: how many there are in the table.
        positions: which of them these are.
    """

    __slots__ = ("_begins", "_length", "_positions", "_segment", "_table")

    def __init__(self, segment: Segment, table: int, length: int, positions: range) -> None:
        self._segment = segment
        self._table = table
        self._length = length
        self._positions = positions
        self._begins = segment.block().data[table : table + _OFFSET_BYTES * (length + 1)].cast("q")

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> SharedSequence[_T]: ...
    def __getitem__(self, index: Any) -> Any:
        try:
            position = self._positions[index]
        except IndexError:
            raise IndexError(f"index {index} is out of range: the sequence has {len(self)} items") from None
        except TypeError:
            raise TypeError(f"indices must be integers or slices, not {type(index).__name__}") from None
        if isinstance(position, range):
            return SharedSequence(self._segment, self._table, self._length, position)
        begin = self._begins[position]
        nbytes = self._begins[position + 1] - begin
        if nbytes > _MOST_READ:
            return loads(self._segment.block().data[begin : begin + nbytes])
        return loads(os.pread(self._segment.fd, nbytes, begin))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, tuple, SharedSequence)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} items>"

    def __copy__(self) -> SharedSequence[_T]:
        return self

    def __deepcopy__(self, memo: Any) -> SharedSequence[_T]:
        return self  # no two readers are given the same object

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _reduce(sequence: SharedSequence[Any]) -> tuple[Any, ...]:
    if is_returned_by_a_worker():
        return sequence.__reduce__()
    return SharedSequence, (sequence._segment, sequence._table, sequence._length, sequence._positions)


reduction.ForkingPickler.register(SharedSequence, _reduce)


def share_sequences(sequences: Sequence[tuple[str, Sequence[Any]]]) -> list[SharedSequence[Any]]:
    """Pickles the items of sequences into one segment, and returns what reads them there. Blocks meanwhile.

    Args:
        sequences: each with what errors call it.

    Raises:
        TypeError: an item cannot be pickled.
        MemoryError: there is not that much memory.
    """
    with new_file() as fd:
        file = _Appended(fd)
        tables = [_append(file, name, items) for name, items in sequences]
        file.flush()
        seal(fd, frozen=True)
        segment = mapped(fd, frozen=True)
    return [SharedSequence(segment, table, length, range(length)) for table, length in tables]


class _Appended:
    """A file that is written piece by piece.

    Attributes:
        end: how many bytes it has been given.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = bytearray()
        self.end = 0

    def append(self, data: bytes) -> None:
        self._waiting += data
        self.end += len(data)
        if len(self._waiting) > _CHUNK:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = memoryview(self._waiting), bytearray()
        expect(len(waiting))
        while waiting:
            waiting = waiting[os.write(self._fd, waiting) :]


def _append(file: _Appended, name: str, items: Iterable[Any]) -> tuple[int, int]:
    """Writes items and their table, and returns the table's offset and how many they are."""
    begins = array("q", [file.end])
    for number, item in enumerate(items):
        file.append(_pickled(item, name, number))
        begins.append(file.end)
    file.append(bytes(-file.end % _OFFSET_BYTES))
    table = file.end
    file.append(begins.tobytes())
    return table, len(begins) - 1


def _pickled(item: Any, name: str, number: int) -> bytes:
    try:
        return pickle.dumps(item, _PROTOCOL)
    except MemoryError:
        raise
    except Exception as error:
        if _can_pickle(item):
            raise  # a signal's handler raised it, and the item is not to blame
        raise TypeError(
            f"share(): {name}[{number}] has to be pickled, and {describe(item, error, _can_pickle)}"
        ) from error


def _can_pickle(part: object) -> bool:
    try:
        pickle.dumps(part, _PROTOCOL)
    except Exception:
        return False
    return True
