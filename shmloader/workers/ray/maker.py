"""Makes batches in a Ray actor, with what any worker makes them with: the loop of jobs, on an arena of the actor's own.

What the parent has of a worker process in shared memory beside the slot goes with the batch: the note, the state of the
random generators, the record. What the parent would write there comes with a call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from shmloader import torch_private
from shmloader.batches.tensors import Block
from shmloader.slots import moved_storages
from shmloader.slots.arena import Arena
from shmloader.slots.shared_state import SharedState
from shmloader.workers import wire, worker_loop
from shmloader.workers.brief import BatchSource, Brief
from shmloader.workers.recorder import Record
from shmloader.workers.states import seeding
from shmloader.workers.wire import Fields, Inbox, Token

from .messages import Orders, Reply, machine

_SLOTS = 2  # one to write to, and one that user code may hold; see `SlotWriter.stop_lending`


class _Outbox:
    """Keeps the last token."""

    def __init__(self) -> None:
        self._token: Token | None = None

    def write(self, token: Fields) -> None:
        self._token = Token._make(token)

    def take(self) -> Token | None:
        token, self._token = self._token, None
        return token


class _Inbox(Inbox):
    """Has the one token that a call is about."""

    def __init__(self, await_call: Callable[[], bool]) -> None:
        super().__init__(list)
        self._await_call = await_call

    def put(self, token: Token) -> None:
        self._waiting = [token]

    def get_one(self, kind: int, curbed: dict[int, int]) -> Token | None:
        """Returns the answer to an ASK, that there is no more room; or waits for a CALL."""
        if kind == wire.CALL and not self._await_call():
            return None
        return Token(kind, 0, 0, 0)


class RemoteMaker:
    """Makes batches. Used by the thread that makes them; `shared_state` by the others too.

    Args:
        orders: what it makes.
        parts: of what.
        await_call: blocks until the gate is another, and returns whether the worker is to go on.

    Attributes:
        thread: the thread.
        shared_state: the words beside its slots.
    """

    def __init__(self, orders: Orders, parts: dict[str, Any], await_call: Callable[[], bool]) -> None:
        torch.set_num_threads(1)
        self.thread = threading.current_thread()
        source = BatchSource(**orders.source, **parts)
        arena = self._arena = Arena(_SLOTS, orders.max_slot_bytes, orders.brief["num_workers"])
        brief = self._brief = Brief(**orders.brief, source=source, arena=arena)
        shared_state: SharedState = arena.shared_state
        self.shared_state = shared_state
        self._number = brief.worker
        shared_state.idle(brief.worker)
        self._record = Record(shared_state.record(brief.worker))
        is_here = orders.machine == machine()
        # Of another clock it is not known what it says now. Then the time between the two workers does not count.
        self._record.insert(orders.record, None, 0 if is_here else time.monotonic_ns() - orders.record.ended)
        self._recorded = self._record.count
        if brief.takeover is not None and orders.saved is not None:
            shared_state.save(brief.worker, brief.takeover.tag, orders.saved)
        self._sent_state: tuple[int, bytes] | None = None
        self._slot = 0
        self._outbox = _Outbox()
        self._inbox = _Inbox(await_call)

    def begin(self) -> None:
        """Does what comes before the first batch."""
        source = self._brief.source
        seeding.seed(source.base_seed, self._number)
        loop = self._loop = worker_loop.make(self._brief, self._inbox, self._outbox)
        moved_storages.install()
        seed = source.base_seed + self._number
        torch_private.set_worker_info(self._number, self._brief.num_workers, seed, loop.dataset)
        loop.install()
        loop.begin()

    def make(self, job: bytes, seq: int, generation: int) -> Reply:
        """Makes a batch; see `RayWorker.make`. What it returns is a view of the slot, until the next call."""
        start = self._arena.start(self._slot)
        room = self._arena.stride
        if len(job) > room:
            raise MemoryError(f"the indices of batch {seq} take {len(job)} bytes, and a slot has {room}")
        self._arena.memory[start : start + len(job)] = job
        return self._serve(Token(wire.JOB, 0, self._number, generation, self._slot, seq, room, 0, len(job)))

    def resume(self, generation: int, shared_seed: int, epoch: int) -> Reply:
        """Begins another pass; see `RayWorker.resume`."""
        self.shared_state.shared_seed = shared_seed
        self.shared_state.epoch = epoch
        return self._serve(Token(wire.RESUME, 0, self._number, generation))

    def _serve(self, token: Token) -> Reply:
        self._inbox.put(token)
        self._loop.serve()
        done, slot = self._outbox.take(), self._slot
        if done is None or done.kind == wire.ASK:  # it was told to stop
            return self._reply(0, 0, 0, None, None)
        if done.kind == wire.RESUMED:
            return self._reply(done.kind, 0, 0, None, None)
        note = self.shared_state.note_of(slot) or None
        if done.is_held:
            self._slot = 1  # the other is user code's now, which is lent nothing from now on
        end = done.offset + done.nbytes
        content = self._arena.block(slot, end) if end else None
        return self._reply(done.kind, done.offset, done.nbytes, content, note, self.shared_state.samples[slot])

    def _reply(
        self, kind: int, offset: int, nbytes: int, content: Block | None, note: bytes | None, samples: int = 0
    ) -> Reply:
        record = self._record.extract(self._recorded)
        self._recorded = self._record.count
        saved = self.shared_state.saved_last(self._number) if self._brief.saves_rng_state else None
        if saved == self._sent_state:
            saved = None
        else:
            self._sent_state = saved
        between = self.shared_state.noted_at_begin(self._number)
        if between is not None:
            self.shared_state.note_at_begin(self._number, None)  # told once: it would be taken for that of the end
        return Reply(kind, offset, nbytes, content, samples, note, between, saved, record)
