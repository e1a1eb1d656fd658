"""Functions of the C library that Python does not have."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any


def find(name: str, restype: Any, *argtypes: Any) -> Any:
    """Returns a function of the C library, or None where there is none of that name.

    To be called when modules are imported, and not later: looking takes the linker's lock, which another thread may
    hold during a fork, and no child could take it then. The interpreter lock is not released in calls of the function.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # on other platforms
        function = getattr(ctypes.PyDLL(None), name)
        function.restype, function.argtypes = restype, argtypes
        return function
    return None
