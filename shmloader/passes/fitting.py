"""Whether a loader fits a state: which samples it has, how they are made into batches, and which ranks share them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from shmloader.arguments import plain_count
from shmloader.data.permutation import PermutationSampler
from shmloader.torch_private import index_sampler_of

from .state import State, check_loader
from .tracking import is_stream


def fits_of(loader: Any) -> dict[str, Any]:
    """Returns what a loader has to be that takes up a state of ``loader``, a `ShmDataLoader`, by name."""
    return {
        "kind of dataset": "iterable" if is_stream(loader) else "map-style",
        "number of samples": None if is_stream(loader) else _length_of(loader.dataset),
        "batch_size": _size_of(loader),
        "number of ranks": _ranks_of(loader),
        "drop_last": loader.drop_last,
        "sampler": " of ".join(
            type(one).__qualname__ for one in (loader.batch_sampler, loader.sampler) if one is not None
        ),
        "seeding": loader.seeding,
        "epoch_size": loader.epoch_size,
        "num_workers": loader.num_workers,
    }


def check_fits(loader: Any, state: State) -> None:
    """Compares a loader with what a state is of, as far as the passes that follow depend on it.

    Raises:
        ValueError: something differs that decides which samples come in which batch.
    """
    fits = fits_of(loader)
    if _is_permuted(loader):
        if _global_batch_size(fits) == _global_batch_size(state.loader):
            del fits["batch_size"]
        del fits["number of ranks"]
    if state.phase != "within" or not is_stream(loader):
        del fits["num_workers"]
    check_loader(state, fits)


def samplers_of(loader: DataLoader[Any]) -> list[Any]:
    """Returns what decides which samples a loader has, outermost first."""
    batch_sampler = loader.batch_sampler
    found = batch_sampler, getattr(batch_sampler, "sampler", None), loader.sampler
    return list({id(one): one for one in found if one is not None}.values())


def _is_permuted(loader: DataLoader[Any]) -> bool:
    """Whether a loader's samples come from a `PermutationSampler`, made into batches by torch's class or not at all."""
    reader = index_sampler_of(loader)
    return type(reader.sampler if type(reader) is BatchSampler else reader) is PermutationSampler


def _ranks_of(loader: DataLoader[Any]) -> int | None:
    """Returns how many ranks share a loader's samples, as far as its samplers say so."""
    found = (getattr(one, "num_replicas", None) for one in samplers_of(loader))
    return next((ranks for ranks in found if type(ranks) is int), None)


def _size_of(loader: DataLoader[Any]) -> int | None:
    """Returns how many samples a batch has; None where a batch sampler's ``batch_size`` is something else."""
    size = plain_count(loader.batch_size or getattr(loader.batch_sampler, "batch_size", None))
    return size if type(size) is int else None


def _global_batch_size(fits: Mapping[str, Any]) -> int | object:
    """Returns how many samples a batch of each rank are together; what equals nothing if it cannot be told."""
    ranks, size = fits.get("number of ranks"), fits.get("batch_size")
    return ranks * size if isinstance(ranks, int) and isinstance(size, int) else object()


def _length_of(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except Exception:  # it may have none, if the sampler is the user's
        return None
