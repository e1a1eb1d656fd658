"""Carries jobs to Ray actors, and what they have made into slots. Runs in a thread of the parent.

All that actors are told, this thread tells them, and it waits in one place: for the parent, which sends tokens, and for
Ray, which tells of calls that are done or have failed. The parent sees tokens of workers, and ends of workers.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from shmloader import deadlines
from shmloader.workers.threads.parent_queue import ParentQueue
from shmloader.workers.threads.start import start
from shmloader.workers.wire import Token

from . import cluster
from .landing import Landing
from .messages import Orders
from .proxy import Events, Proxy

# What actors that were killed may take to be gone. Nothing depends on that but how soon what they took is free, and it
# takes Ray some milliseconds.
_KILL_SECONDS = 5.0


class Courier:
    """The thread between one iterator's parent and its actors.

    Args:
        up: where the parent is told.

    Attributes:
        has_ended: whether the thread will touch no slot again.
    """

    def __init__(self, up: ParentQueue) -> None:
        self._up = up
        self._events = Events()
        self._current: dict[int, Proxy] = {}
        self._all: list[Proxy] = []  # those too that were replaced
        self._session: tuple[str, str] | None = None
        self._grace: float | None = None  # of what is waited for at the end; None: that has not come
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._at_end: deque[Callable[[], object]] = deque()
        self._thread: threading.Thread | None = None
        self.has_ended = False

    # -- for the parent ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread, when there is a connection to Ray."""
        self._session = cluster.session()
        self._thread = start(self._run, "shmloader-ray")

    def adopt(self, number: int, handle: Any, landing: Landing, orders: Orders, parcel: Any) -> Proxy:
        """Has an actor begin, perhaps in the place of one that has died. Does not block."""
        proxy = Proxy(number, handle, landing, self._events, self._up)
        self._all.append(proxy)  # first: whatever comes, it is ended
        self._events.put(self._begin, proxy, orders, parcel)
        return proxy

    def send(self, worker: int, token: Token) -> None:
        """Sends a token. Does not block."""
        self._events.put(self._send, worker, token)

    def set_gate(self, words: tuple[int, int]) -> None:
        """Tells all workers how the gate is. Does not block."""
        self._events.put(self._set_gate, words)

    def lose_all(self, why: str) -> None:
        """Has all workers have ended. Does not block."""
        self._events.put(self._lose_all, why)

    def hurry(self) -> None:
        """Has `stop` wait no longer for what actors are at. Does not block; safe in signal handlers."""
        self._events.put(self._begin_end, 0.0)

    def stop(self, grace: float) -> None:
        """Ends the actors and the thread.

        Blocks until they have ended, ``grace`` seconds if actors are in the middle of a sample. In a thread that they
        cannot end without, as in a garbage collection there, it does not.
        """
        thread = self._thread
        if thread is None:
            self.has_ended = True
            return
        self._events.put(self._begin_end, grace)
        if threading.get_ident() in (self._events.ray_thread, thread.ident):
            return
        with contextlib.suppress(queue.Empty):
            deadlines.get(self._ended, deadlines.after(grace + 2 * _KILL_SECONDS))
        self._ended.put(None)  # for others who stop it
        if self.has_ended:
            thread.join()

    def when_ended(self, act: Callable[[], object]) -> bool:
        """Has ``act`` called when the thread ends. False where it has ended: then nothing is called."""
        if self.has_ended:
            return False
        self._at_end.append(act)
        self._act_if_ended()  # meanwhile
        return True

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._grace is None:
                self._step(None)
            self._end_all(self._grace)
        finally:
            self.has_ended = True
            self._act_if_ended()
            self._ended.put(None)

    def _act_if_ended(self) -> None:
        # No lock, since a finalizer may be here too: of several that find the thread to have ended, one gets the act.
        if self.has_ended:
            with contextlib.suppress(IndexError):
                self._at_end.pop()()

    def _step(self, deadline: float | None) -> None:
        act = self._events.get(deadline)
        try:
            act()
        except Exception as error:  # nobody else would tell the loop, which would wait for ever
            self._lose_all(f"what came of it could not be taken ({error!r})")

    def _begin(self, proxy: Proxy, orders: Orders, parcel: Any) -> None:
        self._current[proxy.number] = proxy
        proxy.begin(orders, parcel)

    def _send(self, worker: int, token: Token) -> None:
        self._current[worker].send(token)

    def _set_gate(self, words: tuple[int, int]) -> None:
        for proxy in self._current.values():
            proxy.set_gate(words)

    def _lose_all(self, why: str) -> None:
        for proxy in self._current.values():
            proxy.end(why)

    def _begin_end(self, grace: float) -> None:
        self._grace = grace if self._grace is None else min(grace, self._grace)

    def _end_all(self, grace: float) -> None:
        """Ends all actors: at once those that have nothing to finish, and others when they have, or in ``grace``."""
        for proxy in self._all:
            proxy.is_leaving = True
            if proxy.is_idle:
                proxy.end("")
            else:
                proxy.leave()
        self._await(lambda: all(proxy.has_ended for proxy in self._all), grace)
        for proxy in self._all:
            proxy.end("")
        self._await(lambda: all(proxy.is_gone for proxy in self._all), _KILL_SECONDS)

    def _await(self, is_over: Callable[[], bool], seconds: float) -> None:
        deadline = deadlines.after(seconds)
        self._grace = seconds
        with contextlib.suppress(queue.Empty):
            while not is_over() and self._grace and cluster.session() == self._session:
                self._step(deadline)
