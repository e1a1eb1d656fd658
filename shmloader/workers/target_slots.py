"""Slots as a producer's target sees them, one after the other. Runs in a worker.

A target may keep the arrays of an item, and they must not change under it, as they would when the slot was used again.
At the time at which an item is ready they are nearly always alive, since the variables of the target's loop are bound
until the next item. So each item says of the one before whether anything of it is alive, and the parent uses no slot
again whose item is not followed by another. A target that keeps one will keep others: from then on it is given private
memory, which is copied. (The parent is told nothing more of the slot that it had last, and never uses that again.)
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from time import monotonic_ns
from types import TracebackType
from typing import Any

import numpy as np
import torch

from shmloader.batches.dtypes import TO_NUMPY
from shmloader.batches.item_layout import ItemLayout
from shmloader.batches.place import arrays_over
from shmloader.batches.structure import leaves
from shmloader.batches.tensors import Array, Block
from shmloader.errors import PoolMemoryError
from shmloader.slots import fork_copies
from shmloader.slots.writer import FAULT_BYTES, Hold, Lent, SlotWriter, still_held

from . import wire
from .brief import Brief
from .recorder import MADE, Recorder
from .room_requests import Outbox, RoomRequests
from .wire import Inbox, Token


class Slot:
    """Memory for one item, which a target fills.

    As a context manager it gives the arrays, and is ready when the block is left: at its end, and by ``continue``,
    ``break`` or ``return`` too. If an exception leaves the block, the item is not delivered, and the slot is given
    again.
    """

    __slots__ = ("_arrays", "_is_delivered", "_slots")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._arrays: Any = None
        self._is_delivered = False

    @property
    def is_used(self) -> bool:
        """Whether the target has looked at the arrays."""
        return self._arrays is not None

    @property
    def arrays(self) -> Any:
        """The arrays, to be written to, in the structure of ``specs``. What is in them at first means nothing.

        They are NumPy's, but tensors for dtypes that NumPy does not have.

        Raises:
            RuntimeError: the slot is not the target's any more.
        """
        self._slots.check(self)
        if self._arrays is None:
            self._arrays = self._slots.arrays()
        return self._arrays

    def ready(self) -> None:
        """Delivers the item. Its arrays may be read from now on, and not written to. Does not block.

        Raises:
            RuntimeError: the slot is not the target's any more, or an array was replaced in place of being written to.
        """
        self._slots.check(self)
        self._slots.deliver(self._arrays)
        self._is_delivered = True
        self._arrays = None

    def __enter__(self) -> Any:
        return self.arrays

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._is_delivered:  # within the block
            return
        if kind is None:
            self.ready()
        else:
            self._arrays = None
            self._slots.take_back(self)


class Slots:
    """The slots of one worker's target, which iterates over them. Used by the thread that has called the target.

    Args:
        brief: of the worker.
        layout: what is in a slot.
        writer: writes to slots.
        inbox: where jobs come from, which are slots to be filled.
        outbox: where items go.
        count: called after each item.

    Attributes:
        recorder: writes down what is done when. All is the target's work but waiting for slots, and for room in them.
        job: what the slot that is being filled, or was not delivered, came with.
        is_over: whether the worker was told to stop: there will be no more slots.
    """

    def __init__(
        self,
        brief: Brief,
        layout: ItemLayout,
        writer: SlotWriter,
        inbox: Inbox,
        outbox: Outbox,
        count: Callable[[], object],
    ) -> None:
        self._number = brief.worker
        self._shared_state = brief.arena.shared_state
        self.recorder = Recorder(self._shared_state.record(brief.worker), self._shared_state.samples)
        self._idle = 0  # nanoseconds since the last item
        self._cap_text = brief.cap_text
        self._layout = layout
        self._join = layout.joiner()
        self._are_arrays = [place.dtype in TO_NUMPY for place in layout.places]
        self._writer = writer
        self._inbox = inbox
        self._outbox = outbox
        self._requests = RoomRequests(brief.worker, inbox, outbox)
        self._count = count
        self._thread = threading.get_ident()
        self._current: Slot | None = None
        self._is_open = False
        self._arrays: list[Array] = []
        self._private: Block | None = None  # what is filled where the target keeps items
        self._last: Lent | None = None  # of the item before
        self._lent_before: list[Lent] = []
        self.job: Token | None = None
        self.is_over = False
        fork_copies.watch(self)

    def __iter__(self) -> Slots:
        return self

    def __next__(self) -> Slot:
        """Returns the next slot. Blocks while the consumer has not made room for one; a stop wakes it.

        Raises:
            StopIteration: the producer is stopped.
            RuntimeError: the slot before was not used, so that this is a second one at a time; or this is another
                thread.
            PoolMemoryError: the pool has no room for an item.
        """
        self._check_thread()
        if self._current is not None and not self._current.is_used:
            raise RuntimeError(
                "a target has one slot at a time: fill it, `with slot as arrays: ...`, before the next is asked for"
            )
        self._current = None
        if self.next_job() is None:
            raise StopIteration
        if not self._is_open:
            self._open()
        self._current = Slot(self)
        return self._current

    def next_job(self) -> Token | None:
        """Returns the job that is not done yet, or the next one; None when the worker was told to stop.

        Blocks as `__next__`.
        """
        if self._shared_state.stopped:
            self.is_over = True
        if not self.recorder.ended:
            self.recorder.rest()  # what comes before the first slot is no item's
        while self.job is None and not self.is_over:
            began = monotonic_ns()
            token = self._inbox.get()
            self._idle += monotonic_ns() - began
            if token is None or token.kind == wire.STOP or self._shared_state.stopped:
                self.is_over = True
            elif token.kind == wire.JOB:
                self.job = token
        return None if self.is_over else self.job

    def _open(self) -> None:
        job = self.job
        assert job is not None
        self._shared_state.begin(self._number, job.seq)
        self.recorder.begin(job.seq, job.slot, self.recorder.ended + self._idle)
        self.recorder.samples, self.recorder.times_samples, self._idle = 1, True, 0
        need = self._layout.nbytes + FAULT_BYTES
        room = self._requests.room_of(job)
        if room < need:
            began = monotonic_ns()
            room = self._requests.ask(job, need, 0)
            self.recorder.wait_for_room(began)
        self._open_for(job, room)
        if room < need:
            self._writer.grant(0)
            raise PoolMemoryError(
                f"an item takes {need} bytes of shared memory, which do not fit under {self._cap_text} beside the "
                "items that the consumer holds; raise it, or make items smaller"
            )
        block = self._writer.lend(self._layout.end, self._layout.nbytes)
        if block is None:
            block = self._private = np.empty(self._layout.end, np.uint8)
        self._arrays = arrays_over(self._layout.places, block)

    def lay_open(self, job: Token) -> None:
        """Opens the slot of a job for something else than an item. Nothing here holds its memory then."""
        self._current = self._private = None
        self._arrays = []
        if not self._is_open:
            self._open_for(job, self._requests.room_of(job))

    def _open_for(self, job: Token, room: int) -> None:
        self._writer.open(job.slot, room)
        self._is_open = True

    def close(self) -> bool:
        """Ends the job, and returns whether code of the target's holds its slot."""
        self._writer.close()
        self._is_open = False
        self.job = None
        return self._writer.is_held

    # -- what a slot asks for ------------------------------------------------------------------------------------

    def arrays(self) -> Any:
        """Returns the arrays of the slot, in their structure."""
        return self._join(self._arrays)

    def check(self, slot: Slot) -> None:
        """Makes sure that ``slot`` may be used now, and here.

        Raises:
            RuntimeError: it may not.
        """
        self._check_thread()
        if slot is not self._current:
            raise RuntimeError("this slot was made ready, or left for the next one; take another of `slots`")

    def _check_thread(self) -> None:
        if self._writer.is_inherited:  # a process that the target has forked and let come back
            os._exit(1)
        if threading.get_ident() != self._thread:
            raise RuntimeError("slots are for the thread in which the target was called")

    def take_back(self, slot: Slot) -> None:
        """Takes a slot back that is not delivered, to be given again."""
        if slot is self._current:
            self._current = None

    def deliver(self, item: Any) -> None:
        """Sends the item of the slot that is being filled."""
        if item is not None and item is not self._arrays[0]:
            self._expect_own(item)
        for array in self._arrays:
            array.flags.writeable = False
        job, layout, writer = self.job, self._layout, self._writer
        assert job is not None
        is_private = self._private is not None
        if self._private is not None:
            writer.lay_out(layout.end, layout.nbytes)
            writer.view(0, layout.end)[:] = self._private
        # Each time: the slot may have had something else since its last item, or have been given back. It takes a tenth
        # of a microsecond.
        writer.write(layout.tail_offset, layout.tail)
        self._private = self._current = None
        self._arrays = []
        holds_last = not is_private and self._holds_last()
        self.close()
        self._count()
        self.recorder.end(job.generation, MADE, layout.tail_offset + len(layout.tail))
        head = wire.BATCH if is_private else wire.ITEM, holds_last, self._number, job.generation
        self._outbox.write((*head, job.slot, job.seq, 0, layout.tail_offset, len(layout.tail)))

    def _expect_own(self, item: Any) -> None:
        """Makes sure that the item has the arrays still that it was given with.

        Raises:
            RuntimeError: it has not.
        """
        found = list(leaves(item))
        if len(found) != len(self._arrays) or not all(map(self._is_own, found, self._arrays, self._are_arrays)):
            raise RuntimeError(
                "a part of the item was replaced, and what it was replaced by would not arrive: write into the array, "
                "`arrays[name][...] = value`"
            )

    @staticmethod
    def _is_own(leaf: Any, array: Array, is_array: bool) -> bool:
        """Whether a leaf of an item is what it was given with: an array, or a tensor over it."""
        if is_array:
            return leaf is array
        return isinstance(leaf, torch.Tensor) and (leaf.data_ptr() == array.ctypes.data or not array.size)

    def _holds_last(self) -> bool:
        """Whether anything of the item before is alive, so that its slot must not be used again."""
        last, self._last = self._last, self._writer.lent
        if last is None or last.block() is None:
            return False
        # As in `BatchMaker`: to look for cycles after each item would cost more than a copy.
        self._writer.stop_lending()
        self._lent_before.append(last)
        gc.collect()
        return last.block() is not None

    def holds(self) -> list[Hold]:
        """Returns the slots of which the target holds something, of delivered items. Safe from any thread."""
        last = self._last
        return still_held([*self._lent_before, *([] if last is None else [last])])

    def blocks(self) -> list[Block]:
        """Returns what the target holds of delivered items; see `fork_copies.Holder`."""
        return [hold.block[: hold.written] for hold in self.holds()]
