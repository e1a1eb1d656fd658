"""What the library is made of that a platform or a release of torch may lack."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from . import torch_private


def attempts(worker_type: str = "process") -> dict[str, Callable[[], object]]:
    """Returns what pool and workers are made of, by name, and for each a function that tries it; see `is_missing`."""
    needed: dict[str, Callable[[], object]] = {"os.memfd_create": lambda: os.close(os.memfd_create("shmloader"))}
    if worker_type == "process":
        needed["os.pidfd_open"] = lambda: os.close(os.pidfd_open(os.getpid()))
        needed["os.fork"] = lambda: os.fork
    return needed


def missing_on_this_platform(worker_type: str = "process") -> str:
    """Names what pool and workers are made of and this platform does not have; empty where all is there."""
    names = [name for name, attempt in attempts(worker_type).items() if is_missing(attempt)]
    return ", ".join(names if sys.platform == "linux" else ["Linux", *names])


def lack(worker_type: str = "process") -> str:
    """Says what there is not that workers of a kind, and what they write to, need; empty where all is there."""
    if worker_type == "thread" and (difference := torch_private.thread_difference()):
        return difference
    missing = missing_on_this_platform(worker_type)
    return missing and f"this platform lacks {missing}"


def require(name: str, worker_type: str = "process") -> None:
    """Raises where ``name`` cannot work, and no class of torch's could do its work.

    Raises:
        RuntimeError: the platform or torch lacks something.
    """
    if reason := lack(worker_type) or torch_private.difference():
        raise RuntimeError(f"{name} cannot work here: {reason}")


def is_missing(attempt: Callable[[], object]) -> bool:
    """Whether the platform lacks what one of `attempts` tries. What it has may still fail, for want of descriptors."""
    try:
        attempt()
    except AttributeError:
        return True
    except OSError as error:  # an old kernel, or a sandbox; other errors are not of the platform
        return error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES)
    return False
