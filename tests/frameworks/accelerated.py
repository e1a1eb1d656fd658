"""What scripts under test run with Accelerate: the same with torch's loader and with ours."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import (
    Accelerator,
    DataLoaderConfiguration,
    skip_first_batches,
)  # as scripts have it, before anything is prepared
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from shmloader import ShmDataLoader

OWN: dict[str, Any] = {"name": "train", "worker_restarts": 2, "num_slots": 20}


def sample(index: int) -> dict[str, Any]:
    """An index, and what is drawn for it; numbers only, since a dispatcher sends nothing else."""
    target = getattr(multiprocessing.current_process(), "_target", None)
    return {
        "index": torch.tensor(index),
        "drawn": torch.rand(2),
        "others": np.array([random.random(), np.random.rand()]),
        "is_ours": torch.tensor(getattr(target, "__module__", "").startswith("shmloader")),
    }


class Drawn(Dataset[Any]):
    """Samples that draw from each generator."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return sample(index)


class DrawnStream(IterableDataset[Any]):
    """The same one after the other, from the first worker only: Accelerate has each rank read all of it."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        return iter(()) if worker is not None and worker.id else map(sample, range(self.length))


class Case(NamedTuple):
    """A loader, and how it is prepared."""

    arguments: dict[str, Any]
    length: int = 18
    config: Mapping[str, Any] = MappingProxyType({})
    is_stream: bool = False
    makes: Callable[[Any], dict[str, Any]] = lambda dataset: {}

    def make(self, kind: type[DataLoader[Any]], **own: Any) -> DataLoader[Any]:
        dataset = DrawnStream(self.length) if self.is_stream else Drawn(self.length)
        return kind(dataset, **self.arguments, **self.makes(dataset), **own)


def accelerator_of(config: Mapping[str, Any], **more: Any) -> Any:
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**config), **more)


def prepared(case: Case, ours: bool, accelerator: Any = None) -> Any:
    """Returns a prepared loader, and the accelerator that has prepared it."""
    from shmloader.integrations.accelerate import prepare

    accelerator = accelerator or accelerator_of(case.config)
    if not ours:
        return accelerator.prepare(case.make(DataLoader)), accelerator
    loader = prepare(accelerator, case.make(ShmDataLoader, **OWN))
    assert type(loader.base_dataloader) is ShmDataLoader
    assert {name: getattr(loader.base_dataloader, name) for name in OWN} == OWN
    return loader, accelerator


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def told(batch: Any) -> list[Any]:
    """Returns what a batch holds, but for who made it."""
    return [batch[name].tolist() for name in ("index", "drawn", "others")]


def passes(case: Case, ours: bool, count: int = 2) -> list[Any]:
    """Runs some passes, and returns all that a loop can see of them."""
    seed(7)
    loader, accelerator = prepared(case, ours, accelerator_of(case.config, gradient_accumulation_steps=2))
    model = torch.nn.Linear(1, 1)
    found: list[Any] = [type(loader).__name__, None if case.is_stream else len(loader)]
    for _ in range(count):
        for batch in loader:
            if loader.num_workers and accelerator.is_main_process:
                assert batch["is_ours"].tolist() == [ours] * len(batch["index"])
            gathered = accelerator.gather_for_metrics(batch["index"]).tolist() if accelerator.even_batches else None
            state = accelerator.gradient_state
            with accelerator.accumulate(model):
                found.append([told(batch), gathered, state.end_of_dataloader, state.remainder, state.sync_gradients])
        found.append([torch.rand(1).item(), random.random(), np.random.rand()])
    return found


def differences(names: Sequence[str]) -> list[str]:
    """Returns the names of the cases in which the two differ."""
    return [name for name in names if passes(CASES[name], ours=False) != passes(CASES[name], ours=True)]


def skipped(case: Case, ours: bool, by_method: bool) -> list[Any]:
    """Runs a pass that skips two batches, and a whole one after it."""
    seed(7)
    loader, accelerator = prepared(case, ours)
    rest = (accelerator.skip_first_batches if by_method else skip_first_batches)(loader, 2)
    assert type(rest) is type(loader)
    assert type(rest.base_dataloader) is type(loader.base_dataloader)
    if ours:
        assert {name: getattr(rest, name) for name in OWN} == OWN
    return [*map(told, rest), torch.rand(1).item(), *map(told, loader), torch.rand(1).item()]


def differences_of_skipped(names: Sequence[str]) -> list[str]:
    return [
        name
        for number, name in enumerate(names)
        if skipped(CASES[name], False, bool(number % 2)) != skipped(CASES[name], True, bool(number % 2))
    ]


def whole_and_resumed(case: Case, folder: str, epoch: int, batch: int, fresh: bool) -> list[Any]:
    """Runs three passes and saves within one; then loads, and returns what came behind that place both times.

    Args:
        case: what is prepared.
        folder: where it is saved.
        epoch: in which pass it is saved, when the loop has the batch of that number.
        batch: that, or the last one where there are fewer.
        fresh: whether other objects load it, as in another process.
    """
    seed(7)
    loader, accelerator = prepared(case, ours=True)
    batch = batch if case.is_stream else min(batch, len(loader) - 1)
    whole: list[Any] = []
    for number in range(3):
        for ordinal, one in enumerate(loader):
            whole.append([told(one), loader.end_of_dataloader, torch.rand(1).item()])
            if (number, ordinal) == (epoch, batch):
                accelerator.save_state(folder)
                whole.clear()
    if fresh:
        accelerator.free_memory()
        seed(7)
        loader, accelerator = prepared(case, ours=True)
        seed(8)
    accelerator.load_state(folder)
    resumed: list[Any] = []
    while len(resumed) < len(whole):
        resumed += [[told(one), loader.end_of_dataloader, torch.rand(1).item()] for one in loader]
    accelerator.wait_for_everyone()
    return [whole, resumed]


def batches_of_three(dataset: Any) -> dict[str, Any]:
    return {"batch_sampler": BatchSampler(SequentialSampler(dataset), 3, False)}


def own_generator(dataset: Any) -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(3)}


SHUFFLED: dict[str, Any] = {"batch_size": 4, "shuffle": True, "num_workers": 2}
CASES = {
    "in order": Case({"batch_size": 4, "num_workers": 2}),
    "shuffled": Case(SHUFFLED),
    "shuffled, no remainder": Case(SHUFFLED, length=16),
    "without workers": Case({**SHUFFLED, "num_workers": 0}),
    "persistent": Case({**SHUFFLED, "persistent_workers": True}),
    "a generator": Case(SHUFFLED, makes=own_generator),
    "seedable": Case(SHUFFLED, config={"use_seedable_sampler": True}),
    "seedable with a seed": Case(SHUFFLED, config={"use_seedable_sampler": True, "data_seed": 11}),
    "split": Case(SHUFFLED, config={"split_batches": True}),
    "uneven": Case(SHUFFLED, length=17, config={"even_batches": False}),
    "the last dropped": Case({**SHUFFLED, "drop_last": True}),
    "fewer samples than ranks": Case({"batch_size": 4, "num_workers": 2}, length=1),
    "one batch": Case({"batch_size": 4, "num_workers": 2}, length=4),
    "none at all": Case({"batch_size": 4, "num_workers": 2}, length=0),
    "a batch sampler": Case({"num_workers": 2}, makes=batches_of_three),
    "dispatched": Case(SHUFFLED, config={"dispatch_batches": True}),
    "dispatched and split": Case(SHUFFLED, config={"dispatch_batches": True, "split_batches": True}),
    "a stream": Case({"batch_size": 4, "num_workers": 2}, is_stream=True),
    "a stream that is split": Case({"batch_size": 4, "num_workers": 2}, is_stream=True, config={"split_batches": True}),
    "a stream for each rank": Case(
        {"batch_size": 4, "num_workers": 1}, is_stream=True, config={"dispatch_batches": False}
    ),
}
