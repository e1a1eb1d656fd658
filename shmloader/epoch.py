"""One pass over the data: the iterator that the training loop steps.

It is a torch ``_BaseDataLoaderIter``, which draws the seeds and makes the sampler's iterator where stock does, and
warns as stock warns. Everything else happens in `_next_data`: take the next batch, waiting for it if need be; hand it
over; ask for one more.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader, IterDataPipe, MapDataPipe
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.data.dataloader import _BaseDataLoaderIter, _sharding_worker_init_fn

from . import wire, worker
from .errors import WorkerDiedError, WorkerFault, WorkerTimeoutError
from .pool import NO_SLOT, Packed
from .room import RoomRequests
from .schedule import Schedule, Task
from .shelf import PoolSettings, PoolShelf
from .wire import PipeEnd, Token
from .workers import Crew

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

    Raises:
        AssertionError: ``prefetch_factor`` is 0, as in stock's iterator.
        ValueError, PoolMemoryError: the pool cannot be made; see `Pool`.
    """

    _IterableDataset_len_called: int | None  # type: ignore[assignment]

    def __init__(
        self, loader: DataLoader[Any], shelf: PoolShelf, settings: PoolSettings, context: Any, sample_spec: Any
    ) -> None:
        super().__init__(loader)
        self._closed = False
        self._owner_pid = os.getpid()
        self._prefetch_factor = loader.prefetch_factor or 0
        if self._prefetch_factor <= 0:
            raise AssertionError("prefetch_factor must be greater than 0 for MultiProcessingDataLoaderIter")
        self._in_order = loader.in_order
        self._generation = 0
        self._schedule = self._new_schedule()
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
            self._start_workers(loader.worker_init_fn, sample_spec, settings)
            self._reset(loader, first_iter=True)
        except BaseException:
            self._shutdown_workers()
            raise

    # -- starting ------------------------------------------------------------------------------------------------

    def _start_workers(self, init_fn: Callable[[int], None] | None, sample_spec: Any, settings: PoolSettings) -> None:
        parts = {"dataset": self._dataset, "collate_fn": self._collate_fn, "worker_init_fn": init_fn}
        if isinstance(self._dataset, (IterDataPipe, MapDataPipe)):
            init_fn = functools.partial(_sharding_worker_init_fn, init_fn, self._world_size, self._rank)
        slots_to_map, bytes_to_map = settings.populated

        def make_brief(number: int, inbox: PipeEnd, close_first: list[int]) -> worker.Brief:
            return worker.Brief(
                worker=number,
                num_workers=self._num_workers,
                parent_pid=self._owner_pid,
                arena=self._pool.arena,
                max_bytes=self._pool.max_bytes,
                inbox=inbox,
                outbox=self._crew.outbox,
                dataset=self._dataset,
                dataset_kind=self._dataset_kind,
                auto_collation=self._auto_collation,
                collate_fn=self._collate_fn,
                drop_last=self._drop_last,
                init_fn=init_fn,
                base_seed=int(self._base_seed),
                shared_seed=self._shared_seed,
                sample_spec=sample_spec,
                slots_to_map=range(slots_to_map),
                bytes_to_map=bytes_to_map,
                close_first=close_first,
            )

        try:
            self._crew.start(worker.run, make_brief)
        except Exception as error:
            raise (self._crew.explain_failed_start(error, parts) or error) from error.__cause__

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
        if not first_iter:
            self._resume_workers()
        for _ in range(self._schedule.look_ahead):
            self._dispatch()

    def _resume_workers(self) -> None:
        self._drop_batches()
        self._generation += 1
        for number in range(self._num_workers):
            self._tell(number, wire.RESUME, size=self._shared_seed or 0)
        waiting = set(range(self._num_workers))
        while waiting:
            for token in self._receive():
                if token.kind == wire.RESUMED and token.generation == self._generation:
                    waiting.discard(token.worker)
                else:
                    self._handle(token)
            self._drop_batches()
        self._pool.withdraw_all()
        self._schedule = self._new_schedule()

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
            slot, size, room = self._pool.claim(index)
        except Exception as error:  # its batch cannot be had; those before it can, and those after
            task = self._schedule.send(number, index, NO_SLOT, 0)
            self._schedule.arrive(task.seq, Packed(NO_SLOT, 0, 0, error=error))
            return
        task = self._schedule.send(number, index, slot, size)
        self._tell(number, wire.JOB, slot, task.seq, size, room)

    def _receive(self) -> list[Token]:
        """Waits for tokens, and for whatever may come in their place.

        Raises:
            WorkerTimeoutError: none came within ``timeout`` seconds.
            WorkerDiedError: a worker has ended.
        """
        try:
            tokens, dead = self._crew.wait(self._timeout or None)
        except TimeoutError:
            raise WorkerTimeoutError(f"DataLoader timed out after {self._timeout} seconds") from None
        if dead:
            self._fail(dead[0])
        return tokens

    def _handle(self, token: Token) -> None:
        kind = token.kind & ~wire.KEPT
        if kind == wire.ASK:
            self._requests.add(token)
        elif kind == wire.ENDED:
            self._end_worker(token)
        elif kind != wire.RESUMED:  # one of those comes late if the wait for it timed out
            packed = Packed(token.slot, token.size, token.room, kind == wire.FAULT, token.kind != kind)
            self._pool.ready(packed)
            if token.generation == self._generation:
                self._schedule.arrive(token.seq, packed)
            else:
                self._pool.release(packed)
                self._schedule.forget(token.seq)

    def _end_worker(self, token: Token) -> None:
        for task in self._schedule.end_worker(token.worker):
            if task.seq == token.seq and token.kind & wire.KEPT:
                self._pool.keep(task.slot)
            else:
                self._pool.withdraw(task.slot)
        if token.generation == self._generation:
            if not self._persistent_workers:
                self._crew.dismiss(token.worker, Token(wire.STOP, token.worker, self._generation))
            self._dispatch()

    def _tell(self, number: int, kind: int, slot: int = 0, seq: int = 0, size: int = 0, room: int = 0) -> None:
        try:
            self._crew.send(number, Token(kind, number, self._generation, slot, seq, size, room))
        except WorkerDiedError:
            self._fail(number)

    # -- ending --------------------------------------------------------------------------------------------------

    def _fail(self, number: int) -> NoReturn:
        """Closes the iterator, since a worker is gone, and says which, how, and what it owed."""
        text = self._crew.obituary(number)
        owed = self._schedule.outstanding(number)
        if owed:
            text += f"It was worker {number} of {self._num_workers}, and owed batch {owed[0].seq}: {_name(owed[0])}. "
            if owed[0].seq == number and self._generation == 0:
                text += self._crew.hint_at_unpickling()
        self._shutdown_workers()
        raise WorkerDiedError(text)

    def _raise_closed(self) -> NoReturn:
        if self._schedule.done:
            raise StopIteration
        raise RuntimeError("this iterator of ShmDataLoader is closed; make a new one with iter(loader)")

    def _shutdown_workers(self) -> None:
        """Ends the workers and passes the pool on to the loader's next iterator. Safe to call again.

        Blocks until the workers have ended, `workers.GRACE_SECONDS` if they are in the middle of a sample.
        """
        if self._closed or self._owner_pid != os.getpid():
            return
        self._closed = True
        _open_iterators.discard(self)
        self._pool.arena.stopped = True
        try:
            self._crew.stop(Token(wire.STOP, 0, self._generation))
        finally:
            self._pool.abandon()
            self._shelf.put(self._pool)

    def __del__(self) -> None:
        if getattr(self, "_crew", None) is not None:
            self._shutdown_workers()


def _name(task: Task[Any]) -> str:
    text = repr(task.index)
    return f"indices {text}" if len(text) < 200 else f"indices {text[:200]}..."


_is_exiting = False
_open_iterators: weakref.WeakSet[ShmIterator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    global _is_exiting
    _is_exiting = True
    # multiprocessing would terminate the workers too, but later, and joins without a time limit.
    for iterator in list(_open_iterators):
        iterator._shutdown_workers()
