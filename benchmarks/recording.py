"""Measures what the figures of a loader cost: processor time a batch, with them and with their recording taken out.

Of the recording, calls are exchanged for empty ones in a process of its own: the worker's record of each batch, and the
times of `next` and of its waits. What the pool counts as it hands a batch over stays. The two kinds take turns, each in
new processes, and each process has the least of some stretches: what else the machine does can only add to that.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, figure
from shmloader.cli.bench.measure import interleave
from shmloader.cli.console import positive, shown
from shmloader.passes.iterator import ShmIterator
from shmloader.passes.meter import Meter
from shmloader.workers.recorder import Recorder

from . import apart
from .cells import CELLS, Cell
from .output import Found, markdown, micros

_MEASURED = ("single28", "gray28")
_CELLS = {cell.name: cell for cell in CELLS}
_STRETCHES = 5


@dataclass(frozen=True)
class Cost:
    """Processor seconds a batch of one cell.

    Attributes:
        loop: of the loop's process, with the recording.
        loop_without: without it.
        worker: of the worker, with it.
        worker_without: without it.
    """

    loop: Figure
    loop_without: Figure
    worker: Figure
    worker_without: Figure

    @property
    def added(self) -> tuple[Figure, Figure]:
        """What recording adds, round by round: in the loop, and in the worker."""
        return _less(self.loop, self.loop_without), _less(self.worker, self.worker_without)


def _less(one: Figure, other: Figure) -> Figure:
    return figure([with_it - without for with_it, without in zip(one.rounds, other.rounds, strict=True)])


@dataclass(frozen=True)
class Recording(Found):
    """What was measured.

    Attributes:
        costs: by cell.
    """

    costs: dict[str, Cost]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            name: {side: found.as_dict() for side, found in vars(cost).items()}
            | dict(zip(("added_loop", "added_worker"), (one.as_dict() for one in cost.added), strict=True))
            for name, cost in self.costs.items()
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        rows = [(name, *map(micros, (*vars(cost).values(), *cost.added))) for name, cost in self.costs.items()]
        sides = "loop", "loop, without", "worker", "worker, without", "added in the loop", "added in the worker"
        return markdown(("cell", *(f"{side} us/batch" for side in sides)), rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("--rounds", type=positive, default=15, metavar="N", help="default: 15")
    add("--batches", type=positive, default=5_000, metavar="N", help="of a stretch; default: 5000")


def measure(args: argparse.Namespace) -> Recording:
    """Measures. Blocks for a minute or so; no process is left."""
    costs = {}
    with shown(2 * len(_MEASURED) * args.rounds) as progress:
        for name in _MEASURED:
            progress.begin(f"recording {name}")
            turns = [
                functools.partial(apart.call, _least, _CELLS[name], args.batches, prepare, daemon=False)
                for prepare in (_as_it_is, _take_out)
            ]
            with_it, without = interleave(turns, args.rounds, progress.step)
            pairs = [figure(side) for kind in (with_it, without) for side in zip(*kind, strict=True)]
            loop, worker, loop_without, worker_without = pairs
            costs[name] = Cost(loop, loop_without, worker, worker_without)
    return Recording(costs)


def _least(cell: Cell, batches: int, prepare: Callable[[], None]) -> tuple[float, float]:
    """Returns the least processor time a batch that a stretch took: of this process, and of the worker."""
    prepare()
    loader = ShmDataLoader(cell.dataset(), batch_size=cell.batch_size, num_workers=1, collate_fn=cell.collate)
    iterator = iter(loader)
    worker = Path(f"/proc/{iterator._workers[0].pid}/schedstat")  # type: ignore[attr-defined]
    _take(iterator, batches)
    stretches = [_stretch(iterator, batches, worker) for _ in range(_STRETCHES)]
    loop, workers = zip(*stretches, strict=True)
    return min(loop), min(workers)


def _stretch(iterator: Iterator[Any], batches: int, worker: Path) -> tuple[float, float]:
    in_loop, in_worker = time.process_time(), _on_processor(worker)
    _take(iterator, batches)
    return (time.process_time() - in_loop) / batches, (_on_processor(worker) - in_worker) / batches


def _take(iterator: Iterator[Any], batches: int) -> None:
    for _ in itertools.islice(iterator, batches):
        pass


def _on_processor(schedstat: Path) -> float:
    return int(schedstat.read_text().split()[0]) / 1e9


def _as_it_is() -> None:
    pass


def _take_out() -> None:
    """Has this process, and the workers that it forks, record nothing."""
    nothing: Any = lambda *_: None  # noqa: E731
    changes: tuple[tuple[Any, str, Any], ...] = (
        (Recorder, "begin", nothing),
        (Recorder, "end", nothing),
        (Recorder, "collating", lambda _, collate_fn, __: collate_fn),
        (Meter, "blocked", nothing),
        (ShmIterator, "__next__", _next),
    )
    for owner, name, other in changes:
        assert callable(getattr(owner, name))
        setattr(owner, name, other)


def _next(iterator: Any) -> Any:
    data = iterator._next_data()
    iterator._num_yielded += 1
    return data
