"""How records are read: through a map where nobody can cut the file, and by calls where somebody can."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from shmloader.batches.tensors import Array, Block

from . import cache_layout as layout
from .cache_layout import HEAD_BYTES, HEADER_BYTES, TRAILER_BYTES, WORD, Header, Record

# Read with each head: most forms are shorter.
_FORM_GUESS = 464

_MOST_READ = 0x7FFFF000
_MOST_OFFSET = 1 << 62


class Reader(Protocol):
    """Reads records. Safe from any thread, while others write."""

    def offset_of(self, index: int) -> int:
        """Returns where the record of a sample begins, or 0."""

    def offsets_of(self, where: Array) -> list[int]:
        """Returns the same for many samples."""

    def find(self, index: int) -> Record | None:
        """Returns the record of a sample, or None where there is none whose beginning is whole."""

    def read(self, record: Record, parts: Sequence[Array]) -> bool:
        """Reads the parts of a sample into arrays of their sizes; returns False if they are not whole."""

    def read_like(self, index: int, offset: int, like: Record, parts: Sequence[Array]) -> bool:
        """Reads the parts of a sample that has the form and size of another one; returns False if it has not.

        Args:
            index: the sample's.
            offset: where its record begins.
            like: the other one.
            parts: arrays of their sizes, C-contiguous. What they have means nothing after False.
        """


def reader_of(header: Header, fd: int, window: Block | None) -> Reader:
    """Returns what reads a file.

    Args:
        header: what the file says of itself.
        fd: its descriptor.
        window: a map of it as long as it may become, if nobody but a cache changes it.
    """
    return _ByCalls(header, fd) if window is None else _ByMap(header, window)


class _ByMap:
    """Reads records of a memfd: what was committed there stays.

    Args:
        header: the file's.
        window: the file, mapped as long as it may become. Behind its end nothing is read: that would end the process.
    """

    def __init__(self, header: Header, window: Block) -> None:
        self._header = header
        self._window = window
        self._bytes = window.data  # a slice of a memoryview takes a third of the time
        self._words: Array = window[HEADER_BYTES : header.data_start].view(np.uint64)
        self._word = self._bytes[HEADER_BYTES : header.data_start].cast("Q")

    def offset_of(self, index: int) -> int:
        return self._word[index]

    def offsets_of(self, where: Array) -> list[int]:
        offsets: list[int] = self._words[where].tolist()
        return offsets

    def find(self, index: int) -> Record | None:
        offset = self._word[index]
        return layout.whole_record(self._bytes, index, offset) if offset else None

    def read(self, record: Record, parts: Sequence[Array]) -> bool:
        self._copy(record.parts_offset, parts)
        return True

    def read_like(self, index: int, offset: int, like: Record, parts: Sequence[Array]) -> bool:
        if not layout.has_form_and_size_of(like, self._window, offset):
            return False
        self._copy(offset + HEAD_BYTES + len(like.form), parts)
        return True

    def _copy(self, start: int, parts: Sequence[Array]) -> None:
        window = self._window
        for part in parts:
            end = start + part.nbytes
            part.reshape(-1).view(np.uint8)[:] = window[start:end]
            start = end


class _ByCalls:
    """Reads records of a file that anybody may cut or write to: what is there is looked at each time.

    Args:
        header: the file's.
        fd: its descriptor.
    """

    def __init__(self, header: Header, fd: int) -> None:
        self._header = header
        self._fd = fd

    def offset_of(self, index: int) -> int:
        data = os.pread(self._fd, WORD.size, self._header.word_offset(index))
        offset = int(WORD.unpack(data)[0]) if len(data) == WORD.size else 0
        return offset if self._header.data_start <= offset < _MOST_OFFSET else 0

    def offsets_of(self, where: Array) -> list[int]:
        return [self.offset_of(index) for index in where.tolist()]

    def find(self, index: int) -> Record | None:
        offset = self.offset_of(index)
        if not offset:
            return None
        data = os.pread(self._fd, HEAD_BYTES + _FORM_GUESS, offset)
        length = layout.form_bytes(self._header, data)
        if length is not None and length > _FORM_GUESS and offset + length <= os.fstat(self._fd).st_size:
            data = os.pread(self._fd, HEAD_BYTES + length, offset)
        record = layout.read_head(self._header, index, offset, data)
        return record if record is None or record.nbytes <= _MOST_READ else None

    def read(self, record: Record, parts: Sequence[Array]) -> bool:
        trailer = bytearray(TRAILER_BYTES)
        buffers: list[Any] = [*parts, trailer]
        count = os.preadv(self._fd, buffers, record.parts_offset)
        return count == record.nbytes + TRAILER_BYTES and layout.is_end_of(self._header, record, trailer)

    def read_like(self, index: int, offset: int, like: Record, parts: Sequence[Array]) -> bool:
        head, trailer = bytearray(HEAD_BYTES + len(like.form)), bytearray(TRAILER_BYTES)
        buffers: list[Any] = [head, *parts, trailer]
        count = os.preadv(self._fd, buffers, offset)
        is_whole = count == len(head) + like.nbytes + len(trailer)
        return is_whole and layout.is_like(self._header, index, like, head, trailer)
