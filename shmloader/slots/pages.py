"""The kernel's unit of memory."""

from __future__ import annotations

import mmap

from shmloader.batches.alignment import aligned

PAGE = mmap.PAGESIZE


def round_up(nbytes: int) -> int:
    """Returns ``nbytes`` rounded up to whole pages."""
    return aligned(nbytes, PAGE)
