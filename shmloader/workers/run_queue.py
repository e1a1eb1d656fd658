"""How long threads that could run have waited for a processor, as the kernel counts it."""

from __future__ import annotations

import os

_FILE = "/proc/thread-self/schedstat"  # time on a processor, time in the queue for one, and how often it got one


def waited() -> int:
    """Returns the nanoseconds in which the calling thread has waited for a processor; 0 where that is not counted.

    Other programs make it wait, more workers than processors do, and a container's quota. Takes some microseconds.
    """
    try:
        fd = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(fd, 100).split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    finally:
        os.close(fd)
