"""One pass over the data: the iterator that the training loop steps.

It is a torch ``_BaseDataLoaderIter``, which draws the seeds and makes the sampler's iterator where stock does, and
warns as stock warns. Everything else happens in `_next_data`: take the next batch, waiting for it if need be; hand it
over; ask for one more.
"""

from __future__ import annotations

import _thread
import atexit
import dataclasses
import functools
import os
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader, IterDataPipe, MapDataPipe
from torch.utils.data import _DatasetKind as DatasetKind
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.data.dataloader import _BaseDataLoaderIter, _sharding_worker_init_fn

from . import diagnosis, lifeline, wire, worker, workers
from .control import Control
from .errors import WorkerDiedError, WorkerFault, WorkerRestartWarning, WorkerTimeoutError
from .pool import NO_SLOT, Packed
from .room import RoomRequests
from .schedule import Schedule
from .shelf import PoolSettings, PoolShelf
from .succession import Succession
from .wire import PipeEnd, Token
from .workers import Crew

# What workers may take to end after a Ctrl-C, before they are ended; whoever pressed it is waiting.
_IMPATIENCE_SECONDS = 0.1

_profiler_enabled: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]


class ShmIterator(_BaseDataLoaderIter):
    """Iterates over the dataset with worker processes that write batches into a pool's slots.

    It belongs to the process that made it; in a process forked from that one it does nothing.

    Args:
        loader: whose data to load; it is not kept.
        shelf: where the pool comes from and goes to.
        settings: of the pool.
        context: the multiprocessing context that makes the workers.
        sample_spec: what `spec.declare` returned, or None.
        worker_restarts: how many workers that die are replaced in a pass.

    Raises:
        AssertionError: ``prefetch_factor`` is 0, as in stock's iterator.
        ValueError, PoolMemoryError: the pool cannot be made; see `Pool`.
    """

    _IterableDataset_len_called: int | None  # type: ignore[assignment]

    def __init__(
        self,
        loader: DataLoader[Any],
        shelf: PoolShelf,
        settings: PoolSettings,
        context: Any,
        sample_spec: Any,
        worker_restarts: int,
    ) -> None:
        super().__init__(loader)
        self._closed = False
        self._owner_pid = os.getpid()
        self._prefetch_factor = loader.prefetch_factor or 0
        if self._prefetch_factor <= 0:
            raise AssertionError("prefetch_factor must be greater than 0 for MultiProcessingDataLoaderIter")
        self._in_order = loader.in_order
        self._init_fn = self._with_sharding(loader.worker_init_fn)
        self._sample_spec = sample_spec
        self._settings = settings
        self._generation = 0
        self._resuming: set[int] = set()
        self._received = [0] * self._num_workers  # batches and faults, of each worker and those that it succeeds
        self._received_before = [0] * self._num_workers  # those of earlier passes
        self._schedule = self._new_schedule()
        self._succession = Succession(worker_restarts)
        self._shelf = shelf
        self._pool = shelf.take(settings)
        try:
            self._crew = Crew(context, self._num_workers, self._schedule.look_ahead)
        except BaseException:
            shelf.put(self._pool)
            raise
        self._requests = RoomRequests(self._pool)
        _open_iterators.add(self)
        try:
            self._start_workers()
            self._reset(loader, first_iter=True)
        except BaseException:
            self._shutdown_workers()
            raise

    # -- starting ------------------------------------------------------------------------------------------------

    def _with_sharding(self, init_fn: Callable[[int], None] | None) -> Callable[[int], None] | None:
        if isinstance(self._dataset, (IterDataPipe, MapDataPipe)):
            return functools.partial(_sharding_worker_init_fn, init_fn, self._world_size, self._rank)
        return init_fn

    def _start_workers(self) -> None:
        control = self._pool.arena.control
        control.stopped = False
        for number in range(self._num_workers):
            control.idle(number)
            control.forget(number)
        try:
            self._crew.start(worker.run, self._make_brief)
        except Exception as error:
            parts = {"dataset": self._dataset, "collate_fn": self._collate_fn, "worker_init_fn": self._init_fn}
            raise (self._crew.explain_failed_start(error, parts) or error) from error.__cause__

    def _make_brief(self, number: int, inbox: PipeEnd, close_first: list[int]) -> worker.Brief:
        slots_to_map, bytes_to_map = self._settings.populated
        return worker.Brief(
            worker=number,
            num_workers=self._num_workers,
            parent_pid=self._owner_pid,
            dies_by_kernel=self._crew.has_own_children and lifeline.in_first_thread(),
            arena=self._pool.arena,
            cap_text=self._pool.cap_text,
            inbox=inbox,
            outbox=self._crew.outbox,
            stack_outlet=self._crew.stacks.outlet,
            dataset=self._dataset,
            dataset_kind=self._dataset_kind,
            auto_collation=self._auto_collation,
            collate_fn=self._collate_fn,
            drop_last=self._drop_last,
            init_fn=self._init_fn,
            base_seed=int(self._base_seed),
            shared_seed=self._shared_seed,
            sample_spec=self._sample_spec,
            slots_to_map=range(slots_to_map),
            bytes_to_map=bytes_to_map,
            close_first=close_first,
            keeps_streams=self._succession.limit > 0,
            generation=self._generation,
        )

    @property
    def _workers(self) -> list[Any]:
        """The worker processes, under the name that tools know from stock's iterator."""
        return self._crew.processes

    @property
    def can_resume(self) -> bool:
        """Whether persistent workers are there for another pass, and are this process's."""
        return not self._closed and self._owner_pid == os.getpid()

    def _new_schedule(self) -> Schedule[Packed]:
        return Schedule(self._num_workers, self._prefetch_factor, self._in_order)

    def _reset(self, loader: DataLoader[Any], first_iter: bool = False) -> None:
        """Begins a pass: reads the sampler from its start, and asks for as many batches as may be under way.

        In later passes of persistent workers it first waits until every worker is done with the pass before.
        """
        super()._reset(loader, first_iter)
        try:
            if not first_iter:
                self._resume_workers()
            for _ in range(self._schedule.look_ahead):
                self._dispatch()
        except Exception:
            raise
        except BaseException:
            self._give_up()
            raise

    def _resume_workers(self) -> None:
        self._drop_batches()
        self._generation += 1
        self._succession = Succession(self._succession.limit)
        self._resuming = set(range(self._num_workers))
        for number in range(self._num_workers):
            self._tell_to_resume(number)
        while self._resuming:
            for token in self._receive():
                self._handle(token)
            self._drop_batches()
        self._pool.withdraw_all()
        self._schedule = self._new_schedule()

    def _tell_to_resume(self, number: int) -> None:
        self._tell(number, wire.RESUME, size=self._shared_seed or 0)

    def _drop_batches(self) -> None:
        for task in self._schedule.made():
            assert task.result is not None
            self._pool.release(task.result)
            self._schedule.forget(task.seq)
        self._requests.refuse_all(self._tell)

    # -- stepping ------------------------------------------------------------------------------------------------

    def __next__(self) -> Any:
        limit = self._IterableDataset_len_called
        if _profiler_enabled() or (limit is not None and self._num_yielded >= limit):
            return super().__next__()  # with a profiler's label, and the warning about a length that lied
        data = self._next_data()
        self._num_yielded += 1
        return data

    def _next_data(self) -> Any:
        try:
            return self._step()
        except Exception as error:
            if _is_exiting and not isinstance(error, StopIteration):
                # This is a daemon thread, and the main thread, on its way out, has closed the iterator under it.
                threading.Event().wait()
            raise
        except BaseException:
            self._give_up()
            raise

    def _step(self) -> Any:
        if self._closed:
            self._raise_closed()
        self._pool.collect()
        packed = self._take()
        try:
            data = self._pool.hand_over(packed)
        finally:  # a batch that cannot be unpickled is an error, and not the end
            self._dispatch()
        if packed.is_fault and isinstance(data, WorkerFault):
            data.reraise()
        if self._pin_memory:
            data = pin_memory(data, self._pin_memory_device)
        return data

    def _take(self) -> Packed:
        """Returns the next batch of the schedule, waiting for it if need be.

        Raises:
            StopIteration: there is none.
        """
        while (task := self._schedule.take()) is None:
            if self._schedule.done:
                if not self._persistent_workers:
                    self._shutdown_workers()
                raise StopIteration
            if self._requests:
                self._requests.answer(self._schedule, self._tell)
            for token in self._receive():
                self._handle(token)
        assert task.result is not None
        return task.result

    def _dispatch(self) -> None:
        """Asks the next worker in turn for one more batch, if the sampler has one."""
        try:
            index = self._next_index()  # type: ignore[no-untyped-call]
        except StopIteration:
            return
        number = self._schedule.next_worker()
        if number is None:
            return
        try:
            job = pickle.dumps(index, 5)
            slot, room = self._pool.claim(job)
        except Exception as error:  # its batch cannot be had; those before it can, and those after
            task = self._schedule.send(number, b"", NO_SLOT)
            self._schedule.arrive(task.seq, Packed(NO_SLOT, 0, 0, error=error))
            return
        task = self._schedule.send(number, job, slot)
        self._tell(number, wire.JOB, slot, task.seq, len(job), room)

    def _receive(self) -> list[Token]:
        """Waits for tokens, and for whatever may come in their place. Returns none where workers were replaced.

        Raises:
            WorkerTimeoutError: none came within ``timeout`` seconds.
            WorkerDiedError: a worker has ended, and is not replaced.
        """
        try:
            tokens, dead = self._crew.wait(self._timeout or None)
        except TimeoutError:
            raise WorkerTimeoutError(diagnosis.timeout(self._timeout, *self._all_about_workers())) from None
        for number in dead:
            self._bury(number)
        return tokens

    def _all_about_workers(self) -> tuple[int, Crew, Schedule[Packed], Control]:
        return self._num_workers, self._crew, self._schedule, self._pool.arena.control

    def _handle(self, token: Token) -> None:
        kind = token.kind & ~wire.KEPT
        if kind == wire.ASK:
            self._requests.add(token)
        elif kind == wire.ENDED:
            self._end_worker(token)
        elif kind == wire.RESUMED:
            if token.generation == self._generation:  # one of an older comes if the wait for it timed out
                self._resumed(token.worker)
        else:
            self._received[token.worker] += 1
            keeper = token.worker if token.kind != kind else None
            packed = Packed(token.slot, token.size, token.room, kind == wire.FAULT, keeper)
            self._pool.ready(packed)
            if token.generation == self._generation:
                self._schedule.arrive(token.seq, packed)
            else:
                self._pool.release(packed)
                self._schedule.forget(token.seq)

    def _resumed(self, number: int) -> None:
        self._resuming.discard(number)
        self._received_before[number] = self._received[number]

    def _end_worker(self, token: Token) -> None:
        for task in self._schedule.end_worker(token.worker):
            if task.seq == token.seq and token.kind & wire.KEPT:
                self._pool.keep(task.slot, token.worker)
            else:
                self._pool.withdraw(task.slot)
        if token.generation == self._generation:
            if not self._persistent_workers:
                self._crew.dismiss(token.worker, Token(wire.STOP, token.worker, self._generation))
            self._dispatch()

    def _tell(self, number: int, kind: int, slot: int = 0, seq: int = 0, size: int = 0, room: int = 0) -> None:
        self._crew.send(number, Token(kind, number, self._generation, slot, seq, size, room))

    # -- deaths --------------------------------------------------------------------------------------------------

    def _bury(self, number: int) -> None:
        """Replaces a worker that has ended, or closes the iterator.

        Raises:
            WorkerDiedError: which worker, how it ended, and what it was at.
        """
        text = diagnosis.death(number, *self._all_about_workers())
        at = diagnosis.current(number, self._schedule, self._pool.arena.control)
        refusal = self._succession.refusal(at[0].seq if at is not None else None)
        if refusal is not None:
            self._shutdown_workers()
            raise WorkerDiedError(text + refusal)
        try:
            self._replace(number)
        except BaseException:
            self._give_up()
            raise
        self._shelf.restarts += 1
        warnings.warn(
            f"{text}It is replaced, {self._succession.count} of worker_restarts={self._succession.limit}",
            WorkerRestartWarning,
            stacklevel=7,
        )

    def _replace(self, number: int) -> None:
        """Starts a worker that takes up where a dead one was: with its random streams, and at its first lost batch."""
        owed = self._schedule.outstanding(number)
        for task in self._schedule.made():
            if task.result is not None and task.result.keeper == number:
                task.result = task.result._replace(keeper=None)
        self._requests.forget(number)
        self._pool.inherit(number, [task.slot for task in owed])
        self._pool.arena.control.idle(number)
        is_stream = self._dataset_kind == DatasetKind.Iterable
        # Where the pass before is still to be finished, that comes first, and then this one as for everybody.
        is_behind = number in self._resuming and (is_stream or bool(owed))
        generation = self._generation - is_behind
        succession: dict[str, Any] = {"generation": generation, "predecessor": self._received[number]}
        if is_stream:
            delivered = self._received[number] - self._received_before[number] + self._schedule.has_ended(number)
            # Jobs of a stream are all alike, and its sampler can be asked as often as one likes.
            to_skip = [next(iter(self._index_sampler))] * delivered
            succession |= {"predecessor": generation, "jobs_to_skip": to_skip}

        def make_brief(number: int, inbox: PipeEnd, close_first: list[int]) -> worker.Brief:
            return dataclasses.replace(self._make_brief(number, inbox, close_first), **succession)

        self._crew.replace(number, worker.run, make_brief)
        for task in owed:
            task.slot, room = self._pool.claim(task.job)
            self._crew.send(number, Token(wire.JOB, number, generation, task.slot, task.seq, len(task.job), room))
        if is_behind:
            self._tell_to_resume(number)
        elif number in self._resuming:
            self._resumed(number)

    # -- ending --------------------------------------------------------------------------------------------------

    def _raise_closed(self) -> NoReturn:
        if self._schedule.done:
            raise StopIteration
        raise RuntimeError("this iterator of ShmDataLoader is closed; make a new one with iter(loader)")

    def _shutdown_workers(self) -> None:
        """Ends the workers and passes the pool on to the loader's next iterator. Safe to call again.

        Blocks until the workers have ended, `workers.GRACE_SECONDS` if they are in the middle of a sample.
        """
        if self._may_close():
            try:
                self._crew.stop(Token(wire.STOP, 0, self._generation), workers.GRACE_SECONDS)
            finally:
                self._pool.abandon()
                self._shelf.put(self._pool)

    def _give_up(self) -> None:
        """Ends the workers at once, and the pool with them.

        For exceptions that may come between any two instructions, as a Ctrl-C does: a token that was read may not be
        handled, a slot that was claimed may be nobody's.
        """
        if self._may_close():
            try:
                self._crew.stop(Token(wire.STOP, 0, self._generation), _IMPATIENCE_SECONDS)
            finally:
                self._pool.close()

    def _may_close(self) -> bool:
        if self._closed or self._owner_pid != os.getpid():
            return False
        self._closed = True
        _open_iterators.discard(self)
        self._pool.arena.control.stopped = True
        return True

    def __del__(self) -> None:
        if getattr(self, "_crew", None) is None:
            return
        try:
            self._shutdown_workers()
        except KeyboardInterrupt:
            # No exception leaves a destructor: this one would be printed and forgotten. It is raised again by another
            # thread, which runs when this one is out of here.
            self._give_up()
            _thread.start_new_thread(_thread.interrupt_main, ())


_is_exiting = False
_open_iterators: weakref.WeakSet[ShmIterator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    global _is_exiting
    _is_exiting = True
    # multiprocessing would terminate the workers too, but later, and joins without a time limit.
    for iterator in list(_open_iterators):
        iterator._shutdown_workers()
