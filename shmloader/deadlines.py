"""Deadlines of waits: times of the monotonic clock, or None for waits that last for ever."""

from __future__ import annotations

import contextlib
import threading
import time
from queue import Empty, SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")

# A signal ends no wait that has not begun when it comes, though Python has looked for signals for the last time before
# it; nor one in the main thread, where the kernel gives it to another thread. Its handler runs when a part has ended.
PART_SECONDS = 1.0


def after(seconds: float | None) -> float | None:
    """Returns the deadline that is so many seconds away; None: for ever."""
    return None if seconds is None else time.monotonic() + seconds


def left(deadline: float | None) -> float | None:
    """Returns the seconds until a deadline: 0 once it has passed, and None for one that never comes."""
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)


def next_part(deadline: float | None) -> float:
    """Returns how long the next part of a wait may be, in seconds: until the deadline, but `PART_SECONDS` at most."""
    return PART_SECONDS if deadline is None else min(max(0.0, deadline - time.monotonic()), PART_SECONDS)


def get(items: SimpleQueue[_T], deadline: float | None) -> _T:
    """Returns a queue's next item. Blocks until there is one; in the main thread, handlers of signals run meanwhile.

    Raises:
        Empty: there was none in time.
    """
    while not is_over(deadline):
        with contextlib.suppress(Empty):
            return items.get(timeout=next_part(deadline))
    return items.get_nowait()


def is_over(deadline: float | None) -> bool:
    """Whether a deadline has passed."""
    return deadline is not None and time.monotonic() >= deadline
