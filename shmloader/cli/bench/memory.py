"""What a loader adds to the memory of the process tree."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import DataLoader

# Batches after which memory is looked at: by then the queues have been full, and every slot in use.
_SAMPLES = 20

_PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Memory of this process and all its descendants, in bytes.

    Attributes:
        pss: the sum of their proportional set sizes (``Pss_Anon`` and ``Pss_Shmem`` in ``/proc/PID/smaps_rollup``):
            each page that some of them map is counted once. Pages of files are not: any process on the machine that
            maps the same library has its share of those.
        in_transit: shared memory that a process has open and none has mapped, which no set size counts: stock's
            batches between a worker and the loop.
    """

    pss: int
    in_transit: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.pss + self.in_transit

    def since(self, start: Memory) -> Memory:
        """Returns what was added since ``start``."""
        return Memory(self.pss - start.pss, self.in_transit - start.in_transit)


def growth(make: Callable[[], DataLoader[Any]]) -> Memory | None:
    """Returns the most that a loader adds while a loop takes batches from it, or None where the kernel does not say.

    The start is this process's memory right before the loader is made. Blocks while some batches are loaded; the
    loader has ended when it returns. Slow, since looking takes longer than a batch: not for use while time is taken.

    Raises:
        Exception: what the user's dataset raises.
    """
    gc.collect()
    start = now()
    if start is None:
        return None
    loader = make()
    skipped = 2 * look_ahead(loader)
    seen: list[Memory] = []
    for number, _batch in enumerate(itertools.islice(loader, skipped + _SAMPLES)):
        sample = now() if number >= skipped or number == 0 else None
        if sample is not None:
            seen.append(sample.since(start))
    return max(seen, key=lambda memory: memory.total, default=None)


class Loader(Protocol):
    """What is timed: something to iterate over, by workers that load ahead."""

    @property
    def num_workers(self) -> int:
        """How many workers there are."""

    @property
    def prefetch_factor(self) -> int | None:
        """How many batches each of them has under way."""

    def __iter__(self) -> Iterator[Any]: ...


def look_ahead(loader: Loader) -> int:
    """Returns how many batches a loader has under way at a time."""
    return max(1, loader.num_workers * (loader.prefetch_factor or 0))


def now() -> Memory | None:
    """Returns the memory of this process and its descendants, or None where the kernel does not say."""
    if not (_PROC / "self/smaps_rollup").exists():
        return None
    tree = _descendants(os.getpid())
    return Memory(sum(map(_pss, tree)), _in_transit(tree))


def _descendants(root: int) -> list[int]:
    """Returns ``root`` and the processes below it."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        # A process may end at any time; then its files are gone, or fail to be read.
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; the parent is the second field behind it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    tree = [root]
    for pid in tree:
        tree += children.get(pid, [])
    return tree


def _pss(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def _in_transit(tree: list[int]) -> int:
    mapped = {inode for pid in tree for inode in _mapped_inodes(pid)}
    opened = {entry.st_ino: entry for pid in tree for entry in _open_files(pid)}
    return sum(entry.st_blocks * 512 for inode, entry in opened.items() if inode not in mapped)


def _mapped_inodes(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(line.split(None, 5)[4]) for line in (_PROC / str(pid) / "maps").read_text().splitlines()]
    return []


def _open_files(pid: int) -> list[os.stat_result]:
    """Returns the regular files without a name that the process has open: shared memory between processes."""
    found: list[os.stat_result] = []
    with contextlib.suppress(OSError):
        for link in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                entry = link.stat()
                if stat.S_ISREG(entry.st_mode) and not entry.st_nlink:
                    found.append(entry)
    return found
