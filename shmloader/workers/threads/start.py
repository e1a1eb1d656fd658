"""Starts threads without waiting for each to run.

``Thread.start`` waits until the new thread has run its first lines. So whoever starts several threads gives up the
processor and the interpreter lock for each of them in turn, which takes longer than all else before the first batch,
and milliseconds on a busy machine. Here nothing is waited for: all threads are there, and have their jobs, before the
first of them runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class _Unawaited(threading.Event):
    """Tells whether a thread has started, as it does in any thread, but is not waited for."""

    def wait(self, timeout: float | None = None) -> bool:
        """Returns at once."""
        return self.is_set()


class _Thread(threading.Thread):
    def __init__(self, run: Callable[[], object], name: str) -> None:
        super().__init__(target=run, name=name, daemon=True)
        # Private. In a Python that has no such name this changes nothing, and `start` waits.
        self._started = _Unawaited()


def start(run: Callable[[], object], name: str) -> threading.Thread:
    """Starts a daemon thread. Does not block.

    Its ``ident`` and ``native_id`` are None until it runs. It must not be joined before.

    Args:
        run: what the thread does.
        name: its name.

    Raises:
        RuntimeError: the system has no more threads.
    """
    thread = _Thread(run, name)
    # A set for processes that are forked, where threads that run are found all the same. Its callbacks are Python code:
    # one that runs where the thread is dropped, or in a garbage collection, would swallow a Ctrl-C.
    threading._dangling.discard(thread)  # type: ignore[attr-defined]
    thread.start()
    return thread
