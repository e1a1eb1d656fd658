"""``num_workers=0``: stock's iterator, which can be taken up from a state, and may check samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from shmloader.collate.checked import CheckedCollate
from shmloader.torch_private import InProcessIterator
from shmloader.workers import generators, seeding
from shmloader.workers.snapshots import has_state, load_dataset, load_iterator, states_of

from .tracking import Tracking, is_stream


class TrackedInProcessIterator(InProcessIterator):
    """Loads in the process of the loop, as stock does.

    Args:
        loader: whose data to load.
        tracking: where the loop is, and what it takes up.
    """

    def __init__(self, loader: DataLoader[Any], tracking: Tracking) -> None:
        resumed = tracking.resumed
        tracking.snapshots()  # which warns
        data = None if resumed is None else resumed.data
        with generators.kept() if resumed is not None else contextlib.nullcontext():
            tracking.prepare()
            load_dataset(loader.dataset, data)
            super().__init__(loader)
            self._tracking = tracking
            self._sampler_iter = tracking.begin(
                (lambda: self._begin_anew(loader)) if resumed is not None else (lambda: iter(self._sampler_iter)), True
            )
            load_iterator(self._dataset_fetcher, data)
            if resumed is not None and is_stream(loader) and data is None:
                for _ in range(resumed.place.given):
                    with contextlib.suppress(Exception):  # which was given too
                        super()._next_data()  # type: ignore[no-untyped-call]
        if resumed is not None:
            self._num_yielded = resumed.place.given
        tracking.base_seed = int(self._base_seed)
        tracking.shared_seed = self._shared_seed
        dataset, fetcher = self._dataset, self._dataset_fetcher
        if has_state(dataset) or states_of(dataset, fetcher) is not None:
            tracking.ask = lambda: states_of(dataset, fetcher)

    def _begin_anew(self, loader: DataLoader[Any]) -> Iterator[Any]:
        indices: Iterator[Any] = iter(self._index_sampler)
        self._base_seed = seeding.draw_base_seed(loader.generator)
        return indices

    def _next_data(self) -> Any:
        progress = self._tracking.progress
        try:
            data = super()._next_data()  # type: ignore[no-untyped-call]
        except StopIteration:
            progress.end({})
            raise
        except Exception:
            progress.take(progress.taken, 0)
            raise
        progress.take(progress.taken, 0)
        return data


class CheckedInProcessIterator(TrackedInProcessIterator):
    """Loads in the process of the loop, as stock does, and compares samples with their declaration.

    Args:
        loader: whose data to load.
        tracking: where the loop is, and what it takes up.
        sample_spec: what `spec.declare` returned.
    """

    def __init__(self, loader: DataLoader[Any], tracking: Tracking, sample_spec: Any) -> None:
        super().__init__(loader, tracking)
        self._check = CheckedCollate(self._collate_fn, sample_spec, self._auto_collation)
        self._dataset_fetcher.collate_fn = self._check

    def _next_index(self) -> Any:
        index = super()._next_index()  # type: ignore[no-untyped-call]
        if hasattr(self, "_check"):  # not while a pass is taken up
            self._check.indices = index
        return index
