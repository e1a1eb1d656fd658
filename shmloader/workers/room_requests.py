"""What a worker does where a slot may not use as many bytes as its job takes: it asks, and waits for the answer."""

from __future__ import annotations

from typing import Protocol

from . import wire
from .wire import Fields, Inbox, Token


class Outbox(Protocol):
    """Where a worker's tokens go."""

    def write(self, token: Fields) -> None:
        """Sends one token."""


class RoomRequests:
    """The requests of one worker. Used in the process and the thread that do its jobs.

    Args:
        worker: its number.
        inbox: where answers come from.
        outbox: where requests go.
    """

    def __init__(self, worker: int, inbox: Inbox, outbox: Outbox) -> None:
        self._worker = worker
        self._inbox = inbox
        self._outbox = outbox
        self._curbed: dict[int, int] = {}  # jobs whose slots may use less by now than their tokens say

    def room_of(self, job: Token) -> int:
        """Returns the bytes that the slot of a job which is begun may use."""
        return self._curbed.pop(job.seq, job.room)

    def ask(self, job: Token, need: int, to_stay: int) -> int:
        """Asks the parent for room, and returns how much there is. Blocks until it has answered.

        Args:
            job: whose slot is too small.
            need: bytes that it needs.
            to_stay: its first bytes that have to stay as they are.

        Returns:
            The bytes that may be used now; 0: there are no more than any slot may use.
        """
        head = wire.ASK, 0, self._worker, job.generation
        self._outbox.write((*head, job.slot, job.seq, need, 0, to_stay))
        grant = self._inbox.get_one(wire.GRANT, self._curbed)
        return grant.room if grant is not None else 0

    def await_call(self) -> bool:
        """Waits at the gate, and returns whether the parent has called; False: it wants this worker to end."""
        return self._inbox.get_one(wire.CALL, self._curbed) is not None

    def forget(self) -> None:
        """Forgets what was said of jobs: another pass begins."""
        self._curbed.clear()
