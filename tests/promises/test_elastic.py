"""With `PermutationSampler`, seeds for each sample and one global batch size, ranks do not change what a step sees.

Ranks are loaders that take turns here: what each is given follows from its own arguments and state alone.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch

from shmloader import PermutationSampler, ShmDataLoader
from tests.helpers import resuming

GLOBAL = 12

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("error::shmloader.ResumeWarning"),
]


def rank_of(length: int, ranks: int, rank: int, num_workers: int, **how: Any) -> ShmDataLoader[Any]:
    sampler = PermutationSampler(length, 7, ranks, rank, drop_last=how.get("drop_last", False))
    # The seeds of samples come from the generator, so that each rank has the same.
    generator = torch.Generator().manual_seed(3)
    dataset = resuming.Augmented(length)
    arguments = {"sampler": sampler, "num_workers": num_workers, "generator": generator, **how}
    return ShmDataLoader(dataset, GLOBAL // ranks, seeding="sample", **arguments)


def as_set(batches: list[Any]) -> list[tuple[int, ...]]:
    """Returns the samples of all ranks' batches of one step, in an order that does not depend on ranks."""
    return sorted(tuple(sample) for batch in batches for sample in batch.tolist())


def steps_of(loaders: list[ShmDataLoader[Any]], count: int) -> list[list[tuple[int, ...]]]:
    """Runs all ranks for some steps, or to the end of the pass."""
    steps: list[list[tuple[int, ...]]] = []
    iterators = [iter(loader) for loader in loaders]
    while len(steps) < count:
        batches = [batch for iterator in iterators if (batch := next(iterator, None)) is not None]
        if not batches:
            break
        steps.append(as_set(batches))
    return steps


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_ranks_come_and_go(seed: int) -> None:
    draw = random.Random(seed)
    length, epochs = 5 * GLOBAL, 3
    whole = rank_of(length, 1, 0, 1)
    reference = []
    for epoch in range(epochs):
        whole.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        reference.append(steps_of([whole], 100))
    assert sorted(sample[0] for step in reference[1] for sample in step) == list(range(length))
    state: dict[str, Any] = {}
    found: list[list[list[tuple[int, ...]]]] = [[]]
    while len(found) <= epochs:
        ranks = draw.choice([1, 2, 4])
        loaders = [rank_of(length, ranks, rank, draw.randrange(4)) for rank in range(ranks)]
        for loader in loaders:
            loader.load_state_dict(json.loads(json.dumps(state)))
            loader.sampler.set_epoch(len(found) - 1)  # type: ignore[attr-defined]
        found[-1] += steps_of(loaders, draw.randrange(1, 5))
        state = draw.choice(loaders).state_dict()
        if len(found[-1]) == len(reference[0]):  # and the end may not have been seen yet
            if state["phase"] == "within":
                assert steps_of(loaders_from(state, ranks, length), 1) == []
                state = ended(state, length)
            found.append([])
    assert found[:epochs] == reference


def loaders_from(state: dict[str, Any], ranks: int, length: int) -> list[ShmDataLoader[Any]]:
    loaders = [rank_of(length, ranks, rank, 1) for rank in range(ranks)]
    for loader in loaders:
        loader.load_state_dict(state)
    return loaders


def ended(state: dict[str, Any], length: int) -> dict[str, Any]:
    """Returns the state behind the end of a pass of which all batches were given."""
    loader = loaders_from(state, 1, length)[0] if state["loader"]["number of ranks"] == 1 else None
    loader = loader or loaders_from(state, int(state["loader"]["number of ranks"]), length)[0]
    assert list(loader) == []
    return loader.state_dict()


def test_a_last_step_that_ranks_do_not_share_evenly_drops_what_is_over() -> None:
    length = 4 * GLOBAL + 7
    steps = [
        steps_of([rank_of(length, ranks, rank, 1, drop_last=True) for rank in range(ranks)], 100) for ranks in (1, 2, 4)
    ]
    assert steps[0][:4] == steps[1][:4] == steps[2][:4]
    assert [len(step) for step in steps[0]] == [GLOBAL] * 4


def test_a_state_of_another_global_batch_size_is_refused() -> None:
    loader = rank_of(48, 2, 0, 0)
    next(iter(loader))
    other = ShmDataLoader(resuming.Augmented(48), 4, sampler=PermutationSampler(48, 7), seeding="sample")
    with pytest.raises(ValueError, match="its batch_size is 6, and this loader's is 4"):
        other.load_state_dict(loader.state_dict())
