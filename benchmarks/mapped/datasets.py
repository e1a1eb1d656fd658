"""The ways to read rows of arrays by index. All give the same samples: a tuple with a row of each array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from .sources import Map

Sample = tuple[Any, ...]


class Rows(Dataset[Sample]):
    """One row at a time, as most datasets read.

    Args:
        arrays: of one length.
    """

    def __init__(self, arrays: Sequence[Map]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __getitem__(self, index: int) -> Sample:
        return tuple(array[index] for array in self._arrays)


class RowsAtOnce(Rows):
    """All rows of a batch at a time, for `join`: the most that torch's loader has a method for."""

    def __getitems__(self, indices: Any) -> Sample:
        return tuple(array[indices] for array in self._arrays)


class WrittenRows(Rows):
    """The same, written into the batch."""

    def __getitems_into__(self, indices: Any, out: Sequence[Map]) -> None:
        for array, place in zip(self._arrays, out, strict=True):
            np.take(array, indices, 0, place, "clip")


def join(arrays: Sample) -> list[torch.Tensor]:
    """Makes a batch of what `RowsAtOnce` returns: the collate function that goes with it."""
    return [torch.from_numpy(array) for array in arrays]


class EndlessBatches(Sampler[NDArray[np.int64]]):
    """Indices of whole batches as arrays, in a random order, pass after pass without a border.

    Args:
        length: of the dataset.
        batch_size: how many indices a batch has. What is left at the end of a pass is dropped.
    """

    def __init__(self, length: int, batch_size: int) -> None:
        self._length = length
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        while True:
            order = torch.randperm(self._length).numpy()
            for end in range(self._batch_size, self._length + 1, self._batch_size):
                yield order[end - self._batch_size : end]


class EndlessIndices(Sampler[int]):
    """The same order, index by index, as ``shuffle=True`` gives it.

    Args:
        length: of the dataset.
        batch_size: as for `EndlessBatches`.
    """

    def __init__(self, length: int, batch_size: int) -> None:
        self._batches = EndlessBatches(length, batch_size)

    def __iter__(self) -> Iterator[int]:
        for batch in self._batches:
            yield from batch.tolist()
