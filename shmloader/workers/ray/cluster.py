"""Ray as the parent of actors sees it: the connection, what actors may ask for, and what is known of their ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.client import ray as client

from shmloader import process_exit
from shmloader.errors import same_kind
from shmloader.process_exit import InChild

from .actor import CONTROL, STAY, RayWorker

# One processor for each, which Ray holds free; Ray's own default holds none once an actor has begun, so that it would
# put any number of them on one node. And outside of the placement group that this process may be in, as a worker of
# Ray Train is: that has no processors to spare.
_DEFAULTS = {"num_cpus": 1, "scheduling_strategy": "DEFAULT"}

# Where these are given, it is not for us to say which nodes count.
_PLACED = ("scheduling_strategy", "placement_group", "label_selector")

_DEATH_CHARS = 400
_SILENCE_SECONDS = 0.5

_is_inherited = False  # whether the connection that there is, if any, was another process's when this one was forked


def _note_fork() -> None:
    global _is_inherited
    _is_inherited = ray.is_initialized()


process_exit.in_child(InChild.DISOWN_PROCESSES, _note_fork)


def connect() -> None:
    """Connects to a cluster, as Ray does by itself where it is used first: ``ray.init()``. Blocks for some seconds.

    It is the one that RAY_ADDRESS names, the one that was started last on this machine, or a new one.

    Raises:
        RuntimeError: the connection is that of a Ray client, which has no store of its own; or that of the process from
            which this one was forked. Ray's threads are not here, so that a call would wait for ever, and what it
            writes to sockets would be mixed with what the other one does.
    """
    global _is_inherited
    if not ray.is_initialized():
        ray.init()
        _is_inherited = False
    if _is_inherited:
        raise RuntimeError(
            "worker_type='ray' cannot be used in a process that was forked from one that is connected to Ray: fork "
            "before ray.init(), or spawn the process"
        )
    if client.is_connected():
        raise RuntimeError(
            "worker_type='ray' needs a process that is a part of the cluster, and this one is a Ray client (ray://): "
            "run it on a node, as a job say (`ray job submit`)"
        )


def session() -> tuple[str, str] | None:
    """Returns what tells this connection to Ray from others; None where there is none."""
    if not ray.is_initialized():
        return None
    with contextlib.suppress(Exception):  # it ends in another thread
        context = ray.get_runtime_context()
        return context.get_job_id(), context.get_node_id()
    return None


def actor_class(options: Mapping[str, Any]) -> Any:
    """Returns what makes actors with options of the user's.

    Raises:
        Exception: what Ray raises for an option that it does not know or take; it names ``ray_options``.
    """
    kept = {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {CONTROL: 1, STAY: 1}}
    try:
        return ray.remote(**{**_DEFAULTS, **options, **kept})(RayWorker)
    except Exception as error:
        raise _refused(options, error) from error


def new_actor(maker: Any, options: Mapping[str, Any]) -> Any:
    """Has an actor be made, and does not wait until it is.

    Args:
        maker: what makes it.
        options: of the user's, which are in there.

    Raises:
        ValueError, TypeError, AssertionError: Ray refuses one that it has not looked at before, such as where actors
            are to be placed. It names ``ray_options``.
    """
    try:
        return maker.remote()
    except (ValueError, TypeError, AssertionError) as error:
        raise _refused(options, error) from error


def _refused(options: Mapping[str, Any], error: Exception) -> Exception:
    return same_kind(error, f"ray_options {dict(options)!r} cannot be: {str(error) or type(error).__name__}")


def resources(options: Mapping[str, Any]) -> dict[str, float]:
    """Returns what one actor takes, by Ray's names of resources."""
    given = {**_DEFAULTS, **options}
    named = {"CPU": given.get("num_cpus"), "GPU": given.get("num_gpus"), "memory": given.get("memory")}
    named |= dict(given.get("resources") or {})
    return {name: amount for name, amount in named.items() if amount}


def check_room(options: Mapping[str, Any], num_workers: int) -> None:
    """Raises where the cluster's nodes can never have all workers, which would be waited for without end.

    Raises:
        RuntimeError: they cannot.
    """
    if any(name in options for name in _PLACED):
        return
    there_is = ray.cluster_resources()
    for name, amount in resources(options).items():
        if amount * num_workers > there_is.get(name, 0) * (1 + 1e-9):
            knob = {"CPU": "num_cpus", "GPU": "num_gpus"}.get(name, name)
            raise RuntimeError(
                f"num_workers={num_workers} Ray actors of {amount:g} {name} each take {amount * num_workers:g}, and "
                f"the nodes of the cluster have {there_is.get(name, 0):g}: lower num_workers, or {knob!r} in "
                "ray_options. On a cluster that grows on demand, give them a placement group there"
            )


def lacking(options: Mapping[str, Any]) -> str:
    """Says what one actor takes and no node has free; empty where all is. Blocks for a millisecond."""
    with contextlib.suppress(Exception):  # the cluster ends
        free = ray.available_resources()
        takes = resources(options).items()
        return ", ".join(f"{amount:g} {name}" for name, amount in takes if free.get(name, 0) < amount)
    return ""


def silent_nodes() -> list[str]:
    """Returns the nodes that do not answer, though Ray takes them for alive; none where that is all of them.

    Ray notes that a node has ended some ten seconds later, by its heartbeats, and starts actors on it until then.
    Blocks for half a second for each node that is cut off; one that has ended refuses at once.
    """
    alive = [one for one in ray.nodes() if one["Alive"]]
    silent = [one["NodeID"] for one in alive if not _answers(one)]
    return silent if len(silent) < len(alive) else []


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _SILENCE_SECONDS).close()
    except OSError:
        return False
    return True


def avoiding(maker: Any, options: Mapping[str, Any], nodes: list[str]) -> Any:
    """Returns what makes actors as ``maker`` does, but not on some nodes, unless the user has said on which."""
    if not nodes or any(name in options for name in ("label_selector", "placement_group")):
        return maker
    if not isinstance(options.get("scheduling_strategy", ""), str):
        return maker
    return maker.options(label_selector={"ray.io/node-id": f"!in({','.join(nodes)})"})


def processors() -> int | None:
    """Returns how many processors the cluster's nodes have; None where it is not known. Blocks for a millisecond."""
    if session() is None:
        return None
    with contextlib.suppress(Exception):  # the cluster ends
        return int(ray.cluster_resources().get("CPU", 0)) or None
    return None


def death(error: BaseException) -> str:
    """Says why an actor cannot go on, by what a call of it has raised."""
    lines = [line.strip() for line in str(getattr(error, "error_msg", None) or error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(_KNOWN)] or [type(error).__name__]
    if isinstance(error, RayTaskError):  # a traceback
        said = lines[-1]
    else:
        said = " ".join(lines if isinstance(error, RayActorError) else lines[:1]).partition(_ADVICE)[0]
    return said if len(said) <= _DEATH_CHARS else f"{said[: _DEATH_CHARS - 3]}..."


# Ray's advice, which is long.
_ADVICE = " Some common causes include"

# Lines of Ray's texts that say what is said otherwise, or nothing.
_KNOWN = ("class_name:", "actor_id:", "pid:", "namespace:", "ip:", "name:", "The actor died unexpectedly before")
