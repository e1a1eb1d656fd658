"""What a cache has done."""

from __future__ import annotations

from dataclasses import dataclass


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
