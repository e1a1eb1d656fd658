"""How much memory this process may use: physical memory, control groups and resource limits."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import NamedTuple

with contextlib.suppress(ImportError):  # on Windows, where this module is imported and not used
    import resource

_ADDRESS_BITS = 47  # what processes have on x86-64; elsewhere it may be more, which is not needed, or less
_CHUNK = 1 << 16
_UNLIMITED_V1 = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


def physical_memory() -> int:
    """Returns the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cgroup_memory_limit(root: Path | str = "") -> int | None:
    """Returns the tightest memory limit of the control groups that this process is in, in bytes.

    Both hierarchies are read; a group inherits the limits of every group above it. Inside a container the path that
    the kernel gives may lie outside what is mounted, and the mounted root stands for the container's own group.

    Args:
        root: the folder that has ``proc`` and ``sys``; another one in tests.

    Returns:
        The limit, or None where no group sets one or none can be read.
    """
    return min((limit for limit, _ in _cgroup_limits(root)), default=None)


def _cgroup_limits(root: Path | str) -> list[tuple[int, str]]:
    """Returns the limits of the control groups that this process is in, and the folders of these groups."""
    return [
        (limit, folder)
        for line in _lines(f"{root}/proc/self/cgroup")
        for folder, name in _files(f"{root}/sys/fs/cgroup", line, "memory.max", "memory.limit_in_bytes")
        if (limit := _read_number(f"{folder}/{name}")) is not None
    ]


def memory_limit(root: Path | str = "") -> int:
    """Returns the bytes of memory that this process may use at most: the machine's, or its control groups' limit."""
    return min(physical_memory(), cgroup_memory_limit(root) or physical_memory())


class Memory(NamedTuple):
    """What memory there is for this process, in bytes.

    Attributes:
        limit: as `memory_limit`.
        available: as `available_memory`.
    """

    limit: int
    available: int


def memory(root: Path | str = "") -> Memory:
    """Returns what `memory_limit` and `available_memory` do, and reads what both need once.

    Args:
        root: as for `cgroup_memory_limit`.
    """
    groups = _cgroup_limits(root)
    lefts = [int(line.split()[1]) * 1024 for line in _lines(f"{root}/proc/meminfo") if line.startswith("MemAvailable:")]
    lefts += [max(0, limit - _used(folder)) for limit, folder in groups]
    physical = physical_memory()
    limit = min((limit for limit, _ in groups), default=physical) or physical
    return Memory(min(physical, limit), min([physical, *lefts]))


def available_memory(root: Path | str = "") -> int:
    """Returns how many bytes could be used beside what is used now, without anybody being killed for it.

    That is the machine's estimate, or what the control groups' limits leave, file caches not counted as used.

    Args:
        root: as for `cgroup_memory_limit`.
    """
    return memory(root).available


def oom_kills(root: Path | str = "") -> int | None:
    """Returns how many processes of this control group the kernel has killed for lack of memory, or None.

    Args:
        root: as for `cgroup_memory_limit`.
    """
    for line in _lines(f"{root}/proc/self/cgroup"):
        for folder, file in _files(f"{root}/sys/fs/cgroup", line, "memory.events", "memory.oom_control"):
            for entry in _lines(f"{folder}/{file}"):
                name, _, count = entry.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return None


def file_size_limit() -> int | None:
    """Returns how large a file of this process may be under RLIMIT_FSIZE, in bytes, or None where that is unlimited."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


def address_space_left() -> int | None:
    """Returns how many bytes this process may still map under RLIMIT_AS, or None where that is unlimited."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else max(0, soft - _mapped())


def addresses_left() -> int:
    """Returns how many bytes of addresses this process has not mapped: of 128 TiB, or less on small machines."""
    return max(0, (1 << _address_bits()) - _mapped())


@functools.cache  # no process's changes, nor is its child's another
def _address_bits() -> int:
    """Returns how many bits addresses have. The kernel tells that nowhere, but a process's stack is at its end."""
    stack = 0
    with contextlib.suppress(ValueError, IndexError):  # a sandbox may have a /proc of its own
        stack = int(_read("/proc/self/stat").rpartition(")")[2].split()[25])
    return min(stack.bit_length() or _ADDRESS_BITS, _ADDRESS_BITS)


def _mapped() -> int:
    pages = _read("/proc/self/statm").split()
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _lines(file: str) -> list[str]:
    return _read(file).splitlines()


def _read(file: str) -> str:
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


@functools.lru_cache(maxsize=64)  # a tenth of what a pool takes to make
def _files(mount: str, line: str, name: str, name_v1: str) -> list[tuple[str, str]]:
    """Returns the folders, and the file's name, of the group that a line of /proc/self/cgroup names, and those above.

    Args:
        mount: where the hierarchies are mounted.
        line: names the group.
        name: the file's, in the one hierarchy of cgroup v2.
        name_v1: the file's, in the memory hierarchy of cgroup v1.
    """
    _, controllers, path = line.split(":", 2)
    if controllers and "memory" not in controllers.split(","):
        return []
    top, name = (Path(mount, "memory"), name_v1) if controllers else (Path(mount), name)
    group = top / path.lstrip("/")
    return [(str(above), name) for above in (group, *group.parents) if above == top or top in above.parents]


def _used(folder: str) -> int:
    """Returns what a control group uses, less the file cache that the kernel drops when memory is short."""
    used = _read_number(f"{folder}/memory.current") or _read_number(f"{folder}/memory.usage_in_bytes") or 0
    cache = 0
    for line in _lines(f"{folder}/memory.stat"):
        name, _, value = line.partition(" ")
        if name == "total_inactive_file" or (name == "inactive_file" and not cache):  # v1 has both; the sum counts
            cache = int(value)
    return max(0, used - cache)


def _read_number(file: str) -> int | None:
    text = _read(file).strip()
    if not text.isdigit() or int(text) >= _UNLIMITED_V1:
        return None
    return int(text)
