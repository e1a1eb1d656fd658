"""Measures calls in background processes: JobQueue beside the pools that people use for that.

A call returns an array that its process has made beforehand, so that what is measured is how a result travels. Of every
result the consumer reads one byte a page, whoever brought it, so that memory that is only mapped counts as well. All
have as many processes and as many calls under way, and stay for all rounds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import importlib
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.multiprocessing

from shmloader import JobQueue
from shmloader.cli.bench.figures import Figure, duration, figure, ratio, size, times
from shmloader.cli.bench.measure import interleave
from shmloader.cli.console import positive, shown

from .output import Found, as_dicts, markdown

_SIZES = (1_000, 1_000_000, 100_000_000)
_PREFETCH_FACTOR = 2
_PAGE = 4096

# What one round of one contestant brings, at most.
_ROUND_BYTES = 400_000_000
_ROUND_CALLS = 1000

# Rounds that are not counted.
_WARM_UP = 1

# How all start their processes here, but for joblib, which has a way of its own.
_CONTEXT = "fork"


@functools.cache
def _kept(nbytes: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)


def array_of(nbytes: int) -> np.ndarray[Any, Any]:
    """Returns so many bytes; the same each time. Called in a worker."""
    return _kept(nbytes)


def tensor_of(nbytes: int) -> torch.Tensor:
    """Returns them as a tensor, as pools of torch's want it. Called in a worker."""
    return torch.from_numpy(_kept(nbytes))


# Asks for a call, and returns what waits for its result.
_Ask = Callable[[int], Callable[[], Any]]


@contextlib.contextmanager
def _ours(num_workers: int) -> Iterator[_Ask]:
    with JobQueue(
        array_of, num_workers=num_workers, prefetch_factor=_PREFETCH_FACTOR, multiprocessing_context=_CONTEXT
    ) as queue:

        def ask(nbytes: int) -> Callable[[], Any]:
            queue.put(nbytes)
            return queue.get

        yield ask


@contextlib.contextmanager
def _futures(num_workers: int) -> Iterator[_Ask]:
    context = multiprocessing.get_context(_CONTEXT)
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as executor:
        yield lambda nbytes: executor.submit(array_of, nbytes).result


@contextlib.contextmanager
def _loky(num_workers: int) -> Iterator[_Ask]:
    executor = importlib.import_module("joblib.externals.loky").ProcessPoolExecutor(num_workers)
    try:
        yield lambda nbytes: executor.submit(array_of, nbytes).result
    finally:
        executor.shutdown()


@contextlib.contextmanager
def _torch_pool(num_workers: int) -> Iterator[_Ask]:
    pool = torch.multiprocessing.get_context(_CONTEXT).Pool(num_workers)
    try:
        yield lambda nbytes: pool.apply_async(tensor_of, (nbytes,)).get
    finally:
        pool.terminate()
        pool.join()


CONTESTANTS: Mapping[str, Callable[[int], AbstractContextManager[_Ask]]] = {
    "ours": _ours,
    "concurrent.futures": _futures,
    "joblib's loky": _loky,
    "torch.multiprocessing.Pool": _torch_pool,
}
_PEERS = [name for name in CONTESTANTS if name != "ours"]


@dataclass(frozen=True)
class Calls(Found):
    """What was measured.

    Attributes:
        seconds: of one call, by size and contestant.
        num_workers: processes of each.
    """

    seconds: dict[int, dict[str, Figure]]
    num_workers: int

    def best_to_ours(self, nbytes: int) -> Figure:
        """Returns the time of the peer with the least median over ours."""
        took = self.seconds[nbytes]
        best = min((took[name] for name in _PEERS), key=lambda found: found.median)
        return ratio(best.rounds, took["ours"].rounds)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "num_workers": self.num_workers,
            "seconds": {str(nbytes): as_dicts(took) for nbytes, took in self.seconds.items()},
            "best_to_ours": {str(nbytes): self.best_to_ours(nbytes).as_dict() for nbytes in self.seconds},
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        rows = [
            (
                size(nbytes),
                *(took[name].text(duration) for name in CONTESTANTS),
                self.best_to_ours(nbytes).text(times),
            )
            for nbytes, took in self.seconds.items()
        ]
        return markdown(("result", *CONTESTANTS, "best other / ours"), rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--sizes", type=_sizes, default=_SIZES, metavar="A,B", help="bytes; default: 1000,1e6,1e8")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    parser.add_argument("--num-workers", type=positive, default=2, metavar="N", help="default: 2")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(float(one)) for one in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes in bytes")
    return sizes


def measure(args: argparse.Namespace) -> Calls:
    """Measures all sizes. Blocks for some minutes; no process is left."""
    rounds = _WARM_UP + args.rounds
    found: dict[int, dict[str, Figure]] = {}
    with contextlib.ExitStack() as stack, shown(len(args.sizes) * len(CONTESTANTS) * rounds) as progress:
        asks = {name: stack.enter_context(make(args.num_workers)) for name, make in CONTESTANTS.items()}
        for nbytes in args.sizes:
            progress.begin(size(nbytes))
            _kept.cache_clear()
            turns = [functools.partial(seconds_a_call, ask, nbytes, args.num_workers) for ask in asks.values()]
            took = interleave(turns, rounds, progress.step)
            found[nbytes] = {name: figure(taken[_WARM_UP:]) for name, taken in zip(asks, took, strict=True)}
    return Calls(found, args.num_workers)


def seconds_a_call(ask: _Ask, nbytes: int, num_workers: int) -> float:
    """Returns what one call takes where as many are under way as may be, and each result is read."""
    under_way: deque[Callable[[], Any]] = deque()
    look_ahead = num_workers * _PREFETCH_FACTOR
    count = max(2 * look_ahead, min(_ROUND_CALLS, _ROUND_BYTES // nbytes))
    start = time.perf_counter()
    for number in range(count + look_ahead):
        if number >= look_ahead:
            touch(under_way.popleft()())
        if number < count:
            under_way.append(ask(nbytes))
    return (time.perf_counter() - start) / count


def touch(result: Any) -> int:
    """Reads one byte a page of a result, and returns their sum."""
    array = result.numpy() if isinstance(result, torch.Tensor) else result
    return int(array[::_PAGE].sum(dtype=np.int64))
