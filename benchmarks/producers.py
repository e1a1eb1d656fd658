"""Measures what a producer's workers deliver, against queues that carry the same arrays.

Each worker fills items of one array with a number, as fast as it can, and the consumer reads one element of each. Side
by side with `shmloader.Producer` stand `multiprocessing.Queue`, whose workers make a NumPy array for each item, and
`torch.multiprocessing.Queue`, whose workers make a tensor. The limit is the memory: as many processes that fill shared
memory which they use again and again, and tell nobody. Each has four buffers, as many as a producer's worker takes
slots: the one that it fills, the next, the one before, which is held until the next is filled, and the consumer's.
Fewer would stay in the processor's caches.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.multiprocessing

from shmloader import Producer, TensorSpec
from shmloader.cli.bench.figures import Figure, figure, ratio, size, times
from shmloader.cli.bench.measure import Round, interleave
from shmloader.cli.console import positive, shown

from .limit import Limit, shared
from .output import Found, as_dicts, markdown

OURS, MP_QUEUE, TORCH_QUEUE, LIMIT = "Producer", "multiprocessing.Queue", "torch.multiprocessing.Queue", "limit"
SIZES = (12 * 1024, 10 << 20)
_SECONDS = 1.0
_BUFFERS = 4

# Rounds that are not counted.
_WARM_UP = 1


class Contestant(Protocol):
    """Something whose workers run as long as it is open."""

    def run(self, seconds: float) -> Round:
        """Takes items for about ``seconds``, and blocks meanwhile."""

    def close(self) -> None:
        """Ends the workers, and blocks until they have ended."""


# -- contestants -----------------------------------------------------------------------------------------------------


def _taken(take: Callable[[], Any], seconds: float) -> Round:
    took = Round()
    start, cpu = time.perf_counter(), time.process_time()
    while not took.batches or took.wall < seconds:
        item = take()
        item[-1].item()  # the consumer's own work, the same for all
        took.batches += 1
        took.wall = time.perf_counter() - start
    took.cpu = time.process_time() - cpu
    return took


def _fill_slots(slots: Any) -> None:
    for number, slot in enumerate(slots):
        with slot as array:
            array.fill(number % 256)


class _Ours:
    def __init__(self, nbytes: int, num_workers: int) -> None:
        self._producer = Producer(_fill_slots, TensorSpec((nbytes,), torch.uint8), num_workers=num_workers)
        self._producer.start()

    def run(self, seconds: float) -> Round:
        return _taken(self._producer.get, seconds)

    def close(self) -> None:
        self._producer.stop()


def _fill_arrays(queue: Any, nbytes: int) -> None:
    for number in itertools.count():
        queue.put(np.full(nbytes, number % 256, np.uint8))


def _fill_tensors(queue: Any, nbytes: int) -> None:
    torch.set_num_threads(1)
    for number in itertools.count():
        queue.put(torch.full((nbytes,), number % 256, dtype=torch.uint8))


class _Queue:
    """Workers that put items into a queue, of which as many wait there as a producer has slots."""

    def __init__(self, context: Any, fill: Callable[[Any, int], None], nbytes: int, num_workers: int) -> None:
        self._queue = context.Queue(2 * num_workers)
        arguments = (self._queue, nbytes)
        self._processes = [context.Process(target=fill, args=arguments, daemon=True) for _ in range(num_workers)]
        for process in self._processes:
            process.start()

    def run(self, seconds: float) -> Round:
        return _taken(self._queue.get, seconds)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._queue.close()
        self._queue.join_thread()


def _limit(nbytes: int, num_workers: int) -> Limit:
    return Limit([_fill_buffers(nbytes) for _ in range(num_workers)])


def _fill_buffers(nbytes: int) -> Iterator[None]:
    """Fills buffers in turn, each with a number."""
    buffers = [shared((nbytes,), np.dtype(np.uint8)) for _ in range(_BUFFERS)]
    return map(np.ndarray.fill, itertools.cycle(buffers), itertools.cycle(range(256)))


CONTESTANTS: dict[str, Callable[[int, int], Contestant]] = {
    OURS: _Ours,
    MP_QUEUE: functools.partial(_Queue, multiprocessing.get_context("fork"), _fill_arrays),
    TORCH_QUEUE: functools.partial(_Queue, torch.multiprocessing.get_context("fork"), _fill_tensors),
    LIMIT: _limit,
}


# -- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SizeFound:
    """What was measured of items of one size.

    Attributes:
        nbytes: the size.
        rates: items a second, by contestant.
    """

    nbytes: int
    rates: dict[str, Figure]

    def to(self, name: str) -> Figure:
        """Returns our rate over another's."""
        return ratio(self.rates[OURS].rounds, self.rates[name].rounds)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        others = {name: self.to(name) for name in self.rates if name != OURS}
        return {"nbytes": self.nbytes, "items_per_second": as_dicts(self.rates), "ours_to": as_dicts(others)}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Returns a line of a table for each contestant."""
        return [
            (
                f"{size(self.nbytes)}, {name}",
                rate.text(lambda value: f"{value:.0f}"),
                rate.scaled(self.nbytes).text(size),
                "" if name == OURS else self.to(name).text(times),
            )
            for name, rate in self.rates.items()
        ]


@dataclass(frozen=True)
class ProducersFound(Found):
    """What was measured of all sizes."""

    sizes: list[SizeFound]
    num_workers: int

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {"num_workers": self.num_workers, "sizes": [found.as_dict() for found in self.sizes]}

    def lines(self) -> list[str]:
        """Returns a table."""
        head = ("item", "items a second", "bytes a second", f"{OURS} / this")
        return markdown(head, [row for found in self.sizes for row in found.rows()])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    parser.add_argument("--num-workers", type=positive, default=2, metavar="N", help="default: 2")


def measure(args: argparse.Namespace) -> ProducersFound:
    """Measures all sizes. Blocks for half a minute a size; no process is left."""
    found = []
    with shown(len(SIZES) * len(CONTESTANTS) * (args.rounds + _WARM_UP)) as progress:
        for nbytes in SIZES:
            progress.begin(size(nbytes))
            found.append(measure_size(nbytes, args.num_workers, args.rounds, done=progress.step))
    return ProducersFound(found, args.num_workers)


def measure_size(
    nbytes: int, num_workers: int, rounds: int, seconds: float = _SECONDS, done: Callable[[], None] = lambda: None
) -> SizeFound:
    """Measures items of one size, with one contestant at a time, in turns. Blocks meanwhile; no process is left."""

    def turn(make: Callable[[int, int], Contestant]) -> float:
        contestant = make(nbytes, num_workers)
        try:
            contestant.run(seconds / 5)  # its workers get into step
            took = contestant.run(seconds)
        finally:
            contestant.close()
        done()
        return took.batches / took.wall

    turns = [functools.partial(turn, make) for make in CONTESTANTS.values()]
    took = interleave(turns, _WARM_UP + rounds)
    return SizeFound(nbytes, {name: figure(each[_WARM_UP:]) for name, each in zip(CONTESTANTS, took, strict=True)})
