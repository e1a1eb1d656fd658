"""How many processors this process may use."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from pathlib import Path


def available(root: Path | str = "") -> int:
    """Returns how many processors this process may use: those it may run on, or its control groups' quota if less.

    Args:
        root: the folder that has ``proc`` and ``sys``; another one in tests.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_at_first() if root == "" else cgroup_quota(root)
    return count if quota is None else max(1, min(count, math.ceil(quota)))


@functools.cache  # to read these files takes longer than all else that statistics are made of
def _quota_at_first() -> float | None:
    return cgroup_quota()


def cgroup_quota(root: Path | str = "") -> float | None:
    """Returns the least quota of the control groups that this process is in, in processors; None: there is none.

    Both hierarchies are read, and the groups above a group. In a container the mounted root stands for its own group.

    Args:
        root: as for `available`.
    """
    quotas = []
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += [_quota(folder) for folder in _folders(Path(f"{root}/sys/fs/cgroup"), path)]
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):
                quotas += [_quota_v1(folder) for folder in _folders(Path(f"{root}/sys/fs/cgroup", mount), path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _folders(top: Path, path: str) -> list[Path]:
    group = top / path.lstrip("/")
    return [folder for folder in (group, *group.parents) if folder == top or top in folder.parents]


def _quota(folder: Path) -> float | None:
    return _ratio(*_read(folder / "cpu.max").split()[:2])


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str = "", period: str = "") -> float | None:
    with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", or no such file
        if int(quota) > 0:
            return int(quota) / int(period)
    return None


def _read(file: Path | str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""
