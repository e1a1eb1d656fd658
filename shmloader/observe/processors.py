"""How many processors this process may use."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from pathlib import Path

from shmloader import interrupts
from shmloader.slots import kernel_files
from shmloader.slots.kernel_files import Group


def allowed() -> int:
    """Returns how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available(root: Path | str = "") -> int:
    """Returns how many processors this process may use: those it may run on, or its control groups' quota if less.

    Args:
        root: the folder that has ``proc`` and ``sys``; another one in tests.
    """
    count = allowed()
    quota = _quota_at_first() if root == "" else cgroup_quota(root)
    return count if quota is None else max(1, min(count, math.ceil(quota)))


@functools.cache  # to read these files takes longer than all else that statistics are made of
def _quota_at_first() -> float | None:
    with interrupts.AllDeferred():  # until descriptors are closed
        return cgroup_quota()


def cgroup_quota(root: Path | str = "") -> float | None:
    """Returns the least quota of the control groups that this process is in, in processors; None: there is none.

    Args:
        root: as for `available`.
    """
    quotas = (_quota(group) for group in kernel_files.groups("cpu", root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: Group) -> float | None:
    read = kernel_files.read
    if group.is_v1:
        return _ratio(read(f"{group.folder}/cpu.cfs_quota_us"), read(f"{group.folder}/cpu.cfs_period_us"))
    return _ratio(*read(f"{group.folder}/cpu.max").split()[:2])


def _ratio(quota: str = "", period: str = "") -> float | None:
    with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", or no such file
        if int(quota) > 0:
            return int(quota) / int(period)
    return None
