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
     as it likes)
    last tensor dies ---------->  a finalizer notes the slot's number
    next(it) ------------------>  slot FREE
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from . import spec
from .epoch import CheckedInProcessIterator, ShmIterator
from .errors import FallbackWarning
from .limits import memory_limit
from .pool import Pool, PoolStatistics
from .writer import ALIGNMENT

T_co = TypeVar("T_co", covariant=True)

# Room for the skeleton of a declared batch, whose size is known only once there is one.
_TAIL_BYTES = 4096

# Slots beyond those in flight: the loop's batch, the one before it that is still in its hands when it asks for the
# next, and some more for loops that look ahead or collect a few. Untouched slots take no memory.
_SPARE_SLOTS = 4


class ShmDataLoader(DataLoader[T_co]):
    """A drop-in replacement for `torch.utils.data.DataLoader` whose workers write batches into reused shared memory.

    All of torch's arguments keep their meaning, batches and random streams are stock's bit for bit, and errors are
    stock's. What differs is how a batch travels, see the module's docstring; and that tensors of a batch are views of
    a slot of the pool, which is used again when the last of them is gone.

    Args:
        dataset: map-style or iterable.
        batch_size: samples in a batch; None: samples are delivered as the dataset returns them.
        shuffle: whether to draw indices in random order, anew for each pass.
        sampler: draws indices.
        batch_sampler: draws lists of indices.
        num_workers: worker processes; 0: stock's own single-process iterator.
        collate_fn: makes a batch of a list of samples. torch's default one, called directly or from a function of
            yours, writes into the slot; anything else that a function returns is copied into it once.
        pin_memory: copy batches to page-locked memory before they are handed out.
        drop_last: drop the last batch if it is smaller.
        timeout: seconds to wait for a batch; 0: for ever.
        worker_init_fn: called in each worker with its number.
        multiprocessing_context: start method or context; by default what `multiprocessing.set_start_method` was told,
            else fork.
        generator: source of the shuffling and of the workers' base seed.
        prefetch_factor: batches per worker to load ahead; 2 by default.
        persistent_workers: keep the workers for the next pass.
        pin_memory_device: deprecated in torch, ignored there too.
        in_order: deliver batches in the sampler's order.
        sample_shapes: shapes of one sample's tensors, in the sample's own structure; see `shmloader.spec`. Then the
            pool is sized and made resident before the first batch, and every sample is compared with it.
        sample_dtypes: the dtypes in the same structure, or one for all.
        max_pool_bytes: what the pool may take; half of the memory that this process may use by default.
        num_slots: batches that the pool holds at a time, those being loaded included; by default twice
            ``prefetch_factor x num_workers``, and four.

    Raises:
        ValueError, TypeError: an argument is wrong. Those of torch's arguments are torch's errors; the others name
            the argument.
    """

    sample_shapes: Any
    sample_dtypes: Any
    max_pool_bytes: int | None
    num_slots: int | None

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
    ) -> None:
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            in_order=in_order,
        )
        self.sample_shapes = sample_shapes
        self.sample_dtypes = sample_dtypes
        self.max_pool_bytes = _positive("max_pool_bytes", max_pool_bytes)
        self.num_slots = _positive("num_slots", num_slots)
        if sample_shapes is None and sample_dtypes is not None:
            raise ValueError("sample_dtypes needs sample_shapes")
        self._sample_spec = None if sample_shapes is None else spec.declare(sample_shapes, sample_dtypes)
        if num_slots is not None and num_slots < self._in_flight + 2:
            raise ValueError(
                f"num_slots={num_slots} is too small: prefetch_factor x num_workers = {self._in_flight} batches are "
                f"loaded ahead and two are in the loop's hands, so it takes {self._in_flight + 2} at least"
            )
        self._shelf = PoolShelf(self)

    @property
    def _in_flight(self) -> int:
        return self.num_workers * (self.prefetch_factor or 0)

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if self.num_workers == 0:
            return super()._get_iterator() if self._sample_spec is None else CheckedInProcessIterator(self)
        missing = missing_on_this_platform()
        if missing:
            warnings.warn(
                f"this platform lacks {missing}, so ShmDataLoader loads as torch's DataLoader does",
                FallbackWarning,
                stacklevel=3,
            )
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return ShmIterator(self)

    def _worker_context(self) -> Any:
        if self.multiprocessing_context is not None:
            return self.multiprocessing_context
        # Forked workers need nothing to be picklable, and start fastest; Python 3.14's own default is another.
        return multiprocessing.get_context(multiprocessing.get_start_method(allow_none=True) or "fork")

    def pool_statistics(self) -> PoolStatistics | None:
        """Returns the figures of the pool that was used last, or None before the first pass."""
        return self._shelf.statistics()

    def __getstate__(self) -> dict[str, Any]:
        # Processes and shared memory stay where they are; a copy makes its own.
        return {**self.__dict__, "_iterator": None, "_shelf": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shelf = PoolShelf(self)


class PoolShelf:
    """Makes a loader's pools, and keeps one from pass to pass: its memory is touched once and its sizes are known.

    Iterators that live side by side have a pool each.
    """

    def __init__(self, loader: ShmDataLoader[Any]) -> None:
        in_flight = loader._in_flight
        self._in_flight = in_flight
        self._num_slots = loader.num_slots or 2 * in_flight + _SPARE_SLOTS
        self._max_bytes = loader.max_pool_bytes
        self._keep_open = in_flight > 0 and loader._worker_context().get_start_method() != "fork"
        self._declared_bytes = _declared_batch_bytes(loader)
        self._owner_pid = os.getpid()
        self._pool: Pool | None = None
        self._last: Pool | None = None

    @property
    def populated(self) -> tuple[int, int]:
        """How many slots a pool has resident from the start, and how many bytes of each."""
        return (self._in_flight + 2, self._declared_bytes) if self._declared_bytes else (0, 0)

    def take(self) -> Pool:
        """Returns the kept pool, or a new one."""
        pool, self._pool = self._pool, None
        if pool is None or self._owner_pid != os.getpid():
            self._owner_pid = os.getpid()
            pool = self._new_pool()
        self._last = pool
        return pool

    def put(self, pool: Pool) -> None:
        """Keeps ``pool`` for the next iterator, or closes it if one is kept already."""
        if self._pool is None:
            self._pool = pool
        else:
            pool.close()

    def statistics(self) -> PoolStatistics | None:
        """Returns the figures of the pool that was taken last."""
        return self._last.statistics() if self._last is not None else None

    def _new_pool(self) -> Pool:
        pool = Pool(self._num_slots, self._in_flight, self._max_bytes or memory_limit() // 2, self._keep_open)
        if self._declared_bytes:
            pool.populate(*self.populated)
        return pool

    def __del__(self) -> None:
        if self._pool is not None and self._owner_pid == os.getpid():
            self._pool.close()


def _declared_batch_bytes(loader: ShmDataLoader[Any]) -> int:
    if loader._sample_spec is None:
        return 0
    batch_size = loader.batch_size or (getattr(loader.batch_sampler, "batch_size", 1) if loader.batch_sampler else 1)
    return spec.batch_bytes(loader._sample_spec, batch_size, ALIGNMENT) + _TAIL_BYTES


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value is not None and value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def missing_on_this_platform() -> str:
    """Names what the pool is made of and this platform does not have; empty where all is there."""
    needed = {
        "Linux": sys.platform == "linux",
        "os.memfd_create": hasattr(os, "memfd_create"),
        "os.pidfd_open": hasattr(os, "pidfd_open"),
        "os.fork": hasattr(os, "fork"),
    }
    return ", ".join(name for name, there in needed.items() if not there)
