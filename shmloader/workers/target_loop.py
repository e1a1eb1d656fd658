"""What a worker of a producer does: it calls the target, and tells what becomes of that. Runs in a worker."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Generator
from typing import Any

from shmloader.batches.packing import Packer
from shmloader.errors import ProducerEndedError, WorkerFault
from shmloader.slots.writer import Hold, SlotWriter

from . import fault_packing, wire
from .brief import Brief, TargetSource
from .room_requests import Outbox
from .target_slots import Slots
from .wire import Inbox, Token

# What tells a consumer that there are no more items. A target may have it of another producer.
_ENDS = StopIteration, ProducerEndedError


class TargetLoop:
    """Calls the target of one worker, in the process and the thread that fill its slots.

    When the target has raised, the next slot is filled with the exception. When it has ended, by itself or so, that is
    told at once, also where there is no slot: whoever waits for the end need not take items meanwhile.

    Args:
        brief: of the worker.
        source: what it calls.
        inbox: where tokens come from.
        outbox: where they go.
        count: called after each item.
    """

    def __init__(
        self,
        brief: Brief,
        source: TargetSource,
        inbox: Inbox,
        outbox: Outbox,
        count: Callable[[], object] = lambda: None,
    ) -> None:
        self._brief = brief
        self._source = source
        self._inbox = inbox
        self._outbox = outbox
        self._fault: WorkerFault | None = None
        self.writer = SlotWriter(brief.arena, brief.cap_text)
        self._slots = Slots(brief, source.layout, self.writer, inbox, outbox, count)

    @property
    def dataset(self) -> Any:
        """What `get_worker_info` names as the dataset: the target."""
        return self._source.target

    def install(self) -> None:
        """There is nothing that a target calls that has to do otherwise."""

    def install_in_thread(self) -> None:
        """Notes that the worker shares the interpreter."""
        self._slots.recorder.shares_lock = True

    def begin(self) -> None:
        """Calls the init function. What that raises comes in the place of what the target would have made."""
        try:
            if self._source.init_fn is not None:
                self._source.init_fn(self._brief.worker)
        except _ENDS as end:
            self._fault = self._stray_end("worker_init_fn", end)
        except Exception:
            self._fault = self._new_fault()
        finally:
            self._end_if_forked()

    def serve(self) -> None:
        """Calls the target, once, and blocks until told to stop."""
        fault = self._fault or self._call()
        if fault is not None and (job := self._slots.next_job()) is not None:
            self._send_fault(job, fault)
        if not self._slots.is_over:
            self._send_end()
        while self._slots.next_job() is not None:
            self._slots.job = None  # one that was sent before the parent knew

    def holds(self) -> list[Hold]:
        """Returns the slots of which the target holds something. Safe from any thread."""
        return self._slots.holds()

    def _call(self) -> WorkerFault | None:
        """Calls the target, and returns what it has raised. No frame of the target's is left then."""
        source = self._source
        try:
            _expect_no_coroutine(source.target(self._slots, *source.args, **source.kwargs))
        except _ENDS as end:
            if not self._slots.is_over:  # else from a `next(slots)`
                return self._stray_end("the target", end)
        except Exception:
            return self._new_fault()
        finally:
            self._end_if_forked()
        return None

    def _stray_end(self, name: str, end: Exception) -> WorkerFault:
        # In the consumer it would look like the end of the stream.
        try:
            raise RuntimeError(f"{name} raised {type(end).__name__}") from end
        except RuntimeError:
            return self._new_fault()

    def _new_fault(self) -> WorkerFault:
        return WorkerFault(where=f"in {self._brief.worker_text}")

    def _send_fault(self, job: Token, fault: WorkerFault) -> None:
        slots, writer, packer = self._slots, self.writer, Packer()
        slots.lay_open(job)
        fault_packing.lay_out(fault, packer, writer)
        if writer.shortage:
            packer.drop()
            fault_packing.lay_out_text(fault, packer, writer)
        packed = packer.fill(writer)
        head = wire.FAULT, slots.close(), self._brief.worker, job.generation
        self._outbox.write((*head, job.slot, job.seq, 0, packed.tail_offset, len(packed.tail)))

    def _send_end(self) -> None:
        job, slot, seq, is_held = self._slots.job, 0, wire.NO_SEQ, False
        if job is not None:  # the target may hold its memory
            self._slots.lay_open(job)
            slot, seq, is_held = job.slot, job.seq, self._slots.close()
        self._outbox.write((wire.ENDED, is_held, self._brief.worker, self._brief.generation, slot, seq, 0, 0, 0))

    def _end_if_forked(self) -> None:
        """Ends a process that the user's code has forked and let come back: the slots are the worker's."""
        if self.writer.is_inherited:
            os._exit(1)


def _expect_no_coroutine(returned: Any) -> None:
    """Makes sure that a target has run when it has returned.

    Raises:
        TypeError: it has not, since there is a ``yield`` or an ``async`` in it.
    """
    if inspect.isasyncgen(returned) or inspect.isgenerator(returned) or inspect.iscoroutine(returned):
        if isinstance(returned, Generator) or inspect.iscoroutine(returned):
            returned.close()
        raise TypeError(
            f"the target returned a {type(returned).__name__}, so that nothing of it has run: "
            "it must be a plain function that fills `slots`, with no yield and no async in it"
        )
