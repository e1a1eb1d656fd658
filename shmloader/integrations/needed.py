"""Modules of frameworks, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def module(name: str, extra: str) -> Any:
    """Imports a framework's module.

    Args:
        name: the module's full name.
        extra: of this package, which installs it.

    Raises:
        ImportError: it is not installed, and the text names the extra; or it fails to be imported by itself.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(
            f"{error.name} is not installed; pip install 'shmloader[{extra}]' installs what is needed", name=error.name
        ) from error
