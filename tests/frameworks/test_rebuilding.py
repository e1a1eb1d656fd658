"""What frameworks do to a loader, copy, pickle or build it again: what they end up with is ours."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from shmloader import ShmDataLoader
from tests.frameworks.support import OURS, Traced, given_or_default, indices, our_indices, own_arguments, share
from tests.helpers.support import OWN_ARGUMENTS


def rebuilt(loader: Any, sampler: Any) -> Any:
    """Makes another loader of what one shows of its arguments, with another sampler."""
    names = inspect.signature(type(loader).__init__).parameters
    arguments = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    arguments.update(sampler=sampler, shuffle=False, batch_sampler=None)
    return type(loader)(**arguments)


@pytest.mark.parametrize(
    "given",
    [
        {},
        OURS,
        {"sampler": SequentialSampler(range(18)), "batch_size": None, "num_workers": 1},
        {"batch_sampler": BatchSampler(range(18), 3, False), "num_workers": 2, "num_slots": 40},
        {
            "batch_size": 3,
            "shuffle": True,
            "num_workers": 2,
            "collate_fn": list,
            "pin_memory": True,
            "drop_last": True,
            "timeout": 30,
            "worker_init_fn": print,
            "multiprocessing_context": "spawn",
            "generator": torch.Generator(),
            "prefetch_factor": 3,
            "persistent_workers": True,
            "pin_memory_device": "cpu",
            "in_order": False,
            **OURS,
        },
    ],
)
def test_arguments_are_attributes_as_torchs_are(given: dict[str, Any]) -> None:
    dataset = Traced()
    ours = ShmDataLoader(dataset, **given)
    stock = DataLoader(dataset, **{name: value for name, value in given.items() if name not in OWN_ARGUMENTS})
    assert own_arguments(ours) == given_or_default(given)
    for name in inspect.signature(DataLoader.__init__).parameters:
        one, other = getattr(ours, name, "absent"), getattr(stock, name, "absent")
        if name in ("sampler", "batch_sampler") and name not in given:
            assert type(one) is type(other), name
        else:
            assert one is other or one == other, name


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "make_another",
    [
        copy.copy,
        lambda loader: pickle.loads(pickle.dumps(loader)),
        lambda loader: rebuilt(loader, SequentialSampler(loader.dataset)),
    ],
    ids=["copied", "pickled", "rebuilt"],
)
@pytest.mark.parametrize("own", [{}, OURS], ids=["learned", "declared"])
@pytest.mark.parametrize("persistent", [False, True])
def test_another_loader_made_of_one(make_another: Any, own: dict[str, Any], persistent: bool) -> None:
    loader = ShmDataLoader(Traced(), batch_size=4, num_workers=2, persistent_workers=persistent, **own)
    other = make_another(loader)
    assert type(other) is ShmDataLoader
    assert own_arguments(other) == given_or_default(own)
    for each in (other, loader):
        assert our_indices(each) == indices(DataLoader(Traced(), batch_size=4))
    statistics = other.statistics()
    assert statistics is not None
    assert statistics.num_slots == own.get("num_slots", 24)


def test_a_loader_rebuilt_with_a_ranks_sampler() -> None:
    loader = ShmDataLoader(Traced(), batch_size=4, shuffle=True, num_workers=2, **OURS)
    list(loader)
    for rank in range(2):
        assert our_indices(rebuilt(loader, DistributedSampler(Traced(), 2, rank))) == share(rank, epoch=0)
