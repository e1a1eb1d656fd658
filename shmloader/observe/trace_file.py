"""A file of trace events that is bounded, and that can be read at any time.

It is Chrome's JSON array format, an event a line. Behind the events comes the end of the file, which says how many
there are; the next write overwrites it. So what is on the disk is whole JSON after each write, also when the process
is killed or the disk is full. So it is in a compressed file: its end is made by a copy of the stream, which goes on
without it, and is padded to one length, so that there is room for any where the last one was. Zeros behind the end of
a stream mean nothing, and there are none once the file is closed.

All writes are by descriptor and place: nothing lies in a buffer that a forked child could write once more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any, Protocol

with contextlib.suppress(ImportError):  # where there is none, torch's loader takes over, and nothing is traced
    import fcntl

LEAST_BYTES = 1 << 16
_END_BYTES = 1024  # what the end takes, so that there is room for any where the last one was
_CLOSED = b"\n]\n"
_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 1


class _Encoding(Protocol):
    def body(self, data: bytes) -> bytes:
        """Returns what stands in the file for events."""

    def end(self, data: bytes, is_last: bool) -> bytes:
        """Returns what stands in it for the end."""

    def copy(self) -> _Encoding:
        """Returns one that goes on from here."""


class _Plain:
    def body(self, data: bytes) -> bytes:
        return data

    def end(self, data: bytes, is_last: bool) -> bytes:
        return data

    def copy(self) -> _Encoding:
        return self


class _Gzip:
    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or zlib.compressobj(_LEVEL, wbits=_GZIP)

    def body(self, data: bytes) -> bytes:
        packed: bytes = self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        return packed

    def end(self, data: bytes, is_last: bool) -> bytes:
        stream = self._stream.copy()
        packed: bytes = stream.compress(data) + stream.flush()
        return packed if is_last else packed.ljust(_END_BYTES, b"\0")

    def copy(self) -> _Encoding:
        return _Gzip(self._stream.copy())


class TraceFile:
    """Used in one process, by one thread at a time. A write blocks as long as the disk does.

    Args:
        path: a regular file, or where there is none yet. One that ends in .gz is compressed.
        max_bytes: the most that it may take, `LEAST_BYTES` at least.
        facts: what the end says beside the counts; short.

    Attributes:
        path: as above.
        max_bytes: as above.
        written: events in the file.
        dropped: events for which there was no room, or no disk.
        error: what ended the writing, or None.

    Raises:
        OSError: it cannot be opened, or written to.
        ValueError: it is no regular file, or another one that is open has it, in whichever process.
    """

    def __init__(self, path: Path, max_bytes: int, facts: dict[str, Any]) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.written = self.dropped = 0
        self.error: OSError | None = None
        self._facts = facts
        self._pid = os.getpid()
        self._encoding: _Encoding = _Gzip() if path.suffix == ".gz" else _Plain()
        self._place = 0
        self._fd = _open(path)
        try:
            os.ftruncate(self._fd, 0)
            self._put(b"[\n")
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def is_open(self) -> bool:
        """Whether it may be written to."""
        return self._fd >= 0

    @property
    def is_full(self) -> bool:
        """Whether events were dropped, so that all that come are."""
        return self.dropped > 0

    @property
    def room(self) -> int:
        """How many bytes it may still take; 0: it takes no more."""
        return 0 if self.is_full or self.error is not None else self.max_bytes - _END_BYTES - self._place

    def write(self, lines: bytes, count: int) -> None:
        """Adds events, all of them or, where there is no room for all, none: these are counted. Does not raise.

        Args:
            lines: the events, each with a comma and a newline at its end.
            count: how many.
        """
        if not self.is_open or self.error is not None:
            self.dropped += count
            return
        if self.is_full or not self._has_room_for(lines):
            lines, self.dropped, count = b"", self.dropped + count, 0
        before = self._encoding.copy()
        try:
            self._put(lines, count)
        except OSError as error:
            self.error = error
            self.dropped += count
            self._encoding = before
            self._mend()

    def close(self) -> None:
        """Writes the end, and closes the file. Does not raise. Safe to call again."""
        if not self.is_open:
            return
        if self._pid == os.getpid():
            with contextlib.suppress(OSError):
                self._put_end(is_last=True)
            with contextlib.suppress(OSError):  # at once, whoever is being forked and has the descriptor still
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        self.disown()

    def disown(self) -> None:
        """Closes the descriptor and writes nothing: the file is another process's."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _has_room_for(self, lines: bytes) -> bool:
        # Half of it is room for whatever compressing makes of them, so that it need not be tried.
        return 2 * len(lines) <= self.room or len(self._encoding.copy().body(lines)) <= self.room

    def _put(self, lines: bytes, count: int = 0) -> None:
        body = self._encoding.body(lines) if lines else b""
        self.written += count
        try:
            # In one call with the end, so that there is hardly a moment in which there is none.
            _write_all(self._fd, body + self._encoding.end(self._end(False), False), self._place)
        except OSError:
            self.written -= count
            raise
        self._place += len(body)

    def _put_end(self, is_last: bool) -> None:
        end = self._encoding.end(self._end(is_last), is_last)
        _write_all(self._fd, end, self._place)
        os.ftruncate(self._fd, self._place + len(end))

    def _mend(self) -> None:
        """Puts the end back where a write that has failed has overwritten it; there was room for it before."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._place)
            self._put_end(is_last=False)

    def _end(self, is_last: bool) -> bytes:
        """Returns the event that says how the file has come out, and the end of the array."""
        counts: dict[str, Any] = {"events": self.written, "dropped": self.dropped, "is_complete": is_last}
        if self.error is not None:
            counts["error"] = errno.errorcode.get(self.error.errno or 0, "OSError")
        event = {"ph": "M", "name": "shmloader_trace", "pid": self._pid, "tid": 0, "args": {**self._facts, **counts}}
        return json.dumps(event).encode().ljust(_END_BYTES - len(_CLOSED)) + _CLOSED


def _open(path: Path) -> int:
    # Not blocking: to open a pipe that nobody reads would wait for a reader.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"a trace is written to a regular file, and {str(path)!r} is none")
        _lock(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: Path) -> None:
    """Has the file be one trace's: two would write over each other, as those of several ranks with one path."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{str(path)!r} is being written by another trace; each needs a file of its own") from None
    except OSError:  # a file system without locks
        pass


def _write_all(fd: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, place)
        view, place = view[done:], place + done
