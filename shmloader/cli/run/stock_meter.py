"""What torch's own iterators take, as far as it shows from outside: two looks at the clock for each batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from shmloader import torch_private
from shmloader.loader import ShmDataLoader
from shmloader.observe.figures import PassStatistics
from shmloader.observe.statistics import LoaderStatistics
from shmloader.observe.verdict import Verdict
from shmloader.patching.record import On, record
from shmloader.patching.seams import Seam, Seams
from shmloader.torch_private import OWN_ITERATOR_SEAM, PASS_SEAM, STEP_SEAM, kept_iterator

_KEY = "_shmloader_meter"
_OURS = "shmloader."
_NANO = 1e9

_IsOn = Callable[[], bool]


class Counts(NamedTuple):
    """Sums; times are in nanoseconds.

    Attributes:
        batches, samples, nbytes: what came.
        starting: in ``iter``.
        inside: in ``next``.
        first: the part of that before the first batches.
        outside: between one ``next`` and the following one.
    """

    batches: int = 0
    samples: int = 0
    nbytes: int = 0
    starting: int = 0
    inside: int = 0
    first: int = 0
    outside: int = 0

    def plus(self, other: Counts) -> Counts:
        """Returns both together."""
        return Counts(*(one + two for one, two in zip(self, other, strict=True)))

    def minus(self, other: Counts) -> Counts:
        """Returns what came since the other."""
        return Counts(*(one - two for one, two in zip(self, other, strict=True)))


class StockMeter:
    """Counts what a loader with torch's own iterators gives. Used in the thread that iterates.

    Attributes:
        counts: of all passes.
        mark: the same, where the last one began.
    """

    def __init__(self) -> None:
        self.counts = self.mark = Counts()
        self._left: int | None = None  # None: no pass is under way

    def begin_pass(self, took: int = 0) -> None:
        """Notes that a pass begins, which has taken so long."""
        self.mark, self._left = self.counts, None
        self.counts = self.counts._replace(starting=self.counts.starting + took)

    def step(self, take: Callable[[], Any]) -> Any:
        """Returns what ``take`` returns, a batch, and counts it."""
        entered = time.monotonic_ns()
        between = 0 if self._left is None else entered - self._left
        samples = nbytes = batches = 0
        try:
            batch = take()
            samples, nbytes = size_of(batch)
            batches = 1
        finally:
            self._left = left = time.monotonic_ns()
            inside = left - entered
            first = inside if self.counts.batches == self.mark.batches else 0
            self.counts = self.counts.plus(Counts(batches, samples, nbytes, 0, inside, first, between))
        return batch

    def statistics(self) -> LoaderStatistics:
        """Returns the figures as they are now."""
        return of_counts(self.counts, self.counts.minus(self.mark))

    @staticmethod
    def together(meters: Sequence[StockMeter]) -> LoaderStatistics:
        """Returns the figures of several loaders as one's."""
        total = Counts()
        for meter in meters:
            total = total.plus(meter.counts)
        return of_counts(total, meters[-1].counts.minus(meters[-1].mark))


def of_counts(life: Counts, last: Counts) -> LoaderStatistics:
    """Returns figures like those of our own loader, with what there is."""
    waited = life.inside / max(1, life.starting + life.inside + life.outside)
    text = f"torch's own iterator: the loop was in next for {waited:.0%} of the time, and why is not known."
    return LoaderStatistics(**_fields(life), last_pass=PassStatistics(**_fields(last)), verdict=Verdict(text))


def _fields(counts: Counts) -> dict[str, Any]:
    return {
        "batches": counts.batches,
        "samples": counts.samples,
        "bytes": counts.nbytes,
        "seconds": (counts.starting + counts.inside + counts.outside) / _NANO,
        "start_seconds": (counts.starting + counts.first) / _NANO,
        "wait_seconds": counts.inside / _NANO,
        "first_wait_seconds": counts.first / _NANO,
        "waits": counts.batches,
        "loop_seconds": counts.outside / _NANO,
    }


def size_of(batch: Any) -> tuple[int, int]:
    """Returns how many samples a batch has, by its first tensor or array, and the bytes of all of these.

    Of what has none, each is a sample; in containers of other classes than dict, list and tuple nothing is looked for.
    """
    found: list[Any] = []
    _collect(batch, found)
    if not found:
        return 1, 0
    shape = found[0].shape
    return (int(shape[0]) if len(shape) else 1), sum(int(one.nbytes) for one in found)


def _collect(part: Any, found: list[Any]) -> None:
    if hasattr(part, "nbytes") and hasattr(part, "shape"):
        found.append(part)
    elif isinstance(part, Mapping):
        for one in part.values():
            _collect(one, found)
    elif isinstance(part, (list, tuple)):
        for one in part:
            _collect(one, found)


# -- where they are counted ------------------------------------------------------------------------------------------


def measure(is_all: bool) -> Seams:
    """Has all iterators of torch's measured that are made from now on.

    Args:
        is_all: whether nothing else notes which loaders there are.
    """
    torch_private.difference()  # which iterates over loaders of its own the first time

    def own_iterator(make: Callable[..., Any], is_on: _IsOn) -> Callable[..., Any]:
        def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            is_stocks = is_on() and not (isinstance(loader, ShmDataLoader) or type(self).__module__.startswith(_OURS))
            if is_stocks and is_all:
                _note(loader)
            make(self, loader, *args, **kwargs)
            if is_stocks:
                vars(self)[_KEY] = _meter_of(loader)

        return __init__

    def begun(begin: Callable[..., Any], is_on: _IsOn) -> Callable[..., Any]:
        def __iter__(self: Any) -> Any:  # noqa: N807
            return _begin(self, begin, is_all) if is_on() else begin(self)

        return __iter__

    return Seams(Seam(*OWN_ITERATOR_SEAM, own_iterator), Seam(*PASS_SEAM, begun), Seam(*STEP_SEAM, _step))


def _step(step: Callable[..., Any], is_on: _IsOn) -> Callable[..., Any]:
    def __next__(self: Any) -> Any:  # noqa: N807
        meter = vars(self).get(_KEY)
        return step(self) if meter is None or not is_on() else meter.step(lambda: step(self))

    return __next__


def _begin(loader: DataLoader[Any], begin: Callable[..., Any], is_all: bool) -> Any:
    """Begins a pass, and measures how long that takes if it is of torch's own."""
    if is_all and isinstance(loader, ShmDataLoader):
        entry = record.begins(loader, loader)
        iterator = begin(loader)
        entry.note(On.OURS if loader.num_workers else On.IN_PROCESS)
        return iterator
    if is_all and kept_iterator(loader) is not None:
        _note(loader)
    began = time.monotonic_ns()
    iterator = begin(loader)
    if isinstance(
        meter := getattr(iterator, "__dict__", {}).get(_KEY), StockMeter
    ):  # a derived class may give anything
        meter.begin_pass(time.monotonic_ns() - began)
    return iterator


def _note(loader: Any) -> None:
    record.begins(loader).note(On.STOCK if getattr(loader, "num_workers", 0) else On.IN_PROCESS)


def _meter_of(loader: Any) -> StockMeter:
    entry = record.entry_of(loader)
    if entry is None:
        return StockMeter()
    if not isinstance(entry.figures, StockMeter):
        entry.figures = StockMeter()
    return entry.figures
