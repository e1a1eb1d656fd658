"""Datasets for random scenarios: what they raise, what they give, and what users hand to a loader with them."""

from __future__ import annotations

import dataclasses
import queue
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    default_collate,
    get_worker_info,
)
from torch.utils.data._utils.collate import default_collate_fn_map
from torch.utils.data.datapipes.iter import IterableWrapper

from tests.helpers.samples import Draw, Make, Record

# -- failures ----------------------------------------------------------------------------------------------------------


class Awkward(Exception):
    """An exception that cannot be made of a message."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(code, reason)


class Telling(Exception):
    """An exception with a message of its own, which torch passes by name."""

    message = "none"

    def __init__(self, message: str = "") -> None:
        super().__init__(message, len(message) > 5)


class Mistaken(Exception):
    """An exception that has a message and cannot be given one."""

    message = "none"

    def __init__(self) -> None:
        super().__init__("mistaken")


class Unsendable(Exception):
    """An exception that cannot be pickled; its class can, and no more is sent."""

    def __init__(self, text: str) -> None:
        super().__init__(text, lambda: text)


class Missing(KeyError):
    """A KeyError, but not the class itself, which torch treats in a way of its own."""


def chained() -> Exception:
    error = ValueError("outer")
    error.__cause__ = KeyError("inner")
    return error


FAILURES: list[Callable[[], Exception]] = [
    lambda: ValueError("bad"),
    lambda: KeyError("key"),
    lambda: KeyError(),
    lambda: Missing(("a", 1)),
    lambda: IndexError(3),
    lambda: OSError(2, "no", "file"),
    lambda: RuntimeError(),
    lambda: AssertionError("several\n\nlines\n"),
    lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
    lambda: Awkward(3, reason="none"),
    lambda: Telling("told"),
    lambda: Mistaken(),
    lambda: Unsendable("stays"),
    lambda: UserWarning("raised"),
    lambda: queue.Empty(),
    lambda: TimeoutError("late"),
    lambda: EOFError(),
    lambda: chained(),
    lambda: StopIteration("over"),  # which the loop takes for the end
]
LASTING = FAILURES[:-1]
# Those whose text takes more than what a slot has at the least.
LONG: list[Callable[[], Exception]] = [
    lambda: ValueError("x" * 100_000),
    lambda: ValueError("\N{SNOWMAN}\n" * 50_000),
    lambda: Telling("told " * 20_000),
    lambda: Unsendable("stays " * 20_000),
    lambda: OSError(2, "no " * 40_000, "file"),
]


def failing(error: Callable[[], Exception]) -> Any:
    raise error()


# -- datasets ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Plan:
    """What a scenario's dataset does."""

    seed: int
    length: int
    declared: int
    make: Make
    noisy: bool
    failures: dict[int, Callable[[], Exception]]


class Source:
    """Samples, and what the process that makes them is: its random streams, its worker's seed, its calls so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls = 0
        self.tag = 0

    def sample(self, index: int, shard: int = 0) -> Any:
        self.calls += 1
        if index in self.plan.failures:
            failing(self.plan.failures[index])
        draw = Draw(1_000_003 * self.plan.seed + 1009 * shard + index)
        draw.index = index
        value = self.plan.make(draw)
        return (value, self._noise()) if self.plan.noisy else value

    def _noise(self) -> Any:
        info = get_worker_info()
        seed = info.seed if info is not None else -1
        numbers = (torch.rand(2), random.random(), np.random.rand(), torch.initial_seed())
        return (*numbers, seed, self.calls, self.tag, torch.get_num_threads())


class Map(Source, Dataset[Any]):
    """Says that it has ``declared`` samples, and has ``length``. Lists of indices are allowed, too."""

    def __len__(self) -> int:
        return self.plan.declared

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (list, tuple)):
            return [self[one] for one in index]
        if index >= self.plan.length:
            raise IndexError(f"no sample {index}")
        return self.sample(index)


class Gather(Map):
    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


class Stream(Source, IterableDataset[Any]):
    """Shards of uneven lengths, without a length in all."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        shard = info.id if info is not None else 0
        length = self.plan.length // random.Random(self.plan.seed + shard).choice([1, 1, 2, 3, 100])
        for index in range(length):
            yield self.sample(index, shard)


class Sized(Stream):
    """One that says how long it is, rightly or not."""

    def __len__(self) -> int:
        return self.plan.declared


class Unsized(Stream):
    def __len__(self) -> int:
        raise NotImplementedError("no length")


class Spent(Stream):
    """One that is its own iterator, and does not begin again."""

    position = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.position >= self.plan.length:
            raise StopIteration
        self.position += 1
        return self.sample(self.position - 1)


class Broken(Stream):
    """One that cannot begin."""

    def __iter__(self) -> Iterator[Any]:
        raise OSError(2, "no such shard")


def ready_made(plan: Plan) -> list[Any]:
    quiet = dataclasses.replace(plan, noisy=False, failures={})
    return [Map(quiet).sample(index) for index in range(plan.length)]


def subset(plan: Plan) -> Dataset[Any]:
    return Subset(Map(plan), [index % plan.length for index in range(3, 2 * plan.length, 2)])


def doubled(plan: Plan) -> Dataset[Any]:
    return ConcatDataset([Map(plan), Gather(plan)])


def pipe(plan: Plan) -> Any:
    return IterableWrapper(ready_made(plan), deepcopy=False).shuffle().sharding_filter()


MAPS: list[Callable[[Plan], Any]] = [Map, Map, Map, Gather, Gather, subset, doubled, ready_made]
STREAMS: list[Callable[[Plan], Any]] = [Stream, Stream, Sized, Sized, Sized, Sized, Unsized, Spent, Broken, pipe]


# -- functions of the user's -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Bundle:
    samples: Any
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    samples: Any
    extra: torch.Tensor


def as_is(samples: Any) -> Any:
    return samples


def first_of(samples: Any) -> Any:
    return samples[0] if isinstance(samples, list) and samples else samples


def size_of(samples: Any) -> int:
    return len(samples) if hasattr(samples, "__len__") else -1


def choosy(samples: Any) -> Any:
    """Refuses batches of one length."""
    if size_of(samples) == 2:
        raise LookupError("two", 2)
    return samples


def ending(samples: Any) -> Any:
    """Ends a stream early."""
    if size_of(samples) == 1:
        raise StopIteration
    return default_collate(samples)


def packed(samples: Any) -> Any:
    return torch.nn.utils.rnn.pack_sequence([torch.arange(n + 1.0) for n in range(size_of(samples), -1, -1)])


# What the default function refuses arrives all the same with these; and what is no batch of samples.
LENIENT: list[Callable[[Any], Any] | None] = [
    as_is,
    first_of,
    lambda samples: (samples, torch.arange(5)[::2]),
    lambda samples: Frozen((samples, samples), torch.ones(2, 3).t()),
]
COLLATES: list[Callable[[Any], Any] | None] = [
    None, None, None, None, None, None,
    lambda samples: {"batch": default_collate(samples), "size": len(samples)},
    lambda samples: Bundle(default_collate(samples), len(samples)),
    lambda samples: [default_collate(samples), default_collate(samples[:1])],
    choosy,
    ending,
    packed,
    *LENIENT,
]  # fmt: skip


def seed_streams(worker: int) -> None:
    torch.manual_seed(worker)
    random.seed(worker)
    np.random.seed(worker)


def set_tag(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    if isinstance(info.dataset, Source):
        info.dataset.tag = 10 * info.num_workers + worker


def collate_records(batch: list[Record], *, collate_fn_map: Any = None) -> Any:
    return [record.number for record in batch], torch.stack([record.tensor for record in batch])


def teach(worker: int) -> None:
    default_collate_fn_map[Record] = collate_records
