"""Datasets whose samples are seeded for: random generators are set before each one. Runs where samples are made.

Only what makes one sample at a time can be seeded for. So a dataset that makes several in a call, by ``__getitems__``
or ``__getitems_into__``, is called for each sample by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from torch.utils.data import Subset, TensorDataset

from shmloader.batches.tensors import Array
from shmloader.data.arrays import ArrayDataset

from .write_into import Each, SampleStructure, Way, as_is


class Seed(Protocol):
    """Sets the random generators."""

    def __call__(self, index: Any) -> None:
        """Sets them for the sample of an index, or at a position of a stream."""

    def begin(self) -> None:
        """Sets them for what comes before the first sample of a stream."""


def dataset(plain: Any, seed: Seed, is_stream: bool) -> Any:
    """Returns a dataset that reads ``plain``, seeded; for torch's fetchers."""
    if is_stream:
        return _Stream(plain, seed)
    return _Batches(plain, seed) if makes_several(plain) else _Samples(plain, seed)


def makes_several(plain: Any) -> bool:
    """Whether torch's fetcher asks a dataset for all samples of a batch in one call."""
    return hasattr(plain, "__getitems__") and bool(plain.__getitems__)


class _Samples:
    def __init__(self, plain: Any, seed: Seed) -> None:
        self._plain = plain
        self._seed = seed

    def __getitem__(self, index: Any) -> Any:
        self._seed(index)
        return self._plain[index]


class _Batches(_Samples):
    def __getitems__(self, indices: Iterable[Any]) -> list[Any]:
        return [self._only(index) for index in indices]

    def _only(self, index: Any) -> Any:
        self._seed(index)
        samples = self._plain.__getitems__([index])
        try:
            if isinstance(samples, (str, bytes, Mapping)) or len(samples) != 1:
                raise TypeError
            return samples[0]
        except (TypeError, KeyError, IndexError):
            raise TypeError(
                f"seeding='sample' calls __getitems__ of the dataset ({type(self._plain).__qualname__}) for one index "
                f"at a time, and it must return a list of one sample, not {samples!r:.200}"
            ) from None


class _Stream:
    def __init__(self, plain: Any, seed: Seed) -> None:
        self._plain = plain
        self._seed = seed

    def __iter__(self) -> Iterator[Any]:
        self._seed.begin()
        return Positions(iter(self._plain), self._seed)


class Positions(Iterator[Any]):
    """Seeds for each sample of a stream by its position.

    It is no generator: one ends with the first error, and the dataset's iterator may go on after it.

    Attributes:
        samples: the dataset's own iterator.
        position: how many were asked for.
    """

    def __init__(self, samples: Iterator[Any], seed: Seed) -> None:
        self.samples = samples
        self.position = 0
        self._seed = seed

    def __next__(self) -> Any:
        """Returns the next sample."""
        self._seed(self.position)
        self.position += 1
        return next(self.samples)


def way(plain: Way, of: Any, seed: Callable[[Any], None], each: Each = as_is) -> Way:
    """Returns a way to write samples that seeds for each.

    Args:
        plain: one that does not.
        of: the dataset whose samples they are.
        seed: sets the random generators for the sample of an index.
        each: goes through indices.
    """
    if _draws_nothing(of):
        return plain

    def write(indices: Any, arrays: list[Array], structure: SampleStructure) -> Any:
        for row, index in enumerate(each(indices)):
            seed(index)
            if plain.write([index], [array[row : row + 1] for array in arrays], structure) is NotImplemented:
                return NotImplemented
        return None

    return plain._replace(write=write)


def _draws_nothing(of: Any) -> bool:
    """Whether no code of a user's runs for a sample, so that batches may be copied as a whole."""
    while type(of) is Subset:
        of = of.dataset
    return type(of) in (TensorDataset, ArrayDataset)
