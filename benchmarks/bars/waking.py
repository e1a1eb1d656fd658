"""What the same few lines of Python cost, depending on what the processor did before. There is no loader here.

A main process that waits for its next batch sleeps, and workers use the processors meanwhile. When it wakes, its code
and data are no longer in the caches near the processor. Few machines in a cloud have counters of cache misses for their
guests; so this takes the same lines twice in a row. What the second time is cheaper by was not there the first time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import apart
from benchmarks.output import as_dicts, markdown, micros
from shmloader.cli.bench.figures import Figure, figure, ratio, times
from shmloader.cli.bench.measure import interleave

_SLEEP_SECONDS = 2e-3
_COPIED_BYTES = 40 << 20  # more than the caches hold
_REPEATS = 100
_WARM_UP = 1

Pair = tuple[float, float]


def lines_of_python() -> bytes:
    """Some microseconds of what a loader does: dicts, lists, and a pickle."""
    found: dict[int, list[int]] = {}
    for number in range(60):
        found[number] = [number, len(found)]
    return pickle.dumps(found)


@dataclass(frozen=True)
class Waking:
    """Processor time of the same lines, the first and the second time, by what came before; round by round, seconds."""

    pairs: dict[str, list[Pair]]

    @property
    def first(self) -> dict[str, Figure]:
        """The first time."""
        return {name: figure([first for first, _ in pairs]) for name, pairs in self.pairs.items()}

    @property
    def second(self) -> dict[str, Figure]:
        """The second time."""
        return {name: figure([second for _, second in pairs]) for name, pairs in self.pairs.items()}

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {"first_seconds": as_dicts(self.first), "second_seconds": as_dicts(self.second)}

    def lines(self) -> list[str]:
        """Returns a table."""
        rows = [
            (
                name,
                micros(self.first[name]),
                micros(self.second[name]),
                ratio(self.first[name].rounds, self.second[name].rounds).text(times),
            )
            for name in self.pairs
        ]
        return markdown(("the same lines of Python", "first time, us", "second time, us", "first / second"), rows)


def measure(rounds: int, done: Callable[[], None] = lambda: None) -> Waking:
    """Measures. Blocks for about two seconds a round; no process is left."""
    source = np.ones(_COPIED_BYTES, np.uint8)
    copy = functools.partial(np.copyto, np.empty_like(source), source)
    sleep = functools.partial(time.sleep, _SLEEP_SECONDS)
    turns: dict[str, Callable[[], Pair]] = {
        "right after themselves": functools.partial(_pair, lambda: None, None),
        "after 2 ms of sleep": functools.partial(_pair, sleep, None),
        "the same, while others calculate": functools.partial(_pair, sleep, _calculate),
        "the same, while others copy memory": functools.partial(_pair, sleep, _copy),
        "after a copy of 42 MB, with no sleep": functools.partial(_pair, copy, None),
    }
    took = interleave(list(turns.values()), _WARM_UP + rounds, done)
    return Waking({name: pairs[_WARM_UP:] for name, pairs in zip(turns, took, strict=True)})


def turns(rounds: int) -> int:
    """Returns how often `measure` calls ``done``."""
    return 5 * (_WARM_UP + rounds)


def _pair(before: Callable[[], object], others: Callable[[], None] | None) -> Pair:
    clock = time.thread_time
    pairs = []
    count = len(os.sched_getaffinity(0))
    with contextlib.nullcontext() if others is None else apart.beside(others, count):
        for _ in range(_REPEATS):
            before()
            start = clock()
            lines_of_python()
            middle = clock()
            lines_of_python()
            pairs.append((middle - start, clock() - middle))
    first, second = map(statistics.median, zip(*pairs, strict=True))
    return first, second


def _calculate() -> None:
    sum(range(10_000))


def _copy() -> None:
    source = np.ones(_COPIED_BYTES, np.uint8)
    place = np.empty_like(source)
    for _ in range(20):
        np.copyto(place, source)
