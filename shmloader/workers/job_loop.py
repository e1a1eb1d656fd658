"""What a worker does, of whatever kind it is: tokens in, batches made, tokens out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from . import wire
from .batch_maker import BatchMaker, Shortage
from .brief import Brief
from .wire import Fields, Inbox, Token

_KINDS = (wire.BATCH, wire.FAULT, wire.ENDED)  # by `batch_maker.Contents`


class Outbox(Protocol):
    """Where a worker's tokens go."""

    def write(self, token: Fields) -> None:
        """Sends one token."""


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
        self._curbed: dict[int, int] = {}  # jobs whose slots may use less by now than their tokens say

    def serve(self) -> None:
        """Does one job after the other, until told to stop."""
        while (token := self._inbox.get()) is not None and token.kind != wire.STOP:
            if token.kind == wire.RESUME:
                self._resume(token.generation)
            elif not self._maker.has_ended and not self._shared_state.stopped:
                self._serve(token)

    def _resume(self, generation: int) -> None:
        self._curbed.clear()
        self._maker.end_pass(generation)
        self._outbox.write((wire.RESUMED, 0, self._number, generation, 0, 0, 0, 0, 0))
        self._maker.begin_pass(self._shared_state.shared_seed)

    def _serve(self, job: Token) -> None:
        room = self._curbed.pop(job.seq, job.room)
        done = self._maker.make(job.slot, job.seq, room, job.nbytes)
        while isinstance(done, Shortage):
            done = self._maker.go_on(self._ask(job, done))
        self._count()
        kind = _KINDS[done.contents]
        head = kind, done.is_retained, self._number, job.generation
        self._outbox.write((*head, job.slot, job.seq, 0, done.offset, done.nbytes))

    def _ask(self, job: Token, shortage: Shortage) -> int:
        """Asks the parent for room, and returns how much there is. Blocks until it has answered."""
        head = wire.ASK, 0, self._number, job.generation
        self._outbox.write((*head, job.slot, job.seq, shortage.need, 0, shortage.to_stay))
        grant = self._inbox.get_grant(self._curbed)
        return grant.room if grant is not None else 0
