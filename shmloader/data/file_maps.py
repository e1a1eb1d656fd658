"""Arrays that lie in a memory map, as what another process opens them by."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shmloader.batches.tensors import Array

# Names that mean something else in another process: descriptors, above all.
_OF_THIS_PROCESS = "/proc/", "/dev/fd/"

# Bytes that are compared at a time, so that they are still in the processor's cache when the result is read.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class FilePart:
    """Where in a file an array's elements are, and in which order: what another process opens it by.

    The name alone would open whatever has it by then. Device and inode are those of the file that is meant.
    """

    name: str
    device: int
    inode: int
    offset: int
    nbytes: int
    first: int  # offset of the first element from there; more than 0 where a stride is negative
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def bytes(self) -> Array:
        """Returns the bytes that the elements lie in, mapped to be read.

        Raises:
            OSError: the file is not there, may not be read, is another one, or ends before these bytes.
        """
        with Path(self.name).open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != (self.device, self.inode):
                raise OSError(f"{self.name} is another file than the one that the ArrayDataset's memory map was of")
            if status.st_size < self.offset + self.nbytes:
                raise OSError(_cut_short(self.name, status.st_size, self.offset + self.nbytes))
            return np.memmap(file, np.uint8, "r", self.offset, (self.nbytes,))

    def open(self) -> Array:
        """Returns the array, read-only. Raises what `bytes` does."""
        return np.ndarray(self.shape, self.dtype, self.bytes(), self.first, self.strides)


def _cut_short(name: str, size: int, end: int) -> str:
    return f"{name} has {size} bytes, and the ArrayDataset's memory map of it goes to byte {end}: it was cut short"


def part_of_file(rows: Array) -> FilePart | None:
    """Returns what opens ``rows`` again, or None where it is not certain that their bytes would be the same.

    Raises:
        OSError: the map's file was cut short, so that rows are lost. To read them would end this process.
    """
    name, memory = _map_of(rows)
    if str(name).startswith(_OF_THIS_PROCESS):
        return None
    whole = None if name is None or not rows.nbytes else np.frombuffer(memory, np.uint8)
    if whole is None:
        return None
    low, nbytes = _extent(rows)
    mapped = _mapped_file(low, nbytes)
    start = low - whole.ctypes.data
    if mapped is None or start < 0 or start + nbytes > len(whole):
        return None
    offset = low + mapped.shift
    if memory.size() < offset + nbytes:
        raise OSError(_cut_short(name, memory.size(), offset + nbytes))
    try:
        status = Path(name).stat()
        first = rows.ctypes.data - low
        place = offset, nbytes, first, rows.dtype, rows.shape, rows.strides
        part = FilePart(str(name), status.st_dev, status.st_ino, *place)
        again = part.bytes()
    except OSError:
        return None
    # What the kernel says of both maps, and not `status`: the numbers of some file systems differ there (btrfs has
    # other devices, overlays have other inodes).
    found = _mapped_file(again.ctypes.data, nbytes)
    if found is None or (found.device, found.inode) != (mapped.device, mapped.inode):
        return None
    if mapped.is_private and not _are_equal(whole[start : start + nbytes], again):
        return None
    return part


def _map_of(rows: Array) -> tuple[Any, Any]:
    """Returns the name of the file, as an absolute path, and the map of it that an array lies in; or None, None."""
    name: Any = None
    memory: Any = rows
    while isinstance(memory, np.ndarray):
        name = getattr(memory, "filename", None) or name
        memory = memory.base
    return (name, memory) if isinstance(memory, mmap.mmap) else (None, None)


def _extent(rows: Array) -> tuple[int, int]:
    """Returns the address of an array's first byte, and how many there are to its last one."""
    steps = [(size - 1) * stride for size, stride in zip(rows.shape, rows.strides, strict=True)]
    low = sum(step for step in steps if step < 0)
    high = sum(step for step in steps if step > 0) + rows.itemsize
    return rows.ctypes.data + low, high - low


class _Mapped(NamedTuple):
    """What the kernel says of memory that maps a file."""

    device: bytes
    inode: bytes
    shift: int  # from an address to an offset in the file
    is_private: bool


def _mapped_file(address: int, nbytes: int) -> _Mapped | None:
    """Returns the file that memory maps, or None if that is not one file in a row, or the kernel does not say."""
    end, covered = address + nbytes, 0
    found = set()
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        span, rights, offset, device, inode = line.split(None, 5)[:5]
        begin, stop = (int(number, 16) for number in span.split(b"-"))
        if begin < end and stop > address:
            found.add(_Mapped(device, inode, int(offset, 16) - begin, rights.endswith(b"p")))
            covered += min(stop, end) - max(begin, address)
    return found.pop() if len(found) == 1 and covered == nbytes else None


def _are_equal(one: Array, other: Array) -> bool:
    parts = range(0, len(one), _CHUNK)
    return all(np.array_equal(one[start : start + _CHUNK], other[start : start + _CHUNK]) for start in parts)
