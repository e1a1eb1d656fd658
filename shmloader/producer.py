"""Producer: functions that fill slots by themselves, in workers, until they return; and a stream of what they fill.

How an item travels::

    consumer                      parent process                          worker process i
    --------                      --------------                          ----------------
                                  as many FREE slots as may be under way
                                  token ------- pipe to worker i -------> for slot in slots:
                                                                              with slot as arrays:
                                                                                  the target writes into the slot
                                  slot READY <- one pipe for all -------- token
    item  <---------------------  tensors over the slot: LEASED
    (keeps it as long             token of one more slot ---------------> ...
     as it needs it)

A slot is used again when the consumer has dropped the item, and the target's arrays over it are gone too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import Empty
from typing import TYPE_CHECKING, Any

import torch

from . import requirements, words
from .arguments import (
    checked_callable,
    checked_count,
    checked_flag,
    checked_generator,
    checked_name,
    checked_optional_count,
    checked_timeout,
)
from .batches import item_layout
from .batches.alignment import ALIGNMENT
from .batches.item_layout import ItemLayout
from .errors import ProducerEndedError, WorkerDiedError
from .observe import gathering, processors, registry, stream_verdict
from .observe.statistics import StreamStatistics
from .observe.verdict import Setting
from .passes.delivery import ClosedError, Delivery, Outlet
from .passes.dispatcher import DispatchOptions
from .slots.pool_cache import PoolSettings
from .slots.results import Result
from .slots.writer import FAULT_BYTES
from .words import Words
from .workers import kinds
from .workers.brief import TargetSource
from .workers.states import seeding

if TYPE_CHECKING:
    from typing_extensions import Self

# What code in a worker may hold: an item, the one that is held until the next, and what is open when the target ends.
_HELD_PER_WORKER = 3


class Producer:
    """Runs a function in workers that fills slots, endlessly or until it returns, and hands out what it has filled.

    Where a loader asks for batches by their indices, a producer's workers go on by themselves: they simulate, augment,
    or read from the network, and wait only while no slot is free. The function, the *target*, writes items of fixed
    shapes straight into shared memory; the consumer gets tensors over the same memory, with no copy::

        def augment(slots, images, labels):
            for slot in slots:
                with slot as (image, label):
                    index = np.random.randint(len(images))
                    image[...] = randomly_changed(images[index])
                    label[...] = labels[index]

        specs = TensorSpec((3, 224, 224), torch.uint8), TensorSpec((), torch.int64)
        with Producer(augment, specs, args=(images, labels), num_workers=4) as producer:
            for image, label in producer:
                ...

    In the worker, ``target(slots, *args, **kwargs)`` is called once. It iterates over ``slots``, which are for the
    thread that it was called in, one at a time. ``with slot as arrays`` gives NumPy arrays in the structure of
    ``specs`` (tensors, for dtypes that NumPy does not have); what they hold at first means nothing. When the block is
    left, at its end or by ``continue``, ``break`` or ``return``, the item is delivered. If an exception leaves it, the
    item is not delivered; if the target catches the exception, it is given the slot again. Without ``with``,
    ``slot.arrays`` are the arrays, and ``slot.ready()`` delivers; a slot whose arrays were looked at and which is not
    made ready is given again. Once an item is delivered its arrays are read-only, and its slot may not be used again.

    A target may keep the arrays of delivered items, and no later item is written there. But it fills private memory
    from then on, which is copied into slots. What the consumer writes to an item shows in them. Arrays that the target
    has made of them before, slices say, stay writable, as do the tensors that it is given for dtypes that NumPy lacks:
    what it writes there shows in what the consumer has.

    The consumer iterates, or calls `get`, from any number of threads; each item goes to one of them. Items of one
    worker come in their order. An item is never overwritten while any tensor, slice or array of it is alive. Those who
    hold very many get copies, see `HeldBatchesWarning`: there are slots for ``num_slots`` items that are held, and for
    sixteen more, or fewer where ``max_pool_bytes`` is a few MB.

    The stream ends when all targets have returned and all items were taken. What a target raises comes behind the items
    that it has made, with its type and the worker's traceback; the others go on, and so may the consumer. Worker
    processes are seeded as those of a loader are, and `get_worker_info` tells targets who they are.

    It belongs to the process that made it. Workers end with `stop`, at the end of a ``with`` block, when the producer
    is dropped, or with the process.

    Args:
        target: called in each worker.
        specs: the structure of an item: dicts, lists, tuples and namedtuples of shapes and `TensorSpec`; one of these
            for an item that is one tensor. A shape has torch's default dtype. Quantized and bits dtypes cannot be.
        args: further arguments of the target.
        kwargs: likewise, by name.
        num_workers: how many workers; each calls the target.
        num_slots: how many slots are being filled, or filled and not taken, at most: more than ``num_workers``. 2 for
            each worker by default. What consumers hold is beside them.
        worker_type: the kind of workers: "process" or "thread". A target in a thread shares the program's objects and
            global random generators, which are not seeded then, and cannot be killed.
        multiprocessing_context: start method or context; by default what `multiprocessing.set_start_method` was told,
            else fork.
        worker_init_fn: called in each worker with its number, after its random generators were seeded.
        worker_restarts: how many workers that die are replaced. In the place of one that has died the target is called
            anew, with another seed, which depends on how many items the worker has delivered. 0: a death is a
            `WorkerDiedError`.
        max_pool_bytes: what the slots may take; by default half of the memory that this process may use.
        generator: source of the workers' base seed; by default torch's global one. Drawn from when workers are started.
        name: what this producer is called in errors and warnings; None: Producer.
        forward_logs: whether what worker processes log is handed to the handlers of this process, as with a loader:
            while this process waits for workers, before what they have made is returned, and when they end.

    Raises:
        TypeError: an argument is of a wrong type; so is a target that is a generator function, or a coroutine's.
        ValueError: an argument has a value that cannot be.
        PoolMemoryError: an item is larger than all memory.
    """

    def __init__(
        self,
        target: Callable[..., object],
        specs: Any,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        num_workers: int = 1,
        num_slots: int | None = None,
        worker_type: str = "process",
        multiprocessing_context: Any = None,
        worker_init_fn: Callable[[int], None] | None = None,
        worker_restarts: int = 0,
        max_pool_bytes: int | None = None,
        generator: torch.Generator | None = None,
        name: str | None = None,
        forward_logs: bool = False,
    ) -> None:
        _check_callables(target, worker_init_fn)
        num_workers = checked_count("num_workers", num_workers, 1)
        if num_slots is None:
            num_slots = max(2, 2 * num_workers)
        if checked_count("num_slots", num_slots, 1) <= num_workers:
            raise ValueError(
                f"num_slots={num_slots} must be more than num_workers={num_workers}: each worker fills one slot, "
                "and what it has filled waits in another"
            )
        checked_count("worker_restarts", worker_restarts, 0)
        checked_optional_count("max_pool_bytes", max_pool_bytes, 1)
        checked_generator(generator)
        context = kinds.checked_context(multiprocessing_context)
        worker_type = kinds.checked_worker_type(worker_type, context, "Producer")
        requirements.require("Producer", worker_type)
        self.name = checked_name(name)
        self._function = target
        self._num_workers = num_workers
        self._worker_type = worker_type
        own_words = words.named(words.PRODUCER, self.name)
        layout = item_layout.lay_out(specs, ALIGNMENT)
        arguments = _arguments(args), _keyword_arguments(kwargs)
        delivery = Delivery(
            "Producer",
            functools.partial(_source, target, *arguments, layout, worker_init_fn, generator, own_words),
            DispatchOptions(
                num_workers=num_workers,
                prefetch_factor=-(-num_slots // num_workers),
                in_order=False,
                persistent=False,
                worker_restarts=worker_restarts,
                to_the_free=True,
            ),
            PoolSettings(
                num_workers=num_workers,
                in_flight=num_slots,
                num_slots=None,
                max_bytes=max_pool_bytes,
                declared_bytes=layout.nbytes + FAULT_BYTES,
                held_per_worker=_HELD_PER_WORKER,
                words=own_words,
            ),
            functools.partial(
                kinds.new_workers,
                worker_type,
                context,
                num_workers,
                num_slots,
                can_wake=True,
                words=own_words,
                forward_logs=checked_flag("forward_logs", forward_logs),
            ),
        )
        self._delivery = delivery
        self._stream = stream = _Stream(delivery, num_slots)
        # These refer to the stream, which refers to neither: a producer that is dropped is gone at once.
        self._items = Outlet(stream.take, stream.ask)
        self._end = Outlet(stream.look_for_the_end, stream.ask, counts=False)
        registry.add(self, stream)

    # -- items ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Self:
        """Starts the workers, if they are not started, and returns the producer itself.

        `next` blocks until there is an item. What wakes it: an item, the end or the death of a worker, a `stop` in
        another thread, a signal that Python handles. Several threads may iterate: the end ends all of them.

        Raises:
            WorkerDiedError: from ``next``; a worker died, and is not replaced. All workers are ended.
            Exception: here, as `start`; from ``next``, what a target or ``worker_init_fn`` has raised.

        Warns:
            HeldBatchesWarning: once; consumers hold more items than there are slots for, and get copies.
            WorkerRestartWarning: a worker died and is replaced.
        """
        with contextlib.suppress(ProducerEndedError):  # which `next` says by its StopIteration
            self.start()
        return self

    def __next__(self) -> Any:
        try:
            return self._take(None)
        except ProducerEndedError:
            raise StopIteration from None

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Returns the next item. Starts the workers, if they are not started. Safe from several threads.

        Args:
            block: whether to wait for an item; what wakes that is said at `__iter__`.
            timeout: seconds to wait at most; None: for ever. Only where it waits at all.

        Raises:
            queue.Empty: there is no item, or none came in time.
            ProducerEndedError: all targets have returned and all items were taken, or the producer was stopped.
            TypeError, ValueError: ``timeout`` is not a number, or negative.
            Exception: as ``next``, see `__iter__`.
        """
        timeout = checked_timeout(timeout)
        return self._take(timeout if block else 0)

    def _take(self, timeout: float | None) -> Any:
        self._stream.check()
        try:  # and no `with` block: an interrupt while that is left would lose the item
            return self._delivery.get(self._items, timeout)
        except (ProducerEndedError, ClosedError) as error:
            raise self._stream.end_of(error) from None

    # -- workers -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the workers, which begin to fill slots. Takes as long as starting so many does.

        The memory of the slots is faulted in first. Does nothing if they are started.

        Raises:
            ProducerEndedError: the producer has ended, or was stopped.
            RuntimeError: it belongs to another process.
            ValueError, PoolMemoryError: the items do not fit under ``max_pool_bytes``, or in memory.
            Exception: what cannot be pickled for a worker that is spawned.
        """
        with self._stream.over_if_closed():
            if not self._delivery.has_started:
                with self._delivery.booking():
                    self._stream.ask()

    def stop(self) -> None:
        """Ends the workers. Items that were not taken are dropped; those that were stay as they are.

        In the targets, ``for slot in slots`` ends, so that they can clean up. Blocks until they have returned, 5
        seconds at most and 1 more, after which they are killed. A worker thread is left behind after 5 seconds, and the
        slots' memory with it, until it ends. Safe to call again, and from any thread; threads that iterate end, and
        those in `get` have a `ProducerEndedError`.

        Warns:
            StuckWorkerWarning: a worker thread was left behind.
        """
        self._stream.close()

    def join(self, timeout: float | None = None) -> None:
        """Blocks until all targets have returned, and ``timeout`` seconds at most.

        A target waits while all slots are filled: another thread has to take items meanwhile, unless there are no more
        than slots. Items that were not taken can be taken afterwards. After a timeout, `is_alive` says whether any
        target runs.

        Raises:
            RuntimeError: the producer was not started, or belongs to another process.
            TypeError, ValueError: ``timeout`` is not a number, or negative.
            WorkerDiedError: a worker died, and is not replaced.
        """
        timeout = checked_timeout(timeout)
        if not self._delivery.has_started and not self._stream.is_over:
            raise RuntimeError("this producer was not started")
        self._have_returned(timeout)

    def is_alive(self) -> bool:
        """Whether the producer was started, and any target has not returned. Does not block."""
        if not self._delivery.has_started or self._stream.is_over:
            return False
        try:
            return not self._have_returned(0)
        except WorkerDiedError:
            return False

    def _have_returned(self, timeout: float | None) -> bool:
        """Waits until all targets have returned, and returns whether they have."""
        try:
            with self._stream.over_if_closed():
                self._delivery.get(self._end, timeout)
        except Empty:
            return False
        except (_TargetsReturnedError, ProducerEndedError):
            pass
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def statistics(self) -> StreamStatistics:
        """Returns what was given and taken so far, and what limits whoever takes it. See `StreamStatistics`.

        Does not block, and may be called at any time and in any thread. Printed, it is a table.
        """
        setting = Setting(
            num_workers=self._num_workers, processors=processors.available(), worker_type=self._worker_type
        )
        return gathering.collect_stream(self._delivery, setting, stream_verdict.PRODUCER, self.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {registry.label_of(self)!r} at {id(self):#x}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Producer cannot be pickled or copied: its workers are this process's")


class _TargetsReturnedError(Exception):
    """Ends the wait for the end of all targets."""


class _Stream:
    """What workers fill, in the order in which it comes. What asks, takes and looks is called while one books.

    Args:
        delivery: of the workers.
        num_slots: how many slots are under way.
    """

    def __init__(self, delivery: Delivery, num_slots: int) -> None:
        self._delivery = delivery
        self._num_slots = num_slots
        self._why_over = ""

    @property
    def is_over(self) -> bool:
        """Whether there is no more to be had."""
        return bool(self._why_over)

    @property
    def is_running(self) -> bool:
        """Whether there are workers, and they are this process's."""
        return self._delivery.is_running

    def close(self) -> None:
        """Ends the stream, and the workers. Not while one books."""
        self.end("this producer was stopped")
        self._delivery.close()

    def ask(self) -> None:
        """Gives workers as many slots as may be under way."""
        dispatcher = self._delivery.dispatcher
        if dispatcher.is_active:
            for _ in range(self._num_slots - dispatcher.under_way):
                dispatcher.ask_job(b"")

    def take(self) -> Result | None:
        """Returns what is next, or None where nothing is there yet.

        Raises:
            ProducerEndedError: nothing will come.
        """
        self.ask()  # a worker that has ended gave back what it had
        dispatcher = self._delivery.dispatcher
        result = dispatcher.take()
        if result is None and dispatcher.is_done:
            self.end("all targets of this producer have returned, and all items were taken")
            raise ProducerEndedError(self._why_over)
        return result

    def look_for_the_end(self) -> None:
        """Takes nothing.

        Raises:
            _TargetsReturnedError: all targets have returned.
        """
        self.ask()
        if not self._delivery.dispatcher.is_active:
            raise _TargetsReturnedError

    def end(self, why: str) -> None:
        """Notes why there is no more to be had; the first time counts."""
        self._why_over = self._why_over or why

    def check(self) -> None:
        """Raises where there is no more to be had.

        Raises:
            ProducerEndedError: see above.
        """
        if self.is_over:
            raise ProducerEndedError(self._why_over)

    def end_of(self, error: ProducerEndedError | ClosedError) -> Exception:
        """Returns what an error is to who has it: why the stream is over, where it is. Ends workers at the end."""
        if isinstance(error, ProducerEndedError):
            self._delivery.close()
            self._delivery.steps.tell_end()
            return error
        return ProducerEndedError(self._why_over) if self.is_over else error

    @contextlib.contextmanager
    def over_if_closed(self) -> Iterator[None]:
        """Says of a stream that is over why it is, where others only see that it is closed. Ends workers at the end."""
        self.check()
        try:
            yield
        except (ProducerEndedError, ClosedError) as error:
            raise self.end_of(error) from None


def _source(
    target: Callable[..., object],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layout: ItemLayout,
    init_fn: Callable[[int], None] | None,
    generator: torch.Generator | None,
    own_words: Words,
) -> TargetSource:
    return TargetSource(target, args, kwargs, layout, init_fn, seeding.draw_base_seed(generator), own_words)


def _check_callables(target: Any, init_fn: Any) -> None:
    checked_callable("target", target)
    for kind in (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction):
        if kind(target):
            raise TypeError(
                f"target must be a plain function that fills `slots`, and {target!r} has a yield or an async in it, so "
                "that nothing of it would run"
            )
    if init_fn is not None:
        checked_callable("worker_init_fn", init_fn)


def _arguments(args: Any) -> tuple[Any, ...]:
    if isinstance(args, (str, bytes)) or not isinstance(args, Iterable):
        raise TypeError(
            f"args must be a tuple of the target's further arguments, got {args!r}; write ({args!r},) for one"
        )
    return tuple(args)


def _keyword_arguments(kwargs: Any) -> dict[str, Any]:
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise TypeError(f"kwargs must be a mapping from names to values, got {kwargs!r}")
    return dict(kwargs)
