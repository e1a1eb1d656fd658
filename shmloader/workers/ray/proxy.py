"""A Ray actor as the parent sees it: calls out, results in, in the order of the calls. Used in the courier's thread.

Calls of an actor are done in the order in which they were made, but may be known in another: a small result comes with
the answer, a large one has to be fetched from its node. Results are taken in the order of calls. One that is lost with
its node ends its worker, and takes with it what came after.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from shmloader import deadlines
from shmloader.workers import wire
from shmloader.workers.threads.parent_queue import ParentQueue
from shmloader.workers.wire import Token

from . import cluster
from .actor import CONTROL, STAY
from .landing import Landing
from .messages import Hello, Look, Orders, Reply

_IN_SLOTS = (wire.BATCH, wire.FAULT)
_LOOK_SECONDS = 1.0
SHUT_DOWN = "Ray was shut down"


class Events:
    """What the courier's thread has to do next. It waits nowhere else.

    Attributes:
        ray_thread: the thread in which Ray tells of results; 0 before the first.
    """

    def __init__(self) -> None:
        self._acts: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._awaited: dict[int, Callable[[Any], object]] = {}
        self._numbers = itertools.count()
        self.ray_thread = 0

    def put(self, act: Callable[..., object], *args: Any) -> None:
        """Has ``act`` called in the courier's thread. Does not block; safe in signal handlers."""
        self._acts.put(functools.partial(act, *args))

    def get(self, deadline: float | None) -> Callable[[], object]:
        """Returns what is to be called next. Blocks until there is something.

        Raises:
            queue.Empty: there was nothing in time.
        """
        return deadlines.get(self._acts, deadline)

    def follow(self, ref: Any, act: Callable[[Any], object]) -> None:
        """Has ``act`` called in the courier's thread with the result of a call, or with what it has raised."""
        # Weak: where Ray is shut down, it keeps for ever what it was to call, and the pool's memory would stay with it.
        events, number = weakref.ref(self), next(self._numbers)
        self._awaited[number] = act

        def note(future: Future[Any]) -> None:
            if (here := events()) is not None:
                here.ray_thread = threading.get_ident()
                error = future.exception()
                here.put(here._awaited.pop(number), future.result() if error is None else error)

        ref.future().add_done_callback(note)


class _Call:
    """A call of which the result is taken in its turn.

    Args:
        token: what it is about.
    """

    def __init__(self, token: Token) -> None:
        self.token = token
        self.room = token.room
        self.result: Any = None
        self.is_done = False
        self.is_begun = False
        self.is_asking = False


class Proxy:
    """One worker.

    Args:
        number: its number.
        handle: the actor.
        landing: its slots.
        events: where results come.
        up: where the parent is told.

    Attributes:
        hello: what it has said of itself; None: it has not begun.
        ending: why it has ended.
        is_leaving: whether it was told that no job will follow, so that its end is no news.
        has_ended: whether nothing more will come of it.
        is_gone: whether its process has ended.
    """

    def __init__(self, number: int, handle: Any, landing: Landing, events: Events, up: ParentQueue) -> None:
        self.number = number
        self.hello: Hello | None = None
        self.ending = ""
        self.is_leaving = False
        self.has_ended = False
        self.is_gone = False
        self._handle = handle
        self._landing = landing
        self._events = events
        self._up = up
        self._session = cluster.session()
        self._calls: deque[_Call] = deque()

    @property
    def name(self) -> str:
        """What Ray knows it by, and its node."""
        number = repr(self._handle).rpartition(", ")[2].rstrip(")")  # its one public place: Actor(class, number)
        text = f"Ray actor {number}"
        return text if self.hello is None else f"{text}, pid {self.hello.pid} on node {self.hello.node}"

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing that it would have to finish."""
        return self.hello is None or not self._calls

    # -- out -----------------------------------------------------------------------------------------------------

    def begin(self, orders: Orders, parcel: Any) -> None:
        """Has the actor begin, as soon as Ray has found a node for it."""
        self._do(self._begin, orders, parcel)

    def _begin(self, orders: Orders, parcel: Any) -> None:
        self._events.follow(self._handle.stay.options(concurrency_group=STAY).remote(), self._gone)
        self._events.follow(self._handle.begin.remote(orders, parcel), self._greet)

    def send(self, token: Token) -> None:
        """Does what a token says. To an actor that has ended it goes nowhere."""
        self._do(self._send, token)

    def _send(self, token: Token) -> None:
        if token.kind == wire.JOB:
            job = self._landing.job_of(token)
            self._call(token, self._handle.make.remote(job, token.seq, token.generation))
            self._note_begun()
        elif token.kind == wire.RESUME:
            self._call(token, self._handle.resume.remote(token.generation, *self._landing.of_the_pass))
        elif token.kind == wire.CALL:
            self._set_gate(self._landing.read_call())
        elif token.kind == wire.STOP:
            self.is_leaving = True
            self._finish()
        else:
            self._give_room(token)

    def set_gate(self, words: tuple[int, int]) -> None:
        """Tells the actor how the gate is."""
        self._do(self._set_gate, words)

    def _set_gate(self, words: tuple[int, int]) -> None:
        self._handle.set_gate.options(concurrency_group=CONTROL).remote(words)

    def leave(self) -> None:
        """Has the actor drop what it has not begun, and end when it is done with what it has."""
        self._calls.clear()
        self._do(self._leave)

    def _leave(self) -> None:
        self._handle.stop.options(concurrency_group=CONTROL).remote()
        self._finish()

    def _finish(self) -> None:
        self._events.follow(self._handle.finish.remote(), lambda result: self.end(""))

    def _call(self, token: Token, ref: Any) -> None:
        call = _Call(token)
        self._calls.append(call)
        self._events.follow(ref, functools.partial(self._answer, call))

    # -- in ------------------------------------------------------------------------------------------------------

    def _greet(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self._lose(result)
        else:
            self.hello = result
            self._landing.greet(result)
            self._go_on()

    def _answer(self, call: _Call, result: Any) -> None:
        call.result, call.is_done = result, True
        if self._calls and self._calls[0] is call:
            self._go_on()

    def _go_on(self) -> None:
        """Takes what has come, in the order of calls."""
        calls = self._calls
        while calls and calls[0].is_done and not self.has_ended:
            call = calls[0]
            if isinstance(call.result, BaseException):
                self._lose(call.result)
                return
            if call.is_asking or not self._has_room(call):
                return
            calls.popleft()
            self._take(call.token, call.result)
        self._note_begun()

    def _has_room(self, call: _Call) -> bool:
        call.is_asking = call.result.kind in _IN_SLOTS and not self._landing.fits(call.token, call.result, call.room)
        return not call.is_asking

    def _take(self, token: Token, reply: Reply) -> None:
        if reply.kind == wire.RESUMED:
            self._landing.resume(token, reply)
        elif reply.kind:
            self._landing.land(token, reply)

    def _give_room(self, token: Token) -> None:
        """Takes up a GRANT or a CURB."""
        jobs = (call for call in self._calls if call.token.kind == wire.JOB and call.token.seq == token.seq)
        call = next(jobs, None)
        if call is None or token.kind == wire.CURB:
            if call is not None:
                call.room = token.room
            return
        call.is_asking = False
        if token.room:
            call.room = token.room
        else:
            self._calls.remove(call)
            self._landing.refuse(call.token, call.result)
        self._go_on()

    def _note_begun(self) -> None:
        """Notes which batch the actor is at: the first that has not come."""
        call = self._calls[0] if self._calls and self.hello is not None else None
        if call is not None and not call.is_begun and call.token.kind == wire.JOB:
            call.is_begun = True
            self._landing.begin(call.token.seq)

    # -- the end -------------------------------------------------------------------------------------------------

    def _do(self, act: Callable[..., object], *args: Any) -> None:
        """Does something that calls the actor, if it is there still."""
        if self.has_ended:
            return
        if cluster.session() != self._session:  # a call would connect to Ray anew
            self.end(SHUT_DOWN)
            return
        try:
            act(*args)
        except Exception as error:  # Ray has ended meanwhile, say
            self._lose(error)

    def _lose(self, error: BaseException) -> None:
        is_here = cluster.session() == self._session
        self.end(cluster.death(error) if is_here else SHUT_DOWN)

    def _gone(self, result: Any) -> None:
        """Notes that the actor's process has ended."""
        self.is_gone = True
        self._lose(result)

    def end(self, why: str) -> None:
        """Notes that nothing more will come of the actor, and sees to it that this is so."""
        if self.has_ended:
            return
        self.has_ended = True
        self.ending = why
        self._calls.clear()
        if not self.is_gone and cluster.session() == self._session:
            with contextlib.suppress(Exception):  # Ray has ended meanwhile
                ray.kill(self._handle, no_restart=True)
        self._up.end(self)

    def ask(self) -> Any:
        """Asks the actor what it does, and returns the reference of the answer. Safe from any thread."""
        return self._handle.look.options(concurrency_group=CONTROL).remote()


def look_at(proxies: list[Proxy]) -> list[Look | None]:
    """Asks actors what they do, and returns what each says; None where it does not answer. Blocks a second at most.

    Called in the thread of the loop.
    """
    refs = [proxy.ask() for proxy in proxies]
    ready = set(ray.wait(refs, num_returns=len(refs), timeout=_LOOK_SECONDS)[0])
    return [_result(ref) if ref in ready else None for ref in refs]


def _result(ref: Any) -> Look | None:
    with contextlib.suppress(Exception):  # it has ended
        look: Look = ray.get(ref)
        return look
    return None
