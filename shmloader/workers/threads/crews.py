"""Which worker threads belong together, for data that the threads of one iterator share."""

from __future__ import annotations

import threading


class _OfThread(threading.local):
    crew: object = None


_of_thread = _OfThread()


def join(crew: object) -> None:
    """Makes this thread one of those that have an object in common, which lives as long as they do at least."""
    _of_thread.crew = crew


def of_this_thread() -> object:
    """Returns what the worker threads of this thread's iterator have in common; None in any other thread."""
    return _of_thread.crew
