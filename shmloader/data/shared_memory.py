"""Memory that processes share by a descriptor: a memfd, filled once, and mapped by each process that is sent it.

A segment is what shared arrays and sequences lie in. It is freed with the last process that maps it, in whatever order
they end: nothing has a name, so nothing has to be unlinked, and no resource tracker knows of it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import reduction
from typing import Any

import numpy as np

from shmloader import interrupts, libc
from shmloader.batches.alignment import aligned
from shmloader.batches.tensors import Array, Block
from shmloader.slots.limits import available_memory, file_size_limit

with contextlib.suppress(ImportError):  # on Windows, where this module is imported and not used
    import fcntl

# What is left to the rest of the machine, where memory runs out.
_RESERVE = 1 << 24

# Memory is asked for in pieces. The kernel drops what it has of one when a signal comes, and begins anew: one that
# takes longer than a profiler's timer would never be done.
_PIECE = 1 << 24

# Where the kernel has it, no new mapping of the file is writable, and no mapping becomes so. fcntl has no name for it.
_SEAL_FUTURE_WRITE = 0x10

_ALL_FULL = {errno.ENOSPC, errno.ENOMEM, errno.EFBIG}


class Segment:
    """A memfd that this process has mapped, whole. Arrays over it hold it, and when the last is gone it is unmapped.

    Python's own ``mmap`` would keep a second descriptor, and not say which. A segment takes one, in each process that
    has it: that is what others are sent.

    Args:
        fd: the file's descriptor, which is the segment's from now on.
        frozen: whether it is mapped to be read only.
        key: what tells it from all others, in every process.
        nbytes: how much of it is mapped, which may be more than there is yet; 0: all that there is.

    Raises:
        MemoryError: there are no addresses left.

    Attributes:
        address: where it begins in this process.
        nbytes: its size.
    """

    __slots__ = ("__weakref__", "_at_drop", "address", "fd", "frozen", "key", "nbytes")

    def __init__(self, fd: int, frozen: bool, key: str, nbytes: int = 0) -> None:
        self.fd, self.frozen, self.key = fd, frozen, key
        try:
            self.nbytes = nbytes or os.fstat(fd).st_size
            prot = mmap.PROT_READ if frozen else mmap.PROT_READ | mmap.PROT_WRITE
            self.address = libc.mmap(None, self.nbytes, prot, mmap.MAP_SHARED, fd, 0)
            if self.address == libc.MAP_FAILED:
                raise MemoryError(f"share() cannot map {self.nbytes} bytes of addresses (ulimit -v)")
        except BaseException:
            os.close(fd)
            raise
        self._at_drop = interrupts.closed_at_drop(fd, functools.partial(libc.munmap, self.address, self.nbytes))

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """What NumPy makes an array of: all bytes."""
        return {"version": 3, "typestr": "|u1", "shape": (self.nbytes,), "data": (self.address, self.frozen)}

    def block(self) -> Block:
        """Returns all bytes as an array, which holds the segment."""
        return np.asarray(self)


# Of this process. One that is sent the same segment again has it already. A WeakValueDictionary's callbacks are
# Python code, which would swallow a Ctrl-C.
_segments: dict[str, weakref.ref[Segment]] = {}


def mapped(fd: int, frozen: bool, key: str = "") -> Segment:
    """Maps a file and returns its segment. ``fd`` stays the caller's.

    Raises:
        OSError: there are no descriptors left.
        MemoryError: there are no addresses left.
    """
    noted = _segments.get(key)
    found = None if noted is None else noted()
    if found is None:
        key = key or uuid.uuid4().hex
        with interrupts.AllDeferred():  # until the segment has its descriptor and its mapping
            found = Segment(os.dup(fd), frozen, key)
            _segments[key] = weakref.ref(found, functools.partial(_segments.pop, key))
    return found


def _reduce(segment: Segment) -> tuple[Any, ...]:
    return _attached, (reduction.DupFd(segment.fd), segment.key, segment.frozen)


def _attached(duplicate: Any, key: str, frozen: bool) -> Segment:
    fd = duplicate.detach()
    try:
        return mapped(fd, frozen, key)
    finally:
        os.close(fd)


reduction.ForkingPickler.register(Segment, _reduce)


def segment_of(array: Array) -> Segment | None:
    """Returns the segment that an array's elements lie in, or None."""
    memory: Any = array
    while isinstance(memory, np.ndarray):
        memory = memory.base
    return memory if isinstance(memory, Segment) else None


# -- making one ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_file() -> Iterator[int]:
    """Makes an empty memfd, yields its descriptor, and closes it afterwards.

    Raises:
        MemoryError: what is written to it in the block does not fit, by a limit of the machine's or the process's.
        OSError: there is none to be had, on this platform or in this sandbox.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "share() needs memfd_create, which this platform does not have")
    fd = -1
    try:
        with interrupts.AllDeferred():  # between the call's return and the noting of what it returned
            fd = os.memfd_create("shmloader-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        yield fd
    except OSError as error:
        if fd < 0 or error.errno not in _ALL_FULL:
            raise
        raise MemoryError(f"share() got no more than {os.fstat(fd).st_size} bytes of shared memory: {error}") from error
    finally:
        if fd >= 0:
            os.close(fd)


def expect(nbytes: int) -> None:
    """Makes sure that there are ``nbytes`` bytes of memory, before they are touched.

    A control group that is full would have one of its processes killed, and not told.

    Raises:
        MemoryError: there are not.
    """
    with interrupts.AllDeferred():  # files are read by descriptors
        left = max(0, available_memory() - _RESERVE)
    if nbytes > left:
        raise MemoryError(f"share() takes {nbytes} more bytes of shared memory, and {left} bytes are available")


def allocate(fd: int, nbytes: int) -> None:
    """Makes a file ``nbytes`` long, and all of it resident, so that no write to it can fail.

    Raises:
        MemoryError: there is not that much memory, or a limit on file sizes is lower.
    """
    limit = file_size_limit()
    if limit is not None and nbytes > limit:
        raise MemoryError(f"share() takes {nbytes} bytes in one file, and the limit (ulimit -f) is {limit} bytes")
    expect(nbytes)
    try:
        for start in range(0, nbytes, _PIECE):
            os.posix_fallocate(fd, start, min(_PIECE, nbytes - start))
    except OSError as error:
        if error.errno not in _ALL_FULL:  # the TimeoutError of a signal's handler, say
            raise
        raise MemoryError(f"share() cannot have {nbytes} bytes of shared memory: {error}") from error


def places(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Returns where parts of these sizes begin, one behind the other, and how many bytes they take: one at least."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += aligned(size)
    return offsets, max(end, 1)  # an empty file cannot be mapped


def fill(fd: int, sources: Sequence[Array]) -> list[int]:
    """Copies arrays into a new file, contiguous, and returns their offsets. Blocks while they are copied.

    Raises:
        MemoryError: as for `allocate`.
    """
    offsets, nbytes = places([source.nbytes for source in sources])
    allocate(fd, nbytes)
    memory = mmap.mmap(fd, nbytes)
    for offset, source in zip(offsets, sources, strict=True):
        np.copyto(np.ndarray(source.shape, source.dtype, memory, offset), source)
    return offsets


def seal(fd: int, frozen: bool) -> None:
    """Fixes a file's size, and its bytes too if it is ``frozen``, for all processes that it is sent to.

    To read behind the end of a file that was cut would end a process. Kernels that cannot seal leave it at what the
    mappings allow.
    """
    with interrupts.AllDeferred():  # what a signal's handler raises may be an OSError too
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        if frozen:
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE)
