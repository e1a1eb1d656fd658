"""Checks of arguments that several public classes have."""

from __future__ import annotations

from typing import Any


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


def checked_callable(name: str, value: Any) -> Any:
    """Returns a function that an argument gives.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}")
    return value
