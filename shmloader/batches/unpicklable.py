"""Which object of a batch cannot be pickled, and where in the batch it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

# What cannot be pickled is looked for this deep.
_MAX_PATH = 20


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


def _parts(whole: Any) -> Iterator[tuple[str, object]]:
    """Yields what a container or an object consists of, and how one writes that behind its name."""
    if isinstance(whole, Mapping):
        yield from ((f"[{key!r:.50}]", value) for key, value in whole.items())
    elif isinstance(whole, (list, tuple)):
        yield from ((f"[{number}]", part) for number, part in enumerate(whole))
    elif not isinstance(whole, (type, ModuleType, FunctionType)):
        yield from ((f".{name}", value) for name, value in getattr(whole, "__dict__", {}).items())


def _name_of(thing: object) -> str:
    kind = type(thing)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    own = getattr(thing, "__qualname__", None)  # of functions, classes and generators
    return f"{name} {own}" if isinstance(own, str) else name
