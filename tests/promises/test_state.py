"""A pass that is interrupted anywhere goes on in another loader as if nothing had happened.

The rest of an interrupted pass, and the pass behind it, are compared bit for bit with what a fresh loader gives that was
told the state.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import RandomSampler

from shmloader import PermutationSampler, ResumeWarning, ShmDataLoader
from tests.helpers import resuming
from tests.helpers.support import assert_same, detached, seed_everything

LENGTH = 41

Make = Callable[[], ShmDataLoader[Any]]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _map(**how: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(resuming.Augmented(LENGTH), 3, **how)


SOURCES: dict[str, Callable[..., ShmDataLoader[Any]]] = {
    "in turn": _map,
    "shuffled": lambda **how: _map(shuffle=True, **how),
    "generator": lambda **how: _map(shuffle=True, generator=seeded(), **how),
    "sampler's generator": lambda **how: _map(
        sampler=RandomSampler(range(LENGTH), replacement=True, generator=seeded()), **how
    ),
    "long": lambda **how: _map(sampler=RandomSampler(range(LENGTH), num_samples=2 * LENGTH + 1), **how),
    "permutation": lambda **how: _map(sampler=PermutationSampler(LENGTH, seed=3), **how),
    "own sampler": lambda **how: _map(sampler=resuming.Shuffled(LENGTH), drop_last=True, **how),
    "stateful sampler": lambda **how: _map(sampler=resuming.StatefulSampler(LENGTH), **how),
    "stateful order": lambda **how: _map(sampler=resuming.StatefulOrder(LENGTH), drop_last=True, **how),
    "batch sampler": lambda **how: ShmDataLoader(
        resuming.Augmented(LENGTH), batch_sampler=resuming.Buckets(LENGTH), **how
    ),
    "no batches": lambda **how: ShmDataLoader(resuming.Augmented(LENGTH), None, shuffle=True, **how),
    "counting": lambda **how: ShmDataLoader(resuming.Counting(LENGTH), 3, shuffle=True, **how),
    "stream": lambda **how: ShmDataLoader(resuming.Stream(LENGTH), 3, **how),
    "stream, no batches": lambda **how: ShmDataLoader(resuming.Stream(LENGTH), None, **how),
    "stateful iterators": lambda **how: ShmDataLoader(resuming.StatefulIterators(LENGTH), 3, drop_last=True, **how),
    "stateful stream": lambda **how: ShmDataLoader(resuming.StatefulStream(LENGTH), 3, **how),
}
WORKERS: dict[str, dict[str, Any]] = {
    "0": {"num_workers": 0},
    "1": {"num_workers": 1},
    "2": {"num_workers": 2},
    "3 persistent": {"num_workers": 3, "persistent_workers": True, "prefetch_factor": 3},
    "2 threads": {"num_workers": 2, "worker_type": "thread"},
    "every 4": {"num_workers": 2, "snapshot_every_n_steps": 4},
    "never": {"num_workers": 2, "snapshot_every_n_steps": None},
    "restarts": {"num_workers": 2, "worker_restarts": 1},
}


def states_of_generators() -> Any:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_generators(states: Any) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def without_draws(batches: list[Any]) -> list[Any]:
    return [batch[..., :1] for batch in batches]


def rest_of(iterator: Iterator[Any]) -> list[Any]:
    return [detached(batch) for batch in iterator]


def interrupted(make: Make, passes: int, batches: int) -> tuple[Any, Any, list[Any], list[Any], int]:
    """Returns the state in the middle of a pass, what the generators were then, and what follows in two passes."""
    loader = make()
    for _ in range(passes):
        rest_of(iter(loader))
    iterator = iter(loader)
    taken = 0
    while taken < batches and next(iterator, None) is not None:
        taken += 1
    state, generators = loader.state_dict(), states_of_generators()
    kept = copy.deepcopy(state)
    rest = rest_of(iterator)
    if taken < batches:
        rest = []  # the state is of the end, and what follows is another pass
    following = rest_of(iter(loader))
    assert state == kept
    return state, generators, rest if taken == batches else following, following, taken


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_pass_goes_on(source: str, workers: str) -> None:
    draw = random.Random(f"{source} {workers}")
    how = WORKERS[workers]
    is_shared = how.get("worker_type") == "thread" or not how["num_workers"]  # the generators are the loop's

    def make() -> ShmDataLoader[Any]:
        return SOURCES[source](**how)

    for batches in [0, draw.randrange(1, 6), draw.randrange(1, 14), 100]:
        seed_everything(batches)
        state, generators, rest, following, taken = interrupted(make, draw.randrange(2), batches)
        state = json.loads(json.dumps(state)) if draw.randrange(2) else saved(state)
        set_generators(generators)
        loader = make()
        loader.load_state_dict(state)
        assert loader.state_dict()["batches"] == state["batches"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResumeWarning)
            iterator = iter(loader)
        if not is_shared and taken == batches:
            assert_same(detached(torch.get_rng_state()), detached(generators[0]))
        again = rest_of(iterator)
        assert len(again) == len(rest), batches
        if is_shared:
            again, rest = without_draws(again), without_draws(rest)
        for number, (ours, theirs) in enumerate(zip(again, rest, strict=True)):
            assert_same(ours, theirs, f"batch {number} behind {taken} of {batches}")


def saved(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
