"""Ways into other frameworks. Each module needs what it is named after, and none is imported before it is used."""

import importlib
import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    """Imports a module of this package when it is asked for, as ``shmloader.integrations.accelerate``."""
    full = f"{__name__}.{name}"
    if name.startswith("_") or importlib.util.find_spec(full) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(full)
