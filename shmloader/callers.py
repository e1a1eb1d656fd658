"""Whose line a warning shows: that of the code which uses a loader, however deep in the library it is raised."""

from __future__ import annotations

import inspect
import os
from types import FrameType

# The loader's class is torch's, and context managers are entered and left by Python's.
_LIBRARIES = "shmloader", "torch.utils.data", "contextlib"


def stacklevel(*others: str) -> int:
    """Returns what `warnings.warn` is to be given, by whoever calls this, to show the first caller that is no library.

    The depth is counted, since one warning may come from a step, from ``iter``, or from the end of a block. From Python
    3.12 on, ``skip_file_prefixes`` does the same.

    Args:
        others: packages that are libraries here too.
    """
    level, frame = 1, inspect.currentframe()
    frame = None if frame is None else frame.f_back
    while frame is not None:
        module: str = frame.f_globals.get("__name__", "")
        if not _is_library(module) and module.partition(".")[0] not in others:
            break
        level, frame = level + 1, frame.f_back
    return level


def place() -> str:
    """Returns the file and the line of the first caller that is no library, as one would look it up."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and is_library(frame):
        frame = frame.f_back
    return "" if frame is None else place_of(frame)


def place_of(frame: FrameType) -> str:
    """Returns where a frame is, in the same form."""
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


def is_library(frame: FrameType) -> bool:
    """Whether a frame is of code that users do not look for: ours, and what it is called by."""
    return _is_library(frame.f_globals.get("__name__", ""))


def _short(path: str) -> str:
    """Returns a path from the current folder, where it is in there."""
    try:
        here = os.getcwd() + os.sep  # noqa: PTH109 - code names files by text
    except OSError:  # it has been removed
        return path
    return path.removeprefix(here)


def _is_library(module: str) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in _LIBRARIES)
