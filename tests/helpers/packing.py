"""Batches into slots, as a worker and its parent do it together."""

from __future__ import annotations

from collections.abc import Callable

from shmloader.batches.packing import Packer
from shmloader.slots.results import Made
from shmloader.slots.writer import SlotWriter


def pack(
    packer: Packer, batch: object, writer: SlotWriter, slot: int, grow: Callable[[int], int] = lambda need: 0
) -> Made:
    """Packs a batch into the slot that is open; ``grow`` returns how much of it may be used.

    Raises:
        PoolMemoryError: that is too little.
    """
    packer.lay_out(batch, writer)
    if writer.shortage:
        writer.grant(grow(writer.shortage))
    try:
        writer.require()
    except MemoryError:
        packer.drop()
        raise
    packed = packer.fill(writer)
    return Made(slot, packed.tail_offset, len(packed.tail))
