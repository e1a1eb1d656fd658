"""An exception into a slot, in the place of what could not be made. Runs in a worker."""

from __future__ import annotations

import contextlib
import pickle

from shmloader.batches.packing import Packer
from shmloader.errors import WorkerFault
from shmloader.slots.writer import SlotWriter


def lay_out(fault: WorkerFault, packer: Packer, writer: SlotWriter) -> None:
    """Lays an exception out; one whose class does not travel becomes a RuntimeError that says what it was."""
    writer.reclaim()
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(fault))
        packer.lay_out(fault, writer)
        return
    lay_out_text(fault, packer, writer)


def lay_out_text(fault: WorkerFault, packer: Packer, writer: SlotWriter) -> None:
    """Lays out what fits of an exception's text: for so much there is room nearly always, see `SlotWriter.array`."""
    fault.as_text()
    writer.rewind()
    packer.lay_out(fault, writer)
