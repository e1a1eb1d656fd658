"""Measures what a trace costs a loop that does nothing else, and draws one of a loop that trains on pictures.

Traced and untraced stretches of one pass take turns. What a fast loop has noted and not written is written when the
trace ends, which is behind the stretch, and told apart. The figures are medians over pairs of stretches.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, figure, ratio
from shmloader.cli.console import positive, shown
from shmloader.cli.trace import picture
from shmloader.cli.trace.reading import read
from shmloader.cli.trace.timeline import timelines

from .cells import CELLS, Cell
from .output import Found, as_dicts, markdown, micros

_CELLS = {cell.name: cell for cell in CELLS}
_MEASURED = ("gray28", "rgb224")
_DRAWN = _CELLS["jpeg224"]
_DRAWN_BATCHES = 48
_NUM_WORKERS = 2
_WARM_UP_SECONDS = 0.2
_LEAST_BATCHES = 64  # many more than are loaded ahead

# The network of the picture sees every fourth pixel: its steps take about as long as the workers take for a batch.
_STRIDE = 4
_FEATURES = 3 * (224 // _STRIDE) ** 2


@dataclass(frozen=True)
class Cost:
    """Seconds a batch, by pairs of stretches.

    Attributes:
        untraced: without a trace.
        traced: with one.
        cpu_untraced: processor time of the main process, without a trace.
        cpu_traced: with one.
        left: what was written when the trace ended.
    """

    untraced: Figure
    traced: Figure
    cpu_untraced: Figure
    cpu_traced: Figure
    left: Figure

    @property
    def ratio(self) -> Figure:
        """Traced over untraced."""
        return ratio(self.traced.rounds, self.untraced.rounds)


@dataclass(frozen=True)
class Tracing(Found):
    """What was measured.

    Attributes:
        costs: by cell.
    """

    costs: dict[str, Cost]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {name: as_dicts(vars(cost) | {"ratio": cost.ratio}) for name, cost in self.costs.items()}

    def lines(self) -> list[str]:
        """Returns a table."""
        rows = [
            (name, cost.ratio.text("{:.3f}".format), *map(micros, vars(cost).values()))
            for name, cost in self.costs.items()
        ]
        times = "untraced", "traced", "CPU untraced", "CPU traced", "written at the end"
        return markdown(("cell", "traced / untraced", *(f"{name} us/batch" for name in times)), rows)

    def draw(self, folder: Path, notes: Sequence[str]) -> None:
        """Trains on pictures for some batches, and draws the trace of that."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "trace.json")
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # since the workers need processors too
            try:
                _train(path)
            finally:
                torch.set_num_threads(threads)
            (timeline,) = timelines(read(path).events)
        picture.draw(timeline, folder / "trace.png")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("--rounds", type=positive, default=31, metavar="N", help="pairs of stretches; default: 31")
    add("--milliseconds", type=positive, default=100, metavar="N", help="of a stretch, about; default: 100")


def measure(args: argparse.Namespace) -> Tracing:
    """Measures. Blocks for some seconds; no process is left."""
    with shown(len(_MEASURED) * args.rounds) as progress, tempfile.TemporaryDirectory() as place:
        costs = {}
        for name in _MEASURED:
            progress.begin(f"tracing {name}")
            costs[name] = _cost(_CELLS[name], Path(place, "trace.json"), args.rounds, args.milliseconds, progress.step)
    return Tracing(costs)


def _cost(cell: Cell, path: Path, rounds: int, milliseconds: int, done: Any) -> Cost:
    loader = _loader(cell)
    batches = iter(loader)
    count = max(_in(batches, _WARM_UP_SECONDS) * milliseconds // int(_WARM_UP_SECONDS * 1000), _LEAST_BATCHES)
    taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    left = []
    for number in range(rounds):
        for is_traced in (number % 2 == 0, number % 2 == 1):  # neither is always the first
            with contextlib.ExitStack() as stack:
                if is_traced:
                    stack.enter_context(loader.trace(path))
                taken[is_traced].append(_seconds(batches, count))
                ended = time.perf_counter()
            if is_traced:
                left.append((time.perf_counter() - ended) / count)
        done()
    untraced, cpu_untraced = zip(*taken[False], strict=True)
    traced, cpu_traced = zip(*taken[True], strict=True)
    return Cost(*map(figure, (untraced, traced, cpu_untraced, cpu_traced, left)))


def _loader(cell: Cell) -> ShmDataLoader[Any]:
    return ShmDataLoader(cell.dataset(), batch_size=cell.batch_size, num_workers=_NUM_WORKERS, collate_fn=cell.collate)


def _in(batches: Iterator[Any], seconds: float) -> int:
    """Returns how many batches come in a time."""
    end = time.perf_counter() + seconds
    return next(number for number, _ in enumerate(batches) if time.perf_counter() > end)


def _seconds(batches: Iterator[Any], count: int) -> tuple[float, float]:
    """Returns the time a batch, and the processor time of this process."""
    cpu, start = time.process_time(), time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return (time.perf_counter() - start) / count, (time.process_time() - cpu) / count


def _train(path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(_FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loader = _loader(_DRAWN)
    with loader.trace(path):
        for images, labels in itertools.islice(loader, _DRAWN_BATCHES):
            optimizer.zero_grad()
            pixels = images[:, ::_STRIDE, ::_STRIDE].flatten(1).float() / 255
            loss = torch.nn.functional.cross_entropy(model(pixels), labels)
            loss.backward()
            optimizer.step()
