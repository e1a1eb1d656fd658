"""What a `CachedDataset` is made with: what is checked, what is the default, and how a dataset is recognised."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from torch.utils.data import IterableDataset, Subset

from shmloader.slots.limits import available_memory, file_size_limit, memory_limit

_MAX_WRAPPED = 20


def checked_length(dataset: Any) -> int:
    """Returns how many samples a dataset has.

    Raises:
        TypeError: it is not map-style, or has no length.
    """
    kind = type(dataset).__qualname__
    if isinstance(dataset, IterableDataset) or not hasattr(type(dataset), "__getitem__"):
        raise TypeError(f"CachedDataset takes a map-style dataset, and {kind} is none: it has no samples by index")
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(f"CachedDataset takes a dataset with a length, and {kind} has none: {error}") from error


def checked_path(path: Any) -> str:
    """Returns a path as an absolute name, without symbolic links.

    Raises:
        TypeError: it is no path.
        ValueError: it cannot be the name of a file.
    """
    try:
        name = os.fspath(path)
    except TypeError:
        raise TypeError(f"path must be a str or a path, got {path!r}") from None
    if not isinstance(name, str):
        raise TypeError(f"path must be a str or a path, got {path!r}")
    if "\0" in name:
        raise ValueError(f"path must not have a null character in it, got {path!r}")
    return os.path.realpath(name)  # of a link that leads nowhere, where it leads to


def memory_for_a_cache() -> int:
    """Returns how many bytes samples in memory take by default: half of what there is, or what is available."""
    nbytes = min(memory_limit() // 2, available_memory())
    return max(1, min(nbytes, file_size_limit() or nbytes))


def disk_for_a_cache(name: str) -> int:
    """Returns how many bytes a file may grow by by default: half of what is free on its disk."""
    disk = os.statvfs(name)
    return max(1, disk.f_bavail * disk.f_frsize // 2)


def fingerprint_of(dataset: Any, given: str) -> bytes:
    """Returns 32 bytes of what is known of a dataset in every run: classes, and what a subset chooses."""
    found = hashlib.sha256(repr(given).encode())
    for _ in range(_MAX_WRAPPED):
        found.update(repr(type(dataset).__qualname__).encode())
        if type(dataset) is Subset:
            found.update(repr([str(index) for index in dataset.indices]).encode())
        inner = getattr(dataset, "dataset", None)
        if inner is None:
            break
        dataset = inner
    return found.digest()
