"""What torch.utils.data offers beside the loader: datasets made of others, DataPipes, and pinning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    get_worker_info,
    random_split,
)
from torch.utils.data.datapipes.iter import IterableWrapper
from torch.utils.data.datapipes.map import SequenceWrapper

from shmloader import ShmDataLoader
from shmloader.device import cuda
from tests.helpers.datasets import Images, Mapped, Shards
from tests.helpers.support import TORCH, assert_same, assert_same_stream, seed_everything, stream

TENSORS = TensorDataset(torch.arange(60.0).reshape(30, 2), torch.arange(30))


class Gathering(Dataset[Any]):
    """A dataset that is asked for whole batches."""

    def __init__(self) -> None:
        self.values = torch.arange(30) * 3

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        return {"value": self.values[index], "by": "one"}

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [{"value": self.values[index], "by": f"{len(indices)} at once"} for index in indices]


MAP_STYLE: dict[str, Callable[[], Any]] = {
    "tensors": lambda: TENSORS,
    "subset": lambda: Subset(TENSORS, [3, 1, 2, 9, 9]),
    "subset of a subset": lambda: Subset(Subset(TENSORS, range(20)), [7, 3, 5]),
    "random split": lambda: random_split(TENSORS, [0.5, 0.25, 0.25], torch.Generator().manual_seed(1))[1],
    "concatenation": lambda: ConcatDataset([TENSORS, Subset(TENSORS, [1, 2])]),
    "stack": lambda: StackDataset(TENSORS, Gathering()),
    "stack by name": lambda: StackDataset(tensors=TENSORS, gathered=Gathering()),
    "whole batches": Gathering,
    "subset of whole batches": lambda: Subset(Gathering(), range(0, 30, 2)),
    "list": lambda: [torch.ones(2) * number for number in range(9)],
    "range": lambda: range(17),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("arguments", [{"batch_size": 4, "shuffle": True}, {"batch_size": None}])
@pytest.mark.parametrize("kind", MAP_STYLE)
def test_map_style_datasets(kind: str, arguments: dict[str, Any], num_workers: int) -> None:
    assert_same_stream(MAP_STYLE[kind], num_workers=num_workers, epochs=2, **arguments)


class Numbers(IterableDataset[int]):
    """A stream that shards itself."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        return iter(range(self.start + first, self.stop, step))

    def __len__(self) -> int:
        return self.stop - self.start


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("arguments", [{"batch_size": 4}, {"batch_size": 4, "drop_last": True}, {"batch_size": None}])
def test_chained_streams(arguments: dict[str, Any], num_workers: int) -> None:
    def chain() -> Any:
        return ChainDataset([Numbers(0, 13), Numbers(50, 58)])

    assert len(ShmDataLoader(chain(), **arguments)) == len(DataLoader(chain(), **arguments))
    assert_same_stream(chain, num_workers=num_workers, epochs=2, **arguments)
    assert_same_stream(lambda: Numbers(0, 9) + Numbers(5, 8), num_workers=num_workers, **arguments)


def test_samplers() -> None:
    assert_same_stream(Images, batch_size=3, num_workers=2, sampler=lambda: SubsetRandomSampler([1, 5, 9, 20]))
    for epoch in range(2):

        def of_rank_1(epoch: int = epoch) -> Any:
            sampler: Any = DistributedSampler(Images(), num_replicas=3, rank=1, seed=5)
            sampler.set_epoch(epoch)
            return sampler

        assert_same_stream(Images, batch_size=3, num_workers=2, sampler=of_rank_1)


def shuffled_and_sharded() -> Any:
    return IterableWrapper(list(range(23))).shuffle(buffer_size=7).sharding_filter()


PIPES: dict[str, Callable[[], Any]] = {
    "shuffled and sharded": shuffled_and_sharded,
    "sharded and shuffled": lambda: IterableWrapper(list(range(23))).sharding_filter().shuffle(),
    "seeded": lambda: IterableWrapper(list(range(23))).shuffle().set_seed(3).sharding_filter(),
    "not shuffled": lambda: IterableWrapper(list(range(23))).shuffle().set_shuffle(False).sharding_filter(),
    "not sharded": lambda: IterableWrapper(list(range(5))).shuffle(),
    "batched": lambda: shuffled_and_sharded().batch(2),
    "mapped": lambda: shuffled_and_sharded().map(float).filter(bool),
    "two pipes": lambda: shuffled_and_sharded().zip(IterableWrapper(list(range(40))).shuffle().sharding_filter()),
    "by index": lambda: SequenceWrapper(list(range(11))).map(float),
    "by index and shuffled": lambda: SequenceWrapper(list(range(11))).shuffle().set_seed(4),
}


@pytest.mark.sampled(15)
@pytest.mark.filterwarnings("ignore")  # torch's deprecations of DataPipes
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_workers": 0, "batch_size": None},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 3, "batch_size": 3, "generator": lambda: torch.Generator().manual_seed(9)},
    ],
)
@pytest.mark.parametrize("shuffle", [None, True, False])
@pytest.mark.parametrize("kind", PIPES)
def test_datapipes(kind: str, shuffle: bool | None, arguments: dict[str, Any]) -> None:
    assert_same_stream(PIPES[kind], shuffle=shuffle, epochs=3, **arguments)


@pytest.mark.filterwarnings("ignore")
def test_datapipes_that_are_left_early() -> None:
    assert_same_stream(shuffled_and_sharded, num_workers=2, epochs=3, stop_after=5)


def warned(function: Callable[[], Any]) -> list[tuple[type[Warning], str]]:
    """Returns the warnings of a call, but for those that depend on the processors there are and the threads."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    texts = [(warning.category, str(warning.message)) for warning in caught]
    others = "will create", "is multi-threaded"  # of many workers, and of forks beside stock's threads
    return [(category, text) for category, text in texts if not any(other in text for other in others)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("device", ["", "cuda"])
def test_pinning_without_an_accelerator(device: str, num_workers: int) -> None:
    """Is a warning, and nothing else."""
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    if device and TORCH < (2, 13):
        pytest.skip("this torch takes the device at its word, and fails")

    def run(kind: Any) -> Any:
        seed_everything(3)
        loader = kind(Images(6), num_workers=num_workers, pin_memory=True, pin_memory_device=device)
        outcome: list[Any] = []
        texts = warned(lambda: outcome.append(stream(loader, epochs=2)))
        assert not any(tensor.is_pinned() for batch in outcome[0][0][0] for tensor in batch)
        return outcome, texts

    ours, stock = run(ShmDataLoader), run(DataLoader)
    assert_same(ours[0], stock[0])
    assert ours[1] == stock[1]
    assert len(ours[1]) == (0 if TORCH < (2, 13) else 2 + 2 * bool(device))


class Batch:
    """A batch of the user's own type, which pins itself."""

    def __init__(self, samples: list[Any]) -> None:
        self.numbers = [int(sample) for sample in samples]
        self.pinned_in = 0

    def pin_memory(self) -> Batch:
        assert get_worker_info() is None, "workers must not touch an accelerator"
        self.pinned_in += 1
        return self


@pytest.mark.parametrize("num_workers", [0, 2])
def test_types_that_pin_themselves(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # which loaders ask before torch 2.7
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    loader = ShmDataLoader(
        Mapped(lambda index: index, 6),
        batch_size=2,
        num_workers=num_workers,
        pin_memory=True,
        collate_fn=lambda samples: {"batch": Batch(samples), "rest": [Batch(samples), "text", None]},
    )
    for step, batch in enumerate(loader):
        for part in (batch["batch"], batch["rest"][0]):
            assert part.numbers == [2 * step, 2 * step + 1]
            assert part.pinned_in == 1
        assert batch["rest"][1:] == ["text", None]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("declared", [4, 100, 6])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_lengths_that_lie(declared: int, batch_size: int | None) -> None:
    def run(kind: Any) -> Any:
        seed_everything(3)
        loader = kind(Shards((6, 6), declared=declared), batch_size=batch_size, num_workers=2)
        lengths: list[int] = []

        def load() -> None:
            lengths.append(len(loader))
            lengths.extend(len(list(loader)) for _ in range(2))

        texts = [(category, text[text.index("was reported") :]) for category, text in warned(load) if "was rep" in text]
        return lengths, texts

    assert run(ShmDataLoader) == run(DataLoader)
