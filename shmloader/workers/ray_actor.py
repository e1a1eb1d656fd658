"""A worker that is a Ray actor: what runs in it. The parent's side is `ray_workers`.

It makes batches as any worker does, in a slot of its own: an arena that nobody else maps. What the parent has of a
worker process in shared memory beside the slot goes with the batch: the note, the state of the random generators, the
record. What the parent would write there comes with a call.

Ray runs calls of one concurrency group one after the other, in one thread. There are three of these: batches are made
in the first; in the second come the calls that have to be answered meanwhile; and in the third there is one call that
does not return, so that its failure tells the parent at once that the actor has ended, also when it owes nothing.

Nothing here imports Ray.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shmloader import torch_private
from shmloader.batches.tensors import Block
from shmloader.slots import moved_storages
from shmloader.slots.arena import Arena
from shmloader.slots.shared_state import SharedState

from . import kernel_state, seeding, tracebacks, wire, worker_loop
from .brief import BatchSource, Brief, Resume
from .recorder import Extract, Record
from .wire import Fields, Inbox, Token

CONTROL, STAY = "control", "stay"  # the concurrency groups

_SLOTS = 2  # one to write to, and one that user code may hold; see `SlotWriter.stop_lending`
_USERS = ("dataset", "collate_fn", "init_fn", "sample_spec")  # what of a source is in the parcel


class Orders(NamedTuple):
    """What a worker is told once, beside its parcel.

    Attributes:
        brief: the fields of its brief that are the same here.
        source: the fields of the source of its batches that are not in the parcel.
        max_slot_bytes: what a batch may take.
        gate: how the gate is.
        record: what the worker before it has recorded.
        machine: where that was; see `machine`.
        saved: the state of the random generators that it goes on from.
    """

    brief: dict[str, Any]
    source: dict[str, Any]
    max_slot_bytes: int
    gate: tuple[int, int]
    record: Extract
    machine: str
    saved: bytes | None


class Hello(NamedTuple):
    """What a worker says of itself when it has begun.

    Attributes:
        node: Ray's id of its node.
        pid: its process.
        machine: tells machines apart: their clocks differ.
        clock: its `time.monotonic_ns`.
    """

    node: str
    pid: int
    machine: str
    clock: int


class Reply(NamedTuple):
    """What has become of a call.

    Attributes:
        kind: of the token that a worker process would have sent; 0: there would have been none.
        offset: where in ``content`` the tail lies.
        nbytes: how long it is.
        content: the slot, up to the tail's end; None where nothing is in it.
        samples: how many samples the batch has.
        note: what was noted beside the slot, or of the beginning of a pass.
        saved: the state of the random generators for a successor, and its tag.
        record: what was recorded.
    """

    kind: int
    offset: int
    nbytes: int
    content: Block | None
    samples: int
    note: bytes | None
    saved: tuple[int, bytes] | None
    record: Extract


class Look(NamedTuple):
    """What an actor does now.

    Attributes:
        state: what the kernel knows of the thread that makes batches.
        frames: the Python frames that it is in, the innermost first, as far as they are the user's.
    """

    state: str
    frames: list[str]


def fields_of(brief: Brief) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns what a brief consists of: fields of its own, those of its source, and what of the user's is in that."""
    source = brief.source
    assert isinstance(source, BatchSource)
    own = {one.name: getattr(brief, one.name) for one in dataclasses.fields(brief)}
    if brief.snapshots is not None and brief.snapshots.resumes:  # those of others it does not need
        resumes = [one if worker == brief.worker else Resume() for worker, one in enumerate(brief.snapshots.resumes)]
        own["snapshots"] = dataclasses.replace(brief.snapshots, resumes=tuple(resumes))
    others = {one.name: getattr(source, one.name) for one in dataclasses.fields(source)}
    del own["arena"], own["source"]
    return own, others, {name: others.pop(name) for name in _USERS}


def machine() -> str:
    """Returns what is the same for all processes that have the same `time.monotonic_ns`."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class RayWorker:
    """The class of the actors."""

    def __init__(self) -> None:
        self._worker: _Worker | None = None
        self._lock = threading.Lock()  # of the threads of this process
        self._gate: tuple[int, int] | None = None
        self._is_stopped = False
        self._called = threading.Event()

    # -- where batches are made ----------------------------------------------------------------------------------

    def begin(self, orders: Orders, parcel: tuple[Any, ...], node: str | None = None) -> Hello:
        """Does what comes before the first batch.

        Args:
            orders: what this worker makes.
            parcel: of what; see `ray_parcel`.
            node: Ray's id of the node; None: Ray is asked.
        """
        if node is None:
            import ray

            node = ray.get_runtime_context().get_node_id()
        said = Hello(node, os.getpid(), machine(), time.monotonic_ns())
        worker = _Worker(orders, _unpacked(parcel), self._await_call)
        with self._lock:
            worker.shared_state.gate_words = orders.gate if self._gate is None else self._gate
            worker.shared_state.stopped = self._is_stopped
            self._worker = worker
        worker.begin()
        return said

    def make(self, job: bytes, seq: int, generation: int) -> Reply:
        """Makes a batch.

        Args:
            job: pickled indices.
            seq: its number.
            generation: of the pass.
        """
        assert self._worker is not None
        return self._worker.make(job, seq, generation)

    def resume(self, generation: int, shared_seed: int, epoch: int) -> Reply:
        """Begins another pass; see `SharedState` for the arguments."""
        assert self._worker is not None
        return self._worker.resume(generation, shared_seed, epoch)

    def finish(self) -> None:
        """Returns when all that was called for before is done."""

    def _await_call(self) -> bool:
        self._called.wait()
        self._called.clear()
        return not self._is_stopped

    # -- meanwhile -----------------------------------------------------------------------------------------------

    def set_gate(self, words: tuple[int, int]) -> None:
        """Has whoever waits at the gate look whether it may pass."""
        with self._lock:
            self._gate = words
            if self._worker is not None:
                self._worker.shared_state.gate_words = words
        self._called.set()

    def stop(self) -> None:
        """Drops what is not begun, and does not finish the batch if the gate is shut."""
        with self._lock:
            self._is_stopped = True
            if self._worker is not None:
                self._worker.shared_state.stopped = True
        self._called.set()

    def look(self) -> Look:
        """Returns what the thread does that makes batches."""
        thread = None if self._worker is None else self._worker.thread
        if thread is None:
            return Look("about to begin", [])
        state = kernel_state.read(f"/proc/self/task/{thread.native_id}")
        return Look(state, tracebacks.of_thread(thread.ident))

    def stay(self) -> None:
        """Does not return."""
        threading.Event().wait()


def _unpacked(parcel: tuple[Any, ...]) -> dict[str, Any]:
    from . import ray_parcel  # which imports Ray

    parts: dict[str, Any] = ray_parcel.unpack(ray_parcel.Parcel(*parcel))
    return parts


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

    def __init__(self, await_call: Any) -> None:
        super().__init__(list)
        self._await_call = await_call

    def put(self, token: Token) -> None:
        self._waiting = [token]

    def get_one(self, kind: int, curbed: dict[int, int]) -> Token | None:
        """Returns the answer to an ASK, that there is no more room; or waits for a CALL."""
        if kind == wire.CALL and not self._await_call():
            return None
        return Token(kind, 0, 0, 0)


class _Worker:
    """Makes batches. Used by the thread that makes them; `shared_state` by the others too.

    Args:
        orders: what it makes.
        parts: of what.
        await_call: blocks until the gate is another, and returns whether the worker is to go on.

    Attributes:
        thread: the thread.
        shared_state: the words beside its slots.
    """

    def __init__(self, orders: Orders, parts: dict[str, Any], await_call: Any) -> None:
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
        start = self._arena.start(self._slot)
        room = self._arena.stride
        if len(job) > room:
            raise MemoryError(f"the indices of batch {seq} take {len(job)} bytes, and a slot has {room}")
        self._arena.memory[start : start + len(job)] = job
        return self._serve(Token(wire.JOB, 0, self._number, generation, self._slot, seq, room, 0, len(job)))

    def resume(self, generation: int, shared_seed: int, epoch: int) -> Reply:
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
            return self._reply(done.kind, 0, 0, None, self.shared_state.noted_at_begin(self._number))
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
        return Reply(kind, offset, nbytes, content, samples, note, saved, record)
