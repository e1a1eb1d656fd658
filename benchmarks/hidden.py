"""Measures what a loader adds to an epoch whose steps take longer than its batches.

While a small network takes a step, a worker makes the next batch, which costs it far less than the step takes. So the
loader could be hidden altogether: an epoch through it would take as long as the same steps over batches that are in
memory already. This measures how long it takes instead, with either loader.

There is one worker, and the step uses one thread: on two cores a second worker would take processor time from the
step, and the figures would be those of the machine's scheduler.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, ratio
from shmloader.cli.bench.measure import interleave
from shmloader.cli.console import positive, shown

from .output import Found, as_dicts, markdown

_BATCH_SIZE = 64

# Epochs that are not counted: workers start, and memory is touched for the first time.
_WARM_UP = 1

_NAMES = {"memory": "batches in memory", "ours": "shmloader", "stock": "torch's DataLoader"}


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
class Hidden(Found):
    """The epochs of the same steps.

    Attributes:
        steps: how many steps an epoch has.
        epochs: round by round; over batches in "memory", and through "ours" and "stock".
        alone: one through ours with no steps.
    """

    steps: int
    epochs: dict[str, list[Epoch]]
    alone: Epoch

    @property
    def seconds(self) -> dict[str, Figure]:
        """Seconds of an epoch."""
        return {name: figure([epoch.seconds for epoch in epochs]) for name, epochs in self.epochs.items()}

    @property
    def loading(self) -> dict[str, Figure]:
        """Seconds of each step that the loop waited for its batch."""
        return {name: figure([epoch.loading / self.steps for epoch in epochs]) for name, epochs in self.epochs.items()}

    @property
    def ratios(self) -> dict[str, Figure]:
        """Each loader's epoch over the one in memory."""
        seconds = self.seconds
        return {name: ratio(seconds[name].rounds, seconds["memory"].rounds) for name in ("ours", "stock")}

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "steps": self.steps,
            "alone_seconds_per_batch": self.alone.seconds / self.steps,
            "seconds": as_dicts(self.seconds),
            "loading_seconds_per_step": as_dicts(self.loading),
            "ratios": as_dicts(self.ratios),
        }

    def lines(self) -> list[str]:
        """Returns a table, and what a batch takes where there are no steps."""
        ratios = {name: found.text(lambda value: f"{value:.3f}x") for name, found in self.ratios.items()}
        rows = [
            (text, self.seconds[name].text(duration), ratios.get(name, ""), self.loading[name].text(duration))
            for name, text in _NAMES.items()
        ]
        head = (f"{self.steps} steps", "epoch", "/ in memory", "of a step, waiting for its batch")
        alone = duration(self.alone.seconds / self.steps)
        return [*markdown(head, rows), "", f"With no steps shmloader loads a batch in {alone}."]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--rounds", type=positive, default=11, metavar="N", help="default: 11")
    parser.add_argument("--steps", type=positive, default=100, metavar="N", help="steps of an epoch; default: 100")


def measure(args: argparse.Namespace) -> Hidden:
    """Runs epochs of all three in turn. Blocks for about a minute; no process is left."""
    with shown(len(_NAMES) * (_WARM_UP + args.rounds)) as progress:
        progress.begin("epochs")
        return measure_epochs(args.steps, args.rounds, progress.step)


def measure_epochs(steps: int, rounds: int, done: Callable[[], None] = lambda: None) -> Hidden:
    """Runs ``rounds`` epochs of each, and calls ``done`` after each epoch. Blocks meanwhile; no process is left."""
    dataset = Images(steps * _BATCH_SIZE)
    # Stock's last: it starts threads, beside which forking is not safe.
    batches: dict[str, Iterable[Any]] = {
        "memory": list(DataLoader(dataset, _BATCH_SIZE)),
        "ours": ShmDataLoader(dataset, _BATCH_SIZE, num_workers=1, persistent_workers=True),
        "stock": DataLoader(dataset, _BATCH_SIZE, num_workers=1, persistent_workers=True),
    }
    with _one_thread():
        step = Step()
        took = interleave([functools.partial(epoch, each, step) for each in batches.values()], _WARM_UP + rounds, done)
        alone = epoch(batches["ours"], lambda batch: None)
    return Hidden(steps, {name: each[_WARM_UP:] for name, each in zip(batches, took, strict=True)}, alone)


def epoch(batches: Iterable[Any], step: Callable[[Any], None]) -> Epoch:
    """Takes a step with each batch, and returns what that took."""
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


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
