"""Ray Train with our loader inside, and a Ray Dataset's blocks as chunks.

Nothing of Ray is imported before a function here is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from shmloader.arguments import checked_count, checked_flag
from shmloader.loader import ShmDataLoader
from shmloader.passes.tracking import is_stream

from . import needed, ranks
from .ray_blocks import Blocks


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
    split: let them yield a rank's share, see `chunks`.

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


def chunks(
    dataset: Any,
    *,
    prefetch_batches: int = 1,
    batch_size: int | None = None,
    local_shuffle_buffer_size: int | None = None,
    local_shuffle_seed: int | None = None,
) -> Iterable[Any]:
    """Returns the blocks of a Ray Dataset as chunks, for a `ChunkedDataset`. Does not block, and reads nothing.

    A chunk is a dict of arrays, one for each column, as Ray's ``iter_batches`` gives them with
    ``batch_format="numpy"``. Each pass reads the dataset anew.

    Blocks are read in the process that is connected to Ray. Let a worker thread do it: Ray's memory is then copied
    straight into the slots. With ``num_workers=0`` rows are read one by one.

        shard = ray.train.get_dataset_shard("train")
        rows = ChunkedDataset(shmloader.integrations.ray.chunks(shard))
        loader = ShmDataLoader(rows, batch_size=64, num_workers=1, worker_type="thread")

    Several threads share one stream: each block goes to the one that asks first, so who gets which block is not the
    same in each pass. Where that must not be, or one stream is too slow, give a list of as many streams as there are
    workers: ``dataset.streaming_split(2)``. Worker processes cannot use this process's connection to Ray, and are
    refused.

    A state of the loader counts batches. A pass that is taken up is exact where Ray gives the same blocks in the same
    order, with one worker at most or a stream each.

    Args:
        dataset: a ``ray.data.Dataset``, which every rank that has it reads whole; an iterator, such as
            ``ray.train.get_dataset_shard`` gives each rank; or a list or tuple of iterators, one for each worker.
        prefetch_batches: blocks that Ray fetches ahead.
        batch_size: rows of a chunk, where it is not to be a block; local shuffling needs that.
        local_shuffle_buffer_size: rows that are shuffled together, at least; None: none are.
        local_shuffle_seed: of that shuffling.

    Raises:
        TypeError: ``dataset`` is of no such kind, or a number is no int.
        ValueError: a number is too small, the list is empty, or ``local_shuffle_buffer_size`` comes without
            ``batch_size``.
        ImportError: Ray is not installed.
        RuntimeError: in a batch's place, or from ``iter``: workers are processes, there are not as many as streams, or
            this process is not connected to Ray.
    """
    data = needed.module("ray.data", "ray")
    checked_count("prefetch_batches", prefetch_batches, 0)
    for name, value in {"batch_size": batch_size, "local_shuffle_buffer_size": local_shuffle_buffer_size}.items():
        if value is not None:
            checked_count(name, value, 1)
    if local_shuffle_seed is not None:
        checked_count("local_shuffle_seed", local_shuffle_seed, 0)
    if local_shuffle_buffer_size is not None and batch_size is None:
        raise ValueError("local_shuffle_buffer_size needs batch_size, the rows of a chunk")
    sources = _checked_sources(dataset, (data.Dataset, data.DataIterator))
    options = {
        "prefetch_batches": prefetch_batches,
        "batch_size": batch_size,
        "local_shuffle_buffer_size": local_shuffle_buffer_size,
        "local_shuffle_seed": local_shuffle_seed,
    }
    return Blocks(sources, options)


def _checked_sources(dataset: Any, kinds: tuple[type, ...]) -> Sequence[Any]:
    sources = list(dataset) if isinstance(dataset, (list, tuple)) else [dataset]
    if not sources:
        raise ValueError("dataset is an empty list; it takes one stream for each worker")
    for one in sources:
        if not isinstance(one, kinds):
            raise TypeError(
                "dataset must be a ray.data.Dataset, an iterator of one, or a list of iterators, got an object of type "
                f"{type(one).__qualname__}"
            )
    return sources
