"""A ring of records in shared memory, with one writer and one reader in another process. Pure.

There is no lock, and nobody waits: a record that does not fit is dropped by its writer, and counted. Each word has one
writer, and is written at once, so a process that is killed at any instruction leaves whole records only: what it had
begun to write is not counted in `written`.

A processor may show the reader that word before the bytes that it counts. So each record has a checksum, and one that
does not agree with it is left for the next look. The checksum begins with the record's position, so that what lay there
before, zeros or an older record, does not agree either.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_HEAD = struct.Struct("@II")  # how long a record is, and its checksum
_HEADER_BYTES = 192  # three cache lines: the writer's words, the reader's, and what was dropped
_WRITTEN, _READ, _DROPPED = 0, 8, 16  # as indices of 8-byte words


class LogRing:
    """One ring.

    Args:
        memory: where it lies: 192 bytes and room for records, all zeros at first. A writer that takes the place of one
            that has ended goes on in it.
    """

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:_HEADER_BYTES].cast("Q")
        self._room = memory[_HEADER_BYTES:]
        self._size = len(self._room)

    @property
    def dropped(self) -> int:
        """How many records were dropped since the ring was made."""
        return self._words[_DROPPED]

    @property
    def has_any(self) -> bool:
        """Whether there are records that were not read."""
        return self._words[_WRITTEN] != self._words[_READ]

    def put(self, record: bytes) -> bool:
        """Writes a record. Returns whether there was room for it. By the writer only, from one thread at a time."""
        written = self._words[_WRITTEN]
        nbytes = _HEAD.size + len(record)
        if nbytes > self._size - (written - self._words[_READ]):
            self.drop()
            return False
        self._copy_in(written, _HEAD.pack(len(record), _checksum(written, record)))
        self._copy_in(written + _HEAD.size, record)
        self._words[_WRITTEN] = written + nbytes
        return True

    def drop(self) -> None:
        """Counts a record that is not written. By the writer only."""
        self._words[_DROPPED] += 1

    def take(self) -> Iterator[bytes]:
        """Yields the records that are there when the first is asked for. By the reader only.

        Each counts as read before it is given.
        """
        end = self._words[_WRITTEN]
        while (read := self._words[_READ]) < end:
            nbytes, checksum = _HEAD.unpack(self._copy_out(read, _HEAD.size))
            if nbytes > self._size:  # as for a checksum
                return
            record = self._copy_out(read + _HEAD.size, nbytes)
            if _checksum(read, record) != checksum:
                return
            self._words[_READ] = read + _HEAD.size + nbytes
            yield record

    def _copy_in(self, position: int, data: bytes) -> None:
        begin = position % self._size
        first = min(len(data), self._size - begin)
        self._room[begin : begin + first] = data[:first]
        self._room[: len(data) - first] = data[first:]

    def _copy_out(self, position: int, nbytes: int) -> bytes:
        begin = position % self._size
        first = min(nbytes, self._size - begin)
        return bytes(self._room[begin : begin + first]) + bytes(self._room[: nbytes - first])


def _checksum(position: int, record: bytes) -> int:
    return zlib.crc32(record, (position + 1) & 0xFFFFFFFF)
