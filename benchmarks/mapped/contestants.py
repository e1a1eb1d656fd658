"""Which loader reads rows in which way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from shmloader import ArrayDataset, ShmDataLoader

from .datasets import EndlessBatches, EndlessIndices, Rows, RowsAtOnce, WrittenRows, join
from .sources import Map

OURS, STOCK = "ours", "torch's"

_Make = Callable[..., "DataLoader[Any]"]


@dataclass(frozen=True)
class Contestant:
    """One way to load rows.

    Attributes:
        name: what the table calls it.
        loader: makes the loader.
        dataset: makes the dataset.
        collate: the collate function, where it is not the default one.
        by_arrays: whether a batch's indices are drawn as one array.
    """

    name: str
    loader: _Make
    dataset: Callable[[Sequence[Map]], Dataset[Any]]
    collate: Callable[[Any], Any] | None = None
    by_arrays: bool = False

    def load(self, arrays: Sequence[Map], batch_size: int, num_workers: int) -> DataLoader[Any]:
        """Returns the loader, whose pass never ends. Its workers start with the first one."""
        order: dict[str, Any] = (
            {"batch_sampler": EndlessBatches(len(arrays[0]), batch_size)}
            if self.by_arrays
            else {"batch_size": batch_size, "sampler": EndlessIndices(len(arrays[0]), batch_size)}
        )
        return self.loader(self.dataset(arrays), num_workers=num_workers, collate_fn=self.collate, **order)


def _arrays(arrays: Sequence[Map]) -> Dataset[Any]:
    return ArrayDataset(*arrays)


# torch's are the last: they start threads, beside which forking is not safe.
CONTESTANTS = (
    Contestant(OURS, ShmDataLoader, Rows),
    Contestant("ours, `__getitems__`", ShmDataLoader, RowsAtOnce, join),
    Contestant("ours, `__getitems_into__`", ShmDataLoader, WrittenRows),
    Contestant("ours, `ArrayDataset`", ShmDataLoader, _arrays),
    Contestant("ours, `ArrayDataset`, arrays of indices", ShmDataLoader, _arrays, by_arrays=True),
    Contestant(STOCK, DataLoader, Rows),
    Contestant("torch's, `__getitems__`", DataLoader, RowsAtOnce, join),
    Contestant("torch's, `__getitems__`, arrays of indices", DataLoader, RowsAtOnce, join, by_arrays=True),
)
