"""Puts what Ray actors have made into slots. Runs in the parent, in the thread of the courier.

The thread stands in for the workers: it is the writer of their slots, and of what lies beside these.
"""

from __future__ import annotations

import time

import numpy as np

from shmloader.batches.packing import Packer
from shmloader.errors import PoolMemoryError, WorkerFault
from shmloader.slots.arena import Arena
from shmloader.slots.writer import SlotWriter
from shmloader.workers import fault_packing, wire
from shmloader.workers.brief import Brief
from shmloader.workers.recorder import Record
from shmloader.workers.threads.parent_queue import ParentQueue
from shmloader.workers.wire import Token

from .messages import Hello, Reply, machine


class Landing:
    """The slots of one worker, and the words beside them.

    Args:
        brief: of the worker.
        up: where its tokens go.
    """

    def __init__(self, brief: Brief, up: ParentQueue) -> None:
        self._brief = brief
        self._up = up
        self._arena: Arena = brief.arena
        self._shared_state = brief.arena.shared_state
        self._record = Record(brief.arena.shared_state.record(brief.worker))
        self._shift = 0

    def greet(self, hello: Hello) -> None:
        """Notes by which clock the worker tells times."""
        # Of another machine, a message's way is counted as a part of the difference.
        self._shift = 0 if hello.machine == machine() else time.monotonic_ns() - hello.clock

    def job_of(self, token: Token) -> bytes:
        """Returns what lies in the slot of a job."""
        start = self._arena.start(token.slot)
        return self._arena.memory[start : start + token.nbytes]

    @property
    def of_the_pass(self) -> tuple[int, int]:
        """What workers read when a pass begins: the shared seed, and the pass's number."""
        return self._shared_state.shared_seed, self._shared_state.epoch

    def read_call(self) -> tuple[int, int]:
        """Notes that a CALL was read, and returns how the gate is."""
        self._shared_state.count_call(self._brief.worker)
        return self._shared_state.gate_words

    def begin(self, seq: int) -> None:
        """Notes that the worker is at a batch."""
        self._shared_state.begin(self._brief.worker, seq)

    def fits(self, job: Token, reply: Reply, room: int) -> bool:
        """Whether what has come may be written to its slot; else it is asked for room."""
        need = reply.offset + reply.nbytes
        if need <= room:
            return True
        head = wire.ASK, 0, self._brief.worker, job.generation
        self._up.write((*head, job.slot, job.seq, need, 0, 0))
        return False

    def land(self, job: Token, reply: Reply) -> None:
        """Writes what has come to its slot, and beside it, and sends the token of it."""
        if reply.content is not None:
            np.copyto(self._arena.block(job.slot, len(reply.content)), reply.content)
        self._end(job, reply, reply.kind, reply.offset, reply.nbytes, reply.samples)

    def refuse(self, job: Token, reply: Reply) -> None:
        """Writes an error to a slot that has no room for what has come."""
        writer, packer = SlotWriter(self._arena, self._brief.cap_text), Packer()
        writer.open(job.slot, 0)
        writer.reserve(reply.offset + reply.nbytes)
        try:
            writer.require(self._brief.source.words)
        except PoolMemoryError:
            fault = WorkerFault(where=f"in {self._brief.worker_text}")
        writer.grant(0)
        fault_packing.lay_out(fault, packer, writer)
        if writer.shortage:
            packer.drop()
            fault_packing.lay_out_text(fault, packer, writer)
        packed = packer.fill(writer)
        writer.close()
        self._end(job, reply, wire.FAULT, packed.tail_offset, len(packed.tail), 0)

    def _end(self, job: Token, reply: Reply, kind: int, offset: int, nbytes: int, samples: int) -> None:
        shared_state, number = self._shared_state, self._brief.worker
        if reply.note is not None or shared_state.note_lengths[job.slot]:
            shared_state.note(job.slot, reply.note)
        shared_state.samples[job.slot] = samples
        if reply.between is not None:
            shared_state.note_at_begin(number, reply.between)
        self._keep(reply, job.slot)
        self._up.write((kind, 0, number, job.generation, job.slot, job.seq, 0, offset, nbytes))

    def resume(self, token: Token, reply: Reply) -> None:
        """Writes what has come of a worker that begins another pass, and sends the token of it."""
        self._shared_state.note_at_begin(self._brief.worker, reply.between)
        self._keep(reply, None)
        self._up.write((wire.RESUMED, 0, self._brief.worker, token.generation, 0, 0, 0, 0, 0))

    def _keep(self, reply: Reply, slot: int | None) -> None:
        if reply.saved is not None:
            self._shared_state.save(self._brief.worker, *reply.saved)
        self._record.insert(reply.record, slot, self._shift)
