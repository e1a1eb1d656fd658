"""A loader behind a training step: ``python -m benchmarks.hidden``.

While a small network takes a step, a worker makes the next batch, which costs it far less than the step takes. So the
loader could be hidden altogether: an epoch through it would take as long as the same steps over batches that are in
memory already. This measures how long it takes instead, with either loader.

There is one worker, and the step uses one thread: on two cores a second worker would take processor time from the
step, and the figures would be those of the machine's scheduler.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, ratio
from shmloader.cli.bench.measure import interleave
from shmloader.cli.console import Parser, positive, shown
from shmloader.cli.machine import machine, machine_line

from . import charts
from .output import command, markdown, options

_BATCH_SIZE = 64
_MOST = 1.02

# Epochs that are not counted: workers start, and memory is touched for the first time.
_WARM_UP = 1


class Images(Dataset[Any]):
    """Colour images of 32x32 that are ready to be read, and labels.

    Args:
        length: how many.
    """

    def __init__(self, length: int) -> None:
        self._images = np.random.default_rng(0).integers(0, 256, (length, 3, 32, 32), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        return self._images[index], index % 10


class Step:
    """One step of training a small network, on one thread."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._network = nn.Sequential(
            *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 6 * 6, 10)),
        )
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=1e-3)

    def __call__(self, batch: Any) -> None:
        """Takes it. Blocks while the processor works."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self._network(images.float() / 255), labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


@dataclass(frozen=True)
class Epoch:
    """What one epoch took.

    Attributes:
        seconds: all of it.
        loading: how much of that passed between asking for a batch and getting it.
    """

    seconds: float
    loading: float


@dataclass(frozen=True)
class Found:
    """The epochs of the same steps, round by round.

    Attributes:
        steps: how many steps an epoch has.
        memory: over batches in memory.
        ours: through our loader.
        stock: through torch's.
        alone: through ours, with no steps.
    """

    steps: int
    memory: list[Epoch]
    ours: list[Epoch]
    stock: list[Epoch]
    alone: Epoch

    @property
    def seconds(self) -> dict[str, Figure]:
        """Seconds of an epoch."""
        return {name: figure([epoch.seconds for epoch in getattr(self, name)]) for name in _NAMES}

    @property
    def loading(self) -> dict[str, Figure]:
        """Seconds of each step that the loop waited for its batch."""
        return {name: figure([epoch.loading / self.steps for epoch in getattr(self, name)]) for name in _NAMES}

    @property
    def ratios(self) -> dict[str, Figure]:
        """Each loader's epoch over the one in memory."""
        seconds = self.seconds
        return {name: ratio(seconds[name].rounds, seconds["memory"].rounds) for name in ("ours", "stock")}

    @property
    def holds(self) -> bool:
        """Whether ours is hidden."""
        return self.ratios["ours"].median <= _MOST

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        figures = {"seconds": self.seconds, "loading_seconds_per_step": self.loading, "ratios": self.ratios}
        return {
            "steps": self.steps,
            "alone_seconds_per_batch": self.alone.seconds / self.steps,
            **{name: {key: found.as_dict() for key, found in each.items()} for name, each in figures.items()},
            "holds": self.holds,
        }


def measure(steps: int, rounds: int, done: Callable[[], None] = lambda: None) -> Found:
    """Runs epochs of all three in turn. Blocks meanwhile; no process is left.

    Args:
        steps: steps of an epoch.
        rounds: how many epochs of each are counted.
        done: called after each epoch.
    """
    dataset = Images(steps * _BATCH_SIZE)
    in_memory = list(DataLoader(dataset, _BATCH_SIZE))
    # Stock's last: it starts threads, beside which forking is not safe.
    ours, stock = (kind(dataset, _BATCH_SIZE, num_workers=1, persistent_workers=True) for kind in _KINDS)
    with _one_thread():
        step = Step()
        contestants = [functools.partial(_epoch, batches, step) for batches in (in_memory, ours, stock)]
        in_memory_took, ours_took, stock_took = interleave(contestants, _WARM_UP + rounds, done)
        alone = _epoch(ours, lambda batch: None)
    return Found(steps, in_memory_took[_WARM_UP:], ours_took[_WARM_UP:], stock_took[_WARM_UP:], alone)


_KINDS: tuple[Callable[..., DataLoader[Any]], ...] = (ShmDataLoader, DataLoader)
_NAMES = {"memory": "batches in memory", "ours": "shmloader", "stock": "torch's DataLoader"}


def _epoch(batches: Iterable[Any], step: Callable[[Any], None]) -> Epoch:
    start = time.perf_counter()
    loading = 0.0
    iterator = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(iterator, None)
        loading += time.perf_counter() - asked
        if batch is None:
            return Epoch(time.perf_counter() - start, loading)
        step(batch)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit code. Blocks for about a minute."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    with shown(3 * (_WARM_UP + args.rounds)) as progress:
        found = measure(args.steps, args.rounds, progress.step)
    run = command("benchmarks.hidden", argv)
    if args.json:
        print(json.dumps({"command": run, "machine": machine(), **found.as_dict()}, indent=2))
    else:
        print("\n".join([machine_line(), "", *_table(found), "", _line(found)]))
    if args.plot:
        notes = [f"Medians, and lines from the least to the greatest round. {run}", machine_line()]
        labels = charts.Labels(f"An epoch of {args.steps} steps", notes, "its time / the same with batches in memory")
        charts.bars(
            args.plot / "hidden.png", labels, {_NAMES[name]: found.ratios[name] for name in found.ratios}, mark=1
        )
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.hidden",
        description="Measures what a loader adds to an epoch whose steps take longer than its batches.",
        parents=[options()],
    )
    parser.add_argument("--rounds", type=positive, default=11, metavar="N", help="default: 11")
    parser.add_argument("--steps", type=positive, default=100, metavar="N", help="steps of an epoch; default: 100")
    return parser


def _table(found: Found) -> list[str]:
    ratios = {name: quotient.text(_times) for name, quotient in found.ratios.items()}
    rows = [
        (text, found.seconds[name].text(duration), ratios.get(name, ""), found.loading[name].text(duration))
        for name, text in _NAMES.items()
    ]
    return markdown((f"{found.steps} steps", "epoch", "/ in memory", "of a step, waiting for its batch"), rows)


def _line(found: Found) -> str:
    alone = duration(found.alone.seconds / found.steps)
    return (
        f"- ours takes at most {_times(_MOST)} what it takes in memory: {'holds' if found.holds else 'DOES NOT HOLD'} "
        f"({_times(found.ratios['ours'].median)}); with no steps it loads a batch in {alone}"
    )


def _times(value: float) -> str:
    return f"{value:.3f}x"


if __name__ == "__main__":
    sys.exit(main())
