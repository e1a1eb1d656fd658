"""What loaders of ours have taken, also when they are gone: their data and memory are not held for it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from shmloader.loader import ShmDataLoader
from shmloader.observe.statistics import LoaderStatistics
from shmloader.passes import lifetime
from shmloader.passes.lifetime import Lifetime
from shmloader.passes.meter import Meters
from shmloader.passes.restarts import RestartCount
from shmloader.patching.record import Entry

_SOMETHING = object()  # in the place of samplers and functions: a verdict asks whether there is one


def keep(entry: Entry, loader: Any, ours: Any) -> None:
    """Keeps the figures of a loader that begins a pass; a listener of `record`."""
    if isinstance(ours, ShmDataLoader):
        if not (isinstance(entry.figures, Figures) and entry.figures.are_of(ours)):
            entry.figures = Figures(ours)
        entry.figures.look(ours)


class Figures:
    """The figures of a loader.

    Args:
        loader: whose; it is not held.
    """

    def __init__(self, loader: ShmDataLoader[Any]) -> None:
        self._loader = weakref.ref(loader)
        self._meters = lifetime.of(loader).meters
        self._facts: dict[str, Any] = {}

    def are_of(self, loader: ShmDataLoader[Any]) -> bool:
        """Whether they are this loader's."""
        return self._loader() is loader

    def look(self, loader: ShmDataLoader[Any]) -> None:
        """Keeps what a verdict goes by: of the loader's arguments numbers and words, and which others there are."""
        plain = type(None), int, float, str
        self._facts = {name: one if isinstance(one, plain) else _SOMETHING for name, one in vars(loader).items()}

    def statistics(self) -> LoaderStatistics:
        """Returns them as they are now; of a loader that is gone without its pool."""
        loader = self._loader()
        return self._of(self._meters) if loader is None else loader.statistics()

    @staticmethod
    def together(figures: Sequence[Figures]) -> LoaderStatistics:
        """Returns the figures of several loaders as one's, whose last pass is that of the last one."""
        each = [one._meters for one in figures]
        mark = each[-1].mark  # before the total, as for one loader
        totals = [one.total() for one in each]
        meters = Meters(RestartCount(sum(one.restarts for one in totals)))
        for one in totals:
            meters.add_past(one)
        meters.mark = meters.total() - (totals[-1] - mark)
        return figures[-1]._of(meters)

    def _of(self, meters: Meters) -> LoaderStatistics:
        shell: ShmDataLoader[Any] = ShmDataLoader.__new__(ShmDataLoader)
        vars(shell).update({**self._facts, "dataset": None, "_lifetime": Lifetime(meters=meters)})
        return shell.statistics()
