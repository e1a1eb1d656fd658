"""The cells: what is loaded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from shmloader.bench.compare import nbytes

# As in a real dataset, the samples of a pass are more than the processor's caches hold.
_DATASET_BYTES = 64 << 20
_MAX_DISTINCT = 2048
_RECORDS = 512

Collate = Callable[[list[Any]], Any]


class Samples(Dataset[Any]):
    """Ready-made samples over and over, so many that no pass ever ends."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> Any:
        return self._samples[index % len(self._samples)]


@dataclass(frozen=True)
class Cell:
    """One thing to load.

    Attributes:
        name: what the command line and the table call it.
        make_samples: returns the samples.
        batch_size: samples a batch.
        collate: the user's collate function; None: torch's default one.
    """

    name: str
    make_samples: Callable[[], Sequence[Any]]
    batch_size: int
    collate: Collate | None = None

    def dataset(self) -> Samples:
        """Makes the dataset."""
        return Samples(self.make_samples())

    def batch_bytes(self) -> int:
        """Returns the bytes of one batch; of a typical one, if they differ."""
        samples = self.make_samples()
        batch = [samples[number % len(samples)] for number in range(self.batch_size)]
        return nbytes((self.collate or torch.utils.data.default_collate)(batch))


def _distinct(*shape: int, itemsize: int = 1) -> tuple[int, ...]:
    """Returns the shape of all samples of ``shape`` together."""
    return min(_MAX_DISTINCT, _DATASET_BYTES // (math.prod(shape) * itemsize)), *shape


def _floats() -> list[Any]:
    return list(np.random.default_rng(0).random(_distinct(8, itemsize=4), dtype=np.float32))


def _images(*shape: int) -> list[Any]:
    images = np.random.default_rng(0).integers(0, 256, _distinct(*shape), dtype=np.uint8)
    return [(image, number % 10) for number, image in enumerate(images)]


def _float_images(*shape: int) -> list[Any]:
    images = np.random.default_rng(0).random(_distinct(*shape, itemsize=4), dtype=np.float32)
    return [(image, number % 10) for number, image in enumerate(images)]


def _records() -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        {f"vector{k}": rng.random(4, dtype=np.float32) for k in range(16)}
        | {f"count{k}": int(rng.integers(1000)) for k in range(8)}
        | {f"share{k}": float(rng.random()) for k in range(8)}
        for _ in range(_RECORDS)
    ]


def _token_lists() -> list[Any]:
    rng = random.Random(0)
    return [[rng.randrange(1, 30_000) for _ in range(rng.randint(1, 128))] for _ in range(_RECORDS)]


def pad(samples: list[Any]) -> Any:
    """Pads lists of token ids with zeros to the longest, row by row."""
    padded = np.zeros((len(samples), max(map(len, samples))), np.int64)
    for row, ids in zip(padded, samples, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(padded)


def pad_as_sequences(samples: list[Any]) -> Any:
    """Does the same with torch's own function; making a tensor of each list is most of its work."""
    return pad_sequence([torch.tensor(ids) for ids in samples], batch_first=True)


CELLS = (
    Cell("floats8", _floats, 32),
    Cell("gray28", lambda: _images(28, 28), 64),
    Cell("rgb64", lambda: _images(3, 64, 64), 64),
    Cell("rgb224", lambda: _images(3, 224, 224), 64),
    Cell("rgb224b256", lambda: _images(3, 224, 224), 256),
    Cell("rgb224f32", lambda: _float_images(3, 224, 224), 64),
    Cell("fields32", _records, 64),
    Cell("tokens", _token_lists, 32, pad),
    Cell("tokenspad", _token_lists, 32, pad_as_sequences),
)
