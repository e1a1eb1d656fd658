"""Loads for as long as one likes while workers are killed, stopped and made to fail, and checks every batch.

``python -m benchmarks.soak --minutes 20`` runs passes with random arguments one after the other. What each batch must
hold is computed from its indices, so any byte that is wrong, any batch that is missing, comes twice or comes out of
order ends the run with exit code 1, and with the seed that plays the pass again (``--seed``, ``--passes 1``). At the
end it prints what was loaded, what was done to it, and what the process tree held early and late.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from shmloader import HeldBatchesWarning, ShmDataLoader, WorkerDiedError, WorkerRestartWarning
from shmloader.cli.bench.memory import now

_TYPICAL_BYTES = 3_000
_OUTLIER = 1_000
_RESTARTS = 1_000


class PlannedError(ValueError):
    """What a sample raises where the plan says so."""


@dataclass
class Plan:
    """A pass's dataset, in numbers: all of it follows from the seed.

    Attributes:
        seed: of the pass.
        length: samples, or samples of each worker's stream.
        failing: the indices of samples that raise.
        outliers: the indices of samples that are a thousand times the usual size.
    """

    seed: int
    length: int
    failing: set[int]
    outliers: set[int]

    def nbytes(self, index: int) -> int:
        """Returns the size of a sample."""
        size = 1 + (index * 7919 + self.seed) % _TYPICAL_BYTES
        return size * _OUTLIER if index in self.outliers else size

    def sample(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        """Returns a sample: bytes that its index determines, and the index."""
        if index in self.failing:
            raise PlannedError(index)
        start = (index * 31 + self.seed) % 251
        return np.arange(start, start + self.nbytes(index), dtype=np.int64).astype(np.uint8), index


class Map(Dataset[Any]):
    """The plan's samples, by index."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.length

    def __getitem__(self, index: int) -> Any:
        return self.plan.sample(index)


class Stream(IterableDataset[Any]):
    """The plan's samples, a stretch of them in each worker."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        first = info.id * self.plan.length
        return (self.plan.sample(index) for index in range(first, first + self.plan.length - info.id))


def collate(samples: list[Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Makes a batch of ragged samples."""
    return [torch.from_numpy(data) for data, _ in samples], torch.tensor([index for _, index in samples])


@dataclass
class Totals:
    """What a run has done."""

    counts: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def note_holdings(self) -> None:
        """Notes what the process holds between two passes."""
        gc.collect()
        memory = now()
        self.memory.append(memory.total if memory is not None else 0)
        self.descriptors.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - without a listing's own objects

    def lines(self) -> list[str]:
        """Returns the figures, a line each."""
        lines = [f"{name}: {count:,}" for name, count in sorted(self.counts.items())]
        lines.append(f"threads at the end: {threading.active_count()}")
        third = len(self.memory) // 3
        if not third:
            return lines
        for name, values, unit in (("memory", self.memory, 1e6), ("descriptors", self.descriptors, 1)):
            early, late = (sorted(part)[len(part) // 2] / unit for part in (values[third:-third], values[-third:]))
            lines.append(f"{name} between passes, median of the middle and the last third: {early:.4g}, {late:.4g}")
        return lines


class Consumer:
    """A loop that checks what it gets, holds some of it, and troubles the workers."""

    def __init__(self, plan: Plan, draw: random.Random, totals: Totals) -> None:
        self._plan = plan
        self._draw = draw
        self._counts = totals.counts
        self._held: deque[Any] = deque()

    def take(self, batch: Any, expected: list[int]) -> None:
        """Checks a batch, and holds on to some.

        Raises:
            AssertionError: a byte is wrong.
        """
        self._check(batch, expected)
        self._counts["batches"] += 1
        self._counts["bytes"] += sum(part.numel() for part in batch[0])
        if self._draw.random() < 0.2:
            self._held.append((batch, expected))
        while self._held and (len(self._held) > 12 or self._draw.random() < 0.15):
            self._check(*self._held.popleft())
            self._counts["held batches checked again"] += 1

    def release(self) -> None:
        """Checks all that is held once more, and lets go."""
        while self._held:
            self._check(*self._held.pop())
            self._counts["held batches checked again"] += 1

    def _check(self, batch: Any, expected: list[int]) -> None:
        assert batch[1].tolist() == expected, f"indices {batch[1].tolist()} where {expected} were due"
        for part, index in zip(batch[0], expected, strict=True):
            assert np.array_equal(part.numpy(), self._plan.sample(index)[0]), f"sample {index} is damaged"

    def trouble(self, iterator: Any) -> None:
        """Does something to a worker, now and then."""
        if self._draw.random() > 0.05:
            return
        process = self._draw.choice(iterator._workers)
        what = self._draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGINT])
        self._spin()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, what)
            self._counts[f"{what.name} sent"] += 1
            if what == signal.SIGSTOP:
                self._spin()
                os.kill(process.pid, signal.SIGCONT)

    def _spin(self) -> None:
        """Lets the workers go on for a while, so that what comes next may hit any of their instructions."""
        for _ in range(self._draw.randrange(20_000)):
            pass


def expected_of_map(order: list[int], batch_size: int) -> list[list[int]]:
    """Returns the indices of each batch."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def run_pass(seed: int, totals: Totals) -> None:
    """Makes a loader with random arguments and runs some epochs of it.

    Raises:
        AssertionError: the stream is not as it must be.
    """
    draw = random.Random(seed)
    is_stream = draw.random() < 0.25
    length = draw.choice([40, 200, 600])
    plan = Plan(
        seed,
        length,
        set() if is_stream else set(draw.sample(range(length), draw.choice([0, 0, 2]))),
        set(draw.sample(range(length), draw.choice([0, 0, 1]))),
    )
    batch_size = draw.choice([1, 3, 8])
    order = draw.sample(range(length), length)
    workers = draw.choice([1, 2, 3, 4])
    arguments: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": workers,
        "collate_fn": collate,
        "prefetch_factor": draw.choice([1, 2, 4]),
        "persistent_workers": draw.random() < 0.5,
        "worker_restarts": _RESTARTS,
        "max_pool_bytes": draw.choice([None, None, 1 << 25]),
        "num_slots": draw.choice([None, None, 40]),
        "timeout": 60,
    }
    if is_stream:
        loader = ShmDataLoader(Stream(plan), **arguments)
    else:
        loader = ShmDataLoader(Map(plan), sampler=order, **arguments)
    consumer = Consumer(plan, draw, totals)
    for _ in range(draw.choice([1, 2, 3])):
        stop_after = draw.choice([None, None, None, draw.randrange(30)])
        batches = expected_of_stream(plan, workers, batch_size) if is_stream else expected_of_map(order, batch_size)
        run_epoch(loader, plan, consumer, batches[:stop_after], stop_after is None, totals)
    consumer.release()
    statistics = loader.statistics()
    assert statistics is not None
    totals.counts["workers replaced"] += statistics.restarts
    totals.counts["passes"] += 1


def expected_of_stream(plan: Plan, workers: int, batch_size: int) -> list[list[int]]:
    """Returns the indices of each batch: a worker's turn is passed over once its stream has ended."""
    streams = [
        expected_of_map(list(range(worker * plan.length, (worker + 1) * plan.length - worker)), batch_size)
        for worker in range(workers)
    ]
    return [batch for turn in itertools.zip_longest(*streams) for batch in turn if batch is not None]


def run_epoch(
    loader: ShmDataLoader[Any],
    plan: Plan,
    consumer: Consumer,
    batches: list[list[int]],
    to_the_end: bool,
    totals: Totals,
) -> None:
    """Runs one epoch, and compares it with what is due."""
    iterator = iter(loader)
    for expected in batches:
        consumer.trouble(iterator)
        try:
            batch = next(iterator)
        except PlannedError:
            assert plan.failing.intersection(expected), f"batch {expected} failed"
            totals.counts["errors delivered"] += 1
        except WorkerDiedError as error:
            # A batch that two workers have died at is not tried again: with signals sent at random it can happen.
            if "second worker" not in str(error):
                raise
            totals.counts["passes ended by a second death at one batch"] += 1
            return
        else:
            assert not plan.failing.intersection(expected), f"batch {expected} did not fail"
            consumer.take(batch, expected)
            del batch
    if to_the_end:
        assert next(iterator, None) is None, "there is more than there should be"


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to go on (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the first pass; the next ones count on from it")
    parser.add_argument("--passes", type=int, default=None, help="how many passes at most")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs passes until the time is over, prints the figures, and returns the exit code."""
    arguments = parse(argv)
    warnings.simplefilter("ignore", HeldBatchesWarning)
    warnings.simplefilter("ignore", WorkerRestartWarning)
    warnings.filterwarnings("ignore", "This DataLoader will create")
    totals = Totals()
    deadline = time.monotonic() + 60 * arguments.minutes
    for seed in itertools.count(arguments.seed):
        if time.monotonic() > deadline or seed - arguments.seed == arguments.passes:
            break
        try:
            run_pass(seed, totals)
        except Exception as error:
            print(f"pass --seed {seed} --passes 1: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        totals.note_holdings()
    print("\n".join(totals.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
