"""Checks of arguments that several public classes have."""

from __future__ import annotations

import operator
from typing import Any

import torch


def checked_count(name: str, value: Any, least: int) -> int:
    """Returns a number that an argument gives.

    Raises:
        TypeError: it is no int.
        ValueError: it is less than ``least``, 0 or 1.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {'positive' if least else '0 or more'}, got {value}")
    return value


def checked_optional_count(name: str, value: Any, least: int) -> int | None:
    """Does the same for an argument that may be None."""
    return None if value is None else checked_count(name, value, least)


def plain_count(value: Any) -> Any:
    """Returns an int of any kind, numpy's say, as Python's; and what is none as it is, for others to refuse."""
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def checked_seeding(seeding: Any, worker_type: str, num_workers: int, is_stream: bool) -> str:
    """Returns what random generators are seeded by.

    Raises:
        ValueError: it is neither "worker" nor "sample"; or "sample", where threads would share the generators, or where
            workers read streams of their own.
    """
    if seeding not in ("worker", "sample"):
        raise ValueError(f"seeding must be 'worker' or 'sample', got {seeding!r}")
    if seeding == "sample" and worker_type == "thread" and num_workers:
        raise ValueError(
            "seeding='sample' sets the random generators of the process before each sample, which worker threads share "
            "with each other and with the loop; use worker_type='process', or draw from a generator made of the index"
        )
    if seeding == "sample" and is_stream and num_workers > 1:
        raise ValueError(
            "seeding='sample' makes a sample's seeds of its index. An iterable dataset's samples have none, and their "
            f"places in the streams of num_workers={num_workers} depend on that number; use a map-style dataset, "
            "num_workers of 0 or 1, or generators of the dataset's own"
        )
    return str(seeding)


def checked_generator(value: Any) -> torch.Generator | None:
    """Returns what the argument ``generator`` gives.

    Raises:
        TypeError: it is neither None nor a generator.
    """
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {value!r}")
    return value


def checked_timeout(value: Any) -> float | None:
    """Returns what the argument ``timeout`` gives, in seconds.

    Raises:
        TypeError: it is neither None nor a number.
        ValueError: it is negative, or not a number.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"timeout must be a number of seconds or None, got {value!r}")
    if not value >= 0:
        raise ValueError(f"timeout must be 0 or more seconds, got {value}")
    return value


def checked_name(name: Any) -> str | None:
    """Returns what the argument ``name`` gives.

    Raises:
        TypeError: it is neither None nor a str.
        ValueError: it is empty, or has a character that is not printable.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str or None, got {name!r}")
    if name is not None and not (name and name.isprintable()):
        raise ValueError(f"name must be one line of printable characters, got {name!r}")
    return None if name is None else str(name)


def checked_flag(name: str, value: Any) -> bool:
    """Returns what an argument gives that is True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def checked_callable(name: str, value: Any) -> Any:
    """Returns a function that an argument gives.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}")
    return value
