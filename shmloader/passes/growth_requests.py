"""Batches that are larger than their slots may be, and wait for room.

This happens only where the cap is tight: a slot may use its share of the cap without asking. A worker that asks has
its batch in private memory and waits; the parent answers when it has room, the batch that is needed soonest first.
"""

from __future__ import annotations

from collections.abc import Callable

from shmloader.slots.pool import Packed, Pool
from shmloader.workers import wire
from shmloader.workers.wire import Token

from .schedule import Schedule

Tell = Callable[..., None]


class GrowthRequests:
    """The ASKs of a pass that are not answered. Used in the parent.

    Methods that answer take ``tell``, which sends a token to a worker: called with the worker, the token's kind, and
    its fields by name. Kept here, it would tie the iterator, whose method it is, into a reference cycle, and dropping
    the iterator would no longer end its workers.

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

    def answer(self, schedule: Schedule[Packed], tell: Tell) -> None:
        """Grants what can be granted, and sees to it that the batch which the loop waits for is not held up for ever.

        Called before the loop waits. The batches that are needed soonest come first.
        """
        for seq in sorted(self._asks):
            if not self._try_to_grant(seq, tell):
                break
        blocked = self._blocked(schedule)
        if blocked is not None:
            self._unblock(blocked, schedule, tell)

    def refuse_all(self, tell: Tell) -> None:
        """Tells all who wait that there is no more room, since the pass is over."""
        for seq in list(self._asks):
            self._refuse(seq, tell)
        self._curbed.clear()

    def forget(self, worker: int) -> None:
        """Drops the ASK of a worker that has died, and what its jobs were told."""
        self._curbed = {seq: told for seq, told in self._curbed.items() if told != worker}
        for seq, ask in list(self._asks.items()):
            if ask.worker == worker:
                del self._asks[seq]
                self._moved_out.pop(seq, None)

    def _unblock(self, blocked: int, schedule: Schedule[Packed], tell: Tell) -> None:
        """Makes room for the batch that the loop waits for.

        Whoever waits keeps no more than is written, batches that wait for their turn are moved out of the pool, and
        jobs that cannot begin have to make do with little. If that does not make room, and no other batch is being
        made, whose end would, then what the others have written is moved out until they get room again. If even that
        is not enough, the batch cannot be had: its worker is told so, which makes an exception of it.
        """
        for seq, ask in self._asks.items():
            self._pool.curb(ask.slot, 0 if seq in self._moved_out else ask.room)
        for task in schedule.made():
            assert task.result is not None
            task.result = self._pool.spill(task.result)
        stuck = schedule.stuck_behind(self._asks)
        for task in stuck:
            # Once: a worker that is stopped, or dead and not known to be, reads none of them, and this may come again
            # with every batch of the others'. Its pipe has room for one a job.
            if task.seq not in self._curbed:
                self._curbed[task.seq] = task.worker
                room = self._pool.curb(task.slot, len(task.job))
                tell(task.worker, wire.CURB, slot=task.slot, seq=task.seq, room=room)
        if self._try_to_grant(blocked, tell) or schedule.unmade() > len(self._asks) + len(stuck):
            return
        for seq, ask in self._asks.items():
            if seq != blocked and seq not in self._moved_out:
                self._moved_out[seq] = self._pool.move_out(ask.slot, ask.room)
        if not self._try_to_grant(blocked, tell):
            self._refuse(blocked, tell)

    def _blocked(self, schedule: Schedule[Packed]) -> int | None:
        awaited = schedule.awaited
        seq = awaited.seq if awaited is not None else min(self._asks, default=-1)
        return seq if seq in self._asks else None

    def _try_to_grant(self, seq: int, tell: Tell) -> bool:
        ask = self._asks[seq]
        room = self._pool.grant(ask.slot, ask.size)
        if room is None:
            return False
        self._reply(seq, room, tell)
        return True

    def _refuse(self, seq: int, tell: Tell) -> None:
        self._reply(seq, 0, tell)

    def _reply(self, seq: int, room: int, tell: Tell) -> None:
        ask = self._asks.pop(seq)
        # Back also where it is refused: code in the worker may hold what is written.
        self._pool.move_in(ask.slot, self._moved_out.pop(seq, b""))
        tell(ask.worker, wire.GRANT, slot=ask.slot, seq=seq, room=room)
