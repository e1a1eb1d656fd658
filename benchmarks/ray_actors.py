"""Times loaders whose workers are Ray actors, and how they scale.

Samples sleep, as if they were decoded on processors of other machines: so one machine can have many actors, whatever
processors it has. What is measured is the way of a batch, and the one process that gets all of them: with n actors
there should be n times the batches of one. Actors start before anything is timed, and stay. On a machine of two
processors 64 of them take some minutes for that, and 15 GB.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, ratio, times
from shmloader.cli.console import positive, shown

from .output import Found, markdown

_BATCH_SIZE = 8
_COUNTS = (1, 4, 16, 64)


class Sleeping(Dataset[torch.Tensor]):
    """Samples of so many bytes that take some time, and no processor."""

    def __init__(self, nbytes: int, seconds: float) -> None:
        self.nbytes = nbytes
        self.seconds = seconds

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.full((self.nbytes,), index % 256, dtype=torch.uint8)


@dataclass(frozen=True)
class RayActors(Found):
    """What was measured.

    Attributes:
        seconds: a batch's time, by the number of actors.
        starts: seconds from `iter` to the first batch of each actor, likewise.
        nbytes: of a batch.
    """

    seconds: dict[int, Figure]
    starts: dict[int, float]
    nbytes: int

    @property
    def of_linear(self) -> dict[int, Figure]:
        """Batches a second with n actors, over n times those with the least number that was measured."""
        least = min(self.seconds)
        one = self.seconds[least].rounds
        return {
            count: ratio([least / count * seconds for seconds in one], took.rounds)
            for count, took in self.seconds.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "bytes_per_batch": self.nbytes,
            "counts": [
                {
                    "actors": count,
                    "seconds_per_batch": took.as_dict(),
                    "of_linear": self.of_linear[count].as_dict(),
                    "start_seconds": self.starts[count],
                }
                for count, took in self.seconds.items()
            ],
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        head = ("actors", "batches/s", "a batch", "of linear", "until each has given a batch")
        rows = (
            (
                str(count),
                f"{1 / took.median:.1f}",
                took.text(duration),
                self.of_linear[count].text(times),
                f"{self.starts[count]:.0f} s",
            )
            for count, took in self.seconds.items()
        )
        return [f"Batches of {self.nbytes / 1000:g} kB.", "", *markdown(head, rows)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: 5")
    parser.add_argument("--batch-ms", type=positive, default=400, metavar="MS", help="a batch takes; default: 400")
    parser.add_argument("--sample-kb", type=positive, default=20, metavar="KB", help="a sample has; default: 20")
    parser.add_argument(
        "--num-workers", type=_counts, default=_COUNTS, metavar="N,N", help="default: " + ",".join(map(str, _COUNTS))
    )


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))


def measure(args: argparse.Namespace) -> RayActors:
    """Measures. Blocks for some minutes with many actors; no process is left."""
    import ray

    ray.init(address="local", num_cpus=max(args.num_workers), include_dashboard=False, log_to_driver=False)
    try:
        dataset = Sleeping(args.sample_kb * 1000, args.batch_ms / 1000 / _BATCH_SIZE)
        seconds, starts = {}, {}
        with shown(len(args.num_workers) * (1 + args.rounds)) as progress:
            for count in args.num_workers:
                progress.begin(f"{count} actors")
                starts[count], rounds = run(dataset, count, args.rounds, progress.step)
                seconds[count] = figure(rounds)
        return RayActors(seconds, starts, _BATCH_SIZE * dataset.nbytes)
    finally:
        ray.shutdown()


def run(
    dataset: Dataset[Any], num_workers: int, rounds: int, done: Callable[[], None] = lambda: None
) -> tuple[float, list[float]]:
    """Returns the seconds until all actors have given a batch, and those of a batch in each round.

    A round is as many batches as each actor makes in some, so that none is at its beginning or end.
    """
    loader = ShmDataLoader(dataset, _BATCH_SIZE, num_workers=num_workers, worker_type="ray")
    began = time.perf_counter()
    iterator = iter(loader)
    _take(iterator, num_workers)
    start = time.perf_counter() - began
    _take(iterator, 2 * num_workers)
    done()
    found = []
    count = max(10, 5 * num_workers)
    for _ in range(rounds):
        began = time.perf_counter()
        _take(iterator, count)
        found.append((time.perf_counter() - began) / count)
        done()
    return start, found


def _take(batches: Any, count: int) -> None:
    for _ in itertools.islice(batches, count):
        pass
