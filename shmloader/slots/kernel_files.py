"""Files of the kernel's: how they are read, and where those of control groups lie."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

_CHUNK = 1 << 16


class Group(NamedTuple):
    """A control group.

    Attributes:
        folder: where its files are.
        is_v1: whether it is in a hierarchy of cgroup v1, whose files have other names.
    """

    folder: str
    is_v1: bool


def read(file: str) -> str:
    """Returns the text of a file of the kernel's, or none where it cannot be read.

    By system calls, since a pool reads a dozen of these: Python's file objects take three times as long.
    """
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        text = b""
        while part := os.read(fd, _CHUNK):
            text += part
        return text.decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def lines(file: str) -> list[str]:
    """Returns its lines."""
    return read(file).splitlines()


def groups(controller: str, root: Path | str = "") -> list[Group]:
    """Returns the control groups whose limits of one kind this process is under: its own, and those above.

    Both hierarchies are looked at. Inside a container the path that the kernel gives may lie outside what is mounted,
    and the mounted root stands for the container's own group.

    Args:
        controller: "memory" or "cpu".
        root: the folder that has ``proc`` and ``sys``; another one in tests.
    """
    mount = f"{root}/sys/fs/cgroup"
    return [group for line in lines(f"{root}/proc/self/cgroup") for group in _named(mount, line, controller)]


@functools.lru_cache(maxsize=64)  # a tenth of what a pool takes to make
def _named(mount: str, line: str, controller: str) -> tuple[Group, ...]:
    """Returns the group that a line of /proc/self/cgroup names, and those above."""
    _, controllers, path = line.split(":", 2)
    if controllers and controller not in controllers.split(","):
        return ()
    names = dict.fromkeys((controller, controllers)) if controllers else [""]  # v1 may mount several as one
    found = []
    for top in (Path(mount, name) for name in names):
        group = top / path.lstrip("/")
        found += [above for above in (group, *group.parents) if above == top or top in above.parents]
    return tuple(Group(str(above), bool(controllers)) for above in found)
