"""The kinds of workers that there are, by the name that users call them by."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from multiprocessing.context import BaseContext
from typing import Any

import torch.multiprocessing

from shmloader import start_method
from shmloader.words import LOADER, Words

from .interface import Workers
from .processes.workers import ProcessWorkers, default_context
from .ray.store import SentParts
from .threads.workers import ThreadWorkers

WORKER_TYPES = ("process", "thread", "ray")

# What the loader decides for its actors, and why nobody else does.
_NOT_OPTIONS = {
    "max_restarts": "worker_restarts says how many workers are replaced",
    "max_task_retries": "worker_restarts says how many workers are replaced",
    "max_concurrency": "a worker makes one batch at a time",
    "concurrency_groups": "a worker makes one batch at a time",
    "lifetime": "workers end with the loader",
    "name": "workers have no names that others could find them by",
    "namespace": "workers have no names that others could find them by",
    "get_if_exists": "workers have no names that others could find them by",
}


def checked_worker_type(worker_type: Any, context: Any = None, front_door: str = "") -> str:
    """Returns a kind of workers.

    Args:
        worker_type: which.
        context: what was asked for to make processes with.
        front_door: whose they are, if it is not a loader.

    Raises:
        ValueError: there are none of that kind; or they are no processes, and a context was given.
        ModuleNotFoundError: they need Ray, which is not installed.
    """
    known = WORKER_TYPES if not front_door else WORKER_TYPES[:2]
    if worker_type not in known:
        text = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        why = f": Ray actors make the batches of a ShmDataLoader, and not what a {front_door} has"
        is_ray = worker_type == "ray"
        raise ValueError(f"worker_type must be {text}, got {worker_type!r}{why if is_ray else ''}")
    if worker_type != "process" and context is not None:
        raise ValueError(
            f"multiprocessing_context is for worker processes, and worker_type={worker_type!r} starts none; "
            "leave one out"
        )
    if worker_type == "ray" and find_spec("ray") is None:
        raise ModuleNotFoundError("worker_type='ray' needs Ray: pip install 'shmloader[ray]'", name="ray")
    return str(worker_type)


def checked_ray_options(options: Any, worker_type: str) -> Mapping[str, Any]:
    """Returns what Ray actors are made with.

    Raises:
        TypeError: it is no dict of options by name.
        ValueError: workers are no actors; or an option is for the loader to decide.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise TypeError(f"ray_options must be a dict of Ray's options for actors by name, got {options!r}")
    if worker_type != "ray":
        raise ValueError(f"ray_options are for worker_type='ray', and it is {worker_type!r}; leave one out")
    for name, why in _NOT_OPTIONS.items():
        if name in options:
            raise ValueError(f"ray_options cannot have {name!r}: {why}")
    return dict(options)


def check_forwarding(forward_logs: bool, worker_type: str) -> None:
    """Raises where log records of workers cannot be forwarded.

    Raises:
        ValueError: workers are Ray actors.
    """
    if forward_logs and worker_type == "ray":
        raise ValueError(
            "forward_logs is for worker processes of this machine; what Ray actors print or log to stderr, Ray prints "
            "here (ray.init(log_to_driver=True), its default). Leave it out with worker_type='ray'"
        )


def processors(worker_type: str) -> int | None:
    """Returns how many processors there are for workers that are not on this machine; None: they are, or not known."""
    if worker_type != "ray" or "ray" not in sys.modules:
        return None
    from .ray import cluster

    return cluster.processors()


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
    ray_options: Mapping[str, Any] | None = None,
    sent: SentParts | None = None,
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
        ray_options: what Ray actors are made with.
        sent: what was sent to Ray actors before.

    Raises:
        ValueError: there cannot be so many jobs.
    """
    if worker_type == "ray":
        from .ray.workers import RayWorkers  # Ray is not imported before it is used

        return RayWorkers(num_workers, ray_options or {}, SentParts() if sent is None else sent)
    if worker_type == "thread":
        return ThreadWorkers(num_workers)
    return ProcessWorkers(context_for(context), num_workers, max_jobs, can_wake, words, forward_logs)
