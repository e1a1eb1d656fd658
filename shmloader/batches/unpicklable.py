"""Which object of a batch cannot be pickled, and where in the batch it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from .structure import take_apart

# What cannot be pickled is looked for this deep.
_MAX_PATH = 20
_MAX_KEY = 50


def describe(batch: object, error: Exception, can_pickle: Callable[[object], bool]) -> str:
    """Says which object made pickling ``batch`` raise ``error``: the innermost one that cannot be pickled alone.

    Args:
        batch: what a collate function returned.
        error: what was raised.
        can_pickle: whether a part of it can be pickled.
    """
    if isinstance(error, RecursionError):
        return f"the {_name_of(batch)} is nested too deep to be pickled"
    path, part = "", batch
    with contextlib.suppress(Exception):  # code of the user's runs here too, which has failed once
        for _ in range(_MAX_PATH):
            found = next((pair for pair in _parts(part) if not can_pickle(pair[1])), None)
            if found is None:
                break
            path, part = path + found[0], found[1]
    return f"the {_name_of(part)}{path and f' at {path}'} cannot be pickled"


def _parts(whole: Any) -> list[tuple[str, object]]:
    """Returns what a container or an object consists of, and how one writes that behind its name."""
    parts = take_apart(whole)
    if parts is not None:
        return [(_shortened(path), part) for path, part in zip(parts.paths, parts.values, strict=True)]
    if isinstance(whole, (type, ModuleType, FunctionType)):
        return []
    return [(f".{name}", value) for name, value in getattr(whole, "__dict__", {}).items()]


def _shortened(path: str) -> str:
    return path if len(path) <= _MAX_KEY else f"{path[:_MAX_KEY]}]"


def _name_of(thing: object) -> str:
    kind = type(thing)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    own = getattr(thing, "__qualname__", None)  # of functions, classes and generators
    return f"{name} {own}" if isinstance(own, str) else name
