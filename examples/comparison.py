"""Compares ShmDataLoader with torch's DataLoader: are the batches the same, and what does a batch cost?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch.utils.data import DataLoader
from tqdm import tqdm

from shmloader.cli.bench.compare import first_difference


@dataclass(frozen=True)
class Cost:
    """What it took to load one batch.

    Attributes:
        wall: seconds until the loop had it.
        cpu: seconds of processor time that the loop's own process spent on it; the workers' are not in it.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Comparison:
    """Two loaders side by side.

    Attributes:
        compared: how many batches were compared.
        difference: the first difference that was found; None if all batches were identical.
        batches: batches in one pass over the data.
        stock: the cost of a batch with torch's DataLoader.
        ours: the cost of a batch with ShmDataLoader.
    """

    compared: int
    difference: str | None
    batches: int
    stock: Cost
    ours: Cost

    def table(self) -> str:
        """Returns the figures as a few lines of text."""
        stock, ours = self.stock, self.ours
        verdict = f"yes, all {self.compared} compared" if self.difference is None else f"NO: {self.difference}"
        return "\n".join(
            [
                f"{'':24}{'DataLoader':>13}{'ShmDataLoader':>16}{'ratio':>8}",
                _row("time per epoch", stock.wall * self.batches, ours.wall * self.batches),
                _row("time per batch", stock.wall, ours.wall),
                _row("consumer CPU per batch", stock.cpu, ours.cpu),
                f"{'batches identical':24}   {verdict}",
            ]
        )


def compare(stock: DataLoader[Any], ours: DataLoader[Any], checked_passes: int, rounds: int, passes: int) -> Comparison:
    """Checks whether two loaders deliver the same batches, then measures what a batch costs with each.

    Nothing is trained meanwhile: the loop takes batches and drops them. The loaders take turns, so that whatever else
    the machine does hits both, and the cost is the median over the rounds.

    Args:
        stock: torch's loader.
        ours: the other loader, with the same data and settings and a generator of the same seed. Both should have
            persistent workers, since otherwise every pass starts new ones.
        checked_passes: passes over the data whose batches are compared.
        rounds: how often each loader is measured.
        passes: passes over the data that one measurement takes.
    """
    # These passes start the workers, too, so that no measurement does.
    differences = [found for _ in range(checked_passes) for found in compare_pass(stock, ours)]
    stock_costs, our_costs = [], []
    for _ in tqdm(range(rounds), desc="comparing", unit="round"):
        stock_costs.append(measure(stock, passes))
        our_costs.append(measure(ours, passes))
    return Comparison(
        compared=len(differences),
        difference=next(filter(None, differences), None),
        batches=len(differences) // checked_passes,  # a stream may have no length
        stock=_median(stock_costs),
        ours=_median(our_costs),
    )


def compare_pass(stock: DataLoader[Any], ours: DataLoader[Any]) -> Iterator[str | None]:
    """Yields for every batch of one pass over the data what `first_difference` says."""
    for number, (expected, got) in enumerate(zip_longest(stock, ours)):
        yield first_difference(expected, got, f"batch {number}")


def measure(loader: DataLoader[Any], passes: int) -> Cost:
    """Takes all batches of some passes over the data, and returns the mean cost of one."""
    batches = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(passes):
        for _batch in loader:
            batches += 1
    return Cost((time.perf_counter() - wall) / batches, (time.process_time() - cpu) / batches)


def _median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(cost.wall for cost in costs), statistics.median(cost.cpu for cost in costs))


def _row(name: str, stock: float, ours: float) -> str:
    return f"{name:24}{stock * 1e3:>10.3f} ms{ours * 1e3:>13.3f} ms{stock / ours:>8.2f}"
