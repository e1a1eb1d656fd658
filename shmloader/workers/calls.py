"""Calls of a function as batches: what a job queue's workers make, and a call's arguments as bytes.

To a worker, arguments are the one sample that a job's index means, and the function is what makes a batch of a sample.
So calls go the way of batches, and what `default_collate` stacks for the function is in the slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from shmloader.batches import unpicklable
from shmloader.torch_private import DatasetKind
from shmloader.words import QUEUE, Words

from . import jobs
from .brief import BatchSource
from .states import seeding


class _Arguments:
    """A dataset whose samples are their indices: a job's arguments."""

    def __getitem__(self, index: Any) -> Any:
        return index


class _Call:
    """Calls the function, as what makes a batch of a sample.

    Attributes:
        function: the user's, which errors name.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self.__qualname__ = str(name)

    def __call__(self, job: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        args, kwargs = job
        return self.function(*args, **kwargs)


class _Source(BatchSource):
    @property
    def parts(self) -> dict[str, Any]:
        """What of the user's goes to the workers, by the argument's name."""
        return {"function": self.collate_fn.function, "worker_init_fn": self.init_fn}  # type: ignore[attr-defined]


def source(
    function: Callable[..., Any],
    init_fn: Callable[[int], None] | None,
    generator: torch.Generator | None,
    words: Words = QUEUE,
) -> BatchSource:
    """Returns what workers make that call a function. Called in the parent, when they are started.

    Args:
        function: what is called.
        init_fn: called in each worker with its number.
        generator: what the base seed is drawn from; None: torch's global one.
        words: for texts about the workers.
    """
    return _Source(
        dataset=_Arguments(),
        dataset_kind=DatasetKind.Map,
        auto_collation=False,
        collate_fn=_Call(function),
        drop_last=False,
        init_fn=init_fn,
        base_seed=seeding.draw_base_seed(generator),
        shared_seed=None,
        sample_spec=None,
        words=words,
    )


def pickled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Returns the arguments of a call as bytes, for a slot. Called in the parent.

    Raises:
        TypeError: one cannot be pickled; the error says which.
    """
    try:
        return jobs.pickled((args, kwargs))
    except Exception as error:
        culprit = unpicklable.describe(kwargs if _can_pickle(args) else args, error, _can_pickle)
        raise TypeError(f"an argument of the job cannot be sent: {culprit} ({error})") from error


def pickled_or_error(arguments: Any) -> bytes | Exception:
    """Does the same for a tuple of arguments that `JobQueue.map` has read; returns what is wrong with it."""
    if not isinstance(arguments, tuple):
        return TypeError(f"map takes tuples of arguments, and one of them is {arguments!r}: write ({arguments!r},)")
    try:
        return pickled(arguments, {})
    except TypeError as error:
        return error


def _can_pickle(part: object) -> bool:
    try:
        jobs.pickled(part)
    except Exception:
        return False
    return True
