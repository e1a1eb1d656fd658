"""The file that a cache of samples lies in: a memfd, or a file with a name. Used by all processes at once.

No lock is taken. What makes that right:

- *Room is allocated by appending.* The kernel appends under the inode's own lock (``O_APPEND``): no two records
  overlap, and the file's size is the cursor. A process that is killed in the middle leaves bytes that nothing points
  to. Each append opens the file once more: where it landed is told by the position of the open file, which a forked
  process or another thread would share.
- *A record is committed by one word.* Its offset, 8 aligned bytes of the index, is written when all of it is there. A
  reader sees 0, or the offset of a whole record. Both writes go through the same inode's lock, which orders them for
  every processor; what the reader reads second depends on what it read first.
- *Two that read the same sample at once* both append a record and commit it. The last word counts; both are right. The
  other record's bytes are lost to the cache until the file is gone.
- *Files with names are not mapped.* ``preadv`` goes into memory of the reader's, or into the slot. A file that was cut
  short gives fewer bytes, where a map of it would end the process (SIGBUS). A memfd is cut by nobody else: its records
  are copied out of a map of all that it may become, which takes half of the time.
- *Nothing is trusted.* Each record is recognised by its head and its trailer (`cache_layout`). So cutting a file at any
  point costs samples, and no right answers.
- *What landed past the limit is taken back*, by cutting it off. Only records that end within the limit are committed.
  Until that one is cut off, the file's end is past the limit, so all that lands meanwhile is past it too.

Rejected: a cursor in the file, which Python cannot add to atomically; byte-range locks, which a stopped process holds;
an extent for each process, of which a part is wasted by each worker of each pass.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np

from shmloader import interrupts
from shmloader.batches.tensors import Array, Block
from shmloader.slots.limits import address_space_left, addresses_left, available_memory

from . import cache_layout as layout
from .cache_layout import WORD, Header, NewRecord, Record
from .cache_readers import reader_of
from .shared_memory import Segment

# What one call writes at most.
_MOST_WRITTEN = 0x7FFFF000

# Memory is looked at whenever so much was added to a memfd. A control group that is full would have one of its
# processes killed, and not told.
_STEP = 1 << 25
_RESERVE = 1 << 26

_INDEX_PIECE = 1 << 22

_SHARE_OF_ADDRESSES = 64

# Between two calls another process may make the file, or remove it.
_ATTEMPTS = 100


class CacheFile:
    """Records of samples. Any number of processes and threads may use it at once.

    Args:
        fd: the descriptor, which is this object's from now on.
        header: what the file says of itself.
        max_bytes: how many bytes all records may take.
        path: the file's name; None for a memfd.

    Attributes:
        max_bytes, path: as above.
        reader: what reads the records.
    """

    def __init__(self, fd: int, header: Header, max_bytes: int, path: str | None) -> None:
        self._fd = fd
        self._at_drop = interrupts.closed_at_drop(fd)
        self._header = header
        self.max_bytes = max_bytes
        self.path = path
        window = _window(fd, header.data_start + max_bytes) if path is None else None
        self.reader = reader_of(header, fd, window)

    @property
    def nbytes(self) -> int:
        """Bytes that all records take, those included that were written in vain."""
        return max(0, os.fstat(self._fd).st_size - self._header.data_start)

    def count(self, among: Array | None = None) -> int:
        """Returns how many samples have a record. Reads the index, 8 bytes a sample.

        Args:
            among: which samples, in order, as bools; None: all.
        """
        total = 0
        for start in range(0, self._header.length, _INDEX_PIECE):
            stop = min(start + _INDEX_PIECE, self._header.length)
            data = os.pread(self._fd, WORD.size * (stop - start), self._header.word_offset(start))
            words = np.frombuffer(data[: len(data) // WORD.size * WORD.size], np.uint64)
            has_record = words != 0
            counted = has_record if among is None else has_record & among[start : start + len(words)]
            total += int(np.count_nonzero(counted))
        return total

    def is_sound(self, record: Record) -> bool:
        """Whether all bytes of a record are those that were written. Reads them all."""
        with contextlib.suppress(MemoryError):
            body = np.empty(record.nbytes, np.uint8)
            return self.reader.read(record, [body]) and layout.checksum([body]) == record.body_crc
        return False

    # -- writing -------------------------------------------------------------------------------------------------

    def keep(self, index: int, form: bytes, parts: Sequence[Array]) -> bool:
        """Writes the record of a sample; returns False where there is no room for it.

        Raises:
            OSError: it cannot be written: the disk is full, or a limit on file sizes is reached, or descriptors are
                used up. The cache is as before.
        """
        record = layout.new_record(self._header, index, form, parts, has_checksum=self.path is not None)
        if not self._has_room(record.nbytes):
            return False
        start = self._append(record)
        first, end = self._header.data_start, start + record.nbytes
        if start < first:  # the file was cut, into its index or its header
            os.ftruncate(self._fd, max(first, os.fstat(self._fd).st_size))
            os.pwrite(self._fd, self._header.packed(), 0)
            return False
        if end > first + self.max_bytes:
            if os.fstat(self._fd).st_size > start:
                os.ftruncate(self._fd, start)
            return False
        os.pwrite(self._fd, WORD.pack(start), self._header.word_offset(index))
        return True

    def _has_room(self, nbytes: int) -> bool:
        end = self.nbytes + nbytes
        if end > self.max_bytes or nbytes > _MOST_WRITTEN:
            return False
        if self.path is not None or end // _STEP == (end - nbytes) // _STEP:
            return True
        return available_memory() - _RESERVE > max(nbytes, _STEP)

    def _append(self, record: NewRecord) -> int:
        """Appends a record in one call, and returns where it begins."""
        log = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            written = os.writev(log, record.buffers)
            end = os.lseek(log, 0, os.SEEK_CUR)
        finally:
            os.close(log)
        if written < record.nbytes:
            # Others may have appended meanwhile, and been cut off: they know by their trailers, but not in a map.
            if self.path is not None and os.fstat(self._fd).st_size == end:
                os.ftruncate(self._fd, end - written)
            raise OSError(errno.ENOSPC, f"{written} of {record.nbytes} bytes were written")
        return end - written

    # -- other processes -----------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: Any) -> CacheFile:
        return self

    def __reduce__(self) -> tuple[Callable[..., CacheFile], tuple[Any, ...]]:
        # By other means than multiprocessing's there is nothing to send but the file's name.
        header = self._header
        if self.path is None:
            return in_memory, (header.length, self.max_bytes)
        return at_path, (self.path, header.length, header.fingerprint, self.max_bytes)


def _reduce(file: CacheFile) -> tuple[Any, ...]:
    return _attached, (reduction.DupFd(file._fd), file._header, file.max_bytes, file.path)


def _attached(duplicate: Any, header: Header, max_bytes: int, path: str | None) -> CacheFile:
    return CacheFile(duplicate.detach(), header, max_bytes, path)


reduction.ForkingPickler.register(CacheFile, _reduce)


def _window(fd: int, nbytes: int) -> Block | None:
    """Maps a memfd as long as it may become. None where addresses are limited: others need them more."""
    if address_space_left() is not None or nbytes > addresses_left() // _SHARE_OF_ADDRESSES:
        return None
    try:
        return Segment(os.dup(fd), frozen=True, key="", nbytes=nbytes).block()
    except (OSError, MemoryError):
        return None


# -- opening one -----------------------------------------------------------------------------------------------------


def in_memory(length: int, max_bytes: int) -> CacheFile:
    """Makes an empty memfd.

    Args:
        length: how many samples there are.
        max_bytes: how many bytes all records may take.

    Raises:
        OSError: there is none to be had: no descriptor is left, or a limit on file sizes is lower than the index.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "CachedDataset needs memfd_create, which this platform does not have")
    fd = os.memfd_create("shmloader-cache", os.MFD_CLOEXEC)
    header = layout.new_header(length, bytes(32))
    try:
        os.ftruncate(fd, header.data_start)
    except OSError as error:
        os.close(fd)
        text = f"CachedDataset cannot have an index of {header.data_start} bytes: {error.strerror}"
        raise OSError(error.errno, text) from error
    return CacheFile(fd, header, max_bytes, None)


def at_path(path: str, length: int, fingerprint: bytes, max_bytes: int) -> CacheFile:
    """Opens a file, or makes it where there is none or an empty one.

    Args:
        path: its name.
        length: how many samples there are.
        fingerprint: what tells the dataset from others, 32 bytes.
        max_bytes: how many bytes all records may take.

    Raises:
        ValueError: it is something else, or the cache of another dataset.
        OSError: it cannot be opened, made or written to.
    """
    try:
        fd = _opened(Path(path), length, fingerprint)
    except OSError as error:
        text = f"CachedDataset cannot use this path: {error.strerror}"
        raise OSError(error.errno, text, path) from error
    try:
        header = layout.read_header(os.pread(fd, layout.HEADER_BYTES, 0), length, fingerprint)
        if os.fstat(fd).st_size < header.data_start:
            os.ftruncate(fd, header.data_start)
    except ValueError as error:
        os.close(fd)
        raise ValueError(f"{path} {error}; delete it, or give another path") from None
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, f"CachedDataset cannot use this path: {error.strerror}", path) from error
    return CacheFile(fd, header, max_bytes, path)


def _opened(path: Path, length: int, fingerprint: bytes) -> int:
    """Returns a descriptor of a file that has a header."""
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            _make(path, length, fingerprint, replaces=False)
            continue
        status = os.fstat(fd)
        if status.st_size or not stat.S_ISREG(status.st_mode):
            return fd
        os.close(fd)
        _make(path, length, fingerprint, replaces=True)
    raise OSError(errno.EAGAIN, "other programs remove it all the time")


def _make(path: Path, length: int, fingerprint: bytes, replaces: bool) -> None:
    """Makes a file, which has its name when its header is written; another process may be doing so too."""
    draft = path.with_name(f".{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        header = layout.new_header(length, fingerprint)
        if os.pwrite(fd, header.packed(), 0) < layout.HEADER_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(fd, header.data_start)
        if replaces:
            draft.replace(path)
        else:
            _name(draft, path)
    finally:
        os.close(fd)
        draft.unlink(missing_ok=True)


def _name(draft: Path, path: Path) -> None:
    """Gives a file its name, unless there is one of that name by now."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        draft.replace(path)  # a file system without links. Of two processes, one may have a file of its own then.
