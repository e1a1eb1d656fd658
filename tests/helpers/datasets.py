"""Datasets that tests load; at module level, so that spawned workers can import them."""

from __future__ import annotations

import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024 - untyped ones are what datasets return


class Images(Dataset[Any]):
    """Small images with labels."""

    def __init__(self, length: int = 50, shape: tuple[int, ...] = (3, 4), dtype: Any = np.uint8) -> None:
        self.length = length
        self.images = np.random.default_rng(0).integers(0, 100, (length, *shape)).astype(dtype)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], index


class Mapped(Dataset[Any]):
    """What a function makes of each index."""

    def __init__(self, function: Callable[[int], Any], length: int = 20) -> None:
        self.function = function
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.function(index)


class Noise(Dataset[Any]):
    """Numbers from every random stream of the worker."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        seed = info.seed if info is not None else -1
        return torch.rand(3), random.random(), np.random.rand(2), seed


class Shards(IterableDataset[Any]):
    """A stream of numbers, of another length in each worker."""

    def __init__(self, lengths: tuple[int, ...] = (7, 2, 11), declared: int | None = None, noisy: bool = True) -> None:
        self.lengths = lengths
        self.noisy = noisy
        self.declared = declared

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker = info.id if info is not None else 0
        for step in range(self.lengths[worker % len(self.lengths)]):
            yield torch.tensor([worker, step]), torch.rand(2) if self.noisy else torch.zeros(2)

    def __len__(self) -> int:
        if self.declared is None:
            raise TypeError("no length")
        return self.declared


def nest(index: int) -> Any:
    """A sample with every kind of container that the default collate function knows."""
    return {
        "tensor": torch.full((2, 3), float(index)),
        "array": np.arange(index, index + 4, dtype=np.int16),
        "number": index,
        "float": index / 3,
        "flag": index % 2 == 0,
        "text": f"sample {index}",
        "raw": bytes([index % 256]),
        "point": Point(torch.tensor(index), np.float32(index)),
        "list": [torch.zeros(0), [np.complex64(1j * index)]],
        "pair": (torch.tensor([index], dtype=torch.bfloat16), np.array(index, dtype=np.uint16)),
        "ordered": OrderedDict(b=index, a=[index, index + 1]),
    }
