"""One pass over the data: the iterator that the training loop steps.

It is a torch ``_BaseDataLoaderIter``, which draws the seeds and makes the sampler's iterator where stock does, and
warns as stock warns. Everything else happens in `_next_data`: take the next batch, waiting for it if need be; hand it
over; ask for one more.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any, NoReturn

from torch.utils.data import DataLoader

from shmloader import interrupts, process_exit
from shmloader.errors import WorkerDiedError
from shmloader.slots.leases import Lease
from shmloader.slots.pool import Pool
from shmloader.slots.pool_cache import PoolCache, PoolSettings
from shmloader.slots.results import Result
from shmloader.torch_private import (
    BaseIterator,
    IterDataPipe,
    MapDataPipe,
    pin_memory,
    profiler_enabled,
    renew_iterator,
    sharding_worker_init_fn,
)
from shmloader.workers.brief import BatchSource
from shmloader.workers.interface import GRACE_SECONDS, Workers
from shmloader.workers.states import generators
from shmloader.workers.states.snapshots import Stated

from .dispatcher import Dispatcher, DispatchOptions
from .lifetime import Lifetime
from .meter import READS_PER_LOOK, Meter
from .tracking import Tracking
from .watching import Team, Watcher, WatcherFor, watched

get_ident = threading.get_ident  # for each batch


class ShmIterator(BaseIterator):
    """Iterates over the dataset with workers that write batches into a pool's slots.

    It belongs to the process that made it; in a process forked from that one it does nothing.

    Args:
        loader: whose data to load; it is not held.
        lifetime: what it shares with the other passes of the loader.
        settings: of the pool.
        make_workers: returns workers that are not started, of the number of them and of jobs that may be under way.
        tracking: where the loop is, and what it takes up.
        sample_spec: what `spec.declare` returned, or None.
        worker_restarts: how many workers that die are replaced in a pass.
        seeds_samples: whether random generators are seeded for each sample.

    Attributes:
        last_lease: the lease of the batch that was handed out last; None where it lies in no slot.

    Raises:
        AssertionError: ``prefetch_factor`` is 0, as in stock's iterator.
        ValueError, PoolMemoryError: the pool cannot be made; see `Pool`.
    """

    _IterableDataset_len_called: int | None  # type: ignore[assignment]
    last_lease: Lease | None

    def __init__(
        self,
        loader: DataLoader[Any],
        lifetime: Lifetime,
        settings: PoolSettings,
        make_workers: Callable[[int, int], Workers],
        tracking: Tracking,
        sample_spec: Any,
        worker_restarts: int,
        seeds_samples: bool,
    ) -> None:
        resumed = tracking.resumed
        # What is drawn here is of no use then.
        with generators.kept() if tracking.state_of_workers is not None else contextlib.nullcontext():
            tracking.prepare()
            super().__init__(loader)
        self._tracking = tracking
        self._take_up(tracking)
        if not loader.prefetch_factor or loader.prefetch_factor <= 0:
            raise AssertionError("prefetch_factor must be greater than 0 for MultiProcessingDataLoaderIter")
        self._owner_pid = os.getpid()
        self._epochs = lifetime.epochs
        self._gate = gate = lifetime.gate
        self._steps = lifetime.steps
        self._put_off = 0
        self._watcher: Watcher | None = None
        self._is_exhausted = False
        self._stepper = 0  # the thread that is in `next`
        self._closing: threading.Event | None = None  # where another thread closes this; set when `next` is left
        self._pool_cache = pool_cache = lifetime.pool_cache
        self._words = settings.words
        if self._words.is_named:
            self._profile_name = f"enumerate({self._words.owner})#{type(self).__name__}.__next__"
        self.last_lease = None
        self._options = DispatchOptions(
            self._num_workers,
            loader.prefetch_factor,
            loader.in_order,
            self._persistent_workers,
            worker_restarts,
        )
        if tracking.draws_before_workers:
            self._begin(loader, first_iter=True)
        source = self._source(loader.worker_init_fn, sample_spec, seeds_samples)
        snapshots = tracking.snapshots()  # which may warn, and warnings may be errors
        with interrupts.AllDeferred():  # until what has descriptors is closed with this iterator
            self._pool = pool_cache.take(settings)
            try:
                workers = make_workers(self._num_workers, self._options.look_ahead)
                self._forwards_logs = workers.forwards_logs
                self._dispatcher = Dispatcher(
                    source, self._options, self._pool, workers, lifetime.meters.restarts, snapshots
                )
            except BaseException:
                pool_cache.put(self._pool)
                raise
            self._meter = Meter(lifetime.meters, self._dispatcher.records(), self._pool)
            self._at_drop = interrupts.at_drop(
                functools.partial(_end, self._dispatcher, pool_cache, self._pool, self._meter)
            )
        try:
            with interrupts.deferred():
                if not gate.is_open:
                    self._dispatcher.shut_gate()
                self._dispatcher.start()
            lifetime.watch.add(self)
            self._reset(loader, first_iter=True)
            self._make_again(0 if resumed is None else resumed.since)
            self._meter.begin()
        except BaseException:
            self._shutdown_workers()
            raise
        gate.add(self)

    def _take_up(self, tracking: Tracking) -> None:
        if (state := tracking.state_of_workers) is not None:
            if state.base_seed is not None:
                self._base_seed = state.base_seed
            self._shared_seed = state.shared_seed
        tracking.base_seed = int(self._base_seed)
        tracking.shared_seed = self._shared_seed

    def _make_again(self, count: int) -> None:
        """Takes batches that were given already, but were made by a dataset whose state is from before.

        Raises:
            WorkerDiedError, WorkerTimeoutError: as `next`. Nothing is taken up then.
        """
        for taken in range(1, count + 1):
            self._make_one_again(taken)

    def _make_one_again(self, number: int) -> None:
        try:
            next(self)
        except Exception:
            if self._progress.taken < number:  # else it was in a batch's place, and was given too
                raise

    def _source(self, init_fn: Callable[[int], None] | None, sample_spec: Any, seeds_samples: bool) -> BatchSource:
        if isinstance(self._dataset, (IterDataPipe, MapDataPipe)):
            init_fn = functools.partial(sharding_worker_init_fn, init_fn, self._world_size, self._rank)
        return BatchSource(
            dataset=self._dataset,
            dataset_kind=self._dataset_kind,
            auto_collation=self._auto_collation,
            collate_fn=self._collate_fn,
            drop_last=self._drop_last,
            init_fn=init_fn,
            base_seed=int(self._base_seed),
            shared_seed=self._shared_seed,
            sample_spec=sample_spec,
            sample_seed=self._epochs.kept_seed(int(self._base_seed)) if seeds_samples else None,
            epoch=self._epochs.next,
            words=self._words,
        )

    @property
    def _workers(self) -> list[Any]:
        """The worker processes, under the name that tools know from stock's iterator."""
        return self._dispatcher.processes

    @property
    def can_resume(self) -> bool:
        """Whether persistent workers are there for another pass, and are this process's."""
        return self._dispatcher.is_open

    @property
    def has_failed(self) -> bool:
        """Whether it was closed before its end, or is another process's."""
        return not (self._dispatcher.is_open or self._is_exhausted)

    def _reset(self, loader: DataLoader[Any], first_iter: bool = False) -> None:
        """Begins a pass: reads the sampler from its start, and asks for as many batches as may be under way.

        In later passes of persistent workers it first waits until every worker is done with the pass before. Where they
        are gone, a loader of torch's class is given another iterator; our own does not ask then.
        """
        if not (first_iter or self.can_resume):
            renew_iterator(loader)
            return
        tracking = self._tracking
        resumed = tracking.resumed
        if not (first_iter and tracking.has_begun):
            self._begin(loader, first_iter)
        self._progress = tracking.progress
        if resumed is not None:
            self._shared_seed = resumed.shared_seed
            self._num_yielded = resumed.place.given
        self._has_more = True
        self._is_exhausted = False
        self._put_off = 0
        with self._closing_on_failure():
            if not first_iter:
                self._dispatcher.resume(self._shared_seed, self._epochs.next, self._timeout)
                self._meter.begin_pass()
                tracking.note_begins(self._dispatcher.begins)
            if resumed is not None:
                self._dispatcher.begin_with(tracking.progress.state()[0].turn)
            for _ in range(self._options.look_ahead):
                self._dispatch()

    def _begin(self, loader: DataLoader[Any], first_iter: bool) -> None:
        tracking = self._tracking
        is_ahead = tracking.draws_before_workers
        with generators.kept() if tracking.resumed is not None else contextlib.nullcontext():
            self._sampler_iter = tracking.begin(functools.partial(self._begin_reading, loader, first_iter), first_iter)
        if is_ahead or not first_iter:  # else torch's class draws one more, which workers were not started with
            tracking.shared_seed = self._shared_seed

    def _begin_reading(self, loader: DataLoader[Any], first_iter: bool) -> Iterator[Any]:
        super()._reset(loader, first_iter)
        indices: Iterator[Any] = self._sampler_iter
        return indices

    @contextlib.contextmanager
    def _closing_on_failure(self) -> Iterator[None]:
        try:
            yield
        except WorkerDiedError:
            self._shutdown_workers()
            raise
        except Exception:
            raise
        except BaseException:
            self._dispatcher.give_up()
            raise

    # -- stepping ------------------------------------------------------------------------------------------------

    def watched_by(self, watcher_for: WatcherFor | None) -> None:
        """Tells who ``watcher_for`` says what happens from now on, in later passes with the same workers too."""
        watcher = None
        if watcher_for is not None:
            if not self._dispatcher.is_open:  # so that its pool may be another pass's
                return
            watcher = watcher_for(self._pool)
            self._pool.watch(watcher)
        self._watcher = watcher
        self._dispatcher.watch(watcher)
        if watcher is not None:
            watcher.follow(Team(self._dispatcher.workers, self._dispatcher.records()))

    def __next__(self) -> Any:
        if self._steps.listeners:  # before anything is taken, which an interrupt in there would lose
            self._steps.tell()
        stepper = get_ident()
        if stepper == self._stepper:
            raise RuntimeError("next() of this iterator was called by a handler that runs within its next()")
        meter = self._meter
        entered = monotonic_ns()
        meter.outside += entered - meter.left
        meter.entered = entered
        self._stepper = stepper  # no call comes between this and what ends it, nor an interrupt
        try:
            limit = self._IterableDataset_len_called
            if profiler_enabled() or (limit is not None and self._num_yielded >= limit):
                return super().__next__()  # with a profiler's label, and the warning about a length that lied
            data = self._next_data()
            self._num_yielded += 1
            return data
        except Exception as error:
            if not isinstance(error, StopIteration):
                process_exit.wait_if_abandoned()
                if self._closing is not None:
                    self._raise_closed()
            raise
        except BaseException:
            self._dispatcher.give_up()
            raise
        finally:
            self._stepper = 0
            meter.left = monotonic_ns()
            if self._closing is not None:
                self._closing.set()

    def _next_data(self) -> Any:
        watcher = self._watcher
        return self._step() if watcher is None else watched(watcher, self._step, lambda: self._dispatcher.last.seq)

    def _step(self) -> Any:
        if not self._dispatcher.is_open or self._closing is not None:
            self._raise_closed()
        self._pool.collect()
        try:
            result = self._take()
        finally:
            if self._forwards_logs:
                self._dispatcher.hear()
        states = None
        try:
            data, self.last_lease = self._pool.hand_over(result)
            if type(data) is Stated:
                data, states = data
        finally:  # a batch that cannot be unpickled is an error, and not the end
            dispatcher, progress = self._dispatcher, self._progress
            if states is None and progress.is_plain and not dispatcher.notes:
                progress.counts[dispatcher.last.worker] += 1
                progress.last = dispatcher.last.worker
            else:
                self._note(states)
            self._dispatch()
        if self._pin_memory:
            data = pin_memory(data, self._pin_memory_device)
        return data

    def _note(self, states: bytes | None) -> None:
        """Notes that the batch which was taken last is the loop's, or its exception."""
        dispatcher, progress = self._dispatcher, self._progress
        task = dispatcher.last
        note = dispatcher.notes.pop(task.seq, None)
        over = dispatcher.over() if progress.has_states else ()
        progress.take(task.seq, task.worker, note, states, over)

    def hand_out_ahead(self) -> None:
        """From now on the loop is given what `next` has returned at each `hand_on`."""
        self._tracking.progress.is_ahead = True

    def hand_on(self) -> None:
        """Notes that the loop is given what `next` has returned first."""
        self._tracking.progress.hand_on()

    def is_ready(self) -> bool:
        """Whether `next` would have a batch without waiting for a worker. Does not block."""
        if not self._dispatcher.is_open:
            return False
        with self._closing_on_failure():
            if not self._dispatcher.is_ready:
                self._dispatch_for(self._dispatcher.receive_ready())
        return self._dispatcher.is_ready

    def settle(self, lease: Lease) -> None:
        """Notes that nothing copies from the slot of a batch that is about to be dropped; see `Pool.settle`."""
        self._pool.settle(lease)

    def _take(self) -> Result:
        dispatcher = self._dispatcher
        while (result := dispatcher.take()) is None:
            if dispatcher.is_done:
                if self._put_off:
                    self._dispatch_put_off(1)
                    continue
                self._is_exhausted = True
                self._tracking.end(dispatcher.ends, dispatcher.states_at_end)
                if not self._persistent_workers:
                    self._meter.close()
                    began = monotonic_ns()
                    self._shutdown_workers()
                    self._meter.ended(began)
                self._steps.tell_end()
                raise StopIteration
            began = monotonic_ns()
            try:
                ended = dispatcher.receive(self._timeout)
            except WorkerDiedError:
                self._shutdown_workers()
                raise
            finally:
                self._meter.blocked(began)
            if self._closing is not None:
                self._raise_closed()
            self._dispatch_for(ended)
        return result

    def _dispatch_for(self, ended: int) -> None:
        """Asks for as many batches as workers have ended, since others may have more data."""
        for _ in range(ended):
            self._dispatch()

    def _dispatch_put_off(self, count: int) -> None:
        for _ in range(count):
            self._put_off -= 1
            self._dispatch(is_due=True)

    def gate_has_shut(self) -> None:
        """Has workers stop at the next sample, and asks for nothing more. Does not block."""
        if self._dispatcher.is_open:
            self._dispatcher.shut_gate()

    def gate_has_opened(self) -> None:
        """Has workers go on, and asks for what was not asked for meanwhile. Does not block.

        Raises:
            Exception: what the sampler raises.
        """
        if self._dispatcher.is_open:
            self._dispatcher.open_gate()
            with self._closing_on_failure():
                self._dispatch_put_off(self._put_off)

    def _dispatch(self, is_due: bool = False) -> None:
        """Asks for one more batch if the sampler has one, else lets go of workers that have nothing left to do.

        While the gate is shut, it only notes that a batch is to be asked for; but for one that is due.
        """
        if not (self._gate.is_open or is_due):
            self._put_off += 1
            return
        if self._has_more:
            try:
                index = self._next_index() if (self._num_yielded + 1) % READS_PER_LOOK else self._next_index_timed()  # type: ignore[no-untyped-call]
            except StopIteration:
                self._has_more = False
            else:
                self._dispatcher.ask(index)
                return
        if not self._persistent_workers:
            self._dispatcher.dismiss_idle()

    def _next_index_timed(self) -> Any:
        began = monotonic_ns()
        index = self._next_index()  # type: ignore[no-untyped-call]
        self._meter.has_sampled(began)
        return index

    # -- ending --------------------------------------------------------------------------------------------------

    def _raise_closed(self) -> NoReturn:
        if self._owner_pid != os.getpid():
            raise RuntimeError("this iterator of ShmDataLoader belongs to the process that made it; use iter(loader)")
        if self._is_exhausted:
            raise StopIteration
        raise RuntimeError("this iterator of ShmDataLoader is closed; make a new one with iter(loader)")

    @property
    def is_running(self) -> bool:
        """Whether there are workers, and they are this process's."""
        return self._dispatcher.is_open

    def close(self) -> None:
        """Ends the workers. From any thread; safe to call again.

        Blocks as dropping the iterator does. If another thread is in `next`, that thread is waited for, a second more
        at most where it waits for workers; it has a RuntimeError. If it is held up in code of the user's, in a sampler
        say, workers end under it.
        """
        closing = self._closing = self._closing or threading.Event()  # before the look: whoever comes later sees it
        if self._stepper in (0, get_ident()):
            is_free = not self._stepper  # else this is called by something that `next` has called
        else:
            self._dispatcher.wake()
            is_free = closing.wait(GRACE_SECONDS)
        if is_free:
            self._shutdown_workers()
        else:
            self._dispatcher.give_up()

    def _shutdown_workers(self) -> None:
        """Ends the workers and passes the pool on to the loader's next iterator. Safe to call again.

        Blocks until the workers have ended, `interface.GRACE_SECONDS` if they are in the middle of a sample.
        """
        _end(self._dispatcher, self._pool_cache, self._pool, self._meter)


def _end(dispatcher: Dispatcher, pool_cache: PoolCache, pool: Pool, meter: Meter) -> None:
    with interrupts.deferred():
        try:
            is_free = dispatcher.close()
        finally:
            meter.close()
        if is_free:
            pool_cache.put(pool)
