"""Random loaders whose workers are killed, stopped and made to fail, batch by batch compared with what is due.

What a batch must hold is computed from its indices, so a wrong byte, a batch that is missing, comes twice or comes out
of order fails the pass; its number is the seed that plays it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import os
import random
import signal
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from shmloader import ShmDataLoader, WorkerDiedError
from shmloader.cli.bench import memory
from tests.helpers.faults import pids

pytestmark = pytest.mark.filterwarnings(
    "ignore::shmloader.HeldBatchesWarning", "ignore::shmloader.WorkerRestartWarning"
)

_TYPICAL_BYTES = 3_000
_OUTLIER = 1_000
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGINT)

Indices = list[int]
Spoil = Callable[[Iterator[Any]], Iterator[Any]]


class PlannedError(ValueError):
    """What a sample raises where the plan says so."""


@dataclasses.dataclass
class Plan:
    """A pass's samples, in numbers: how many there are, or in each worker's stream; which raise, and which are huge."""

    seed: int
    length: int
    failing: set[int]
    outliers: set[int]

    def sample(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        """Returns bytes that the index determines, and the index."""
        if index in self.failing:
            raise PlannedError(index)
        size = 1 + (index * 7919 + self.seed) % _TYPICAL_BYTES
        start = (index * 31 + self.seed) % 251
        stop = start + size * (_OUTLIER if index in self.outliers else 1)
        return np.arange(start, stop, dtype=np.int64).astype(np.uint8), index


class Map(Dataset[Any]):
    """The plan's samples, by index."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.length

    def __getitem__(self, index: int) -> Any:
        return self.plan.sample(index)


class Stream(IterableDataset[Any]):
    """The plan's samples, a stretch of them in each worker; the further the worker, the shorter."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        return map(self.plan.sample, stretch(self.plan, info.id))


def stretch(plan: Plan, worker: int) -> range:
    """Returns the indices of a worker's stream."""
    return range(worker * plan.length, (worker + 1) * plan.length - worker)


def ragged(samples: list[Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Makes a batch of samples of all lengths."""
    return [torch.from_numpy(data) for data, _ in samples], torch.tensor([index for _, index in samples])


def in_batches(indices: Indices, batch_size: int) -> list[Indices]:
    """Cuts indices into batches."""
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def as_is(batches: Iterator[Any]) -> Iterator[Any]:
    """Spoils nothing."""
    return batches


class Consumer:
    """A loop that checks what it gets, holds some of it, and troubles the workers."""

    def __init__(self, plan: Plan, draw: random.Random) -> None:
        self.checked = 0
        self._plan = plan
        self._draw = draw
        self._held: list[tuple[Any, Indices]] = []

    def run(self, loader: ShmDataLoader[Any], due: list[Indices], to_the_end: bool, spoil: Spoil) -> None:
        """Runs one epoch, and compares it with what is due."""
        iterator = iter(loader)
        batches = spoil(iterator)
        for indices in due:
            self._trouble(iterator)
            try:
                batch = next(batches)
            except PlannedError:
                assert self._plan.failing.intersection(indices), f"batch {indices} failed"
            except WorkerDiedError as error:
                # A batch that two workers have died at is not tried again; signals sent at random can do that.
                if "second worker" not in str(error):
                    raise
                return
            else:
                assert not self._plan.failing.intersection(indices), f"batch {indices} did not fail"
                self._take(batch, indices)
                del batch
        if to_the_end:
            assert next(batches, None) is None, "there is more than there should be"

    def release(self) -> None:
        """Checks all that is held once more, and lets go."""
        while self._held:
            self._check(*self._held.pop())

    def _take(self, batch: Any, indices: Indices) -> None:
        self._check(batch, indices)
        if self._draw.random() < 0.2:
            self._held.append((batch, indices))
        while self._held and (len(self._held) > 12 or self._draw.random() < 0.15):
            self._check(*self._held.pop(0))

    def _check(self, batch: Any, indices: Indices) -> None:
        assert batch[1].tolist() == indices
        for part, index in zip(batch[0], indices, strict=True):
            assert np.array_equal(part.numpy(), self._plan.sample(index)[0]), f"sample {index} is damaged"
        self.checked += 1

    def _trouble(self, iterator: Any) -> None:
        """Does something to a worker, now and then."""
        if self._draw.random() > 0.05:
            return
        pid, what = self._draw.choice(pids(iterator)), self._draw.choice(_SIGNALS)
        self._spin()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
            if what == signal.SIGSTOP:
                self._spin()
                os.kill(pid, signal.SIGCONT)

    def _spin(self) -> None:
        """Lets the workers go on for a while, so that what comes next may hit any of their instructions."""
        for _ in range(self._draw.randrange(20_000)):
            pass


def run_pass(seed: int, spoil: Spoil = as_is) -> Consumer:
    """Makes a loader with random arguments and runs some epochs of it."""
    draw = random.Random(seed)
    is_stream = draw.random() < 0.25
    length = draw.choice([40, 200, 600])
    failing = [] if is_stream else draw.sample(range(length), draw.choice([0, 0, 2]))
    plan = Plan(seed, length, set(failing), set(draw.sample(range(length), draw.choice([0, 0, 1]))))
    batch_size, num_workers = draw.choice([1, 3, 8]), draw.choice([1, 2, 3, 4])
    order = draw.sample(range(length), length)
    loader: ShmDataLoader[Any] = ShmDataLoader(
        Stream(plan) if is_stream else Map(plan),
        batch_size,
        sampler=None if is_stream else order,
        num_workers=num_workers,
        collate_fn=ragged,
        prefetch_factor=draw.choice([1, 2, 4]),
        persistent_workers=draw.random() < 0.5,
        worker_restarts=1_000,
        max_pool_bytes=draw.choice([None, None, 1 << 25]),
        num_slots=draw.choice([None, None, 40]),
        timeout=60,
    )
    if is_stream:  # a worker's turn is passed over once its stream has ended
        streams = [in_batches(list(stretch(plan, worker)), batch_size) for worker in range(num_workers)]
        due = [batch for turn in itertools.zip_longest(*streams) for batch in turn if batch is not None]
    else:
        due = in_batches(order, batch_size)
    consumer = Consumer(plan, draw)
    for _ in range(draw.choice([1, 2, 3])):
        stop_after = draw.choice([None, None, None, draw.randrange(30)])
        consumer.run(loader, due[:stop_after], stop_after is None, spoil)
    consumer.release()
    return consumer


@pytest.mark.sampled(300)
@pytest.mark.parametrize("seed", range(600))
def test_a_pass(seed: int) -> None:
    run_pass(seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_comes_to_rest() -> None:
    held = []
    for seed in range(1_000, 1_090):
        run_pass(seed)
        gc.collect()
        now = memory.now()
        held.append(now.total if now is not None else 0)
    assert statistics.median(held[60:]) <= 1.05 * statistics.median(held[30:60])


def damaged(batches: Iterator[Any]) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        if number == 2:
            batch[0][0][0] += 1
        yield batch


def with_a_loss(batches: Iterator[Any]) -> Iterator[Any]:
    return (batch for number, batch in enumerate(batches) if number != 2)


def with_a_repetition(batches: Iterator[Any]) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        yield from [batch] * (1 + (number == 2))


QUIET = 4  # a pass of many batches without failing samples


@pytest.mark.parametrize("spoil", [damaged, with_a_loss, with_a_repetition])
def test_what_is_wrong_is_noticed(spoil: Spoil) -> None:
    with pytest.raises(AssertionError):
        run_pass(QUIET, spoil)


def test_nothing_is_wrong_where_nothing_is_spoilt() -> None:
    assert run_pass(QUIET).checked > 10
