"""JobQueue: calls of one function in background workers, and their results in order.

A call's arguments travel down in the slot that its result comes up in, so that a result costs the consumer about as
much as a batch of the loader's does. See `passes.delivery` for what happens to a result, and `passes.lines` for whose
it is.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty
from types import TracebackType
from typing import Any

import torch

from . import callers, requirements, words
from .arguments import (
    checked_callable,
    checked_count,
    checked_flag,
    checked_generator,
    checked_name,
    checked_optional_count,
    checked_timeout,
)
from .errors import IdleWorkersWarning
from .observe import gathering, processors, registry, stream_verdict
from .observe.statistics import StreamStatistics
from .observe.verdict import Setting
from .passes.delivery import Delivery, Outlet
from .passes.dispatcher import DispatchOptions
from .passes.lines import Job, Line, Lines
from .slots.pool_cache import PoolSettings
from .slots.results import Result
from .workers import calls, kinds


class JobQueue:
    """Calls a function in workers, ahead of whoever needs the results.

    Results arrive as the loader's batches do: a worker writes a result into a slot of shared memory, and `get` returns
    views of the slot, with no copy. Arrays come back as arrays and tensors as tensors, in whatever structure, and of
    shapes that may differ from job to job. The slot is used again when nothing of the result is alive, and never
    before; who holds many results gets private copies of further ones.

    For example:

        with JobQueue(load, num_workers=4) as queue:
            for path in paths[:8]:
                queue.put(path)
            for path in paths[8:]:
                work_on(queue.get())
                queue.put(path)
            while len(queue):
                work_on(queue.get())

            for picture in queue.map((path, "RGB") for path in paths):  # or so
                work_on(picture)

    Jobs are sent ``num_workers x prefetch_factor`` ahead, each to a worker that has least to do. The rest waits in this
    process, and is sent as results are taken: a `put`, a `get` or a step of a `map` sends what may be sent. A job that
    takes much longer than others holds up results behind it, but no worker until so many results wait.

    Three kinds of callers may use one queue at the same time, and each gets its own results, in its own order: `put`
    with `get`, and each iterator that `map` or `repeat` has returned. Jobs of all of them are sent in the order in
    which they were asked for. Results that come while another caller's are waited for are moved out of their slots,
    which takes a copy.

    Which process runs what: ``function`` and ``worker_init_fn`` run in the workers. With the start method fork they are
    whatever they are here, lambdas and bound methods too, and nothing is copied; with others they are pickled.
    Arguments are pickled when a job is put, so that what becomes of them afterwards does not matter. Workers are
    started by the first job, or by `start`. In them `torch.utils.data.get_worker_info` works. Torch's, numpy's and
    Python's random generators are seeded differently in each worker process. Which worker has which job depends on
    which is free, and so do the random numbers that a job draws from these.

    It is safe to use from several threads: each result goes to one of them. It belongs to the process that made it. It
    survives a KeyboardInterrupt, or an exception of another signal's handler, with nothing lost and nothing doubled:
    the handlers run when what they might tear apart is done, within some microseconds, or at once where `get` waits.
    The workers end with `close` or the ``with`` block, when the queue is dropped, and with the program.

    Args:
        function: what is called. An exception that it raises is raised by the `get` that its result would have come
            from, with its type, its text and the worker's traceback. One that is more than its text is the
            ``__cause__`` of that, as it was raised.
        num_workers: how many workers.
        prefetch_factor: jobs per worker that are sent ahead.
        worker_type: "process" or "thread". A function in a thread shares the program's objects and global random
            generators, which are not seeded then, and cannot be killed.
        multiprocessing_context: start method or context; by default what `multiprocessing.set_start_method` was told,
            else fork.
        worker_init_fn: called in each worker with its number, after its random generators were seeded.
        worker_restarts: how many workers that die are replaced. Jobs that were lost with one are run again, with the
            same random numbers (not in threads); a job that ends two workers is not tried again. 0: a death is a
            `WorkerDiedError`.
        max_pool_bytes: what the slots may take, as in the loader: by default half of the memory that this process may
            use.
        num_slots: results that the pool holds at a time, ``num_workers x prefetch_factor + 2`` at least; by default
            there are enough for a consumer that holds sixteen.
        generator: source of the workers' seed; by default torch's global one.
        name: what this queue is called in errors and warnings; None: JobQueue.
        forward_logs: whether what worker processes log is handed to the handlers of this process, as with a loader:
            while this process waits for workers, before what they have made is returned, and when they end.

    Raises:
        TypeError, ValueError: an argument cannot be; the error names it.
        RuntimeError: this platform, or this release of torch, lacks what it is made of.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        num_workers: int,
        prefetch_factor: int = 2,
        worker_type: str = "process",
        multiprocessing_context: Any = None,
        worker_init_fn: Callable[[int], None] | None = None,
        worker_restarts: int = 0,
        max_pool_bytes: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
        name: str | None = None,
        forward_logs: bool = False,
    ) -> None:
        checked_callable("function", function)
        if worker_init_fn is not None:
            checked_callable("worker_init_fn", worker_init_fn)
        checked_generator(generator)
        self.name = checked_name(name)
        self._function = function
        own_words = words.named(words.QUEUE, self.name)
        options = DispatchOptions(
            num_workers=checked_count("num_workers", num_workers, 1),
            prefetch_factor=checked_count("prefetch_factor", prefetch_factor, 1),
            in_order=True,
            persistent=True,
            worker_restarts=checked_count("worker_restarts", worker_restarts, 0),
            to_the_free=True,
        )
        settings = PoolSettings(
            num_workers=num_workers,
            in_flight=options.look_ahead,
            num_slots=checked_optional_count("num_slots", num_slots, 1),
            max_bytes=checked_optional_count("max_pool_bytes", max_pool_bytes, 1),
            declared_bytes=0,
            words=own_words,
        )
        settings.check()
        workers = functools.partial(
            kinds.new_workers,
            kinds.checked_worker_type(worker_type, multiprocessing_context, "JobQueue"),
            kinds.checked_context(multiprocessing_context),
            num_workers,
            options.look_ahead,
            can_wake=True,
            words=own_words,
            forward_logs=checked_flag("forward_logs", forward_logs),
        )
        requirements.require("JobQueue", worker_type)
        self._num_workers = num_workers
        self._worker_type = worker_type
        self._look_ahead = options.look_ahead
        source = functools.partial(calls.source, function, worker_init_fn, generator, own_words)
        self._delivery = Delivery("JobQueue", source, options, settings, workers)
        registry.add(self, self._delivery)
        self._lines: Lines[Result] = Lines(options.look_ahead)
        self._caller = _Caller(self)
        self._was_put = False  # since the last get
        self._has_warned = False

    def start(self) -> None:
        """Starts the workers, where they are not started. Takes as long as starting so many does.

        Raises:
            RuntimeError: the queue is closed, or belongs to another process.
            PoolMemoryError: there is no memory for the pool.
            Exception: what cannot be pickled for a worker that is not forked; the error names the argument.
        """
        self._delivery.start()

    def put(self, /, *args: Any, **kwargs: Any) -> None:
        """Asks for a call of the function with these arguments. Does not block, however many jobs are under way.

        Raises:
            TypeError: an argument cannot be pickled. The error says which, and nothing is put.
            RuntimeError, Exception: as `start`; nothing is put.
        """
        with self._asking(self._caller.line, calls.pickled(args, kwargs)):
            self._was_put = True

    def get(self, timeout: float | None = None) -> Any:
        """Returns the result of the oldest job that was put and not got.

        Blocks until it is there. What wakes it: the result, the death of a worker, the end of the timeout, a signal,
        `close` in another thread.

        Args:
            timeout: seconds to wait; None: for ever; 0: what is there.

        Raises:
            queue.Empty: the result did not come in time: it can be asked for again. Or there is nothing to wait for,
                since nothing was put that was not got: that is said at once, whatever the timeout.
            WorkerDiedError: a worker died, and is not replaced. The queue is closed; jobs that were under way are lost.
            PoolMemoryError: the result, or the job's arguments, do not fit under ``max_pool_bytes``.
            RuntimeError: the queue is closed, or belongs to another process.
            Exception: what the function raised; the job is got then.

        Warns:
            IdleWorkersWarning: once; it waits for a job that was just put, while fewer are under way than there are
                workers.
            HeldBatchesWarning: once; so many results are held that further ones are copied.
            WorkerRestartWarning: a worker died and is replaced.
        """
        timeout = checked_timeout(timeout)
        was_put, self._was_put = self._was_put, False
        if was_put and timeout != 0 and not self._has_warned and len(self) < self._num_workers:
            try:
                return self._delivery.get(self._caller.outlet, 0, _marked)
            except Empty:
                self._warn_of_idle_workers()
            except _RaisedError as raised:
                raise raised.error from raised.error.__cause__
        return self._delivery.get(self._caller.outlet, timeout)

    def map(self, arguments: Iterable[tuple[Any, ...]]) -> JobResults:
        """Calls the function with each tuple of arguments, and returns an iterator of the results, in order.

        The iterable is read by whoever iterates, and here for the first jobs: never further ahead of the results than
        jobs may be under way, ``num_workers x prefetch_factor``. What it raises comes in its turn, behind the results
        before; so do a TypeError for what is no tuple, or cannot be pickled, and what the function raises. The iterator
        goes on after each.

        The iterator may be left at any time: by ``break``, by its `close`, or by dropping it. What it had asked for
        runs to its end in the workers, and its results are dropped. It is for one thread at a time.

        Raises:
            TypeError: it is not iterable.
            RuntimeError, Exception: as `start`.
        """
        if not isinstance(arguments, Iterable):
            raise TypeError(f"map takes an iterable of tuples of arguments, got {arguments!r}")
        return JobResults(self, iter(arguments), calls.pickled_or_error)

    def repeat(self, /, *args: Any, **kwargs: Any) -> JobResults:
        """Calls the function with these arguments again and again, and returns an endless iterator of the results.

        It keeps as many calls under way as may be, and is otherwise what `map` returns.

        Raises:
            TypeError: an argument cannot be pickled.
            RuntimeError, Exception: as `start`.
        """
        return JobResults(self, itertools.repeat(calls.pickled(args, kwargs)), lambda job: job)

    def __len__(self) -> int:
        """Returns how many results `get` has still to return. What `map` and `repeat` have asked for does not count."""
        return len(self._caller)

    def __bool__(self) -> bool:
        """Whether it is one: a queue is true also when nothing is under way."""
        return True

    # -- for its callers -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(self, line: Line[Result], job: Job) -> Iterator[None]:
        """Asks for a job; the block is done together with that, whatever signals come."""
        with self._delivery.booking():
            self._lines.ask(line, job)
            self._send()
            yield

    def _send(self) -> None:
        """Sends what may be sent."""
        dispatcher = self._delivery.dispatcher
        while (job := self._lines.next_job(self._has_to_wait)) is not None:
            if isinstance(job, Exception):
                dispatcher.ask_nothing(job)
            else:
                dispatcher.ask_job(job)

    def _has_to_wait(self, job: Job) -> bool:
        """Whether there is no room for a job's arguments now, but may be when results were taken."""
        return isinstance(job, bytes) and self._delivery.pool.is_short_of(len(job))

    def _take(self, line: Line[Result]) -> Result | None:
        """Returns the next result of a line, or None where it has not come; what is others' is put where they find it.

        Raises:
            Empty: nothing of that line is under way.
        """
        if line.ready:
            return line.ready.popleft()
        if not line.pending:
            raise Empty("nothing is under way in this JobQueue, so there is nothing to wait for")
        pool = self._delivery.pool
        while (result := self._delivery.dispatcher.take()) is not None:
            owner = self._lines.arrive()
            if owner is line:
                return result
            if owner is None:
                pool.release(result)
            else:
                owner.ready.append(pool.spill(result))
            self._send()
        return None

    def _warn_of_idle_workers(self) -> None:
        if under_way := len(self):
            self._has_warned = True
            warnings.warn(
                f"get waits while no more than {under_way} of the jobs that were put are under way, and there are "
                f"{self._num_workers} workers: some have nothing to do. Put jobs further ahead, or lower num_workers",
                IdleWorkersWarning,
                stacklevel=callers.stacklevel(),
            )

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the workers, and drops what is under way. Results that were got stay as they are. Safe to call again.

        Blocks until each worker has finished the job that it is at, for 5 seconds at most and 1 more, after which it is
        killed. A worker thread is left behind after 5 seconds, and the slots' memory with it, until it ends. Threads
        that wait for results have a RuntimeError. In a forked process it does nothing.

        Warns:
            StuckWorkerWarning: a worker thread was left behind.
        """
        self._delivery.close()

    def __enter__(self) -> JobQueue:  # noqa: PYI034 - Python 3.10 has no Self
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def statistics(self) -> StreamStatistics:
        """Returns what was given and taken so far, and what limits whoever takes it. See `StreamStatistics`.

        Does not block, and may be called at any time and in any thread. Printed, it is a table.
        """
        setting = Setting(
            num_workers=self._num_workers, processors=processors.available(), worker_type=self._worker_type
        )
        return gathering.collect_stream(self._delivery, setting, stream_verdict.QUEUE, self.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {registry.label_of(self)!r} at {id(self):#x}>"

    def __reduce__(self) -> Any:
        raise TypeError("a JobQueue cannot be pickled or copied: its workers are this process's")


class JobResults(Iterator[Any]):
    """The results of what `JobQueue.map` or `JobQueue.repeat` was asked for, in order. For one thread at a time."""

    def __init__(self, queue: JobQueue, arguments: Iterator[Any], job_of: Callable[[Any], Job]) -> None:
        self._queue = queue
        self._arguments: Iterator[Any] | None = arguments
        self._read: deque[Any] = deque()  # and not asked for: at most one, nearly always none
        self._job_of = job_of
        self._caller: _Caller | None = _Caller(queue)
        queue.start()
        self._read_ahead(self._caller)

    def __iter__(self) -> JobResults:
        return self

    def __next__(self) -> Any:
        """Returns the next result. Blocks as `JobQueue.get` does, and raises what that raises.

        But a StopIteration of the function's, which would look like the end, is a RuntimeError, as in generators.
        """
        caller = self._caller
        if caller is None:
            raise StopIteration
        value = nothing = object()
        try:
            if not len(caller):
                self._read_ahead(caller)
            value = self._queue._delivery.get(caller.outlet, None, _marked)
            self._read_ahead(caller)
            return value
        except Empty:
            raise StopIteration from None
        except _RaisedError as raised:
            if isinstance(raised.error, StopIteration):
                raise RuntimeError("the function raised StopIteration") from raised.error
            raise raised.error from raised.error.__cause__
        except BaseException:
            if value is not nothing:  # it is still to be had
                caller.outlet.returned.appendleft((value, None))
            raise

    def _read_ahead(self, caller: _Caller) -> None:
        """Asks for so many jobs that as many are under way as may be."""
        while self._arguments is not None and len(caller) < self._queue._look_ahead:
            job = self._next_job(self._arguments)
            if job is None:
                self._arguments = None
                return
            with self._queue._asking(caller.line, job):
                self._read.clear()

    def _next_job(self, arguments: Iterator[Any]) -> Job | None:
        try:
            if not self._read:
                # Between reading and noting what was read, there is nothing that a signal's handler could come into.
                self._read.extend(itertools.islice(arguments, 1))
        except Exception as error:
            return error
        return self._job_of(self._read[0]) if self._read else None

    def close(self) -> None:
        """Drops what was asked for and not got; there are no results any more. Safe to call again; does not block."""
        self._caller = self._arguments = None
        self._read.clear()


class _RaisedError(Exception):
    """What a function has raised that means something else here: that there is no result."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _marked(error: Exception) -> Exception:
    return _RaisedError(error) if isinstance(error, (Empty, StopIteration)) else error


class _Caller:
    """One who asks for jobs and takes their results."""

    def __init__(self, queue: JobQueue) -> None:
        self.line: Line[Result] = Line()
        queue_ref = weakref.ref(queue)  # a queue that is dropped ends at once, and not with the next collection
        line = self.line

        def take() -> Result | None:
            return queue_ref()._take(line)  # type: ignore[union-attr]

        def refill() -> None:
            queue_ref()._send()  # type: ignore[union-attr]

        self.outlet = Outlet(take, refill)

    def __len__(self) -> int:
        return len(self.line) + len(self.outlet.returned)
