"""Functions of the C library that Python does not have."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

# What arguments and results are.
ADDRESS, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


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


# Python's own mmap keeps a descriptor of the file, and does not say where it has mapped it.
mmap = find("mmap", ADDRESS, ADDRESS, SIZE, INT, INT, INT, ctypes.c_long)
munmap = find("munmap", INT, ADDRESS, SIZE)
MAP_FAILED = ADDRESS(-1).value
