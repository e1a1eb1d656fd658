"""The kernel's unit of memory."""

from __future__ import annotations

import mmap

PAGE = mmap.PAGESIZE


def round_up(nbytes: int) -> int:
    """Returns ``nbytes`` rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE
