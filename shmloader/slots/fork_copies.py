"""What a process that is forked sees of batches: copies of its own, at the same addresses.

Slots are shared memory. Without this, a child would see its batches change when the parent has dropped them, and what
it writes to them would reach the parent. So what is held is copied before a fork, and in the child the copies take the
place of the slots. The parent's memory stays as it is, which may be page-locked, or written to by other threads
meanwhile. Where nothing is held, a fork costs a look at each pool.

Rejected: to turn the parent's slots into private memory before a fork, and into shared memory again when the leases
end. That copies once a lease and not once a fork, but page-locked memory does not allow it, and every page has to be
faulted in again afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from shmloader import interrupts, libc, process_exit
from shmloader.batches.tensors import Block
from shmloader.weak_members import WeakMembers

from .pages import round_up

_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_MADV_HUGEPAGE = 14


class Holder(Protocol):
    """What has to do with shared memory that is held in this process: leases, or a worker's writer."""

    def blocks(self) -> list[Block]:
        """Returns the memory that is held, from the beginnings of slots. Safe from any thread."""


class _Copy(NamedTuple):
    address: int
    nbytes: int  # whole pages
    copy: int
    block: Block  # which is not used again before the child is there


class _Thread(threading.local):
    """What one thread is about to fork with.

    Attributes:
        copies: by the address that they are for.
        is_gathering: whether further forks use the same copies.
        put_off: what a signal's handler has raised meanwhile.
    """

    def __init__(self) -> None:
        self.copies: dict[int, _Copy] = {}
        self.is_gathering = False
        self.put_off: BaseException | None = None


_holders: WeakMembers[Holder] = WeakMembers()
_inherited: list[Holder] = []  # of the parent, whose batches are this process's own now
_replaced: list[tuple[int, int]] = []  # addresses and sizes of slots whose place a copy has taken
_never_freed: list[Block] = []
_thread = _Thread()

_mremap = libc.find("mremap", libc.ADDRESS, libc.ADDRESS, libc.SIZE, libc.SIZE, libc.INT, libc.ADDRESS)
_madvise = libc.find("madvise", libc.INT, libc.ADDRESS, libc.SIZE, libc.INT)


def watch(holder: Holder) -> None:
    """Has what ``holder`` holds copied for processes that are forked from now on, as long as it is alive itself.

    Safe from several threads: worker threads begin side by side.
    """
    _holders.add(holder)


def blocks() -> list[Block]:
    """Returns all memory of slots that is held in this process, what was inherited by a fork included."""
    return [block for holder in (*_holders, *_inherited) for block in holder.blocks()]


def is_replaced(address: int, nbytes: int) -> bool:
    """Whether a copy has taken the place of any of the ``nbytes`` bytes at ``address``, which are not shared then."""
    return any(start < address + nbytes and address < start + size for start, size in _replaced)


@contextlib.contextmanager
def gathered() -> Iterator[None]:
    """Has all forks of this thread in the block use the same copies."""
    _thread.is_gathering = True
    try:
        yield
    finally:
        _thread.is_gathering = False
        _drop_copies()


def _before() -> None:
    # Python prints and forgets what a hook raises, so a Ctrl-C that came meanwhile would be lost; and a child whose
    # copies are not made would see its batches change.
    try:
        with interrupts.AllDeferred():
            _make_copies()
    except (KeyboardInterrupt, SystemExit) as error:
        _thread.put_off = error


def _make_copies() -> None:
    for block in [block for holder in _holders for block in holder.blocks()]:
        address = address_of(block)
        if address not in _thread.copies:
            copy = _copy(block)
            if copy is None:
                # There is no memory. Its slot is never used again, so that the child sees it unchanged at least.
                _never_freed.append(block)
            else:
                _thread.copies[address] = copy


def address_of(block: Block) -> int:
    """Returns where a block begins."""
    return int(block.__array_interface__["data"][0])


def _copy(block: Block) -> _Copy | None:
    nbytes = round_up(block.nbytes)
    if not nbytes:
        return None
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    copy = libc.mmap(None, nbytes, protection, flags, -1, 0)
    if copy == libc.MAP_FAILED:
        return None
    _madvise(copy, nbytes, _MADV_HUGEPAGE)  # a fifth of the time; where it is refused, pages will do
    memory: Any = (ctypes.c_uint8 * block.nbytes).from_address(copy)
    np.frombuffer(memory, np.uint8)[:] = block
    return _Copy(address_of(block), nbytes, copy, block)


def _drop_copies() -> None:
    copies, _thread.copies = _thread.copies, {}
    for one in copies.values():
        libc.munmap(one.copy, one.nbytes)


def _takes_its_place(one: _Copy) -> bool:
    flags = _MREMAP_MAYMOVE | _MREMAP_FIXED
    return bool(_mremap(one.copy, one.nbytes, one.nbytes, flags, one.address) == one.address)


def _after_in_parent() -> None:
    if not _thread.is_gathering:
        _drop_copies()
    put_off, _thread.put_off = _thread.put_off, None
    if put_off is not None:
        interrupts.raise_later(put_off)


def _after_in_child() -> None:
    # What another thread was handed meanwhile is copied now. The parent may let go of it at the same time, but hardly
    # before this.
    _make_copies()
    _replaced.extend((one.address, one.nbytes) for one in _thread.copies.values() if _takes_its_place(one))
    _thread.copies.clear()
    _thread.is_gathering = False
    _thread.put_off = None  # the parent's
    _inherited.extend(_holders)
    _holders.clear()


process_exit.at_fork(before=_before, in_parent=_after_in_parent)
process_exit.in_child(process_exit.InChild.TAKE_COPIES, _after_in_child)
