"""A loader for one rank of several: the same loader with another sampler.

It is a copy, and not one that the class's constructor has made: a subclass may take other arguments than it shows.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler

from shmloader import callers
from shmloader.data.permutation import PermutationSampler
from shmloader.loader import ShmDataLoader, state_to_take_up
from shmloader.passes.tracking import is_stream
from shmloader.torch_private import iterates_as_torchs


def ours(loader: DataLoader[Any]) -> ShmDataLoader[Any]:
    """Returns a loader of ours: itself, or where it is torch's, one of its arguments.

    Raises:
        TypeError: it is no loader, or its class iterates in a way of its own, which another class would lose.
    """
    if isinstance(loader, ShmDataLoader):
        return loader
    if not isinstance(loader, DataLoader):
        raise TypeError(f"data_loader must be a torch DataLoader, got an object of type {type(loader).__qualname__}")
    kind = type(loader)
    if not iterates_as_torchs(kind):
        raise TypeError(
            f"data_loader is of the class {kind.__qualname__}, which iterates in a way of its own, and ShmDataLoader "
            f"would not; make a class of both (class Loader({kind.__name__}, ShmDataLoader)), and give one of that"
        )
    return ShmDataLoader(**_arguments(loader))


def _arguments(loader: DataLoader[Any]) -> dict[str, Any]:
    """Returns what torch's constructor would be given to make a loader like this one."""
    names = inspect.signature(DataLoader.__init__).parameters
    arguments = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    is_batched_by_torch = loader.batch_size is not None or loader.batch_sampler is None
    for name in ("batch_sampler",) if is_batched_by_torch else ("batch_size", "sampler", "drop_last"):
        arguments.pop(name, None)
    if is_stream(loader):
        arguments.pop("sampler", None)  # torch's own, which it takes from nobody
    return arguments


def is_shared(loader: DataLoader[Any], num_replicas: int) -> bool:
    """Whether a loader's samplers say that they give one rank's share."""
    samplers = loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)
    return any(isinstance(one, DistributedSampler) or _replicas_of(one) == num_replicas for one in samplers)


def _replicas_of(sampler: Any) -> Any:
    return getattr(sampler, "num_replicas", None)


def with_share(loader: ShmDataLoader[Any], num_replicas: int, rank: int) -> ShmDataLoader[Any]:
    """Returns a loader like this one, of which each rank gets a share.

    Raises:
        ValueError: its batch sampler cannot be made again with another sampler, or its sampler is for another number of
            ranks.
    """
    batches: Any = loader.batch_sampler
    if batches is not None and loader.batch_size is None and type(batches) is not BatchSampler:
        raise ValueError(
            f"batch_sampler is a {type(batches).__qualname__}, of which no share can be made; give each rank a "
            "batch_sampler for its share, and add_dist_sampler=False"
        )
    source = loader.sampler if batches is None else batches.sampler
    sampler = _share_of(source, loader.dataset, num_replicas, rank)
    if batches is not None:
        batches = BatchSampler(sampler, batches.batch_size, batches.drop_last)
    return changed(loader, sampler=sampler, batch_sampler=batches)  # whose set_epoch is found at the loader's sampler


def changed(loader: ShmDataLoader[Any], **attributes: Any) -> ShmDataLoader[Any]:
    """Returns a copy of a loader with other attributes, some of which torch's class lets nobody set.

    Raises:
        ValueError: a state was loaded into it, which a copy has not.
    """
    if state_to_take_up(loader) is not None:
        raise ValueError("a state was loaded into the loader; load it into the one that is returned here")
    other = copy.copy(loader)
    vars(other).update(attributes)
    return other


def _share_of(source: Any, dataset: Any, num_replicas: int, rank: int) -> Sampler[Any]:
    if type(source) is PermutationSampler:
        if source.num_replicas != 1:
            raise ValueError(
                f"the PermutationSampler has num_replicas={source.num_replicas}, and there are {num_replicas} ranks"
            )
        share = PermutationSampler(source.data_source, source.seed, num_replicas, rank, source.drop_last)
        share.load_state_dict(source.state_at_start())
        return share
    if rank == 0 and not _is_default(source, dataset):
        warnings.warn(
            f"the {type(source).__qualname__} is replaced by a DistributedSampler, which shuffles all samples; to keep "
            "it, let it draw this rank's share, and give add_dist_sampler=False",
            UserWarning,
            stacklevel=callers.stacklevel(),
        )
    return DistributedSampler(dataset, num_replicas, rank, shuffle=not isinstance(source, SequentialSampler))


def _is_default(source: Any, dataset: Any) -> bool:
    """Whether it is a sampler that torch's loader makes by itself."""
    if type(source) is RandomSampler:
        return not source.replacement and source.num_samples == len(dataset)
    return type(source) is SequentialSampler
