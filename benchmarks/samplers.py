"""Measures samplers that shuffle: how soon they begin, what an index costs, and what memory they take.

PermutationSampler is compared with torch's RandomSampler and DistributedSampler, both of which make a list of all
indices. A list that would not fit into memory is not tried. Each round of each sampler is in a process of its own:

- The first index of a pass, and the first from the middle on. The list has to be read up to there.
- Each index of the million after the first, or of what there is.
- The peak of the process's resident memory, less what it had after a pass over five thousand.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DistributedSampler, RandomSampler, Sampler

from shmloader import PermutationSampler
from shmloader.cli.bench.figures import Figure, duration, figure, size
from shmloader.cli.bench.measure import interleave
from shmloader.cli.console import positive, shown
from shmloader.slots.limits import available_memory

from . import apart
from .output import Found, as_dicts, markdown

# Indices that are timed.
_MANY = 1_000_000

# Indices that are not counted: a forked process has all code to map anew.
_WARM_UP = 5000

# Of an index in a list of Python ints, beside the tensor that it was in: 8 for it, 8 for the reference, 32 for the int.
_LISTED_BYTES = 48


@dataclass(frozen=True)
class Contestant:
    """A sampler to be measured.

    Attributes:
        name: of the class, and how it is used.
        make: makes one for a length.
        begin: makes an iterator that goes on at a position; where the sampler cannot, it reads up to there.
        is_list: whether it makes a list of all indices.
    """

    name: str
    make: Callable[[int], Sampler[int]]
    begin: Callable[[Any, int], Iterator[int]]
    is_list: bool


@dataclass(frozen=True)
class Round:
    """What one round took.

    Attributes:
        first: seconds to the first index.
        further: seconds for each one after that.
        middle: seconds to the first index of a new iterator that begins at half of the length.
        memory: bytes.
    """

    first: float
    further: float
    middle: float
    memory: int


def _seek(sampler: PermutationSampler, position: int) -> Iterator[int]:
    sampler.seek(position)
    return iter(sampler)


def _skip(sampler: Sampler[int], position: int) -> Iterator[int]:
    return itertools.islice(sampler, position, None)


CONTESTANTS = [
    Contestant("PermutationSampler", PermutationSampler, _seek, False),
    Contestant("RandomSampler", lambda length: RandomSampler(range(length)), _skip, True),
    Contestant(
        "DistributedSampler, one rank",
        lambda length: DistributedSampler(range(length), 1, 0),  # type: ignore[arg-type] # a length is all that it reads
        _skip,
        True,
    ),
]


@dataclass(frozen=True)
class Samplers(Found):
    """What was measured.

    Attributes:
        rounds: by length and name; none where a list would not fit into memory.
    """

    rounds: dict[int, dict[str, list[Round]]]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "lengths": [
                {"length": length, "samplers": {name: as_dicts(_figures(took)) for name, took in by_name.items()}}
                for length, by_name in self.rounds.items()
            ]
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        head = ("length", "sampler", "first index", "first from the middle", "each further index", "memory")
        rows = [
            (f"{length:,}", name, *self._cells(_figures(took)))
            for length, by_name in self.rounds.items()
            for name, took in by_name.items()
        ]
        return markdown(head, rows)

    def _cells(self, found: dict[str, Figure]) -> list[str]:
        if not found:
            return ["not run: too large", "", "", ""]
        return [
            *(found[name].text(duration) for name in ("first", "middle")),
            found["further"].text(lambda seconds: f"{seconds * 1e9:.0f} ns"),
            found["memory"].text(size),
        ]


def _figures(rounds: list[Round]) -> dict[str, Figure]:
    names = asdict(rounds[0]) if rounds else ()
    return {name: figure([getattr(one, name) for one in rounds]) for name in names}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument(
        "--lengths",
        type=lambda text: [positive(one) for one in text.split(",")],
        default="1000000,100000000,1000000000",
        metavar="N,M",
        help="default: 1000000,100000000,1000000000",
    )
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: 3")


def measure(args: argparse.Namespace) -> Samplers:
    """Measures all samplers at all lengths. Blocks for some minutes where lists are long; no process is left."""
    fit = {length: [one for one in CONTESTANTS if _fits(one, length)] for length in args.lengths}
    rounds: dict[int, dict[str, list[Round]]] = {}
    with shown(args.rounds * sum(map(len, fit.values()))) as progress:
        for length, contestants in fit.items():
            progress.begin(f"{length:,}")
            turns = [functools.partial(in_a_process, one, length) for one in contestants]
            took = interleave(turns, args.rounds, progress.step)
            by_name = {one.name: took for one, took in zip(contestants, took, strict=True)}
            rounds[length] = {one.name: by_name.get(one.name, []) for one in CONTESTANTS}
    return Samplers(rounds)


def _fits(contestant: Contestant, length: int) -> bool:
    return not contestant.is_list or length * _LISTED_BYTES < available_memory()


def in_a_process(contestant: Contestant, length: int) -> Round:
    """Takes one round in a process of its own, and returns what it took. Blocks until that has ended.

    Raises:
        EOFError: the process died, for want of memory perhaps.
    """
    return apart.call(one_round, contestant, length, daemon=True)


def one_round(contestant: Contestant, length: int) -> Round:
    """Takes one round in this process."""
    for _index in contestant.make(_WARM_UP):
        pass
    before = _resident("VmRSS")
    sampler = contestant.make(length)
    first, iterator = _first(lambda: iter(sampler))
    count = min(_MANY, length - 1)
    start = time.perf_counter()
    collections.deque(itertools.islice(iterator, count), maxlen=0)
    further = (time.perf_counter() - start) / max(1, count)
    del iterator
    middle, _ = _first(lambda: contestant.begin(sampler, length // 2))
    return Round(first, further, middle, _resident("VmHWM") - before)


def _first(begin: Callable[[], Iterator[int]]) -> tuple[float, Iterator[int]]:
    start = time.perf_counter()
    iterator = begin()
    next(iterator)
    return time.perf_counter() - start, iterator


def _resident(what: str) -> int:
    """Returns this process's memory in bytes: what it has now ("VmRSS"), or had at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))
