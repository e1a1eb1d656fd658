"""The contest: who loads most pictures a second, for how much processor time and memory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limit import Limit, shared
from benchmarks.output import Found, Labels, as_dicts, dots, markdown
from benchmarks.stopped import StoppedProcess
from shmloader.cli.bench.figures import Figure, duration, figure, ratio, size, times
from shmloader.cli.bench.measure import Track, calibrate, interleave
from shmloader.cli.bench.memory import now

from .contestants import BATCH_SIZE, CONTESTANTS, OURS, STOCK, Contestant
from .datasets import Views
from .files import LabelledFile
from .ideas import SIDE
from .recipe import jpeg_crops

LIMIT = "no loader, the recipe"

_FIRSTS = 3
_WARM_UP = 1
_BUFFERS = 3


@dataclass(frozen=True)
class Turn:
    """What one turn of a contestant took.

    Attributes:
        wall: seconds a picture.
        cpu: seconds of processor time a picture, of all its processes and threads.
        memory: bytes that all its processes have, without what is of files.
        first: seconds from nothing to the first batch: the median of some starts, before the first turn. None where
            there are no batches.
    """

    wall: float
    cpu: float
    memory: int
    first: float | None


@dataclass(frozen=True)
class Race(Found):
    """What was measured.

    Attributes:
        turns: by contestant, round by round.
        length: how many files there were.
    """

    turns: dict[str, list[Turn]]
    length: int

    def rates(self) -> dict[str, Figure]:
        """Returns pictures a second, by contestant."""
        return {name: figure([1 / turn.wall for turn in turns]) for name, turns in self.turns.items()}

    def gains(self) -> dict[str, tuple[Figure, Figure]]:
        """Returns others' times over those of `OURS` in the same round: the wall clock's, and the processors'.

        On a machine that does something else as well, the second says more.
        """
        if OURS not in self.turns:
            return {}
        others = [each.name for each in CONTESTANTS if each.is_other and each.name in self.turns]
        best = max(others, key=lambda name: self.rates()[name].median)
        beside = {
            f"the best other, {best}": best,
            STOCK: STOCK,
            "torch's, the recipe": "torch's, the recipe",
            LIMIT: LIMIT,
        }
        return {
            words: (self._over(OURS, name, "wall"), self._over(OURS, name, "cpu"))
            for words, name in beside.items()
            if name in self.turns
        }

    def _over(self, name: str, other: str, what: str) -> Figure:
        above, below = ([getattr(turn, what) for turn in self.turns[each]] for each in (other, name))
        return ratio(above, below)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "pictures": self.length,
            "pictures_per_second": as_dicts(self.rates()),
            "cpu_seconds": {name: figure([turn.cpu for turn in turns]).as_dict() for name, turns in self.turns.items()},
            "memory": {name: max(turn.memory for turn in turns) for name, turns in self.turns.items()},
            "first_batch": {name: turns[0].first for name, turns in self.turns.items()},
            "gains": {words: [found.as_dict() for found in both] for words, both in self.gains().items()},
        }

    def lines(self) -> list[str]:
        """Returns a table of all, and one of what ours is beside others."""
        head = (f"{self.length:,} files", "pictures/s", f"over {STOCK}", "CPU a picture", "memory", "first batch")
        lines = markdown(head, map(self._row, self.turns))
        gains = [(words, *(found.text(times) for found in both)) for words, both in self.gains().items()]
        return [*lines, "", *markdown((f"{OURS}, beside", "pictures/s", "CPU a picture"), gains)] if gains else lines

    def _row(self, name: str) -> tuple[str, ...]:
        turns = self.turns[name]
        first = turns[0].first
        return (
            name,
            self.rates()[name].text(lambda rate: f"{rate:,.0f}"),
            self._over(name, STOCK, "wall").text(times),
            duration(figure([turn.cpu for turn in turns]).median),
            size(max(turn.memory for turn in turns)),
            "" if first is None else duration(first),
        )

    def draw(self, folder: Path, notes: Sequence[str]) -> None:
        """Draws the pictures a second, by contestant."""
        labels = Labels("Random crops of JPEG files, two workers", notes, "pictures a second, logarithmic")
        rates = dict(sorted(self.rates().items(), key=lambda item: item[1].median))
        ours = {name: rate for name, rate in rates.items() if name.startswith("ours")}
        rest = {name: rate for name, rate in rates.items() if name not in ours}
        dots(folder / "pictures.png", labels, {"shmloader": ours, "others": rest})


def race(
    files: list[LabelledFile],
    contestants: Sequence[Contestant],
    num_workers: int,
    rounds: int,
    seconds: float,
    done: Callable[[], None],
) -> Race:
    """Lets all contestants load in turns. Blocks until all is done; no process is left.

    Args:
        files: what is loaded.
        contestants: who loads.
        num_workers: processes or threads of each.
        rounds: how many are counted.
        seconds: about how long a turn takes.
        done: called when a contestant has started, and after each turn: see `turns`.
    """
    with contextlib.ExitStack() as stack:
        processes: dict[str, StoppedProcess[Turn]] = {}
        for name, prepare in _preparations(contestants).items():
            process = StoppedProcess(prepare, name, files, num_workers, seconds)
            processes[name] = stack.enter_context(contextlib.closing(process))
            done()
        took = interleave([process.run for process in processes.values()], _WARM_UP + rounds, done)
    return Race({name: each[_WARM_UP:] for name, each in zip(processes, took, strict=True)}, len(files))


def turns(contestants: Sequence[Contestant], rounds: int) -> int:
    """Returns how often `race` calls ``done``."""
    return len(_preparations(contestants)) * (1 + _WARM_UP + rounds)


def _preparations(contestants: Sequence[Contestant]) -> dict[str, Callable[..., Callable[[], Turn]]]:
    found: dict[str, Callable[..., Callable[[], Turn]]] = {each.name: prepare for each in contestants}
    return found | ({LIMIT: prepare_limit} if OURS in found else {})


def installed(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Returns the contestants that are installed; says which are not."""
    for each in contestants:
        if not each.is_installed:
            print(f"{each.name} is left out: of {', '.join(each.needed)} not all are installed", file=sys.stderr)
    return [each for each in contestants if each.is_installed]


# -- in the contestant's own process ---------------------------------------------------------------------------------


class Counted:
    """A contestant, with as much of a loader's interface as timing needs. It counts the batches that were taken."""

    prefetch_factor = 2

    def __init__(self, load: Callable[[], Iterator[Any]], num_workers: int) -> None:
        self.num_workers = num_workers
        self.taken = 0
        self._load = load

    def __iter__(self) -> Iterator[Any]:
        for batch in self._load():
            self.taken += 1
            yield batch


def prepare(name: str, files: list[LabelledFile], num_workers: int, seconds: float) -> Callable[[], Turn]:
    """Starts a contestant some times, loads all files once, and returns what takes a turn."""
    multiprocessing.set_start_method("fork", force=True)  # a process that was spawned would spawn its own
    (contestant,) = (each for each in CONTESTANTS if each.name == name)
    load = functools.partial(contestant.load, files, num_workers)
    first = sorted(_first_batch(load) for _ in range(_FIRSTS))[_FIRSTS // 2]
    counted = Counted(load, num_workers)
    track = Track(counted)
    track.run(-(-len(files) // BATCH_SIZE))
    batches = calibrate(track, seconds)
    return lambda: _turn(track, counted, batches, first)


def _first_batch(load: Callable[[], Iterator[Any]]) -> float:
    start = time.perf_counter()
    batches = load()
    next(batches)
    took = time.perf_counter() - start
    getattr(batches, "close", lambda: None)()
    return took


def _turn(track: Track, counted: Counted, batches: int, first: float) -> Turn:
    before, taken = processor_seconds(), counted.taken
    took = track.run(batches)
    cpu, taken = processor_seconds() - before, counted.taken - taken
    return Turn(took.per_batch / BATCH_SIZE, cpu / (taken * BATCH_SIZE), _memory(), first)


def prepare_limit(name: str, files: list[LabelledFile], num_workers: int, seconds: float) -> Callable[[], Turn]:
    """Starts processes that only read pictures into memory that they use again."""
    limit = Limit([_pictures(files[number::num_workers]) for number in range(num_workers)])
    limit.run(seconds)

    def turn() -> Turn:
        before = processor_seconds()
        took = limit.run(seconds)
        pictures = took.batches * BATCH_SIZE
        return Turn(took.wall / pictures, (processor_seconds() - before) / pictures, _memory(), None)

    return turn


def _pictures(files: list[LabelledFile]) -> Iterator[None]:
    views = Views(files, jpeg_crops.read_crop)
    buffers = [shared((BATCH_SIZE, SIDE, SIDE, 3), np.dtype(np.uint8)) for _ in range(_BUFFERS)]
    indices = itertools.cycle(range(len(views)))
    for buffer in itertools.cycle(buffers):
        for out, index in zip(buffer, indices, strict=False):
            views.view(index, out)
        yield


def _memory() -> int:
    memory = now()
    return 0 if memory is None else memory.total


def processor_seconds() -> float:
    """Returns the processor time that all processes of this process's session have spent."""
    session, ticks = os.getsid(0), 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
