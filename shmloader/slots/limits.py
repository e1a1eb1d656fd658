"""How much memory this process may use: physical memory, control groups and resource limits."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import NamedTuple

from . import kernel_files

with contextlib.suppress(ImportError):  # on Windows, where this module is imported and not used
    import resource

_ADDRESS_BITS = 47  # what processes have on x86-64; elsewhere it may be more, which is not needed, or less
_UNLIMITED_V1 = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


def physical_memory() -> int:
    """Returns the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cgroup_memory_limit(root: Path | str = "") -> int | None:
    """Returns the tightest memory limit of the control groups that this process is in, in bytes.

    A group inherits the limits of every group above it.

    Args:
        root: the folder that has ``proc`` and ``sys``; another one in tests.

    Returns:
        The limit, or None where no group sets one or none can be read.
    """
    return min((limit for limit, _ in _cgroup_limits(root)), default=None)


def _cgroup_limits(root: Path | str) -> list[tuple[int, str]]:
    """Returns the limits of the control groups that this process is in, and the folders of these groups."""
    return [
        (limit, group.folder)
        for group in kernel_files.groups("memory", root)
        if (limit := _read_number(f"{group.folder}/{'memory.limit_in_bytes' if group.is_v1 else 'memory.max'}"))
        is not None
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
    lefts = [
        int(line.split()[1]) * 1024
        for line in kernel_files.lines(f"{root}/proc/meminfo")
        if line.startswith("MemAvailable:")
    ]
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
    for group in kernel_files.groups("memory", root):
        file = "memory.oom_control" if group.is_v1 else "memory.events"
        for entry in kernel_files.lines(f"{group.folder}/{file}"):
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
        stack = int(kernel_files.read("/proc/self/stat").rpartition(")")[2].split()[25])
    return min(stack.bit_length() or _ADDRESS_BITS, _ADDRESS_BITS)


def _mapped() -> int:
    pages = kernel_files.read("/proc/self/statm").split()
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _used(folder: str) -> int:
    """Returns what a control group uses, less the file cache that the kernel drops when memory is short."""
    used = _read_number(f"{folder}/memory.current") or _read_number(f"{folder}/memory.usage_in_bytes") or 0
    cache = 0
    for line in kernel_files.lines(f"{folder}/memory.stat"):
        name, _, value = line.partition(" ")
        if name == "total_inactive_file" or (name == "inactive_file" and not cache):  # v1 has both; the sum counts
            cache = int(value)
    return max(0, used - cache)


def _read_number(file: str) -> int | None:
    text = kernel_files.read(file).strip()
    if not text.isdigit() or int(text) >= _UNLIMITED_V1:
        return None
    return int(text)
