"""Batches that are larger than their slots may be, and wait for room.

This happens only where the cap is tight: a slot may use its share of the cap without asking. A worker that asks has
its batch in private memory and waits; the parent answers when it has room, the batch that is needed soonest first.
"""

from __future__ import annotations

from typing import NamedTuple

from shmloader.slots.pool import Pool
from shmloader.slots.results import Result
from shmloader.workers import wire
from shmloader.workers.wire import Token

from .schedule import Schedule


class Reply(NamedTuple):
    """What a worker is to be told.

    Attributes:
        worker: who.
        kind: GRANT or CURB.
        slot: of which slot.
        seq: of which batch.
        room: bytes of the slot that it may use.
    """

    worker: int
    kind: int
    slot: int
    seq: int
    room: int


class GrowthRequests:
    """The ASKs of a pass that are not answered. Used in the parent.

    Args:
        pool: which has the room.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._asks: dict[int, Token] = {}
        self._moved_out: dict[int, bytes] = {}  # what those have written who have no room for it, by batch
        self._curbed: dict[int, int] = {}  # the jobs whose workers were sent a CURB, and these workers

    def __bool__(self) -> bool:
        return bool(self._asks)

    def add(self, ask: Token) -> None:
        """Takes up an ASK."""
        self._asks[ask.seq] = ask

    def answer(self, schedule: Schedule[Result]) -> list[Reply]:
        """Grants what can be granted, and sees to it that the batch which the loop waits for is not held up for ever.

        Called before the loop waits. The batches that are needed soonest come first.

        Returns:
            What workers are to be told.
        """
        replies = []
        for seq in sorted(self._asks):
            granted = self._granted(seq)
            if not granted:
                break
            replies += granted
        blocked = self._blocked(schedule)
        return replies if blocked is None else replies + self._unblock(blocked, schedule)

    def refuse_all(self) -> list[Reply]:
        """Answers all who wait that there is no more room, since the pass is over."""
        self._curbed.clear()
        return [self._reply(seq, 0) for seq in list(self._asks)]

    def forget(self, worker: int) -> None:
        """Drops the ASK of a worker that has died, and what its jobs were told."""
        self._curbed = {seq: told for seq, told in self._curbed.items() if told != worker}
        for seq, ask in list(self._asks.items()):
            if ask.worker == worker:
                del self._asks[seq]
                self._moved_out.pop(seq, None)

    def _unblock(self, blocked: int, schedule: Schedule[Result]) -> list[Reply]:
        """Makes room for the batch that the loop waits for.

        A worker that waits gets no more than what it has written, batches that wait for their turn are moved out of the
        pool, and jobs that cannot begin have to make do with little. If that does not make room, and no other batch is
        being made, whose end would, then what the others have written is moved out until they get room again. If even
        that is not enough, the batch cannot be had: its worker is told so, which makes an exception of it.
        """
        for seq, ask in self._asks.items():
            self._pool.curb(ask.slot, 0 if seq in self._moved_out else ask.nbytes)
        for task in schedule.made():
            assert task.result is not None
            task.result = self._pool.spill(task.result)
        stuck = schedule.stuck_behind(self._asks)
        replies = []
        for task in stuck:
            # Once: a worker that is stopped, or dead and not known to be, reads none of them, and this may come again
            # with every batch of the others'. Its pipe has room for one a job.
            if task.seq not in self._curbed:
                self._curbed[task.seq] = task.worker
                room = self._pool.curb(task.slot, len(task.job))
                replies.append(Reply(task.worker, wire.CURB, task.slot, task.seq, room))
        granted = self._granted(blocked)
        if granted or schedule.unmade() > len(self._asks) + len(stuck):
            return replies + granted
        for seq, ask in self._asks.items():
            if seq != blocked and seq not in self._moved_out:
                self._moved_out[seq] = self._pool.move_out(ask.slot, ask.nbytes)
        return replies + (self._granted(blocked) or [self._reply(blocked, 0)])

    def _blocked(self, schedule: Schedule[Result]) -> int | None:
        awaited = schedule.awaited
        seq = awaited.seq if awaited is not None else min(self._asks, default=-1)
        return seq if seq in self._asks else None

    def _granted(self, seq: int) -> list[Reply]:
        """Returns the reply that grants an ASK, or nothing where there is no room now."""
        ask = self._asks[seq]
        room = self._pool.grant(ask.slot, ask.room)
        return [] if room is None else [self._reply(seq, room)]

    def _reply(self, seq: int, room: int) -> Reply:
        ask = self._asks.pop(seq)
        # Back also where it is refused: code in the worker may hold what is written.
        self._pool.move_in(ask.slot, self._moved_out.pop(seq, b""))
        return Reply(ask.worker, wire.GRANT, ask.slot, seq, room)
