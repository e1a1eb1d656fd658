"""How much memory this process may use: physical memory, control groups and resource limits."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

with contextlib.suppress(ImportError):  # on Windows, where this module is imported and not used
    import resource

_ADDRESS_BITS = 47  # what processes have on x86-64; elsewhere it may be more, which is not needed, or less
_UNLIMITED_V1 = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


def physical_memory() -> int:
    """Returns the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cgroup_memory_limit(root: Path = Path("/")) -> int | None:
    """Returns the tightest memory limit of the control groups that this process is in, in bytes.

    Both hierarchies are read; a group inherits the limits of every group above it. Inside a container the path that
    the kernel gives may lie outside what is mounted, and the mounted root stands for the container's own group.

    Args:
        root: where ``proc`` and ``sys`` are mounted; another folder in tests.

    Returns:
        The limit, or None where no group sets one or none can be read.
    """
    limits = [
        limit
        for line in _lines(root / "proc/self/cgroup")
        for file in _files(root / "sys/fs/cgroup", line, "memory.max", "memory.limit_in_bytes")
        if (limit := _read_number(file)) is not None
    ]
    return min(limits, default=None)


def memory_limit(root: Path = Path("/")) -> int:
    """Returns the bytes of memory that this process may use at most: the machine's, or its control groups' limit."""
    return min(physical_memory(), cgroup_memory_limit(root) or physical_memory())


def available_memory(root: Path = Path("/")) -> int:
    """Returns how many bytes could be used beside what is used now, without anybody being killed for it.

    That is the machine's estimate, or what the control groups' limits leave, file caches not counted as used.

    Args:
        root: as for `cgroup_memory_limit`.
    """
    lefts = [physical_memory()]
    lefts += [int(line.split()[1]) * 1024 for line in _lines(root / "proc/meminfo") if line.startswith("MemAvailable:")]
    for line in _lines(root / "proc/self/cgroup"):
        for limit_file in _files(root / "sys/fs/cgroup", line, "memory.max", "memory.limit_in_bytes"):
            limit = _read_number(limit_file)
            if limit is not None:
                lefts.append(max(0, limit - _used(limit_file.parent)))
    return min(lefts)


def oom_kills(root: Path = Path("/")) -> int | None:
    """Returns how many processes of this control group the kernel has killed for lack of memory, or None.

    Args:
        root: as for `cgroup_memory_limit`.
    """
    for line in _lines(root / "proc/self/cgroup"):
        for file in _files(root / "sys/fs/cgroup", line, "memory.events", "memory.oom_control"):
            for entry in _lines(file):
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
    """Returns how many bytes of addresses this process has not mapped: of 128 TiB, or less on small machines.

    The kernel tells the size nowhere, but a process's stack is at its end.
    """
    stack = 0
    with contextlib.suppress(OSError, ValueError, IndexError):  # a sandbox may have a /proc of its own
        stack = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[25])
    bits = min(stack.bit_length() or _ADDRESS_BITS, _ADDRESS_BITS)
    return max(0, (1 << bits) - _mapped())


def _mapped() -> int:
    pages = "".join(_lines(Path("/proc/self/statm"))).split()
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


@functools.lru_cache(maxsize=64)  # a quarter of what a pool takes to make
def _files(mount: Path, line: str, name: str, name_v1: str) -> list[Path]:
    """Returns the files of the group that a line of /proc/self/cgroup names, and of those above it."""
    _, controllers, path = line.split(":", 2)
    if controllers and "memory" not in controllers.split(","):
        return []
    folder, name = (mount / "memory", name_v1) if controllers else (mount, name)
    group = folder / path.lstrip("/")
    return [above / name for above in (group, *group.parents) if above == folder or folder in above.parents]


def _used(group: Path) -> int:
    """Returns what a control group uses, less the file cache that the kernel drops when memory is short."""
    used = _read_number(group / "memory.current") or _read_number(group / "memory.usage_in_bytes") or 0
    cache = 0
    for line in _lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == "total_inactive_file" or (name == "inactive_file" and not cache):  # v1 has both; the sum counts
            cache = int(value)
    return max(0, used - cache)


def _read_number(file: Path) -> int | None:
    text = "".join(_lines(file)).strip()
    if not text.isdigit() or int(text) >= _UNLIMITED_V1:
        return None
    return int(text)
