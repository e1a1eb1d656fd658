"""Deadlines of waits: times of the monotonic clock, or None for waits that last for ever."""

from __future__ import annotations

import threading
import time


def after(seconds: float | None) -> float | None:
    """Returns the deadline that is so many seconds away; None: for ever."""
    return None if seconds is None else time.monotonic() + seconds


def left(deadline: float | None, most: float = threading.TIMEOUT_MAX) -> float | None:
    """Returns the seconds until a deadline, or None for one that never comes.

    Args:
        deadline: when.
        most: how long a wait may be told to be. One that has ended after that is not over yet; see `is_over`.

    Returns:
        0 once the deadline has passed.
    """
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), most)


def is_over(deadline: float | None) -> bool:
    """Whether a deadline has passed."""
    return deadline is not None and time.monotonic() >= deadline
