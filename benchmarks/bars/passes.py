"""What the first pass takes beside later ones with the same workers: batches, processor time, and page faults."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth import Same
from benchmarks.output import as_dicts, markdown, micros
from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, figure, ratio, times
from shmloader.cli.bench.measure import Track, interleave
from shmloader.cli.bench.memory import look_ahead

_PASSES = 5
_BATCHES = 1000
_BATCH_SIZE = 8
_SAMPLE = np.zeros(64, np.uint8)


@dataclass(frozen=True)
class Pass:
    """What one pass took.

    Attributes:
        wall: seconds a batch, without those at the beginning.
        cpu: seconds of the main process's processor time a batch, likewise.
        workers_cpu: seconds of all workers' processor time, in the whole pass. In the first it has their start.
        faults: page faults of the main process, in the whole pass.
        workers_faults: those of all workers.
    """

    wall: float
    cpu: float
    workers_cpu: float
    faults: int
    workers_faults: int


@dataclass(frozen=True)
class Passes:
    """The passes of some loaders, each a list in their order."""

    loaders: list[list[Pass]]

    def wall(self, number: int) -> Figure:
        """Returns seconds a batch of all loaders' pass ``number``, from 0."""
        return figure([passes[number].wall for passes in self.loaders])

    def over_the_last(self, number: int) -> Figure:
        """Returns the same over that of the last pass."""
        return ratio(self.wall(number).rounds, self.wall(_PASSES - 1).rounds)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        walls = {number + 1: self.wall(number) for number in range(_PASSES)}
        return {"seconds_per_batch": as_dicts(walls), "over_the_last": self.over_the_last(0).as_dict()}

    def lines(self) -> list[str]:
        """Returns a table."""
        head = (
            f"pass of {_BATCHES:,} batches",
            "us/batch",
            "over the last",
            "CPU us/batch",
            "page faults",
            "workers' page faults",
            "workers' CPU, ms",
        )
        return markdown(head, map(self._row, range(_PASSES)))

    def _row(self, number: int) -> tuple[str, ...]:
        passes = [each[number] for each in self.loaders]
        return (
            str(number + 1),
            micros(self.wall(number)),
            self.over_the_last(number).text(times),
            micros(figure([one.cpu for one in passes])),
            f"{figure([one.faults for one in passes]).median:,.0f}",
            f"{figure([one.workers_faults for one in passes]).median:,.0f}",
            f"{figure([one.workers_cpu for one in passes]).median * 1e3:.1f}",
        )


def measure(rounds: int, done: Callable[[], None] = lambda: None, *, batches: int = _BATCHES) -> Passes:
    """Takes passes of as many loaders as there are to be rounds, one of each in turn. No process is left."""
    turns = [functools.partial(_Loader(batches).take) for _ in range(rounds)]
    took = interleave(turns, _PASSES, done)
    return Passes(took)


def turns(rounds: int) -> int:
    """Returns how often `measure` calls ``done``."""
    return _PASSES * rounds


class _Loader:
    """A loader, and the counters of its workers."""

    def __init__(self, batches: int) -> None:
        self._loader: Any = ShmDataLoader(
            Same(batches * _BATCH_SIZE, _SAMPLE), _BATCH_SIZE, num_workers=2, persistent_workers=True
        )
        # All that a `Track` times of a pass; so each of its runs is one.
        self._timed = batches - 4 * look_ahead(self._loader)
        self._track = Track(self._loader)
        self._pids: list[int] = []
        self._counted = (0.0, 0)

    def take(self) -> Pass:
        """Takes a pass."""
        before = _pids()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        took = self._track.run(self._timed)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        self._pids = self._pids or sorted(_pids() - before)
        (cpu, workers_faults), last = _counters(self._pids), self._counted
        self._counted = cpu, workers_faults
        return Pass(took.per_batch, took.cpu_per_batch, cpu - last[0], faults, workers_faults - last[1])


def _pids() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def _counters(pids: list[int]) -> tuple[float, int]:
    """Returns the processor seconds that processes have spent, and how often they had a page to wait for."""
    seconds, faults = 0.0, 0
    for pid in pids:
        # The name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        faults += int(fields[7])
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, faults
