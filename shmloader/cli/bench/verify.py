"""Whether both loaders make the same batches: a pass of each from the same seed, compared bit for bit."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from .compare import first_difference, nbytes

# What is kept of stock's pass for the comparison, at most.
BATCHES = 100
BYTES = 1 << 29

Make = Callable[[], "DataLoader[Any]"]


@dataclass(frozen=True)
class Verdict:
    """What came of a comparison.

    Attributes:
        equal: whether all batches that were compared are equal.
        batches: how many of stock's batches were compared, at most.
        difference: the place of the first difference and what it is.
        stock_repeats: where they differ, whether stock's loader itself makes the same batches twice; None otherwise.
    """

    equal: bool
    batches: int
    difference: str | None = None
    stock_repeats: bool | None = None


def seed_all(seed: int, arguments: Mapping[str, Any]) -> None:
    """Seeds the generators that a loader may draw from: Python's, numpy's, torch's, and those among its arguments."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    batch_sampler = arguments.get("batch_sampler")
    samplers = (arguments.get("sampler"), batch_sampler, getattr(batch_sampler, "sampler", None))
    for generator in (arguments.get("generator"), *(getattr(sampler, "generator", None) for sampler in samplers)):
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def verify(make_stock: Make, make_ours: Make, seed: Callable[[], None]) -> Verdict:
    """Compares the first batches of both loaders, `BATCHES` of them or `BYTES` bytes.

    One loader runs after the other, since batches may depend on generators of this process that both draw from. If
    they differ, stock runs once more, to tell a dataset that differs from run to run from a fault of ours. Blocks
    while the passes last; the loaders have ended when it returns.

    Args:
        make_stock: makes stock's loader.
        make_ours: makes the loader to compare with it.
        seed: brings all generators to the same state, each time that it is called.

    Raises:
        Exception: what the user's dataset raises.
    """
    seed()
    expected, is_whole = _record(make_stock())
    seed()
    difference = _compare(expected, is_whole, make_ours())
    if difference is None:
        return Verdict(True, len(expected))
    seed()
    repeats = _compare(expected, is_whole, make_stock()) is None
    return Verdict(False, len(expected), difference, repeats)


def _record(loader: DataLoader[Any]) -> tuple[list[Any], bool]:
    """Returns private copies of the first batches, and whether these were all."""
    kept: list[Any] = []
    total = 0
    for batch in loader:
        if len(kept) == BATCHES or total > BYTES:
            return kept, False
        kept.append(_private(batch))
        total += nbytes(batch)
    return kept, True


def _private(batch: Any) -> Any:
    """Returns a copy in this process's own memory: stock's batches hold file descriptors while they live."""
    try:
        return copy.deepcopy(batch)
    except Exception:  # nested tensors, for one, cannot be copied deeply
        return pickle.loads(pickle.dumps(batch))


def _compare(expected: list[Any], is_whole: bool, loader: DataLoader[Any]) -> str | None:
    count = 0
    for batch in itertools.islice(loader, len(expected) + is_whole):
        if count == len(expected):
            return f"stock ended after {count} batches, the other goes on"
        found = first_difference(expected[count], batch, f"batch {count}")
        if found is not None:
            return found
        count += 1
    return None if count == len(expected) else f"batch {count} is missing: the other loader has ended"
