"""Datasets and samplers that have a state, or none, and draw random numbers; and loops that are interrupted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info


def drawn() -> list[int]:
    """Returns a number from each of the three generators."""
    return [int(torch.randint(1 << 30, ())), random.randrange(1 << 30), int(np.random.randint(1 << 30))]


class Augmented(Dataset[torch.Tensor]):
    """Samples that are their index, what the generators give, and which worker has read them."""

    def __init__(self, length: int, draws: bool = True) -> None:
        self.length = length
        self.draws = draws
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        self.reads.append(index)
        return torch.tensor([index, *(drawn() if self.draws else ())])


class Counting(Augmented):
    """The same, with a count of what was read, which is its state."""

    def __init__(self, length: int, draws: bool = True) -> None:
        super().__init__(length, draws)
        self.count = 0

    def __getitem__(self, index: int) -> torch.Tensor:
        self.count += 1
        return torch.cat([super().__getitem__(index), torch.tensor([self.count])])

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "odd": {self.count: (1, 2)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["odd"] == {state["count"]: (1, 2)}
        self.count = state["count"]


class Stream(IterableDataset[torch.Tensor]):
    """A share of a range for each worker, of different sizes, without a state."""

    def __init__(self, length: int, draws: bool = True) -> None:
        self.length = length
        self.draws = draws

    def numbers(self) -> range:
        info = get_worker_info()
        if info is None:
            return range(self.length)
        # The first worker has the smallest share.
        starts = [self.length * part * part // info.num_workers**2 for part in range(info.num_workers + 1)]
        return range(starts[info.id], starts[info.id + 1])

    def sample(self, number: int) -> torch.Tensor:
        return torch.tensor([number, *(drawn() if self.draws else ())])

    def __iter__(self) -> Iterator[torch.Tensor]:
        first = drawn()[0] if self.draws else 0
        for number in self.numbers():
            yield torch.cat([self.sample(number), torch.tensor([first])])


class _Numbers(Iterator[torch.Tensor]):
    def __init__(self, stream: StatefulIterators) -> None:
        self.stream = stream
        self.at = 0
        self.made = 0

    def __next__(self) -> torch.Tensor:
        numbers = self.stream.numbers()
        if self.at >= len(numbers):
            raise StopIteration
        self.at += 1
        self.stream.made += 1
        return self.stream.sample(numbers[self.at - 1])

    def state_dict(self) -> dict[str, Any]:
        return {"at": torch.tensor(self.at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = int(state["at"])


class StatefulIterators(Stream):
    """A stream whose iterators have a state."""

    made = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        return _Numbers(self)


class StatefulStream(Stream):
    """A stream that has a state itself, and begins again at its end, as those do that are made for torchdata's loader.

    What was made in all passes is part of the samples.
    """

    def __init__(self, length: int, draws: bool = True) -> None:
        super().__init__(length, draws)
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        numbers = self.numbers()
        while self.at < len(numbers):
            self.at += 1
            yield self.sample(numbers[self.at - 1])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class Shuffled(Sampler[int]):
    """Draws from Python's and numpy's generators when its iterator is made, and has no state."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.length))
        random.shuffle(order)
        np.random.shuffle(order)
        return iter(order)


class StatefulSampler(Shuffled):
    """Has a state: a seed and a position."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.passes = 0
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        start, self.at = self.at, 0
        order = np.random.default_rng(self.passes).permutation(self.length).tolist()
        for number in order[start:]:
            start += 1
            self.at = start
            yield number
        self.passes += 1
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.at = state["passes"], state["at"]


class _Order(Iterator[int]):
    def __init__(self, length: int) -> None:
        self.length = length
        self.at = 0

    def __next__(self) -> int:
        if self.at == self.length:
            raise StopIteration
        self.at += 1
        return (self.at - 1) * 7 % self.length

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class StatefulOrder(Shuffled):
    """Its iterators have a state. The length must be no multiple of 7."""

    def __iter__(self) -> Iterator[int]:
        return _Order(self.length)


class Buckets(Sampler[list[int]]):
    """A batch sampler, with batches of different sizes in random order."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.length).tolist()
        while order:
            size = 1 + order[0] % 4
            yield order[:size]
            order = order[size:]


class SetBack(IterableDataset[int]):
    """Sets its own state back behind its last sample."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        while (sample := first + self.position * step) < 12:
            self.position += 1
            yield sample
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
