"""Workers that are threads of the loop's own process: start, tell, wait, replace, stop.

They run the same loops as worker processes do (`worker_loop`), with queues where those have pipes. The parent waits in
one place, on the queue that all workers write to; a worker that ends puts a note of that behind its last token.

What differs: a thread cannot be killed, and it shares the process. So one that does not end in time is left behind, and
the last such thread closes the pool when it ends after all. And what code in a worker holds of a slot may be held on
after the worker has ended (`holds`).
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import functools
import os
import queue
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from types import MethodType
from typing import Any

from shmloader import callers, deadlines, interrupts, process_exit, torch_private
from shmloader.collate import default
from shmloader.errors import StuckWorkerWarning, same_kind
from shmloader.slots.writer import Hold
from shmloader.words import Words
from shmloader.workers import kernel_state, tracebacks, worker_loop
from shmloader.workers.brief import BatchSource, Brief
from shmloader.workers.interface import SilenceError
from shmloader.workers.wire import Fields, Inbox, Token
from shmloader.workers.worker_loop import WorkerLoop

from . import crews, torch_modes
from .parent_queue import ParentQueue
from .start import start
from .torch_modes import TorchModes


class _Worker:
    """One worker, of which the thread and the parent know.

    Args:
        number: its number.

    Attributes:
        thread: where it runs.
        inbox: what it is sent: its brief, and then tokens.
        loop: what it does, once it has begun.
        ending: how it has ended, in a sentence.
        is_leaving: whether it was told that no job will follow, so that its end is no news.
        has_ended: whether it will not write to a slot again, and holds nothing.
    """

    thread: threading.Thread

    def __init__(self, number: int) -> None:
        self.number = number
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.loop: WorkerLoop | None = None
        self.ending = ""
        self.is_leaving = False
        self.has_ended = False


class ThreadWorkers:
    """The worker threads of one iterator.

    Args:
        num_workers: how many.
    """

    _words: Words
    method = "thread"
    is_forked = True  # in the sense that nothing is pickled
    imports_main = False

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._workers: list[_Worker] = []
        self._former: list[_Worker] = []  # that were replaced
        self._up = ParentQueue()
        self._ends: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()  # for `stop`, whoever waits elsewhere
        self._at_the_last_end: deque[Callable[[], object]] = deque()
        self._modes = torch_modes.of_this_thread()

    @property
    def processes(self) -> list[Any]:
        """There are none."""
        return []

    @property
    def forwards_logs(self) -> bool:
        """Never: threads log to the handlers of their process as it is."""
        return False

    def start(self, briefs: list[Brief]) -> None:
        """Starts the threads, one for each brief, in the order of their numbers.

        Raises:
            Exception: the dataset is iterable and cannot be copied.
            RuntimeError: the system has no more threads.
        """
        torch_private.tell_threads_apart()
        default.replace_entries()  # here, and not in several threads at a time
        with interrupts.Undeferred():
            own = [_for_a_thread(brief) for brief in briefs]
        self._words = briefs[0].source.words
        with interrupts.AllDeferred():  # a thread that nobody knows of would wait for its brief for ever
            for brief in own:
                self._workers.append(self._start_one(brief.worker))
            # Not before all are there: a thread that begins at once would keep the interpreter lock from the next start
            for worker, brief in zip(self._workers, own, strict=True):
                worker.inbox.put(brief)

    def replace(self, brief: Brief) -> None:
        """Starts a thread in the place of a worker that has died."""
        dead = self._workers[brief.worker]
        self._former.append(dead)
        with interrupts.Undeferred():
            own = _for_a_thread(brief)
        with interrupts.AllDeferred():
            self._workers[brief.worker] = self._start_one(brief.worker, lends=not self.holds())
            self._workers[brief.worker].inbox.put(own)

    def _start_one(self, number: int, lends: bool = True) -> _Worker:
        worker = _Worker(number)

        def run() -> None:
            crews.join(self)
            try:
                worker.ending = _serve(worker, self._up, lends, self._modes)
            finally:
                self._note_end(worker)

        # As in a forked worker: what the thread that iterates has set for itself, numpy's errstate say.
        in_context = functools.partial(contextvars.copy_context().run, run)
        worker.thread = start(in_context, f"shmloader-worker-{number}")
        return worker

    def _note_end(self, worker: _Worker) -> None:
        """Tells everybody whom it concerns. Called in the worker, as the last thing that it does."""
        worker.has_ended = True
        self._act_if_all_have_ended()
        self._up.end(worker)
        self._ends.put(worker)

    def send(self, worker: int, token: Fields) -> None:
        """Sends a token to a worker. Does not block. To one that has ended it goes nowhere; `wait` tells of that."""
        self._workers[worker].inbox.put(Token._make(token))

    def dismiss(self, worker: int, token: Fields) -> None:
        """Sends a worker that has nothing left to do its last token, once; its end is no news then."""
        if not self._workers[worker].is_leaving:
            with interrupts.AllDeferred():  # noted, and not sent: it would wait for ever
                self._workers[worker].is_leaving = True
                self.send(worker, token)

    def shut_gate(self, words: tuple[int, int]) -> None:
        """Does nothing: the gate is in memory that threads see."""

    def wait(self, timeout: float | None) -> tuple[list[Token], list[int]]:
        """Waits for workers; see `ParentQueue.wait`."""
        return self._up.wait(timeout)

    def read(self) -> list[Token]:
        """Returns the tokens that are there. Does not block; `wait` tells of workers that have ended."""
        return self._up.read()

    def wake(self) -> None:
        """Ends a wait: the one that is under way, or else the next. Does not block; safe in signal handlers too."""
        self._up.wake()

    def hear(self) -> None:
        """Does nothing: what a thread logs is logged."""

    def name(self, worker: int) -> str:
        """Returns what the system knows a worker by."""
        number = self._workers[worker].thread.native_id
        return "a thread" if number is None else f"thread {number}"

    def ending(self, worker: int) -> str:
        """Says how a worker has ended."""
        return self._workers[worker].ending

    def state(self, worker: int) -> str:
        """Says what the kernel knows of a worker: whether it runs, waits, or is stopped."""
        number = self._workers[worker].thread.native_id
        return "about to start" if number is None else kernel_state.read(f"/proc/{os.getpid()}/task/{number}")

    def traceback(self, worker: int) -> list[str]:
        """Returns the Python frames that a worker is in, the innermost first."""
        return tracebacks.of_thread(self._workers[worker].thread.ident)

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self, token: Fields, grace: float) -> None:
        """Tells all workers to end, and waits.

        Blocks until they have finished the batch that they are at, ``grace`` seconds at most, or until `kill`. What has
        not ended then is left behind; it ends after its batch. Called in one of the workers, by a garbage collection or
        a finalizer, it does not wait for that one.

        Warns:
            StuckWorkerWarning: a worker was left behind; not at the interpreter's end.
        """
        try:
            self._tell_all(token)
        finally:  # again, where a signal's handler has raised: whom nobody has told would wait for ever
            self._tell_all(token)
        own = threading.current_thread()
        others = [worker for worker in (*self._workers, *self._former) if worker.thread is not own]
        stuck = self._join(others, deadlines.after(grace))
        if stuck and not process_exit.is_exiting():
            warnings.warn(
                _describe(stuck, self.num_workers, self._words, grace),
                StuckWorkerWarning,
                stacklevel=callers.stacklevel(),
            )

    def _tell_all(self, token: Fields) -> None:
        for worker in self._workers:
            if not worker.is_leaving:
                worker.inbox.put(Token._make(token))  # twice does no harm
                worker.is_leaving = True
        self._up.close()  # for whoever waits in another thread

    def _join(self, workers: list[_Worker], deadline: float | None) -> list[_Worker]:
        """Waits for threads to end, and returns those that have not."""
        with contextlib.suppress(SilenceError):
            while not all(worker.has_ended for worker in workers):
                if _get(self._ends, deadline) is None:
                    break
        for worker in workers:
            if worker.has_ended:  # and has nothing left to do
                worker.thread.join((deadlines.left(deadline) or 0.0) + 1)
        return [worker for worker in workers if not worker.has_ended]

    def left_behind(self, act: Callable[[], object]) -> bool:
        """Whether `stop` has left workers that go on; then the last of them calls ``act`` as it ends."""
        if all(worker.has_ended for worker in self._workers):
            return False
        self._at_the_last_end.append(act)
        self._act_if_all_have_ended()  # meanwhile
        return True

    def _act_if_all_have_ended(self) -> None:
        # No lock, since a finalizer may be here too: of several that find all to have ended, one gets the act.
        if all(worker.has_ended for worker in self._workers):
            with contextlib.suppress(IndexError):
                self._at_the_last_end.pop()()

    def holds(self) -> list[Hold]:
        """Returns the slots of which code in this process holds something through a worker, also one that has ended."""
        loops = [worker.loop for worker in (*self._workers, *self._former) if worker.has_ended]
        return [hold for loop in loops if loop is not None for hold in loop.holds()]

    def kill(self) -> None:
        """Has `stop` wait no longer: no thread can be killed. Called in signal handlers too."""
        self._ends.put(None)


def _get(news: queue.SimpleQueue[Any], deadline: float | None) -> Any:
    """Returns what comes next.

    Raises:
        SilenceError: nothing came in time.
    """
    try:
        return deadlines.get(news, deadline)
    except queue.Empty:
        raise SilenceError from None


def _for_a_thread(brief: Brief) -> Brief:
    """Returns what a thread is told: no random state is its own, and an iterable dataset is copied as by a fork.

    Raises:
        Exception: it cannot be copied; of the same type as what says so, or a RuntimeError.
    """
    source = brief.source
    if isinstance(source, BatchSource) and (
        source.is_stream or isinstance(source.dataset, torch_private.MapDataPipe)  # which may be sharded
    ):
        copies: dict[int, Any] = {}
        source = dataclasses.replace(
            source,
            dataset=_copied(source.dataset, copies),
            collate_fn=_among(copies, source.collate_fn),
            init_fn=_among(copies, source.init_fn),
        )
    return dataclasses.replace(brief, source=source, saves_rng_state=False, kind="thread")


def _copied(dataset: Any, copies: dict[int, Any]) -> Any:
    """Returns a copy; ``copies`` gets those of its parts too, by the ids of what they are copies of."""
    try:
        return copy.deepcopy(dataset, copies)
    except Exception as error:
        text = (
            f"dataset (a {type(dataset).__qualname__}) cannot be copied, and every worker thread needs an iterable "
            f"dataset of its own: {error}. Give it a __deepcopy__, open what cannot be copied in __iter__, or use "
            "worker_type='process', which copies nothing"
        )
        raise same_kind(error, text) from error


def _among(copies: dict[int, Any], function: Any) -> Any:
    """Returns what a function of the user's is to a worker whose dataset is a copy.

    A method of the dataset, or of a part of it, is the copy's, as it is in a forked worker. With the loop's dataset it
    would write to an object that the worker never reads.
    """
    if id(function) in copies:
        return copies[id(function)]
    if isinstance(function, MethodType):
        return MethodType(function.__func__, _among(copies, function.__self__))
    if isinstance(function, functools.partial):
        keywords = {name: _among(copies, value) for name, value in function.keywords.items()}
        return functools.partial(
            _among(copies, function.func), *(_among(copies, one) for one in function.args), **keywords
        )
    return function


def _serve(worker: _Worker, outbox: ParentQueue, lends: bool, modes: TorchModes) -> str:
    """Does one job after the other until told to stop, and returns how that ended. Runs in the worker's thread."""
    inbox = worker.inbox
    brief = inbox.get()
    if not isinstance(brief, Brief):  # a STOP: another thread could not be started
        return ""
    source, owner = brief.source, brief.source.words.owner
    try:
        with torch_modes.entered(modes):
            loop = worker.loop = worker_loop.make(brief, Inbox(lambda: [inbox.get()]), outbox)
            if not lends:
                loop.writer.stop_lending()
            torch_private.set_thread_info(
                brief.worker, brief.num_workers, source.base_seed + brief.worker, loop.dataset
            )
            loop.install_in_thread()
            loop.begin()
            loop.serve()
        return f"{owner} worker thread ended unexpectedly. "
    except BaseException as error:
        if not (isinstance(error, SystemExit) or brief.arena.shared_state.stopped):
            with contextlib.suppress(Exception):  # as for a process, the traceback is printed and not sent
                traceback.print_exception(error)
        return f"{owner} worker thread was ended by {traceback.format_exception_only(error)[-1].strip()}. "
    finally:
        default.leave_thread()
        torch_private.forget_thread_info()


def _describe(stuck: list[_Worker], num_workers: int, words: Words, grace: float) -> str:
    names = ", ".join(str(worker.number) for worker in stuck)
    frames = tracebacks.of_thread(stuck[0].thread.ident)
    at = f", which is in {frames[0]}" if frames else ""
    return (
        f"{words.owner} worker thread {names} of {num_workers} did not end within {grace:g} seconds{at}. A thread "
        f"cannot be killed: it is left behind, ends after the {words.made} that it is at, and keeps the pool's memory "
        "until then. Code that may hang is safer in a process (worker_type='process')"
    )
