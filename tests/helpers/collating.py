"""Code of the user's that collates on its own in a worker, and keeps what it has made.

Samples are clips, bags, episodes: what ``default_collate`` makes of several. All that this code keeps is looked at
again with every later sample, and the number of things that have changed is part of the sample. It is 0, and so is
stock's; but where a kept thing lies in memory that is written again, it is not.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from shmloader import ShmDataLoader
from tests.helpers.samples import Draw, Make, alike
from tests.helpers.sources import Gather, Map, Plan, Stream, size_of
from tests.helpers.support import bits, tensors_in

# -- structures --------------------------------------------------------------------------------------------------------


def joined(samples: list[Any]) -> Any:
    """Returns what ``default_collate`` makes of samples of `alike`, made without it."""
    first = samples[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(samples)
    if isinstance(first, (np.ndarray, np.generic)):
        return torch.from_numpy(np.stack(samples))
    if isinstance(first, (bool, int, float)):
        return torch.tensor(samples, dtype=torch.float64 if isinstance(first, float) else None)
    if isinstance(first, dict):
        return {key: joined([sample[key] for sample in samples]) for key in first}
    return _like(first, [joined(list(column)) for column in zip(*samples, strict=True)], tuple_is=list)


def _like(first: Any, parts: list[Any], tuple_is: type = tuple) -> Any:
    if hasattr(first, "_fields"):
        return type(first)(*parts)
    return tuple_is(parts) if isinstance(first, tuple) else parts


def mapped(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Returns a structure with another thing in the place of each tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: mapped(function, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return _like(value, [mapped(function, part) for part in value])
    return value


def rows(batch: Any) -> list[Any]:
    """Returns the samples that a batch consists of, as views of it."""
    count = min(len(tensor) for tensor in tensors_in(batch))
    return [mapped(lambda tensor: tensor[row], batch) for row in range(count)]  # noqa: B023 - called at once


def write(value: Any, out: Any) -> None:
    """Writes a sample to where a dataset is told to write it."""
    if isinstance(out, torch.Tensor):
        out.copy_(value)
    elif isinstance(out, np.ndarray):
        out[...] = value.numpy() if isinstance(value, torch.Tensor) else value
    elif isinstance(out, dict):
        for key in out:
            write(value[key], out[key])
    else:
        for part, place in zip(value, out, strict=True):
            write(part, place)


def as_arrays(value: Any) -> Any:
    """Returns a structure with an array in the place of each tensor, where there are such arrays."""
    return mapped(lambda tensor: _attempt(tensor.numpy, tensor), value)


def _attempt(function: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return function()
    except TypeError:  # numpy does not have the dtype
        return otherwise


def mark(thing: Any) -> int:
    """Returns a number that changes when any bit of the tensors and arrays in ``thing`` does."""
    if isinstance(thing, torch.Tensor):
        return zlib.crc32(bits(thing))
    if isinstance(thing, np.ndarray):
        return zlib.crc32(thing.tobytes())
    if isinstance(thing, dict):
        return mark(list(thing.values()))
    if isinstance(thing, (list, tuple)):
        return hash(tuple(map(mark, thing)))
    return 0


class Memory:
    """What code in one process keeps.

    Args:
        most: how many things at a time; old ones and new ones are among them.

    Attributes:
        looks: whether anybody looks at what is kept. Not with stock's loader: its workers send things from another
            thread, where torch moves their memory, and whoever reads them meanwhile reads what is free.
    """

    looks = True

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._kept: list[tuple[Any, int]] = []

    def keep(self, thing: Any) -> None:
        if len(self._kept) >= self._most:
            del self._kept[self._most // 2]
        self._kept.append((thing, mark(thing) if Memory.looks else 0))

    @property
    def changed(self) -> int:
        """How many of them are not as they were."""
        return sum(mark(thing) != before for thing, before in self._kept) if Memory.looks else 0

    def clear(self) -> None:
        self._kept.clear()

    @property
    def things(self) -> list[Any]:
        return [thing for thing, _ in self._kept]


# -- samples that are made of several ----------------------------------------------------------------------------------


def loaded(kind: type[DataLoader[Any]], samples: Any) -> Any:
    return next(iter(kind(samples, len(samples))))


def in_a_thread(samples: list[Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(default_collate, samples).result()


def collated_and_cut(samples: list[Any]) -> Any:
    whole = default_collate([samples[-1], *samples, samples[0]])
    return mapped(lambda tensor: tensor[1:-1], whole)


def collated_from_rows(samples: list[Any]) -> Any:
    return default_collate(rows(default_collate(samples)))


def collated_in_a_batch(samples: list[Any]) -> Any:
    return rows(default_collate([default_collate(samples), default_collate(samples)]))[1]


def collated_and_joined(samples: list[Any]) -> Any:
    whole = default_collate(samples)
    return mapped(torch.clone, whole)


def viewed(samples: list[Any]) -> Any:
    return mapped(lambda tensor: tensor.unsqueeze(0).transpose(0, 1).squeeze(1), default_collate(samples))


# All of them return the same of the same samples, but for the memory that it lies in.
WAYS: dict[str, Callable[[list[Any]], Any]] = {
    "plain": joined,
    "collated": default_collate,
    "loaded": lambda samples: loaded(DataLoader, samples),
    "loaded by ours": lambda samples: loaded(ShmDataLoader, samples),
    "cut": collated_and_cut,
    "viewed": viewed,
    "of rows": collated_from_rows,
    "a row": collated_in_a_batch,
    "copied": collated_and_joined,
    "in a thread": in_a_thread,
}

# What is kept of what was made.
KEEPS: dict[str, Callable[[Any], Any]] = {
    "all": lambda made: made,
    "a slice": lambda made: mapped(lambda tensor: tensor[1:], made),
    "a row": lambda made: mapped(lambda tensor: tensor[0], made),
    "arrays": as_arrays,
    "data": lambda made: mapped(lambda tensor: tensor.data, made),
    "the first tensor": lambda made: next(iter(tensors_in(made)), None),
}


class Collating:
    """Makes samples of several inner ones.

    Args:
        make: makes an inner sample.
        count: how many of them a sample consists of.
        ways: some of `WAYS`; which of them makes a sample, its index says.
        keeps: one of `KEEPS`, or "" for nothing.
        plain_first: how many samples are made plainly before, in each process. They are those that a batch's places
            are learned from.
        caches: whether each sample is given twice, for two indices.
        sums: whether what was collated once is added to with every sample. Samples depend on those before then.
        change: what is done to the one sample that is unlike the others.
        unlike: its index; None: there is none.
        arrays: whether samples have arrays in the place of tensors.
        lends_sum: whether what is added to is itself in samples; it is as the batch's last sample left it.
    """

    def __init__(
        self,
        make: Make,
        count: int,
        ways: list[str],
        keeps: str = "",
        plain_first: int = 0,
        caches: bool = False,
        sums: bool = False,
        change: Callable[[torch.Tensor], Any] | None = None,
        unlike: int | None = None,
        arrays: bool = False,
        lends_sum: bool = False,
    ) -> None:
        self.make, self.count, self.ways, self.keeps = make, count, ways, keeps
        self.plain_left = plain_first
        self.caches, self.sums, self.change, self.unlike, self.arrays = caches, sums, change, unlike, arrays
        self.lends_sum = lends_sum
        self.memory = Memory()
        self.cache: dict[int, Any] = {}
        self.total: torch.Tensor | None = None

    def inner(self, draw: random.Random) -> list[Any]:
        return [self.make(Draw(draw.getrandbits(60))) for _ in range(self.count)]

    def __call__(self, draw: Draw) -> Any:
        made = self._cached(draw) if self.caches else self._made(draw)
        if self.keeps:
            self.memory.keep(KEEPS[self.keeps](made))
        if draw.index == self.unlike and self.change is not None:
            made = mapped(self.change, made)
        value = as_arrays(made) if self.arrays else made
        return (value, self.memory.changed, self._sum(draw)) if self.sums else (value, self.memory.changed)

    def _made(self, draw: Draw) -> Any:
        way = draw.choice(self.ways)
        self.plain_left -= 1
        return WAYS["plain" if self.plain_left >= 0 else way](self.inner(draw))

    def _cached(self, draw: Draw) -> Any:
        key = draw.index // 2
        if key not in self.cache:
            made = self._made(Draw(key))
            self.cache[key] = made
            self.memory.keep(made)
        return self.cache[key]

    def _sum(self, draw: Draw) -> Any:
        values = [torch.full((3,), float(draw.index)), torch.ones(3)]
        if self.total is None:
            self.total = default_collate(values)
        self.total += default_collate(values)
        return self.total if self.lends_sum and draw.index % 2 else self.total.clone()


def random_collating(draw: random.Random, remembers: bool, direct: bool, copied: bool) -> Collating:
    """Returns one at random.

    Args:
        draw: a scenario's choices.
        remembers: whether samples may depend on those before.
        direct: whether all of them have to be alike, and are written to their place one by one.
        copied: whether batches are copies of all samples, made when all are there.
    """
    ways = draw.sample(list(WAYS), draw.choice([1, 1, 2, 3]))
    if draw.random() < 0.4:
        ways = [*ways, "plain"]
    changes: list[Callable[[torch.Tensor], Any]] = [
        lambda tensor: tensor[:1],
        lambda tensor: tensor.double(),
        lambda tensor: tensor.clone(),
        lambda tensor: tensor.unsqueeze(0),
        lambda tensor: _attempt(tensor.numpy, tensor),
    ]
    return Collating(
        alike(draw),
        draw.choice([1, 2, 2, 3, 5]),
        ways,
        draw.choice(["", *KEEPS]),
        plain_first=draw.choice([0, 4, 4, 8]),
        caches=draw.random() < 0.2,
        sums=remembers and draw.random() < 0.2,
        change=draw.choice(changes),
        unlike=None if direct or draw.random() < 0.7 else draw.randrange(12),
        arrays=copied and draw.random() < 0.2,
        lends_sum=copied and not direct,
    )


# -- datasets ----------------------------------------------------------------------------------------------------------


class Rows(Gather):
    """Collates a batch, and gives the rows of that."""

    def __getitems__(self, indices: list[int]) -> Any:
        return rows(default_collate([self[index] for index in indices]))


class Chunks(Stream):
    """Collates several samples ahead, and gives the rows of that."""

    def __iter__(self) -> Iterator[Any]:
        chunk = []
        for sample in super().__iter__():
            chunk.append(sample)
            if len(chunk) == 3:
                yield from rows(default_collate(chunk))
                chunk = []
        if chunk:
            yield from rows(default_collate(chunk))


class Into(Map):
    """Writes samples into the slot, and keeps what it was given to write to, or what it makes beside."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.memory = Memory()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index), self.memory.changed

    def __getitem_into__(self, index: Any, out: Any) -> None:
        choice = random.Random(f"{self.plan.seed} {index}")
        if choice.random() < 0.3:
            self.memory.keep(default_collate([torch.arange(50), torch.zeros(50, dtype=torch.int64)]))
        keeps = choice.choice(["", "", "all", "a part"])
        try:
            write(self[index], out)
        finally:  # of a row that was not written to, too
            if keeps:
                self.memory.keep(out if keeps == "all" else first_leaf(out)[...])
        if choice.random() < 0.2:
            self.memory.keep(default_collate([first_leaf(out), first_leaf(out)]))


def first_leaf(out: Any) -> Any:
    """Returns the first array of a structure."""
    while not isinstance(out, (np.ndarray, torch.Tensor)):
        out = next(iter(out.values())) if isinstance(out, dict) else out[0]
    return out


class IntoAll(Into):
    """The same for whole batches, which may fail when some rows are written."""

    def __getitems_into__(self, indices: list[Any], out: Any) -> None:
        choice = random.Random(f"{self.plan.seed} {indices}")
        if choice.random() < 0.2:
            self.memory.keep(default_collate([torch.arange(400), torch.arange(400)]))
        try:
            for row, index in enumerate(indices):
                write(self[index], arrays_at(out, row))
        finally:
            if choice.random() < 0.3:
                self.memory.keep(choice.choice([out, arrays_at(out, -1), first_leaf(out)]))
            if choice.random() < 0.2:
                self.memory.keep(default_collate([out, out]))


def arrays_at(out: Any, row: int) -> Any:
    """Returns what one row of a batch is written to."""
    if isinstance(out, torch.Tensor):
        return out[row]
    if isinstance(out, np.ndarray):
        return out[row, ...]
    if isinstance(out, dict):
        return {key: arrays_at(part, row) for key, part in out.items()}
    return _like(out, [arrays_at(part, row) for part in out])


# -- collate functions, and what they keep -----------------------------------------------------------------------------


def _listed(samples: Any) -> list[Any]:
    return samples if isinstance(samples, list) else [samples]


def in_parts(samples: list[Any]) -> Any:
    middle = (size_of(samples) + 1) // 2
    return [default_collate(samples[:middle]), default_collate(samples[middle:] or samples)]


def in_parts_of_parts(samples: list[Any]) -> Any:
    return [default_collate([default_collate(samples[:1])] * 2), in_parts(in_parts(samples)[:1] * 3)]


def twice(samples: list[Any]) -> Any:
    default_collate(samples)
    return default_collate(samples)


def once_more(samples: list[Any]) -> Any:
    first = default_collate(samples)
    second = default_collate([first, first])
    return [second, first]


def overwritten(samples: list[Any]) -> Any:
    first, second = default_collate(samples), default_collate(samples)
    mapped(torch.Tensor.zero_, first)
    return [second, first]


def ends_of(samples: list[Any]) -> Any:
    return mapped(lambda tensor: tensor[-1:], default_collate(samples))


COLLATE_WAYS: dict[str, Callable[[list[Any]], Any]] = {
    "once": default_collate,
    "in parts": in_parts,
    "in parts of parts": in_parts_of_parts,
    "twice": twice,
    "once more": once_more,
    "overwritten": overwritten,
    "ends": ends_of,
    "from rows": collated_from_rows,
    "in a thread": in_a_thread,
}


class KeepingCollate:
    """A collate function that keeps what it makes, and fails now and then when it has kept it.

    Args:
        way: one of `COLLATE_WAYS`.
        keeps: one of `KEEPS`, or "" for nothing.
        failure: what it raises for some batches; which, their elements say.
    """

    def __init__(self, way: str, keeps: str, failure: Callable[[], Exception] | None = None) -> None:
        self.way, self.keeps, self.failure = way, keeps, failure
        self.memory = Memory()

    def __call__(self, samples: Any) -> Any:
        made = COLLATE_WAYS[self.way](_listed(samples))
        if self.keeps:
            self.memory.keep(KEEPS[self.keeps](made))
        if self.failure is not None and mark(made) % 4 == 0:
            raise self.failure()
        return made, self.memory.changed


class KeepingInit:
    """An init function that collates and keeps, and leaves it where a dataset looks for it."""

    def __call__(self, worker: int) -> None:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        make = getattr(getattr(info.dataset, "plan", None), "make", None)
        made = default_collate([torch.arange(100) + worker, torch.ones(100, dtype=torch.int64)])
        if isinstance(make, Collating):
            make.memory.keep(made)
