"""Where the parts of a batch may begin."""

from __future__ import annotations

# A cache line, and a vector register; every dtype is aligned to it.
ALIGNMENT = 64


def aligned(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """Returns ``nbytes`` rounded up to a multiple of ``alignment``, any positive number."""
    return -(-nbytes // alignment) * alignment
