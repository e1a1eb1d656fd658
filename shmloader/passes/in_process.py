"""``num_workers=0``: stock's iterator, which can be taken up from a state, and may check samples or seed for each."""

from __future__ import annotations

import contextlib
from time import monotonic_ns
from typing import Any

import torch
from torch.utils.data import DataLoader

from shmloader import interrupts
from shmloader.collate import seeded
from shmloader.collate.checked import CheckedCollate
from shmloader.slots.shared_state import RECORD_BYTES
from shmloader.torch_private import (
    BaseIterator,
    DatasetKind,
    InProcessIterator,
    IterDataPipe,
    MapDataPipe,
    graph_settings,
    pin_memory,
)
from shmloader.workers.batch_maker import Contents
from shmloader.workers.recorder import LoopRecorder, Record
from shmloader.workers.states import generators, seeding
from shmloader.workers.states.snapshots import has_any_state, load_dataset, load_iterator, state_of_dataset, states_of

from .lifetime import Lifetime
from .meter import Meter
from .tracking import Tracking, is_stream
from .watching import Watcher, WatcherFor, watched


class TrackedInProcessIterator(InProcessIterator):
    """Loads in the process of the loop, as stock does.

    Args:
        loader: whose data to load.
        lifetime: what it shares with the other passes of the loader.
        tracking: where the loop is, and what it takes up.
        sample_spec: what `spec.declare` returned; None: samples are not compared with any.

    Raises:
        AssertionError: ``timeout`` is set, as in stock's iterator.
    """

    _check: CheckedCollate | None = None
    _watcher: Watcher | None = None

    def __init__(self, loader: DataLoader[Any], lifetime: Lifetime, tracking: Tracking, sample_spec: Any) -> None:
        self._epochs = lifetime.epochs
        self._steps = lifetime.steps
        record = memoryview(bytearray(RECORD_BYTES))
        self._recorder = LoopRecorder(record)
        resumed = tracking.resumed
        tracking.snapshots()  # which warns
        data = tracking.data
        again = resumed if is_stream(loader) and data is None else None
        begin = (
            (lambda: iter(self._sampler_iter)) if resumed is None else (lambda: iter(tracking.sampling.index_sampler))
        )
        # What is drawn here is of no use then.
        with generators.kept() if tracking.state_of_workers is not None else contextlib.nullcontext():
            tracking.prepare()
            load_dataset(loader.dataset, data)
            if again is not None and again.sampler is not None and "global" in again.sampler["start"]:
                generators.restore(again.sampler["start"]["global"])
            self._begin_loading(loader, None if resumed is None else resumed.shared_seed)
            begun_with = b"" if again is None else generators.capture()
        self._tracking = tracking
        with generators.kept() if resumed is not None else contextlib.nullcontext():
            self._sampler_iter = tracking.begin(begin, True)
            load_iterator(self._dataset_fetcher, data)
            if again is not None:
                generators.restore(begun_with)
                for _ in range(again.place.given):
                    with contextlib.suppress(Exception):  # which was given too
                        self._load()
        if resumed is not None:
            self._num_yielded = resumed.place.given
            if resumed.base_seed is not None:
                self._base_seed = resumed.base_seed
        tracking.base_seed = int(self._base_seed)
        tracking.shared_seed = self._shared_seed
        dataset, fetcher = self._dataset, self._dataset_fetcher
        if has_any_state(dataset, fetcher):
            tracking.ask = lambda is_over: state_of_dataset(dataset) if is_over else states_of(dataset, fetcher)
        if sample_spec is not None:
            self._check = fetcher.collate_fn = CheckedCollate(self._collate_fn, sample_spec, self._auto_collation)
        fetcher.collate_fn = self._recorder.collating(fetcher.collate_fn, self._auto_collation)
        self._recorder.rest()
        self._meter = Meter(lifetime.meters, [Record(record)])
        self._meter.begin()
        self._at_drop = interrupts.at_drop(self._meter.close)

    def _begin_loading(self, loader: DataLoader[Any], shared_seed: int | None) -> None:
        """Does what stock's does when it is made, and reads nothing of the dataset before all is as it is to be.

        Args:
            loader: whose data to load.
            shared_seed: what an IterDataPipe is shuffled by; None: what torch's class has drawn.
        """
        BaseIterator.__init__(self, loader)
        if self._timeout != 0:
            raise AssertionError("_SingleProcessDataLoaderIter requires timeout == 0")
        if isinstance(self._dataset, IterDataPipe) and shared_seed is not None:
            self._shared_seed = shared_seed
            self._dataset = graph_settings.apply_random_seed(self._dataset, torch.Generator().manual_seed(shared_seed))
        if isinstance(self._dataset, (IterDataPipe, MapDataPipe)):
            graph_settings.apply_sharding(self._dataset, self._world_size, self._rank)
        self._dataset_fetcher = self._new_fetcher(self._dataset)

    def _new_fetcher(self, dataset: Any) -> Any:
        return DatasetKind.create_fetcher(
            self._dataset_kind, dataset, self._auto_collation, self._collate_fn, self._drop_last
        )

    def _next_index(self) -> Any:
        index = super()._next_index()  # type: ignore[no-untyped-call]
        if self._check is not None:
            self._check.indices = index
        self._recorder.indices = index
        self._begin_batch()  # what the sampler takes is the loader's own work
        return index

    def _begin_batch(self) -> None:
        self._began = monotonic_ns()
        self._recorder.begin(self._num_yielded, 0, self._began)

    def __next__(self) -> Any:
        self._steps.tell()
        meter = self._meter
        entered = monotonic_ns()
        meter.outside += entered - meter.left
        meter.entered = entered
        try:
            return super().__next__()
        finally:
            meter.left = monotonic_ns()

    def _next_data(self) -> Any:
        progress = self._tracking.progress
        try:
            watcher = self._watcher
            data = self._make() if watcher is None else watched(watcher, self._make, lambda: progress.taken)
        except StopIteration:
            progress.end({})
            self._steps.tell_end()
            raise
        except Exception:
            progress.take(progress.taken, 0)
            raise
        if progress.is_plain:
            progress.counts[0] += 1
        else:
            progress.take(progress.taken, 0)
        return data

    def _make(self) -> Any:
        """Returns the next batch, and records what it took."""
        recorder, contents = self._recorder, Contents.FAULT
        self._begin_batch()
        entered = self._began
        try:
            data = self._load()
            recorder.samples = recorder.samples or int(not self._auto_collation)
            contents = Contents.BATCH
            return data
        except StopIteration:
            contents = Contents.NOTHING
            raise
        finally:
            self._meter.sampling += self._began - entered
            self._meter.blocked(self._began)
            recorder.end(0, contents, 0)

    def watched_by(self, watcher_for: WatcherFor | None) -> None:
        """Tells who ``watcher_for`` says what happens in this pass from now on."""
        self._watcher = None if watcher_for is None else watcher_for(None)
        if self._watcher is not None:
            self._watcher.follow(None)

    def _load(self) -> Any:
        return super()._next_data()  # type: ignore[no-untyped-call]


class SeededInProcessIterator(TrackedInProcessIterator):
    """Does the same, with random generators that are seeded for each sample.

    The loop's own draw nothing of it: they are put back whenever the dataset has run, so that after a batch they are
    where they would be if workers had made it.

    Args:
        loader, lifetime, tracking, sample_spec: see `TrackedInProcessIterator`.
    """

    def _new_fetcher(self, dataset: Any) -> Any:
        seed = seeding.SampleSeeder(self._epochs.kept_seed(int(self._base_seed)), self._epochs.next)
        with generators.kept():
            return super()._new_fetcher(seeded.dataset(dataset, seed, self._dataset_kind == DatasetKind.Iterable))

    def _load(self) -> Any:
        index = self._next_index()  # which draws from the loop's generators, as ever
        with generators.kept():
            data = self._dataset_fetcher.fetch(index)
        return pin_memory(data, self._pin_memory_device) if self._pin_memory else data
