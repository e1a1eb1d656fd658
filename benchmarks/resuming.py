"""Measures what a loader's state costs to take, and how soon a pass goes on that is resumed far within.

A loop takes the batches of a shuffled pass one by one, up to a place that is far within, and then the loader's state
many times. Then, in turn, fresh loaders begin a pass, and fresh loaders take the pass up from that state, and how long
their first batch takes is measured, from the call of ``iter`` on. The samples cost nothing, so that all else is seen.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler

from shmloader import PermutationSampler, ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, size
from shmloader.cli.bench.measure import interleave
from shmloader.cli.console import positive, shown

from .output import Found, as_dicts, markdown
from .seeding import Numbers

_BATCH_SIZE = 8
_STATES = 200

_SAMPLERS: dict[str, Callable[[Numbers], Sampler[int]]] = {
    "PermutationSampler": PermutationSampler,
    "RandomSampler": lambda dataset: RandomSampler(dataset, generator=torch.Generator().manual_seed(0)),
}


@dataclass(frozen=True)
class Sampled:
    """What was measured with one sampler.

    Attributes:
        state: seconds that `ShmDataLoader.state_dict` takes.
        nbytes: of the state, as JSON.
        begun: seconds to the first batch of a pass that begins.
        resumed: seconds to the first batch of a pass that is resumed.
    """

    state: Figure
    nbytes: int
    begun: Figure
    resumed: Figure


@dataclass(frozen=True)
class Resuming(Found):
    """What was measured.

    Attributes:
        batches: how many came before the place where the pass is resumed.
        sampled: by sampler.
    """

    batches: int
    sampled: dict[str, Sampled]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        figures = {
            name: {"bytes": one.nbytes, **as_dicts({"state": one.state, "begun": one.begun, "resumed": one.resumed})}
            for name, one in self.sampled.items()
        }
        return {"batches": self.batches, "samplers": figures}

    def lines(self) -> list[str]:
        """Returns a table."""
        head = "sampler", "`state_dict()`", "its size", "first batch", f"first batch behind {self.batches:,}"
        rows = [
            (name, one.state.text(duration), size(one.nbytes), one.begun.text(duration), one.resumed.text(duration))
            for name, one in self.sampled.items()
        ]
        return markdown(head, rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    parser.add_argument("--batches", type=positive, default=1_000_000, metavar="N", help="default: 1000000")


def measure(args: argparse.Namespace) -> Resuming:
    """Measures. Blocks for a minute; no process is left."""
    with shown(len(_SAMPLERS) * (1 + 2 * args.rounds)) as progress:
        return Resuming(args.batches, {name: _measure(name, args.batches, args.rounds, progress) for name in _SAMPLERS})


def _measure(name: str, batches: int, rounds: int, progress: Any) -> Sampled:
    progress.begin(name)
    dataset = Numbers(2 * batches * _BATCH_SIZE)
    loader = _loader(name, dataset)
    iterator = iter(loader)
    next(itertools.islice(iterator, batches - 1, None))
    state_took = figure([_seconds(loader.state_dict) for _ in range(_STATES)])
    state = loader.state_dict()
    del iterator
    progress.step()
    begun, resumed = interleave(
        [functools.partial(_first_batch, name, dataset, one) for one in ({}, state)], rounds, progress.step
    )
    return Sampled(state_took, len(json.dumps(state)), figure(begun), figure(resumed))


def _loader(name: str, dataset: Numbers) -> ShmDataLoader[Any]:
    return ShmDataLoader(dataset, _BATCH_SIZE, sampler=_SAMPLERS[name](dataset), num_workers=2)


def _first_batch(name: str, dataset: Numbers, state: dict[str, Any]) -> float:
    loader = _loader(name, dataset)
    loader.load_state_dict(state)
    return _seconds(lambda: next(iter(loader)))


def _seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
