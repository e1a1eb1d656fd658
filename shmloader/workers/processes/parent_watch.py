"""A worker ends when its parent does, whatever it is doing at the time."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading

from shmloader import libc

_PR_SET_PDEATHSIG = 1


_prctl = libc.find("prctl", libc.INT, libc.INT, *[ctypes.c_ulong] * 4)


def in_first_thread() -> bool:
    """Whether this is the process's first thread, which lives as long as the process. Used in the parent."""
    return threading.get_native_id() == os.getpid()


def end_with_parent(parent_pidfd: int, by_kernel: bool) -> bool:
    """Sees to it that this process is killed as soon as its parent has ended. Used in the worker.

    The kernel can do that, even while a sample blocks in C code that lets no other thread run. It does so when the
    *thread* that started this process ends, so that has to be the parent's first one; and it does not for processes
    that a fork server started. Otherwise a thread of ours waits for the parent's end.

    Args:
        parent_pidfd: the parent's process descriptor; it stays open.
        by_kernel: whether the parent itself has started this process, from its first thread.

    Returns:
        Whether the kernel does it. It forgets that when this process gives up rights, and has to be asked again.
    """
    if by_kernel and _prctl and _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
        poll = select.poll()
        poll.register(parent_pidfd, select.POLLIN)
        if poll.poll(0):  # it ended before the kernel was asked
            _end()
        return True
    threading.Thread(target=_wait_and_end, args=(parent_pidfd,), name="shmloader-parent-watch", daemon=True).start()
    return False


def _wait_and_end(parent_pidfd: int) -> None:
    poll = select.poll()
    poll.register(parent_pidfd, select.POLLIN)
    poll.poll()
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
