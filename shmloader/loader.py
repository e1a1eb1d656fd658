"""ShmDataLoader: arguments, and what lives longer than one pass over the data.

How a batch travels::

    training loop                 parent process                          worker process i
    -------------                 --------------                          ----------------
    next(it) ------------------>  sampler -> indices
                                  ledger: FREE slot -> WRITING
                                  indices ----- written into the slot --> read from the slot
                                  token ------- pipe to worker i -------> fetch samples
                                                                          collate into the slot
                                  slot READY <- one pipe for all -------- token
    batch  <--------------------  tensors over the slot: LEASED
    (keeps it as long
     as it needs it)
    last tensor dies ---------->  a finalizer notes the slot's number
    next(it) ------------------>  slot FREE
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from . import callers, interrupts, rebuilding, requirements, torch_private, words
from .arguments import checked_count, checked_flag, checked_name, checked_optional_count, checked_seeding, plain_count
from .batches import spec
from .batches.alignment import ALIGNMENT
from .device import cuda
from .device.pinned import PinnedMemory
from .device.transfer import DeviceIterator
from .errors import FallbackWarning
from .observe import gathering, processors, registry, trace
from .observe.statistics import LoaderStatistics
from .observe.verdict import Setting
from .passes.epoch_stream import EpochIterator, SourceStream
from .passes.epochs import Epochs
from .passes.fitting import check_fits, fits_of, samplers_of
from .passes.in_process import SeededInProcessIterator, TrackedInProcessIterator
from .passes.iterator import ShmIterator
from .passes.lifetime import Lifetime
from .passes.state import State, from_dict, to_dict
from .passes.tracking import Tracking, is_stream, set_permutation, state_before
from .slots.pool import SharedMemory
from .slots.pool_cache import PoolSettings
from .torch_private import BaseIterator
from .words import Words
from .workers import kinds
from .workers.interface import Workers

T_co = TypeVar("T_co", covariant=True)

# Room for the skeleton of a declared batch, whose size is known only once there is one.
_TAIL_BYTES = 4096


class ShmDataLoader(DataLoader[T_co]):
    """A drop-in replacement for `torch.utils.data.DataLoader` whose workers write batches into reused shared memory.

    The arguments that torch's loader has mean what they mean there. Batches, their order, random streams and errors are
    the same bit for bit. What differs is how a batch travels: a worker writes it into a slot of a pool, and the loop
    gets tensors that are views of the slot, with no copy. The slot is used again when the last tensor, slice, array and
    autograd graph of the batch is gone, and never before.

    Which process runs what: ``dataset``, ``collate_fn`` and ``worker_init_fn`` run in the workers, as copies of what
    was given here. Samplers, and all else, run in the process and the thread that iterate. With ``num_workers=0`` there
    are no workers and no pool, and everything runs there. With ``worker_type="thread"`` the workers are threads of that
    process: they share what was given here, but for an iterable dataset, of which each has a copy.

    Several iterators of one loader may be alive at a time; each has workers and a pool of its own. Persistent workers
    have one iterator, which begins again. An iterator belongs to the process that made it, and is for one thread at a
    time. A copy of the loader, or one that was pickled, has the same arguments, and workers and memory of its own.

    ``len(loader)`` is the number of batches in a pass, as torch counts them: of the sampler, or of an iterable dataset
    that has a length; or ``epoch_size``.

    Every argument is an attribute of the same name. As with torch's loader, ``dataset``, ``batch_size``, ``sampler``,
    ``batch_sampler``, ``drop_last`` and ``persistent_workers`` cannot be set again. What else is set counts from the
    next pass that starts workers, but for ``sample_shapes`` and ``sample_dtypes``, which are read once.

    For example:

        loader = ShmDataLoader(dataset, batch_size=64, shuffle=True, num_workers=4)
        for images, labels in loader:
            train_step(images, labels)

    Args:
        dataset: map-style or iterable. One that has ``__getitem_into__`` or ``__getitems_into__`` writes its samples
            into the batch itself, where the collate function is torch's default one.
        batch_size: samples in a batch. None: no batches are made, samples are delivered as the dataset returns them.
        shuffle: whether to draw indices in random order, anew for each pass.
        sampler: draws indices; excludes ``shuffle``.
        batch_sampler: draws lists of indices; excludes ``batch_size``, ``shuffle``, ``sampler`` and ``drop_last``.
        num_workers: workers, processes unless ``worker_type`` says otherwise; 0: samples are loaded by the loop's own
            process, as torch's loader does it.
        collate_fn: makes a batch of a list of samples. torch's default one, called directly or from a function of
            yours, writes into the slot; anything else that a function returns is copied into it once.
        pin_memory: hand out batches in page-locked memory. With CUDA the slots are page-locked; with another
            accelerator, batches are copied.
        drop_last: drop the last batch if it is smaller.
        timeout: seconds to wait for a batch; 0: for ever.
        worker_init_fn: called in each worker with its number, after its random generators were seeded.
        multiprocessing_context: start method or context; by default what `multiprocessing.set_start_method` was told,
            else fork. Not for threads.
        generator: source of the shuffling and of the workers' base seed; by default torch's global one.
        prefetch_factor: batches per worker to load ahead; 2 by default. The sampler is read so far ahead.
        persistent_workers: whether workers stay for the next pass.
        pin_memory_device: deprecated in torch, ignored there too.
        in_order: deliver batches in the sampler's order. False: as they are made.
        sample_shapes: shapes of one sample's tensors, in the sample's own structure of dicts, lists, tuples and
            namedtuples. A leaf is a shape, a `TensorSpec`, or None for what is not a tensor. The pool is sized and made
            resident before the first batch, and every sample is compared with the declaration. None: shapes are
            learned, and may differ from batch to batch.
        sample_dtypes: the dtypes in the same structure, or one for all. What has none is not checked, and sized as
            torch's default dtype.
        max_pool_bytes: what the pool may take. By default half of the memory that this process may use: the machine's,
            or its control group's limit. Memory that is not there when the pool is made does not count.
        num_slots: batches that the pool holds at a time: ``prefetch_factor x num_workers`` that are loaded, and those
            that the loop holds, two at least. By default it may hold ``prefetch_factor x num_workers`` and sixteen;
            fewer where ``max_pool_bytes`` is a few MB, or the process's address space or file sizes are limited.
        worker_restarts: how many workers that die in a pass are replaced. Batches that were lost are made again with
            the same random numbers, and each batch comes once and in its order. What the dataset had put into its own
            attributes in the worker is lost; an iterable dataset is iterated again, and has to give the same stream. 0:
            a death is a `WorkerDiedError`.
        device: a CUDA device, or its name: batches are handed out there, copied on a stream of the loader's own, and
            safe to use on the stream that is current when they are handed out. Dense tensors in lists, tuples, mappings
            and dataclasses are moved ahead; whatever else has a method ``to``, at hand-out; the rest stays as it is.
            The slots are page-locked, whatever ``pin_memory`` says. None or the CPU: batches stay where they are.
        device_prefetch: how many batches may be on their way to ``device`` ahead of the loop. The sampler is read so
            much further ahead.
        worker_type: "process", "thread" or "ray". Threads start at once, fork and pickle nothing but the batches, and
            share the dataset. They are worth it where samples are made by code that releases the interpreter lock:
            decoders, large copies, waits for files and networks. torch's, numpy's and Python's global random
            generators are the process's, so threads do not seed them; a thread cannot be killed, see ``__iter__``.
            With "ray" workers are actors of Ray, on whatever nodes of its cluster have processors free; what goes to
            them is pickled, and batches come through Ray's object store. ``iter`` calls ``ray.init()`` where nobody
            has. Ignored with ``num_workers=0``.
        snapshot_every_n_steps: after how many batches workers tell the state of a dataset, or of its iterator, that has
            ``state_dict`` and ``load_state_dict``; see ``state_dict``. Larger where that state is large: a pass that is
            taken up makes the batches since the last one again. None: never. Other datasets have no such state. With
            ``in_order=False`` it is as 1, since it is not known then which batches came since.
        seeding: "worker": each worker's random generators are seeded when it starts, as torch's loader does it.
            "sample": torch's (the CPU's), numpy's and Python's are seeded before each sample, by base seed, pass and
            index. What a dataset draws is then the same with any number of workers, batch size and order, with
            ``num_workers=0``, and after a worker was replaced. The base seed is that of the loader's first pass.
            ``__getitems__`` and ``__getitems_into__`` are called for one index at a time. Of an iterable dataset the
            position counts, and there may be one worker at most. Not for threads.
        epoch_size: batches in a pass. A pass goes on where the one before has ended, or was left, and what was loaded
            ahead is kept; workers stay. Where the dataset or the sampler ends it starts over, shuffled anew, also in
            the middle of a pass. Batches are those of ordinary passes one behind the other. None: a pass is what the
            dataset or the sampler gives.
        forward_logs: whether what worker processes log is handed to the handlers of this process, each record once, at
            the levels that loggers had here when the workers started. That is done in the thread that iterates: before
            ``next`` returns or raises, while it waits, and when workers end, also by death. Otherwise records wait, a
            megabyte for each worker; what does not fit is dropped, and how much that was is logged. Forked workers lose
            the handlers that they have inherited; what ``worker_init_fn`` adds stays. Threads log here as it is.
        ray_options: what Ray's ``options`` takes for each actor, such as ``num_cpus`` (1 by default), ``resources``,
            ``runtime_env`` or ``scheduling_strategy``. Only with ``worker_type="ray"``.
        name: what this loader is called: "train", say. Its errors, its warnings and a profiler's label then say
            DataLoader 'train', and its figures have the name. None: texts are torch's, and figures have the name of the
            dataset's class.

    Raises:
        ValueError: an argument has a value, or two have a combination, that cannot be. For torch's arguments these are
            torch's errors; the others name the argument.
        TypeError: an argument is of a wrong type; likewise.
        ModuleNotFoundError: ``worker_type`` is "ray", and Ray is not installed.
    """

    timeout: Any = rebuilding.Watched("timeout")
    sample_shapes: Any
    sample_dtypes: Any
    max_pool_bytes: int | None
    num_slots: int | None
    worker_restarts: int
    device: torch.device | str | None
    device_prefetch: int
    worker_type: str
    snapshot_every_n_steps: int | None
    seeding: str
    epoch_size: int | None
    name: str | None
    forward_logs: bool
    ray_options: Mapping[str, Any] | None

    def __init__(
        self,
        dataset: Dataset[T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        sample_shapes: Any = None,
        sample_dtypes: Any = None,
        max_pool_bytes: int | None = None,
        num_slots: int | None = None,
        worker_restarts: int = 0,
        device: torch.device | str | None = None,
        device_prefetch: int = 2,
        worker_type: str = "process",
        snapshot_every_n_steps: int | None = 1,
        seeding: str = "worker",
        epoch_size: int | None = None,
        name: str | None = None,
        forward_logs: bool = False,
        ray_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._fell_back = False
        self.worker_type = worker_type  # which torch's constructor asks for below, in what it warns of
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            plain_count(num_workers),
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=plain_count(prefetch_factor),
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            in_order=in_order,
        )
        self.sample_shapes = sample_shapes
        self.sample_dtypes = sample_dtypes
        self.max_pool_bytes = checked_optional_count("max_pool_bytes", max_pool_bytes, 1)
        self.num_slots = checked_optional_count("num_slots", num_slots, 1)
        self.worker_restarts = checked_count("worker_restarts", worker_restarts, 0)
        self.device = device
        self.device_prefetch = checked_count("device_prefetch", device_prefetch, 0)
        self.worker_type = kinds.checked_worker_type(worker_type, self.multiprocessing_context)
        self.snapshot_every_n_steps = checked_optional_count("snapshot_every_n_steps", snapshot_every_n_steps, 1)
        self.seeding = seeding
        self._check_seeding()
        self.epoch_size = checked_optional_count("epoch_size", epoch_size, 1)
        self.name = checked_name(name)
        self.forward_logs = checked_flag("forward_logs", forward_logs)
        kinds.check_forwarding(self.forward_logs, self.worker_type)
        kinds.checked_ray_options(ray_options, self.worker_type)
        self.ray_options = ray_options
        _cuda_device(device)
        if sample_shapes is None and sample_dtypes is not None:
            raise ValueError("sample_dtypes needs sample_shapes")
        self._sample_spec = None if sample_shapes is None else spec.declare(sample_shapes, sample_dtypes)
        self._lifetime = Lifetime()
        self._mover: DeviceIterator | None = None
        self._tracking: Tracking | None = None  # of the last iterator, which may be gone
        self._to_resume: State | None = None
        self._stream: SourceStream | None = None

    def __iter__(self) -> BaseIterator:
        """Begins a pass over the data: starts workers, or has persistent ones begin again, and asks for batches ahead.

        It takes as long as starting ``num_workers`` workers does. Where shapes are declared, the pool's memory is
        faulted in as well, once. Persistent workers are given a new pass by the iterator that they had, and it blocks
        until each is done with what it was asked for in the pass before.

        ``next`` of the iterator blocks until the next batch is there. What wakes it: the batch, the death of a worker,
        the end of ``timeout``, a signal that Python handles. It then reads the sampler for one more batch. Errors of
        the dataset come in their batch's place, and the batches after it follow; they, and those below, come from
        ``next`` where nothing else is said.

        Workers end with the pass, or with the loader if they are persistent; and when the iterator is dropped, or a
        KeyboardInterrupt hits inside it. That blocks until each has finished the sample it is at, for 5 seconds at most
        and 1 more, after which it is killed. A thread finishes the batch that it is at; after 5 seconds it is left
        behind, and the pool's memory with it, until it ends.

        With ``epoch_size``, workers and what they have loaded ahead belong to the loader, and a pass takes from them.
        Of several passes at a time each takes what is next; no batch comes twice. An error of the dataset comes between
        batches, and does not count as one. After an error that has closed the iterator, the next pass starts the source
        over. Where a sampler has ``set_epoch`` and ``epoch``, as torch's `DistributedSampler`, it is set to the next
        epoch when the source starts over.

        Returns:
            The iterator. It has ``len``, as torch's.

        Raises:
            ValueError: here; ``num_slots``, ``max_pool_bytes`` or ``prefetch_factor`` cannot be met, or ``worker_type``
                was set to what there is not.
            RuntimeError: here, if ``device`` is not there, or ``seeding`` is "sample" where the loader cannot be more
                than torch's (see below); from ``next``, if the iterator was closed by an interrupt or
                belongs to another process, or a CUDA graph is being captured while ``device`` is set.
            PoolMemoryError: here, if what is declared does not fit under ``max_pool_bytes`` or in memory; from
                ``next``, if one batch does not.
            SpecMismatchError: a sample is not as declared.
            AssertionError: here; ``prefetch_factor`` is 0.
            WorkerDiedError: a worker died, and is not replaced. The iterator is closed. Here too, of one that died
                while it was started, or of a persistent one.
            WorkerTimeoutError: no batch came within ``timeout`` seconds. The iterator may be asked again. Here too, of
                persistent workers that are not done with the pass before.
            Exception: what the dataset or ``collate_fn`` raised, with the worker's traceback in its text; here, what
                cannot be pickled for a worker that is spawned, or not be copied for a thread.

        Warns:
            FallbackWarning: once; the platform lacks what the pool is made of, or page-locked with, or this torch lacks
                what the loader is made of. What torch's loader does is done instead.
            HeldBatchesWarning: once for each pool; the loop holds more batches than there are slots for, and gets
                copies.
            WorkerRestartWarning: a worker died and is replaced.
            StuckWorkerWarning: a worker thread was left behind.
        """
        began = self._lifetime.meters.begin_pass()
        try:
            if self.epoch_size is None:
                self._stream = None
                return self._source_pass()
            if self._stream is None:
                self._stream = SourceStream(self.epoch_size, self._to_resume is not None)
            given = None if self._to_resume is None else self._to_resume.given
            return EpochIterator(self._stream, self._source_pass, self._start_over, self.epoch_size, given or 0)
        finally:
            self._lifetime.meters.end_begin(began)

    def _start_over(self) -> BaseIterator:
        """Begins the next pass over all that there is, where whoever calls ``set_epoch`` for ordinary ones cannot."""
        epochs = [(one, getattr(one, "epoch", None)) for one in samplers_of(self)]
        for one, epoch in epochs:  # read before any is set: one may hand on to another, and would be counted twice
            if callable(getattr(one, "set_epoch", None)) and isinstance(epoch, int):
                one.set_epoch(epoch + 1)
        return self._source_pass()

    def _source_pass(self) -> BaseIterator:
        """Begins a pass over all that the dataset or the sampler has."""
        with interrupts.AllDeferred():  # what a signal's handler raises would be taken for a lack of torch's
            difference = torch_private.difference() if self._is_own else ""
        if difference:
            self._warn_of_fallback(difference)
        elif isinstance(self._iterator, ShmIterator) and not self._iterator.can_resume:
            self._iterator = None
        device = _cuda_device(self.device)
        if device is not None:
            cuda.resolve(device)  # before there are workers
        host = super().__iter__()
        self._lifetime.epochs.next += 1
        if device is None:
            self._mover = None
            return host
        return self._moved(host, device)

    def _moved(self, host: BaseIterator, device: torch.device) -> DeviceIterator:
        mover, self._mover = self._mover, None
        if mover is None or (mover.host, mover.device, mover.depth) != (host, device, self.device_prefetch):
            mover = DeviceIterator(host, device, self.device_prefetch)
        else:
            mover.restart()
        if host is getattr(self, "_iterator", None):  # persistent workers have one iterator for all passes
            self._mover = mover
        return mover

    def _get_iterator(self) -> BaseIterator:
        self._tracking = None
        if torch_private.difference():
            return super()._get_iterator()
        self._check_seeding()
        if self.num_workers == 0:
            place = self._new_tracking()
            if self._seeds_samples:
                return self._tracked(SeededInProcessIterator(self, self._lifetime, place, self._sample_spec), place)
            return self._tracked(TrackedInProcessIterator(self, self._lifetime, place, self._sample_spec), place)
        kinds.checked_worker_type(self.worker_type, self.multiprocessing_context)  # which may have been set since
        with interrupts.AllDeferred():  # which opens descriptors, and closes them
            lack = requirements.lack(self.worker_type)
        if lack:
            self._warn_of_fallback(lack)
            return super()._get_iterator()
        place = self._new_tracking()
        iterator = ShmIterator(
            self,
            self._lifetime,
            self._pool_settings(),
            self._workers_factory(),
            place,
            self._sample_spec,
            self.worker_restarts,
            self._seeds_samples,
        )
        registry.add(self, iterator)
        return self._tracked(iterator, place)

    def _new_tracking(self) -> Tracking:
        ahead = self.num_workers * (self.prefetch_factor or 0) + self.device_prefetch
        return Tracking(self, self._to_resume, self.snapshot_every_n_steps, ahead, self._lifetime.epochs)

    def _tracked(self, iterator: BaseIterator, place: Tracking) -> BaseIterator:
        self._tracking, self._to_resume = place, None
        if isinstance(iterator, TrackedInProcessIterator):
            self._lifetime.watch.add(iterator)
        return iterator

    def _workers_factory(self) -> Callable[[int, int], Workers]:
        self.check_worker_number_rationality()
        kinds.check_forwarding(self.forward_logs, self.worker_type)
        return functools.partial(
            kinds.new_workers,
            self.worker_type,
            self.multiprocessing_context,
            words=self._words(),
            forward_logs=checked_flag("forward_logs", self.forward_logs),
            ray_options=kinds.checked_ray_options(self.ray_options, self.worker_type),
            sent=self._lifetime.sent,
        )

    def _words(self) -> Words:
        return words.named(words.LOADER, checked_name(self.name))

    def check_worker_number_rationality(self) -> None:
        """Warns of more worker processes than this machine has processors, as torch does."""
        if self.worker_type == "process" or self._fell_back:
            super().check_worker_number_rationality()

    @property
    def _is_own(self) -> bool:
        """Whether a pass is ours at all, and not torch's in the loop's process."""
        return self.num_workers != 0 or self._sample_spec is not None or self._seeds_samples

    @property
    def _seeds_samples(self) -> bool:
        return self.seeding == "sample"

    def _check_seeding(self) -> None:
        checked_seeding(self.seeding, self.worker_type, self.num_workers, is_stream(self))

    def _warn_of_fallback(self, difference: str) -> None:
        if self._seeds_samples:
            raise RuntimeError(f"{difference}, so that samples cannot be seeded (seeding='sample')")
        if not self._fell_back:
            self._fell_back = True
            text = f"{difference}, so ShmDataLoader loads as torch's DataLoader does"
            warnings.warn(text, FallbackWarning, stacklevel=callers.stacklevel())

    def _pool_settings(self) -> PoolSettings:
        # As the loader is now: torch lets its attributes be changed between passes.
        is_moved = _cuda_device(self.device) is not None
        is_pinned = (bool(self.pin_memory) or is_moved) and cuda.is_available()
        return PoolSettings(
            num_workers=self.num_workers,
            in_flight=self.num_workers * (self.prefetch_factor or 0),
            num_slots=self.num_slots,
            max_bytes=self.max_pool_bytes,
            declared_bytes=self._declared_bytes(),
            memory=PinnedMemory() if is_pinned else SharedMemory(),
            on_the_way=self.device_prefetch if is_moved else 0,
            words=self._words(),
        )

    def _declared_bytes(self) -> int:
        if self._sample_spec is None:
            return 0
        batch_size: int = self.batch_size or getattr(self.batch_sampler, "batch_size", None) or 1
        return spec.batch_bytes(self._sample_spec, batch_size, ALIGNMENT) + _TAIL_BYTES

    def __repr__(self) -> str:
        label = registry.label_of(self)
        known = [f"{one}={vars(self)[one]!r}" for one in ("batch_size", "num_workers") if one in vars(self)]
        return f"<{' '.join([type(self).__name__, repr(label), *known])} at {id(self):#x}>"

    def __len__(self) -> int:
        return super().__len__() if self.epoch_size is None else self.epoch_size

    def pause(self) -> None:
        """Stops loading ahead, in all passes of this loader, until `resume`.

        Workers finish the sample that each is at, begin no other, and sleep. A batch that a dataset makes in one call
        (``__getitems__``, say) is one sample in this. Batches that are made stay, and come first. Then ``next`` has
        just its own batch made; the others wait, and the sampler is not read ahead. It may be called before a pass
        begins. Without workers nothing is loaded ahead anyway.

        Does not block. It is for the thread that iterates, as `resume` and `prefetching` are.
        """
        self._lifetime.gate.shut()

    def resume(self) -> None:
        """Goes on loading ahead, and asks for what was not asked for meanwhile. Does not block.

        Raises:
            Exception: what the sampler raises.
        """
        self._lifetime.gate.open()

    def prefetching(self) -> AbstractContextManager[None]:
        """Loads ahead within a ``with`` block, and not outside.

        As `resume` at the block's beginning and `pause` at its end, whatever was before: a loader that is to load ahead
        in some blocks only needs nothing else. Blocks may be nested; the outermost counts.

        Returns:
            The context manager, to be entered once.
        """
        return self._lifetime.gate.opened()

    def statistics(self) -> LoaderStatistics:
        """Returns what the loader has given and taken, in its life and in its last pass, and what limits the loop.

        Does not block, and may be called at any time and in any thread, also within a pass. It reads what workers have
        written about themselves, which takes some hundred microseconds, and more with many workers. With Ray's actors
        it asks the cluster how many processors it has, a millisecond. Printed, it is a table.

        Returns:
            The figures as they are now. They are 0 before the first pass, and where torch's own loader has taken this
            one's place.
        """
        setting = Setting(
            num_workers=self.num_workers,
            processors=kinds.processors(self.worker_type) or processors.available(),
            prefetch_factor=self.prefetch_factor or 0,
            in_order=self.in_order,
            stays=self.persistent_workers or self.epoch_size is not None,
            goes_on=self.epoch_size is not None,
            worker_type=self.worker_type,
            is_stream=is_stream(self),
            batching="batch_size"
            if self.batch_size is not None
            else "batch_sampler"
            if self.batch_sampler is not None
            else None,
        )
        return gathering.collect(
            self._lifetime.meters,
            self._lifetime.pool_cache.last,
            setting,
            self.dataset,
            self._fell_back,
            self.name,
        )

    def trace(
        self, path: str | os.PathLike[str], *, max_bytes: int = trace.DEFAULT_BYTES
    ) -> AbstractContextManager[None]:
        """Writes the life of every slot to a file, within a ``with`` block, as Chrome's trace events.

        Perfetto (ui.perfetto.dev) and chrome://tracing open it; ``python -m shmloader trace FILE`` sums it up or draws
        it. There is a track for the loop, with its steps and waits, one for each worker, and one for each slot. Passes
        that are under way are traced from here on, and so are all that begin within the block.

        The file is written by the thread that iterates, each second or every few thousand batches, which takes some
        milliseconds then. It is whole JSON after each write, and so also if the process is killed. One that ends in
        ``.gz`` is compressed, which takes more time. Forked processes write nothing. Times count as those of torch's
        profiler do.

        Args:
            path: the file; one that is there is overwritten.
            max_bytes: the most that it may take, 64 KiB at least. A batch takes some 1.4 kB, uncompressed. What
                comes when it is full is counted in the file's last event.

        Returns:
            The context manager, to be entered once.

        Raises:
            TypeError, ValueError: an argument is wrong; or, when it is entered, ``path`` is not a regular file, or is
                being written by another trace, of another loader or process.
            RuntimeError: when it is entered; the loader is being traced already.
            OSError: when it is entered; the file cannot be opened or written to.

        Warns:
            TraceWarning: once; the file is full, or the disk is, in a later step or at the block's end. Nothing but the
                trace ends then.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be a str or an os.PathLike, got {path!r}")
        checked_count("max_bytes", max_bytes, 1)
        return trace.traced(self._lifetime.watch, Path(path), max_bytes, registry.label_of(self))

    def state_dict(self) -> dict[str, Any]:
        """Returns where the loop is, so that another loader with the same arguments can go on from there.

        It is the state behind the last batch that was handed out, or exception in a batch's place, by the iterator that
        was made last; what was loaded ahead does not count. Between two passes it is the beginning of the next one.
        It may be called at any time, also when the iterator is gone, in the thread that iterates. It does not block,
        and takes some 100 us.

        A map-style dataset is found again by its sampler, and no sample is read for that. What a dataset, the iterator
        of an iterable dataset, or a sampler says of itself by a ``state_dict`` of its own is in the state too. So are
        the states of the workers' random generators, if they are processes and have drawn anything.

        Returns:
            Dicts, lists, strings, numbers and None, some kB for each worker; as JSON or with `torch.save` they can be
            kept. Objects that JSON would change, in states of a dataset or a sampler, are in it as pickles.

        Raises:
            RuntimeError: torch's own loader has taken this one's place; see `FallbackWarning`.
        """
        if self._is_stocks():
            raise RuntimeError("there is no state, since ShmDataLoader loads as torch's DataLoader does here")
        if self._to_resume is not None:
            state = self._to_resume
        elif self._tracking is not None:
            state = self._tracking.state(fits_of(self))
            state.given = None if self._stream is None else self._stream.last.given
        else:
            state = state_before(self, fits_of(self), self._lifetime.epochs)
        return to_dict(state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Has the next pass begin where a state says. The passes after it are ordinary ones.

        What the state says is checked here; nothing is read before ``iter``. Persistent workers end. ``iter`` then
        draws indices up to the place, without reading data, and leaves the global random generators as they are. Those
        of the loader and of its sampler are where they were. A state from the end of a pass has the next one begin.
        An empty dict is no state: the next pass begins at its start.

        An iterable dataset that has no state, and whose iterator has none, is read again up to the place. So are the
        batches since the last state of a dataset, with ``snapshot_every_n_steps`` of more than 1, where ``iter`` blocks
        until they are made.

        With another number of workers a map-style dataset gives the same samples in the same order. What they draw from
        random generators is different, and a warning says so; not with ``seeding="sample"``, where nothing is.

        With ``epoch_size``, the next pass is what was left of the one that was under way. With a `PermutationSampler`
        the number of ranks may be another, if ``batch_size`` times that number is the same. Its ``set_epoch`` may be
        called after this for a pass that is not begun.

        Pickles in a state run code when they are loaded: load only states that you trust.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            TypeError: it is no dict.
            ValueError: it is of another class or version, it is damaged, or the loader is another in what decides which
                samples come when; the text names it.

        Warns:
            ResumeWarning: at ``iter``; what follows differs from what would have followed, or batches are made again.
        """
        state = None
        if not isinstance(state_dict, Mapping) or state_dict:
            state = from_dict(state_dict)
            check_fits(self, state)
            if state.sampler is not None:
                set_permutation(self, state.sampler, is_begun=state.phase == "within")
            self._lifetime.epochs = Epochs(state.epoch, state.sample_seed)
        self._to_resume, self._tracking, self._iterator, self._mover, self._stream = state, None, None, None, None

    def _is_stocks(self) -> bool:
        if torch_private.difference():
            return True
        return self.num_workers > 0 and bool(requirements.lack(self.worker_type))

    def __getstate__(self) -> dict[str, Any]:
        # Processes and shared memory stay where they are; a copy makes its own.
        gone = "_iterator", "_mover", "_stream", "_tracking", "_to_resume"
        return {**self.__dict__, **dict.fromkeys(gone), "_lifetime": copy.copy(self._lifetime)}


def _own_names() -> tuple[str, ...]:
    """Returns the names of the arguments that are this library's, and of what was made of them."""
    torchs = inspect.signature(DataLoader).parameters
    return *(name for name in inspect.signature(ShmDataLoader).parameters if name not in torchs), "_sample_spec"


setattr(ShmDataLoader, rebuilding.LIGHTNINGS_RECORD, rebuilding.Record(_own_names()))  # a class would mangle the name


def state_to_take_up(loader: ShmDataLoader[Any]) -> State | None:
    """Returns the state that a loader's next pass goes on from, or None."""
    return loader._to_resume


def loads_as_stock(loader: ShmDataLoader[Any]) -> bool:
    """Whether a loader loads as torch's own does, for want of what ours is made of."""
    return loader._is_stocks()


def _cuda_device(device: Any) -> torch.device | None:
    """Returns the CUDA device that ``device`` says, or None for the CPU."""
    if device is None:
        return None
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device must be a torch.device or the name of one, got {device!r}")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not a valid device: {error}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be a CUDA device or the CPU, got {device!r}")
    return found if found.type == "cuda" else None
