"""What the main process and the clock see of a batch: this loader, the least that a loader can be, and the limit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.cells import CELLS, Cell
from benchmarks.contest import SECONDS, WARM_UP
from benchmarks.limit import limit_of
from benchmarks.output import as_dicts, markdown, micros
from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, figure, ratio
from shmloader.cli.bench.measure import Round, Track, calibrate, interleave

from .pipes import Pipes

OURS, PIPES, LIMIT = "ours", "pipes", "limit"

_BY_NAME = {cell.name: cell for cell in CELLS}


def _of_floats(batch_size: int) -> Cell:
    return dataclasses.replace(_BY_NAME["floats8"], name=f"floats8, {batch_size}", batch_size=batch_size)


# Small samples in batches as long as those of pictures: what comes of the number of indices is in both.
LEAST_CELLS = (
    _of_floats(64),
    _of_floats(256),
    _of_floats(664),
    *(_BY_NAME[name] for name in ("rgb224", "rgb224b256", "batch100mb", "jpeg224")),
)


@dataclass(frozen=True)
class Least:
    """What was measured of some cells.

    Attributes:
        rounds: by cell and contestant.
        faults: page faults of the main process for a batch of ours, by cell, the least of the rounds.
    """

    rounds: dict[str, dict[str, list[Round]]]
    faults: dict[str, float]

    def cpu(self, cell: str, name: str) -> Figure:
        """Returns seconds of the main process's processor time a batch."""
        return figure([one.cpu_per_batch for one in self.rounds[cell][name]])

    def share(self, cell: str, name: str) -> Figure:
        """Returns a contestant's time a batch over ours."""
        above, below = ([one.per_batch for one in self.rounds[cell][each]] for each in (name, OURS))
        return ratio(above, below)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            cell: {
                "seconds_per_batch": as_dicts(
                    {name: figure([one.per_batch for one in each]) for name, each in took.items()}
                ),
                "consumer_cpu_seconds_per_batch": as_dicts({name: self.cpu(cell, name) for name in (OURS, PIPES)}),
                "page_faults_per_batch": self.faults[cell],
            }
            for cell, took in self.rounds.items()
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        head = ("cell", "us/batch", "limit / ours", "pipes / ours", "CPU ours, us", "CPU pipes, us", "page faults")
        return markdown(head, map(self._row, self.rounds))

    def _row(self, cell: str) -> tuple[str, ...]:
        return (
            cell,
            micros(figure([one.per_batch for one in self.rounds[cell][OURS]])),
            *(self.share(cell, name).text(lambda value: f"{value:.2f}") for name in (LIMIT, PIPES)),
            *(micros(self.cpu(cell, name)) for name in (OURS, PIPES)),
            f"{self.faults[cell]:.2f}",
        )


def measure(rounds: int, done: Callable[[], None] = lambda: None, *, seconds: float = SECONDS) -> Least:
    """Measures. Blocks for about 1.5 s a cell and round; no process is left.

    Args:
        rounds: how many are counted.
        done: called after each contestant's turn.
        seconds: about how long a turn takes.
    """
    found: dict[str, dict[str, list[Round]]] = {}
    faults: dict[str, float] = {}
    for cell in LEAST_CELLS:
        found[cell.name], faults[cell.name] = measure_cell(cell, 2, rounds, seconds, done)
    return Least(found, faults)


def turns(rounds: int) -> int:
    """Returns how often `measure` calls ``done``."""
    return len(LEAST_CELLS) * 3 * (WARM_UP + rounds)


def measure_cell(
    cell: Cell, num_workers: int, rounds: int, seconds: float, done: Callable[[], None] = lambda: None
) -> tuple[dict[str, list[Round]], float]:
    """Returns the rounds of all contestants, and the page faults a batch of ours."""
    loader = ShmDataLoader(cell.dataset(), cell.batch_size, num_workers=num_workers, collate_fn=cell.collate)
    faults: list[float] = []
    with (
        contextlib.closing(limit_of(cell, num_workers)) as limit,
        contextlib.closing(Pipes(cell, num_workers)) as pipes,
    ):
        bare, track = Track(pipes), Track(loader)
        contestants: dict[str, Callable[[], Round]] = {
            LIMIT: functools.partial(limit.run, seconds),
            PIPES: functools.partial(bare.run, calibrate(bare, seconds)),
            OURS: functools.partial(_counting_faults, track, calibrate(track, seconds), faults),
        }
        took = interleave(list(contestants.values()), WARM_UP + rounds, done)
        track.stop()
    by_name = {name: each[WARM_UP:] for name, each in zip(contestants, took, strict=True)}
    return by_name, min(faults[WARM_UP:])


def _counting_faults(track: Track, batches: int, faults: list[float]) -> Round:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    took = track.run(batches)
    faults.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / took.batches)
    return took
