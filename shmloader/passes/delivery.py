"""Results of workers for whoever asks: a pool, its workers and their dispatcher, behind one lock.

It is what the front doors share that are no loaders. Whoever uses it says what is to be made, and which result is next;
here is what makes that safe: from several threads, and across a KeyboardInterrupt.

One thread at a time waits for the workers; it *leads*. Others wait for the one that leads: when it has booked what
came, it calls them all, and each looks for what it wants. Whoever finds nothing waits again, and one of these leads.

Signal handlers of Python's run between any two instructions of the main thread, and may raise. So in the main thread
none is called while anything is booked, or waited for: a signal wakes the wait, what came by then is booked, and the
handlers are called when that is done. What was taken by then is put back if one of them raises.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from torch.utils.data import get_worker_info

from shmloader import deadlines, interrupts, process_exit
from shmloader.errors import WorkerDiedError
from shmloader.slots.pool import Pool
from shmloader.slots.pool_cache import PoolSettings
from shmloader.slots.results import Result
from shmloader.workers.interface import SilenceError, Workers
from shmloader.workers.wire import Token

from .dispatcher import Dispatcher, DispatchOptions
from .meter import Totals
from .restarts import RestartCount
from .steps import Steps
from .take_meter import TakeMeter

# What came of a job: its result, or what it raised. A plain tuple, since making one calls nothing: no signal's handler
# can come between an exception and the moment when what was taken is put back.
Outcome = tuple[Any, Exception | None]


class ClosedError(RuntimeError):
    """It was closed; a RuntimeError to whoever does not know better."""


@dataclass
class Outlet:
    """Where results leave, for one who asks or for several who share them.

    Attributes:
        take: returns what is next, or None where that has not come yet. It may raise what ends the wait.
        refill: asks for more, once a result has left. Both are called while this is booking.
        returned: outcomes that were taken and could not be handed out; they come first.
        counts: whether waiting for it is a consumer's.
    """

    take: Callable[[], Result | None]
    refill: Callable[[], object]
    returned: deque[Outcome] = field(default_factory=deque)
    counts: bool = True


class Delivery:
    """Workers, and what they make. Used in the process that made it, from any number of threads.

    Workers are started by `start`, or by the first `booking`.

    Args:
        name: how errors call what the user has made.
        source: says what workers make; called when they are started. It returns a `BatchSource`, or what else workers
            of this kind know.
        options: how many workers, and which of them is asked.
        settings: of the pool.
        new_workers: makes the workers, so that they can be woken.

    Attributes:
        restart_count: counts the workers that are replaced.
        is_closed: whether it was closed, or has failed.
        steps: who is told of each `get`.
        meter: how long those who take have waited.
    """

    def __init__(
        self,
        name: str,
        source: Callable[[], Any],
        options: DispatchOptions,
        settings: PoolSettings,
        new_workers: Callable[[], Workers],
    ) -> None:
        self.restart_count = RestartCount()
        self.is_closed = False
        self.steps = Steps()
        self.meter = TakeMeter()
        self._made = Totals()  # until the workers were ended
        self._name = name
        self._source = source
        self._options = options
        self._settings = settings
        self._new_workers = new_workers
        self._owner_pid = os.getpid()
        self._death = ""
        self._lock = threading.RLock()
        self._is_booking = False
        self._is_led = False  # whether a thread waits for the workers
        self._ender = 0  # the thread that ends them
        self._has_ended = threading.Event()
        self._followers: list[SimpleQueue[None]] = []
        self._parts: _Parts | None = None
        self._forwards_logs = False

    # -- the workers ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the workers, where they are not started. Takes as long as starting so many does.

        Raises:
            RuntimeError: it is closed, or belongs to another process.
            ValueError, PoolMemoryError: the pool cannot be made.
            Exception: what cannot be pickled for a worker that is spawned.
        """
        self._check_open()
        with interrupts.AllDeferred(), self._locked():
            self._check_open()
            if self._parts is None:
                self._parts = self._started()
                self._forwards_logs = self._parts.workers.forwards_logs
                _open[id(self._parts.dispatcher)] = weakref.ref(self)

    def _started(self) -> _Parts:
        pool = self._settings.make()
        try:
            source = self._source()  # first: it may fail, and workers have descriptors already
            workers = self._new_workers()
            dispatcher = Dispatcher(source, self._options, pool, workers, self.restart_count)
        except BaseException:
            pool.close()
            raise
        try:
            dispatcher.start()
        except BaseException:
            _end(dispatcher, pool)
            raise
        return _Parts(pool, workers, dispatcher, interrupts.at_drop(functools.partial(_end, dispatcher, pool)))

    @property
    def has_started(self) -> bool:
        """Whether there are workers, or were."""
        return self._parts is not None

    @property
    def is_running(self) -> bool:
        """Whether there are workers, and they are this process's."""
        parts = self._parts
        return parts is not None and parts.dispatcher.is_open

    @property
    def pool(self) -> Pool:
        """Where results lie. Only once the workers are started."""
        return self._running.pool

    @property
    def dispatcher(self) -> Dispatcher:
        """Who asks the workers. Only once they are started; all of it but what reads is for `booking`."""
        return self._running.dispatcher

    @property
    def _running(self) -> _Parts:
        assert self._parts is not None
        return self._parts

    # -- booking -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def booking(self) -> Iterator[Dispatcher]:
        """Lets one thread at a time ask for jobs, with no signal handler in between. Starts the workers.

        Blocks while others book, which takes microseconds, or start or close.

        Raises:
            RuntimeError: it is closed, or belongs to another process; or by code that runs while this thread is in here
                already: a finalizer, or what unpickles a result.
            WorkerDiedError: it was closed since a worker died.
            Exception: as `start`.
        """
        if self._parts is None:
            self.start()
        self._check_open()
        with interrupts.AllDeferred(), self._locked():
            self._check_open()
            yield self.dispatcher

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            if self._is_booking:
                raise RuntimeError(f"this {self._name} is in use by this thread, so that what it calls cannot use it")
            self._is_booking = True
            try:
                yield
            finally:
                self._is_booking = False

    def _check_open(self) -> None:
        if self._owner_pid != os.getpid():
            raise RuntimeError(f"this {self._name} belongs to the process that made it; make another one here")
        if self.is_closed or not (self._parts is None or self._parts.dispatcher.is_open):
            process_exit.wait_if_abandoned()
            if self._death:
                raise WorkerDiedError(f"this {self._name} is closed, since a worker died: {self._death}")
            raise ClosedError(f"this {self._name} is closed")

    # -- taking --------------------------------------------------------------------------------------------------

    def get(
        self, outlet: Outlet, timeout: float | None, raised_as: Callable[[Exception], Exception] = lambda error: error
    ) -> Any:
        """Returns the next result of an outlet.

        Blocks until it is there. What wakes it: a result, the death of a worker, the end of the timeout, a signal,
        `close` in another thread. If a signal's handler raises, the result is still to be had.

        Args:
            outlet: which.
            timeout: seconds to wait; None: for ever; 0: what is there.
            raised_as: what is raised where making the result has raised an error, which may look like one of these.

        Raises:
            Empty: nothing came in time.
            WorkerDiedError: a worker has ended, and is not replaced. All is closed then.
            Exception: what making the result raised, or what ``take`` raises, or as `booking`.
        """
        if outlet.counts:
            if self.steps.listeners:  # before anything is taken, which an interrupt in there would lose
                self.steps.tell()
            self.meter.enter()
        try:
            return self._get(outlet, deadlines.after(timeout), raised_as)
        except BaseException:
            if outlet.counts:
                self.meter.leave()
            raise

    def _get(self, outlet: Outlet, deadline: float | None, raised_as: Callable[[Exception], Exception]) -> Any:
        if self._parts is None:
            with self._waiting(outlet):
                self.start()
        while True:
            outcome = None
            try:
                with interrupts.AllDeferred(self._call_all) as came:
                    outcome = self._next(outlet, deadline, came)
                if outcome is None:  # a signal came, and its handler did not mind
                    continue
                if self._forwards_logs:
                    self._running.workers.hear()
                if outlet.counts:  # here, and not when this returns: an interrupt in there would lose the outcome
                    self.meter.leave()
                value, error = outcome
                if error is None:
                    return value
            except BaseException:
                if outcome is not None:
                    outlet.returned.appendleft(outcome)
                    outcome = None  # the error may be part of a cycle with this frame, which would hold the result
                raise
            try:
                raise raised_as(error)
            finally:
                del outcome, error  # which has this frame

    def _next(self, outlet: Outlet, deadline: float | None, came: list[int]) -> Outcome | None:
        """Returns what comes next, or None where a signal came before it."""
        is_late, turn = False, None
        while True:
            self._check_open()
            with self._locked():
                self._check_open()
                if turn in self._followers:  # it was not called
                    self._followers.remove(turn)
                self.pool.collect()
                if (outcome := self._take(outlet)) is not None or came:
                    return outcome
                if is_late:
                    raise Empty
                turn = self._take_turn()
            with self._waiting(outlet):
                is_late = self._lead(deadline) if turn is None else _is_late(turn, deadline)

    @contextlib.contextmanager
    def _waiting(self, outlet: Outlet) -> Iterator[None]:
        if not outlet.counts:
            yield
            return
        self.meter.begin_wait()
        try:
            yield
        finally:
            self.meter.end_wait(is_first=self._parts is None or not self._parts.pool.batches)

    def _take(self, outlet: Outlet) -> Outcome | None:
        if outlet.returned:
            return outlet.returned.popleft()
        result = outlet.take()
        if result is None:
            return None
        outlet.returned.append(self._outcome(result))  # where it stays if no more can be asked for
        outlet.refill()
        return outlet.returned.popleft()

    def _outcome(self, result: Result) -> Outcome:
        try:
            return self.pool.hand_over(result)[0], None
        except Exception as error:
            return None, error

    def _take_turn(self) -> SimpleQueue[None] | None:
        """Has this thread lead, or returns what calls it."""
        if not self._is_led:
            self._is_led = True
            self.dispatcher.prepare_to_wait()
            return None
        turn: SimpleQueue[None] = SimpleQueue()
        self._followers.append(turn)
        return turn

    def _lead(self, deadline: float | None) -> bool:
        """Waits for the workers, and books what came. Returns whether nothing came in time."""
        tokens: list[Token] = []
        dead: list[int] = []
        is_late = False
        try:
            tokens, dead = self._running.workers.wait(deadlines.left(deadline))
        except SilenceError:
            is_late = True
        finally:
            with self._locked():
                self._is_led = False
                self._book(tokens, dead)
        return is_late

    def _book(self, tokens: list[Token], dead: list[int]) -> None:
        followers, self._followers = self._followers, []
        try:
            if not self.is_closed:
                self.dispatcher.act_on(tokens, dead)
        except WorkerDiedError as error:
            self._fail(error)
            raise
        finally:
            for turn in followers:
                turn.put(None)

    def _call_all(self) -> None:
        """Ends all waits, so that one sees what has changed. Called in signal handlers too."""
        for turn in list(self._followers):
            turn.put(None)
        if self._parts is not None:
            self._parts.workers.wake()

    # -- figures -------------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Returns what was given and taken so far. From any thread; does not block."""
        self._note_made()
        taken = self.meter.totals()
        return taken.plus(self._made)._replace(restarts=self.restart_count.total)

    def _note_made(self) -> None:
        """Reads what workers have written, while they are there."""
        parts = self._parts
        if parts is not None and parts.dispatcher.is_open:
            pool, sums = parts.pool, tuple(record.sums() for record in parts.dispatcher.records())
            self._made = Totals(
                pool.batches, pool.samples, pool.nbytes, pool.copies, pool.copies_for_room, workers=sums
            )

    # -- the end -------------------------------------------------------------------------------------------------

    def _fail(self, error: WorkerDiedError) -> None:
        self._note_made()
        self._death = str(error)
        self.is_closed = True
        self.dispatcher.give_up()

    def close(self) -> None:
        """Ends the workers; what they make is dropped. Safe to call again; in a forked process it does nothing.

        Results that were handed out stay as they are. Blocks until the workers have ended, `interface.GRACE_SECONDS` if
        they are in the middle of a job. Threads that wait in `get` have a RuntimeError. Where several threads call it,
        all wait, but for workers: these are waited for themselves.
        """
        if self._owner_pid != os.getpid():
            return
        with interrupts.AllDeferred():
            self.is_closed = True
            while (turn := self._end_unless_led()) is not None:
                self._call_all()
                turn.get()

    def _end_unless_led(self) -> SimpleQueue[None] | None:
        """Ends the workers, or returns what calls when the thread that waits for them has left them."""
        with self._locked():
            if self._is_led:
                turn: SimpleQueue[None] = SimpleQueue()
                self._followers.append(turn)
                return turn
            ender, self._ender = self._ender, self._ender or threading.get_ident()
        # Not under the lock, which a worker thread might wait for that is waited for here.
        if not ender:
            self._end()
        elif ender != threading.get_ident() and get_worker_info() is None:
            self._has_ended.wait()
        return None

    def _end(self) -> None:
        try:
            self._note_made()
            if self._parts is not None:
                _end(self._parts.dispatcher, self._parts.pool)
        finally:
            self._has_ended.set()
            self._call_all()  # there may be followers whom nobody leads now


@dataclass(frozen=True)
class _Parts:
    pool: Pool
    workers: Workers
    dispatcher: Dispatcher
    at_drop: Any  # ends them when this is dropped


def _is_late(turn: SimpleQueue[None], deadline: float | None) -> bool:
    """Waits to be called, and returns whether that was not in time."""
    try:
        deadlines.get(turn, deadline)
    except Empty:
        return True
    return False


def _end(dispatcher: Dispatcher, pool: Pool) -> None:
    with interrupts.deferred():
        _open.pop(id(dispatcher), None)
        if dispatcher.close():
            pool.close()


_open: dict[int, weakref.ref[Delivery]] = {}  # by their dispatchers' numbers


def close_all() -> None:
    """Closes all deliveries of this process, since it ends."""
    for one in list(_open.values()):
        if (delivery := one()) is not None:
            delivery.close()


# Before dispatchers are closed, which threads may wait in.
process_exit.at_exit(process_exit.AtExit.CLOSE_DELIVERIES, close_all)
process_exit.in_child(process_exit.InChild.DISOWN_PASSES, _open.clear)
