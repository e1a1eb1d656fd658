"""What MODULE:CALLABLE may be, and the loaders that are made of it."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, WeightedRandomSampler

from shmloader import ShmDataLoader
from shmloader.cli.bench.source import SyntheticImages, build, loader_arguments
from shmloader.cli.bench.verify import seed_all
from shmloader.cli.console import UsageError
from tests.helpers.datasets import Images, Noise, Shards
from tests.helpers.support import assert_same, detached, let_stock_end


def _arguments(monkeypatch: pytest.MonkeyPatch, thing: Any, **options: Any) -> dict[str, Any]:
    monkeypatch.setitem(sys.modules, "users_things", SimpleNamespace(thing=thing))
    return loader_arguments("users_things:thing", options)


def test_only_ours_gets_its_own_arguments(user: str) -> None:
    arguments = loader_arguments(f"{user}:with_slots", {"batch_size": None})
    assert arguments["num_slots"] == 12
    assert (arguments["batch_size"], arguments["num_workers"]) == (32, 2)
    assert build(DataLoader, arguments).num_workers == 2
    with pytest.raises(UsageError, match="num_slots"):
        build(functools.partial(DataLoader), arguments)


def test_a_batch_sampler_goes_without_a_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"dataset": [1, 2, 3], "batch_sampler": [[0, 1], [2]]}
    arguments = _arguments(monkeypatch, lambda: made, num_workers=0)
    assert [batch.tolist() for batch in build(DataLoader, arguments)] == [[1, 2], [3]]


def test_without_a_name_it_is_images() -> None:
    arguments = loader_arguments(None, {"shuffle": True, "num_workers": None})
    assert isinstance(arguments.pop("dataset"), SyntheticImages)
    assert arguments == {"batch_size": 32, "num_workers": 2, "shuffle": True}


@pytest.mark.parametrize("name", ["Images", "dataset", "Namespace.images", "in_a_dict", "loader", "one_loader"])
def test_a_thing_or_what_makes_it(user: str, name: str) -> None:
    arguments = loader_arguments(f"{user}:{name}", {})
    assert isinstance(arguments["dataset"], importlib.import_module(user).Images)
    batch_sizes = {"in_a_dict": 16, "loader": 4, "one_loader": 8}
    assert arguments["batch_size"] == batch_sizes.get(name, 32)


def test_a_callable_dataset_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Called(Images):
        def __call__(self, path: str) -> None:
            raise AssertionError(path)

    thing = Called()
    assert _arguments(monkeypatch, thing)["dataset"] is thing
    assert _arguments(monkeypatch, [1, 2, 3])["dataset"] == [1, 2, 3]


def test_a_dataset_that_is_a_dict_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(dict[int, int], Dataset[int]):
        pass

    assert _arguments(monkeypatch, Table({0: 1}))["dataset"] == {0: 1}


def _number(samples: list[Any]) -> Any:
    return len(samples), torch.utils.data.default_collate(samples)


_LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "plain": lambda: DataLoader(Images(), 4),
    "shuffled, uneven": lambda: DataLoader(Images(), 8, shuffle=True, num_workers=2, generator=torch.Generator()),
    "shuffled without a generator": lambda: DataLoader(Images(), 8, shuffle=True, num_workers=1, drop_last=True),
    "a sampler": lambda: DataLoader(Images(), 8, sampler=WeightedRandomSampler([1.0] * 50, 30), num_workers=1),
    "a batch sampler": lambda: DataLoader(
        Images(), batch_sampler=BatchSampler(SequentialSampler(range(20)), 3, False), num_workers=1
    ),
    "no batches": lambda: DataLoader(Images(), batch_size=None, num_workers=1),
    "a collate function, noise": lambda: DataLoader(Noise(), 4, collate_fn=_number, num_workers=2, prefetch_factor=1),
    "a stream": lambda: DataLoader(Shards(), 2, num_workers=2, drop_last=True),
    "a stream, no batches": lambda: DataLoader(Shards(), None, num_workers=1),
    "no workers": lambda: DataLoader(Images(), 4, num_workers=0),
    "ours": lambda: ShmDataLoader(Images(), 4, num_workers=1, num_slots=9),
}


def _batches(loader: DataLoader[Any], arguments: dict[str, Any]) -> list[Any]:
    seed_all(0, arguments)
    return [detached(batch) for batch in loader]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", [DataLoader, ShmDataLoader])
@pytest.mark.parametrize("name", _LOADERS)
def test_a_loader_is_made_anew(name: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = _LOADERS[name]()
    arguments = _arguments(monkeypatch, loader)
    copy = build(kind, arguments)
    assert type(copy) is kind
    for attribute in ("batch_size", "num_workers", "prefetch_factor", "drop_last", "collate_fn", "persistent_workers"):
        assert getattr(copy, attribute) == getattr(loader, attribute)
    ours, stock = (_batches(one, arguments) for one in (copy, loader))
    assert_same(ours, stock)
    let_stock_end()


def test_our_own_arguments_are_read_off_our_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ShmDataLoader(Images(), 4, num_workers=1, num_slots=9, worker_restarts=2, max_pool_bytes=1 << 20)
    copy = build(ShmDataLoader, _arguments(monkeypatch, loader))
    assert isinstance(copy, ShmDataLoader)
    assert (copy.num_slots, copy.worker_restarts, copy.max_pool_bytes) == (9, 2, 1 << 20)


def test_a_loaders_context_and_init_function_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(
        Images(), 4, num_workers=1, multiprocessing_context="spawn", worker_init_fn=print, timeout=5, pin_memory=True
    )
    copy = build(DataLoader, _arguments(monkeypatch, loader))
    assert copy.multiprocessing_context is loader.multiprocessing_context
    assert (copy.worker_init_fn, copy.timeout, copy.pin_memory) == (print, 5, True)
