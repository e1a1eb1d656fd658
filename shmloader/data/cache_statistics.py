"""What a cache has done, and which caches a dataset reads from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

from torch.utils.data import Dataset

# Datasets beyond so many are not looked at.
_MAX_LOOKED_AT = 1000


@dataclass(frozen=True)
class CacheStatistics:
    """What a `CachedDataset` has done. It is immutable, and true of the moment it was asked for.

    Hits, misses and samples that did not fit are summed over all processes and threads that share the object: workers,
    and whatever else was forked, or was sent it by multiprocessing. Samples and bytes are of all that use the file.

    Attributes:
        length: how many samples the dataset has.
        samples: how many of them are kept.
        bytes: what their records take, those included that were written in vain.
        max_bytes: what they may take.
        hits: how often a sample was read from the cache.
        misses: how often one was read from the dataset.
        did_not_fit: how many samples were read and found no room, and are not kept now.
    """

    length: int
    samples: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    did_not_fit: int


class Cache(Protocol):
    """What is counted: a `CachedDataset`, which is above this module."""

    def statistics(self) -> CacheStatistics:
        """Returns what was counted so far."""


def sum_of_caches(dataset: Any, kind: type[Cache]) -> CacheStatistics | None:
    """Returns what the caches that a dataset reads from have done, summed; None where none is found.

    They are looked for in the dataset, in whatever it has as ``dataset`` or in a list or tuple ``datasets``, as torch's
    wrappers do, and in each of its attributes that is a ``Dataset``; and in what is found there. Each counts once.

    Args:
        dataset: a loader's.
        kind: what a cache is.
    """
    found = [one.statistics() for one in _within(dataset) if issubclass(type(one), kind)]
    if not found:
        return None
    return CacheStatistics(*(sum(getattr(one, field.name) for one in found) for field in fields(CacheStatistics)))


def _within(dataset: Any) -> Iterator[Any]:
    """Yields a dataset and those that it is made of, each once."""
    left, seen = [dataset], {id(dataset): dataset}
    while left:
        one = left.pop()
        yield one
        for part in _parts(one):
            if id(part) not in seen and len(seen) < _MAX_LOOKED_AT:
                seen[id(part)] = part
                left.append(part)


def _parts(dataset: Any) -> list[Any]:
    # By the instance's own dict where there is one, and by types, so that no code of the user's runs: a property may
    # read files, ``__class__`` too, and a weak proxy raises when its object is gone.
    attributes = _attributes(dataset)
    # All at once: a worker thread may set one meanwhile.
    parts: list[Any] = [value for value in list(attributes.values()) if issubclass(type(value), Dataset)]
    parts.append(attributes.get("dataset"))
    several: Any = attributes.get("datasets")
    if issubclass(type(several), (list, tuple)):
        parts += several[:_MAX_LOOKED_AT]
    return [part for part in parts if part is not None]


def _attributes(dataset: Any) -> Mapping[str, Any]:
    try:
        return cast("Mapping[str, Any]", object.__getattribute__(dataset, "__dict__"))
    except AttributeError:
        return {}
