"""Ray Train with our loader inside. Nothing of Ray is imported before a function here is called."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from shmloader.arguments import checked_flag
from shmloader.loader import ShmDataLoader
from shmloader.passes.tracking import is_stream

from . import needed, ranks


def prepare_data_loader(
    data_loader: DataLoader[Any],
    add_dist_sampler: bool = True,
    move_to_device: bool = True,
    auto_transfer: bool = True,
) -> ShmDataLoader[Any]:
    """Does what `ray.train.torch.prepare_data_loader` does, and returns a `ShmDataLoader`. Called in a training worker.

    Ray's own function builds torch's loader anew, from some of the arguments, and wraps it. This one keeps them all:
    what is returned is the loader itself where nothing has to be changed, and else a copy of it. It has a state,
    figures and persistent workers as any other. torch's own loader is taken too, and its arguments are given to one of
    ours.

    Each rank gets its share from a ``DistributedSampler`` with a seed of 0, shuffled if the loader was. Batches are
    those that Ray's function gives on that rank. Call ``loader.sampler.set_epoch(epoch)`` before each epoch. What has
    such a sampler already stays as it is. A `PermutationSampler` for one rank becomes one for this rank, and its states
    fit any number of ranks. Any other sampler is replaced, as Ray does it, with a warning. Iterable datasets are not
    split: let them yield a rank's share.

    Unlike Ray's wrapper, containers of tensors stay what they are, also named tuples and mappings of other classes.

    Args:
        data_loader: what is prepared; it is not changed. A state is loaded into what is returned.
        add_dist_sampler: whether each of several ranks gets a share.
        move_to_device: whether batches are handed out on this worker's device, if it is a GPU: sets ``device``, if it
            is not set yet.
        auto_transfer: whether they are copied there ahead of the loop; False: ``device_prefetch`` becomes 0.

    Raises:
        TypeError: it is no loader, or one of a class that iterates in a way of its own; or a flag is no bool.
        ValueError: it cannot be split: it has a batch sampler that is not torch's, or a `PermutationSampler` for
            another number of ranks; Ray's device is neither a GPU of CUDA nor the CPU; or a state was loaded into it.
        RuntimeError: Ray's; this is no training worker.
        ImportError: Ray is not installed.

    Warns:
        UserWarning: on the first rank; a sampler is replaced that is not torch's own.
    """
    flags = {"add_dist_sampler": add_dist_sampler, "move_to_device": move_to_device, "auto_transfer": auto_transfer}
    for name, value in flags.items():
        checked_flag(name, value)
    context = needed.module("ray.train", "ray").get_context()
    num_replicas, rank = context.get_world_size(), context.get_world_rank()
    loader = ranks.ours(data_loader)
    if num_replicas > 1 and add_dist_sampler and not is_stream(loader) and not ranks.is_shared(loader, num_replicas):
        loader = ranks.with_share(loader, num_replicas, rank)
    return _moving(loader, auto_transfer) if move_to_device else loader


def _moving(loader: ShmDataLoader[Any], auto_transfer: bool) -> ShmDataLoader[Any]:
    """Returns a loader whose batches are handed out on Ray's device."""
    device: torch.device = needed.module("ray.train.torch", "ray").get_device()
    if device.type == "cpu" or loader.device is not None:
        return loader
    if device.type != "cuda":
        raise ValueError(
            f"move_to_device: Ray's device is {device}, and batches are moved to CUDA devices only; give "
            "move_to_device=False, and move them yourself"
        )
    return ranks.changed(loader, device=device, device_prefetch=loader.device_prefetch if auto_transfer else 0)
