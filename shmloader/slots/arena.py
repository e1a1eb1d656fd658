"""The arena: one sparse shared-memory file, mapped once, cut into slots.

A memfd has no name and no size limit but memory itself: /dev/shm's size does not apply, and when the last process
that maps it is gone, so is the memory. Address space costs next to nothing, so every slot is given a range that could
hold the whole pool, or a part of what there is. A slot therefore grows in place: no offset ever changes, no process has
to map anything again, and tensors that were written before the slot grew stay where they are. Only touched pages take
memory; giving a range back makes them a hole again.
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

import numpy as np

from shmloader.batches.tensors import Block
from shmloader.errors import PoolMemoryError

from . import fork_copies
from .limits import address_space_left, addresses_left, file_size_limit
from .pages import PAGE, round_up
from .shared_state import SharedState

# What one pool may map of what is left. So it never ends, however many loaders there are, or however many are gone of
# which one batch is kept, which holds the mapping. Of 128 TiB, the first pool gets 256 GiB, the 600th 80 GiB, the
# 2,000th 5 GiB: with two workers 9.8 GiB, 3 GiB and 200 MiB for each slot.
_SHARE_OF_ADDRESSES = 512
# Where a limit is set, it was set for the whole program. All pools may have a quarter of that, each of them half of
# what the others have left of it; and a small part of all that is left, so that it does not end here either.
_SHARE_OF_ALL_POOLS = 4
_LEAST_SHARE = 32

_MADV_POPULATE_WRITE = 23

ADDRESS_SPACE_LIMIT = "the limit on address space (ulimit -v)"


class Arena:
    """A pool's shared memory: the words of `shared_state`, then slots of ``stride`` bytes of address space each.

    Args:
        slots: number of slots.
        max_slot_bytes: what one slot must be able to grow to, as far as address space goes.
        workers: how many workers write to it.
        declared_bytes: what a batch takes, where that is declared. Slots have room for it under a limit too, if that
            leaves half of what is left.

    Raises:
        PoolMemoryError: the address range cannot be mapped.
    """

    def __init__(self, slots: int, max_slot_bytes: int, workers: int = 0, declared_bytes: int = 0) -> None:
        self.slots = slots
        self.workers = workers
        self._first = SharedState.size(workers, slots)
        self.stride = _stride(slots, max_slot_bytes, self._first, declared_bytes)
        size = self._first + slots * self.stride
        fd = os.memfd_create("shmloader", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            likely = _next_duplicate(fd)
            self._map(fd, size)
            # Workers need one, since not all inherit the mapping as it is. mmap has a duplicate of its own, which lives
            # as long as the mapping: another would be two for each pool, and would have to be closed.
            self._fd = _duplicate_of(fd, likely)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # mmap takes a descriptor of its own
            raise PoolMemoryError(
                f"cannot map {size} bytes of address space for {slots} slots ({error}); "
                f"lower max_pool_bytes, or raise {tight_limit() or ADDRESS_SPACE_LIMIT}"
            ) from error
        finally:
            os.close(fd)

    def _map(self, fd: int, size: int) -> None:
        self.memory = mmap.mmap(fd, size)
        _note(self.memory)
        self.address = fork_copies.address_of(np.ndarray(1, np.uint8, self.memory))
        self.shared_state = SharedState(self.memory, self.workers, self.slots)

    def start(self, slot: int) -> int:
        """Returns the offset of ``slot`` from the beginning of the arena."""
        return self._first + slot * self.stride

    def block(self, slot: int, nbytes: int) -> Block:
        """Returns the first ``nbytes`` bytes of ``slot`` as a new array, which holds the mapping."""
        return np.ndarray((nbytes,), np.uint8, self.memory, self._first + slot * self.stride)

    def populate(self, slot: int, nbytes: int) -> None:
        """Makes the first ``nbytes`` bytes of ``slot`` resident, and maps them in this process for writing.

        Raises:
            PoolMemoryError: there is not that much memory.
        """
        try:
            self.memory.madvise(_MADV_POPULATE_WRITE, self.start(slot), round_up(nbytes))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise PoolMemoryError(f"cannot make {nbytes} bytes of slot {slot} resident ({error})") from error
            self.block(slot, nbytes)[::PAGE] = 0  # a kernel before 5.14

    def give_back(self, slot: int, after: int = 0) -> None:
        """Returns the memory of ``slot`` behind its first ``after`` bytes to the system; it reads as zeros then."""
        begin = round_up(after)
        if begin < self.stride:
            self.memory.madvise(mmap.MADV_REMOVE, self.start(slot) + begin, self.stride - begin)

    def giving_back_later(self) -> Callable[[int], bool]:
        """Returns what gives back the memory of a slot, and does not hold the mapping.

        It returns False where the mapping is gone, and all memory with it.
        """
        memory, first, stride = weakref.ref(self.memory), self._first, self.stride

        def give_back(slot: int) -> bool:
            mapped = memory()
            if mapped is not None:
                mapped.madvise(mmap.MADV_REMOVE, first + slot * stride, stride)
            return mapped is not None

        return give_back

    def announce(self) -> None:
        """Warns of what the memory lacks, if it lacks anything. Other kinds of arena than this may."""

    def own(self) -> None:
        """Makes the arena this process's own to write to. Called in a worker, before anything else of it is."""
        if fork_copies.is_replaced(self.address, self.start(self.slots)):
            # Batches that the parent holds have taken the place of slots, and stay where they are.
            self._map(self._fd, self.start(self.slots))

    def __reduce__(self) -> tuple[Callable[..., Arena], tuple[Any, int, int, int]]:
        return _attach, (reduction.DupFd(self._fd), self.slots, self.stride, self.workers)


def _attach(duplicate: Any, slots: int, stride: int, workers: int) -> Arena:
    arena = Arena.__new__(Arena)
    arena.slots = slots
    arena.stride = stride
    arena.workers = workers
    arena._first = SharedState.size(workers, slots)
    fd = duplicate.detach()
    arena._map(fd, arena.start(slots))
    os.close(fd)
    arena._fd = -1
    return arena


class _Note(weakref.ref[mmap.mmap]):
    """Of an arena that is mapped."""

    __slots__ = ("nbytes",)
    nbytes: int


_notes: set[_Note] = set()


def _note(memory: mmap.mmap) -> None:
    note = _Note(memory, _notes.discard)
    note.nbytes = len(memory)
    _notes.add(note)


def _next_duplicate(fd: int) -> int:
    """Returns the number that the next descriptor of this process gets, if no other thread opens one before."""
    duplicate = os.dup(fd)
    os.close(duplicate)
    return duplicate


def _duplicate_of(fd: int, likely: int) -> int:
    """Returns the one other descriptor of the file that ``fd`` is of.

    Args:
        fd: a descriptor.
        likely: the number that the other one has, unless another thread has come between.

    Raises:
        OSError: there is none, or the kernel does not say.
    """
    file = os.fstat(fd)
    if _is_of(file, likely):  # a listing takes the longer, the more descriptors there are
        return likely
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own descriptor is gone when they are read
        if int(name) != fd and _is_of(file, int(name)):
            return int(name)
    raise OSError(errno.EBADF, "mmap has no descriptor")


def _is_of(file: os.stat_result, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:  # it is closed, by another thread perhaps
        return False


def tight_limit() -> str:
    """Names the resource limit that makes slots small; empty where none does."""
    if file_size_limit() is not None:
        return "the limit on file sizes (ulimit -f)"
    return ADDRESS_SPACE_LIMIT if address_space_left() is not None else ""


def _stride(slots: int, max_slot_bytes: int, first: int, declared_bytes: int) -> int:
    limited, left = address_space_left(), addresses_left()
    budget = left // _SHARE_OF_ADDRESSES
    if limited is not None:
        left = min(left, limited)
        ours = sum(note.nbytes for note in _notes.copy())
        budget = min(budget, max(((left + ours) // _SHARE_OF_ALL_POOLS - ours) // 2, left // _LEAST_SHARE))
    budget = max(budget, min(slots * round_up(declared_bytes), left // 2))
    if (size := file_size_limit()) is not None:
        budget = min(budget, size - first)
    return max(PAGE, min(round_up(max_slot_bytes), budget // slots // PAGE * PAGE))
