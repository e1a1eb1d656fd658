"""What a worker does that makes batches, of whatever kind it is: tokens in, batches made, tokens out."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

from shmloader.slots.writer import Hold, SlotWriter

from . import wire
from .batch_maker import BatchMaker, Shortage
from .brief import Brief
from .gate import ToldToStop
from .recorder import Recorder
from .room_requests import Outbox, RoomRequests
from .wire import Inbox, Token

_KINDS = (wire.BATCH, wire.FAULT, wire.ENDED)  # by `batch_maker.Contents`


class JobLoop:
    """Serves the tokens of one worker, in the process and the thread that make its batches.

    Args:
        brief: what is made.
        maker: makes it.
        inbox: where tokens come from.
        outbox: where they go.
        count: called after each batch.
    """

    def __init__(
        self, brief: Brief, maker: BatchMaker, inbox: Inbox, outbox: Outbox, count: Callable[[], object] = lambda: None
    ) -> None:
        self._maker = maker
        self._inbox = inbox
        self._outbox = outbox
        self._number = brief.worker
        self._shared_state = brief.arena.shared_state
        self._count = count
        self._requests = RoomRequests(brief.worker, inbox, outbox)
        self._recorder = maker.recorder
        # No method of the loop's, which has the gate: with threads, the dataset would stay for the garbage collector.
        maker.gate.await_call = functools.partial(_await_call, self._requests, self._recorder)

    @property
    def writer(self) -> SlotWriter:
        """Writes to slots."""
        return self._maker.writer

    @property
    def dataset(self) -> Any:
        """What batches are made of."""
        return self._maker.dataset

    def install(self) -> None:
        """Has torch's default collate functions write into slots, in this process."""
        self._maker.collation.install()

    def install_in_thread(self) -> None:
        """Does the same in this thread alone."""
        self._maker.collation.install_in_thread()
        self._recorder.shares_lock = True

    def begin(self) -> None:
        """Calls the init function, and does what else comes before the first job."""
        self._maker.begin_first_pass()

    def serve(self) -> None:
        """Does one job after the other, until told to stop."""
        with contextlib.suppress(ToldToStop):
            self._serve_all()

    def _serve_all(self) -> None:
        while (token := self._inbox.get()) is not None and token.kind != wire.STOP:
            if token.kind == wire.RESUME:
                self._resume(token.generation)
            elif token.kind == wire.CALL:  # which came when it had passed
                self._shared_state.count_call(self._number)
            elif not self._maker.has_ended and not self._shared_state.stopped:
                self._serve(token)

    def holds(self) -> list[Hold]:
        """Returns the slots of which user code holds something through this worker. Safe from any thread."""
        return self._maker.writer.holds()

    def _resume(self, generation: int) -> None:
        self._requests.forget()
        self._maker.end_pass(generation)
        self._outbox.write((wire.RESUMED, 0, self._number, generation, 0, 0, 0, 0, 0))
        self._maker.begin_pass(self._shared_state.shared_seed, self._shared_state.epoch)

    def _serve(self, job: Token) -> None:
        done = self._maker.make(job.slot, job.seq, self._requests.room_of(job), job.nbytes)
        while isinstance(done, Shortage):
            began = time.monotonic_ns()
            room = self._requests.ask(job, done.need, done.to_stay)
            self._recorder.wait_for_room(began)
            done = self._maker.go_on(room)
        self._count()
        kind = _KINDS[done.contents]
        self._recorder.end(job.generation, done.contents, done.offset + done.nbytes)
        head = kind, done.is_held, self._number, job.generation
        self._outbox.write((*head, job.slot, job.seq, 0, done.offset, done.nbytes))


def _await_call(requests: RoomRequests, recorder: Recorder) -> bool:
    began = time.monotonic_ns()
    is_called = requests.await_call()
    recorder.wait_at_gate(began)
    return is_called
