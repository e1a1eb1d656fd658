"""What memory loaders take whose loop holds its batch until it has the next, and where it drops it before it asks."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.cells import CELLS, Cell
from benchmarks.edges import loader_of
from benchmarks.output import markdown
from shmloader import ShmDataLoader
from shmloader.cli.bench import memory
from shmloader.cli.bench.compare import nbytes
from shmloader.cli.bench.figures import size
from shmloader.cli.bench.memory import look_ahead

_LOADERS: dict[str, Callable[..., DataLoader[Any]]] = {"ours": ShmDataLoader, "torch's": DataLoader}
_SEEN = 10  # batches after which memory is looked at


@dataclass(frozen=True)
class Holding:
    """What was measured of one cell.

    Attributes:
        batch_bytes: of one batch.
        added: bytes that a loader adds to the memory of all processes, by loader, and by whether the loop drops its
            batch before it asks for the next. None where the kernel does not say.
    """

    batch_bytes: int
    added: dict[tuple[str, bool], int | None]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "batch_bytes": self.batch_bytes,
            "bytes": {f"{name}, {_words(drops)}": found for (name, drops), found in self.added.items()},
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        names = list(_LOADERS)
        rows = [(_words(drops), *(self._text(name, drops) for name in names)) for drops in (False, True)]
        return markdown((f"batches of {size(self.batch_bytes)}; the loop", *names), rows)

    def _text(self, name: str, drops: bool) -> str:
        found = self.added[name, drops]
        return "not known" if found is None else f"{size(found)}, {found / self.batch_bytes:.1f} batches"


def _words(drops: bool) -> str:
    return "drops its batch before it asks" if drops else "holds its batch until it has the next"


def measure(rounds: int, done: Callable[[], None] = lambda: None, *, cell: Cell | None = None) -> Holding:
    """Measures, once whatever ``rounds`` says. Blocks for some seconds; no process is left.

    Args:
        rounds: not used: memory does not vary as time does.
        done: called after each loader's turn.
        cell: what is loaded; None: ``rgb224``.
    """
    cell = cell or next(each for each in CELLS if each.name == "rgb224")
    dataset = cell.dataset()
    added: dict[tuple[str, bool], int | None] = {}
    for (name, kind), drops in itertools.product(_LOADERS.items(), (False, True)):
        added[name, drops] = _growth(functools.partial(loader_of, cell, dataset, 2, kind, False), drops)
        done()
    return Holding(nbytes(cell.batch()), added)


def turns(rounds: int) -> int:
    """Returns how often `measure` calls ``done``."""
    return 2 * len(_LOADERS)


def _growth(make: Callable[[], DataLoader[Any]], drops: bool) -> int | None:
    gc.collect()
    start = memory.now()
    if start is None:
        return None
    loader = make()
    iterator = iter(loader)
    seen = [0]
    for number in range(2 * look_ahead(loader) + _SEEN):
        batch = next(iterator)
        if number >= 2 * look_ahead(loader) and (now := memory.now()) is not None:
            seen.append(now.since(start).total)
        if drops:
            del batch
    return max(seen)
