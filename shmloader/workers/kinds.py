"""The kinds of workers that there are, by the name that users call them by."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext
from typing import Any

import torch.multiprocessing

from shmloader import start_method
from shmloader.words import LOADER, Words

from .interface import Workers
from .processes import ProcessWorkers, default_context
from .threads import ThreadWorkers

WORKER_TYPES = ("process", "thread")


def checked_worker_type(worker_type: Any, context: Any = None) -> str:
    """Returns a kind of workers.

    Args:
        worker_type: which.
        context: what was asked for to make processes with.

    Raises:
        ValueError: there are none of that kind; or they are no processes, and a context was given.
    """
    if worker_type not in WORKER_TYPES:
        known = " or ".join(repr(one) for one in WORKER_TYPES)
        raise ValueError(f"worker_type must be {known}, got {worker_type!r}")
    if worker_type == "thread" and context is not None:
        raise ValueError(
            "multiprocessing_context is for worker processes, and worker_type='thread' starts none; leave one out"
        )
    return str(worker_type)


def checked_context(context: Any) -> Any:
    """Returns the multiprocessing context that a user has asked for, by itself or by its start method, or None.

    Raises:
        ValueError: it is the name of no start method.
        TypeError: it is neither.
    """
    if isinstance(context, str):
        known = multiprocessing.get_all_start_methods()
        if context not in known:
            raise ValueError(f"multiprocessing_context must be one of {known}, got {context!r}")
        return torch.multiprocessing.get_context(context)
    if context is not None and not isinstance(context, BaseContext):
        raise TypeError(f"multiprocessing_context must be a start method or a multiprocessing context, got {context!r}")
    return context


def context_for(context: Any) -> Any:
    """Returns the context that makes processes: the given one, the one that the program has chosen, or fork's."""
    if context is not None:
        return context
    return torch.multiprocessing if start_method.is_chosen() else default_context()


def new_workers(
    worker_type: str,
    context: Any,
    num_workers: int,
    max_jobs: int,
    can_wake: bool = False,
    words: Words = LOADER,
    forward_logs: bool = False,
) -> Workers:
    """Returns workers that are not started yet.

    Args:
        worker_type: of which kind.
        context: as for `context_for`.
        num_workers: how many.
        max_jobs: how many jobs may be under way to one of them.
        can_wake: whether `Workers.wake` is needed; it takes processes a descriptor.
        words: of whom the workers belong to.
        forward_logs: whether what processes log is handed to the handlers of this one.

    Raises:
        ValueError: there cannot be so many jobs.
    """
    if worker_type == "thread":
        return ThreadWorkers(num_workers)
    return ProcessWorkers(context_for(context), num_workers, max_jobs, can_wake, words, forward_logs)
