"""What the library is made of that a platform or a release of torch may lack."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from . import torch_private


def missing_on_this_platform() -> str:
    """Names what the pool is made of and this platform does not have; empty where all is there."""
    needed: dict[str, Callable[[], object]] = {
        "os.memfd_create": lambda: os.close(os.memfd_create("shmloader")),
        "os.pidfd_open": lambda: os.close(os.pidfd_open(os.getpid())),
        "os.fork": lambda: os.fork,
    }
    names = [name for name, attempt in needed.items() if _is_missing(attempt)]
    return ", ".join(names if sys.platform == "linux" else ["Linux", *names])


def require(name: str) -> None:
    """Raises where ``name`` cannot work, and no class of torch's could do its work.

    Raises:
        RuntimeError: the platform or torch lacks something.
    """
    if missing := missing_on_this_platform():
        raise RuntimeError(f"{name} cannot work here: this platform lacks {missing}")
    if difference := torch_private.difference():
        raise RuntimeError(f"{name} cannot work here: {difference}")


def _is_missing(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except AttributeError:
        return True
    except OSError as error:  # an old kernel, or a sandbox; other errors are not of the platform
        return error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES)
    return False
