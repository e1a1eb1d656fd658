"""A worker process: job in, slot filled, token out.

What user code can observe here is torch's worker loop: seeds, `get_worker_info`, thread count, process name, the
order of calls, and the text of errors (torch/utils/data/_utils/worker.py says what they are).
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.random  # which numpy would import when it is first used: in every worker anew
import torch
from torch.utils.data import IterDataPipe, default_collate, graph_settings
from torch.utils.data import _DatasetKind as DatasetKind
from torch.utils.data._utils import signal_handling
from torch.utils.data._utils import worker as torch_worker

from shmloader.batches import unpicklable
from shmloader.batches.packing import Packer
from shmloader.collate.checked import CheckedCollate
from shmloader.collate.columns import ColumnCollate
from shmloader.collate.default import DirectCollation
from shmloader.collate.templates import Template, Templates
from shmloader.collate.write_into import DirectFetcher, way_of
from shmloader.errors import PoolMemoryError, WorkerFault
from shmloader.slots import fork_copies, moved_storages
from shmloader.slots.arena import Arena
from shmloader.slots.writer import SlotWriter

from . import parent_watch, seeding, tracebacks, wire
from .cpu_policy import PolicyTrial
from .wire import Inbox, PipeEnd, Token


@dataclass(frozen=True)
class Assignment:
    """What is loaded, and how; the same for all workers."""

    dataset: Any
    dataset_kind: int
    auto_collation: bool
    collate_fn: Callable[[Any], Any]
    drop_last: bool
    init_fn: Callable[[int], None] | None
    base_seed: int
    shared_seed: int | None
    sample_spec: Any

    @property
    def is_stream(self) -> bool:
        """Whether the dataset is iterable."""
        return self.dataset_kind == DatasetKind.Iterable


@dataclass
class Brief:
    """What a worker needs to know; handed over once, when it starts."""

    worker: int
    num_workers: int
    assignment: Assignment
    parent_pid: int
    dies_by_kernel: bool  # see `lifeline`
    arena: Arena
    cap_text: str
    inbox: PipeEnd
    outbox: PipeEnd
    stack_outlet: PipeEnd
    slots_to_map: int
    bytes_to_map: int
    close_first: Sequence[int]  # the parent's ends of pipes, which a forked child has open too
    keeps_streams: bool  # whether the state of the random streams is kept for a successor
    generation: int
    predecessor: int | None = None  # the number under which one who has died has kept its streams
    to_skip: int = 0  # batches of this pass over a stream that the predecessor is done with
    any_job: bytes = b""  # pickled indices of one of them; a stream's jobs are all alike


def run(brief: Brief) -> None:
    """Serves jobs until told to stop or the parent has ended. The target of the worker process."""
    # What was inherited is left out of garbage collections: looking at an object writes to it, which would copy every
    # page that the parent has objects on.
    gc.freeze()
    for fd in brief.close_first:
        os.close(fd)
    try:
        parent = os.pidfd_open(brief.parent_pid)
    except ProcessLookupError:
        return
    brief.arena.own()
    by_kernel = parent_watch.end_with_parent(parent, brief.dies_by_kernel)
    tracebacks.answer(brief.stack_outlet)
    _prepare_process()
    _seed(brief)
    try:
        worker = _Worker(brief, Inbox(brief.inbox))
        worker.prepare()
        if by_kernel:  # an init function may have given up rights
            parent_watch.end_with_parent(parent, by_kernel)
        worker.serve()
    except BaseException as error:
        _leave(error)


def _leave(error: BaseException) -> NoReturn:
    """Ends this process as an exception ends Python, but at once: a thread of the dataset's might never let it end."""
    code = 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif error.code is None or isinstance(error.code, int):
        code = error.code or 0
    else:
        print(error.code, file=sys.stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _prepare_process() -> None:
    # Ctrl-C reaches every process of the terminal; the parent decides what becomes of it. A handler that does nothing,
    # and not SIG_IGN, since programs that the dataset starts would inherit that.
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked since before the fork, see workers._start
    signal_handling._set_worker_signal_handlers()  # type: ignore[attr-defined]
    torch.multiprocessing._set_thread_name("pt_data_worker")
    torch.set_num_threads(1)
    # Where memory is short, the kernel ends the process that uses most, and that may be the training loop, which maps
    # the whole pool. A worker that is ended is an error that says so, or is replaced.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _seed(brief: Brief) -> None:
    base_seed = brief.assignment.base_seed
    seed = base_seed + brief.worker
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(torch_worker._generate_state(base_seed, brief.worker))


class _Worker:
    def __init__(self, brief: Brief, inbox: Inbox) -> None:
        assignment = brief.assignment
        self._brief = brief
        self._inbox = inbox
        self._generation = brief.generation
        self._made = 0 if brief.predecessor is None else brief.predecessor
        self._is_stream = assignment.is_stream
        self._dataset = assignment.dataset
        self._writer = SlotWriter(brief.arena, brief.cap_text, self._ask_for_room)
        self._packer = Packer()
        self._job = Token(wire.JOB, brief.worker, 0)
        self._shared_rng = torch.Generator()
        self._collation = DirectCollation(self._writer)
        self._templates = Templates(self._writer)
        if assignment.collate_fn is default_collate:
            collate_fn: Callable[[Any], Any] = ColumnCollate(self._templates, self._writer, self._collation.is_default)
        else:
            collate_fn = self._writer.lending_to(assignment.collate_fn)
        self._collate = collate_fn
        self._check: CheckedCollate | None = None
        if assignment.sample_spec is not None:
            self._check = self._collate = CheckedCollate(collate_fn, assignment.sample_spec, assignment.auto_collation)
        self._shared_state = brief.arena.shared_state
        self._fetcher: Any = None
        self._init_fault: WorkerFault | None = None
        self._ended = False
        self._policy = PolicyTrial()
        self._curbed: dict[int, int] = {}  # jobs whose slots may use less by now than their tokens say

    def prepare(self) -> None:
        """Calls the init function, and does what else comes before the first job."""
        moved_storages.install()
        fork_copies.watch(self._writer)
        os.register_at_fork(after_in_child=self._writer.leave_to_parent)
        self._map_slots()
        self._init()

    def serve(self) -> None:
        """Does one job after the other, until told to stop."""
        while (token := self._inbox.get()) is not None and token.kind != wire.STOP:
            if token.kind == wire.RESUME:
                self._resume(token)
            elif not self._ended and not self._shared_state.stopped:
                self._serve_job(token)

    def _map_slots(self) -> None:
        # The parent has made the memory resident; this enters it into this process's page table, which would
        # otherwise cost a fault a page in the first batches. Failing, it costs just that.
        with contextlib.suppress(PoolMemoryError):
            for slot in range(self._brief.slots_to_map):
                self._brief.arena.populate(slot, self._brief.bytes_to_map)

    def _init(self) -> None:
        brief, assignment = self._brief, self._brief.assignment
        self._shuffle_datapipes(assignment.shared_seed)
        seed = assignment.base_seed + brief.worker
        torch_worker._worker_info = torch_worker.WorkerInfo(
            id=brief.worker, num_workers=brief.num_workers, seed=seed, dataset=self._dataset
        )
        self._collation.install()
        self._begin_pass(is_first=True)

    def _begin_pass(self, is_first: bool = False) -> None:
        assignment = self._brief.assignment
        self._ended = False
        self._init_fault = None
        self._templates.forget()
        try:
            if is_first and assignment.init_fn is not None:
                assignment.init_fn(self._brief.worker)
            # What is taken over is kept already, and kept again under the same number it could be torn by a death.
            if not self._take_over_streams() and is_first and self._is_stream:
                self._keep_streams(self._generation)
            self._fetcher = DatasetKind.create_fetcher(
                assignment.dataset_kind,
                self._dataset,
                assignment.auto_collation,
                self._collate,
                assignment.drop_last,
            )
            is_default = assignment.collate_fn is default_collate and self._collation.is_default()
            has_batches = assignment.auto_collation and not self._is_stream
            if is_default and has_batches and (way := way_of(self._dataset)) is not None:
                self._fetcher = DirectFetcher(self._fetcher, self._collation, self._templates, self._writer, way)
            self._skip()
        except Exception:
            self._init_fault = self._fault()
        finally:
            self._end_if_forked()

    def _skip(self) -> None:
        """Makes once more what was delivered already, so that the stream and the random streams are where they were."""
        to_skip, self._brief.to_skip = self._brief.to_skip, 0
        for _ in range(to_skip):
            if self._shared_state.stopped:
                return
            with contextlib.suppress(Exception):  # which was delivered too
                self._fetch(pickle.loads(self._brief.any_job))

    def _fetch(self, index: Any) -> Any:
        if self._check is not None:
            self._check.indices = index
        try:
            return self._fetcher.fetch(index)
        finally:
            self._end_if_forked()

    def _end_if_forked(self) -> None:
        """Ends a process that the user's code has forked and let come back: its jobs and its slot are the worker's."""
        if self._writer.is_inherited:
            os._exit(1)

    def _take_over_streams(self) -> bool:
        """Restores what the predecessor has kept, and returns whether there was anything."""
        number, self._brief.predecessor = self._brief.predecessor, None
        state = None if number is None else self._shared_state.saved(self._brief.worker, number)
        if state is not None:
            seeding.restore(state)
        return state is not None

    def _keep_streams(self, number: int) -> None:
        if self._brief.keeps_streams:
            self._shared_state.save(self._brief.worker, number, seeding.capture())

    def _resume(self, token: Token) -> None:
        self._curbed.clear()
        self._brief.predecessor, self._brief.to_skip = None, 0  # where the pass before did not come to that
        self._generation = token.generation
        if self._is_stream:  # before the parent knows of the pass, which a successor would begin with this
            self._keep_streams(self._generation)
        self._send(wire.RESUMED)
        self._shuffle_datapipes(token.size)
        self._begin_pass()

    def _shuffle_datapipes(self, shared_seed: int | None) -> None:
        if isinstance(self._dataset, IterDataPipe):
            assert shared_seed is not None
            self._shared_rng.manual_seed(shared_seed)
            self._dataset = graph_settings.apply_random_seed(self._dataset, self._shared_rng)

    def _serve_job(self, job: Token) -> None:
        self._job = job
        self._shared_state.begin(self._brief.worker, job.seq)
        self._writer.open(job.slot, self._curbed.pop(job.seq, job.room))
        kind, offset, nbytes = self._fill(job)
        self._writer.close()
        if self._writer.is_held:
            # Whoever keeps one batch will keep another, and each would cost a slot. Or it was a reference cycle, and
            # looking for those after each batch would cost more than direct collation saves.
            self._writer.keep_out()
            gc.collect()
            if self._writer.is_held:
                kind |= wire.KEPT
        self._made += 1
        self._policy.count()
        if not self._is_stream:
            self._keep_streams(self._made)
        self._send(kind, job.slot, job.seq, offset, nbytes)

    def _fill(self, job: Token) -> tuple[int, int, int]:
        """Makes the batch and writes it into the slot; returns what a token says of it."""
        if self._init_fault is not None:
            return (wire.FAULT, *self._pack_fault(self._init_fault))
        try:
            start = self._brief.arena.start(job.slot)
            batch = self._fetch(pickle.loads(self._brief.arena.memory[start : start + job.size]))
            if type(batch) is Template:
                self._writer.write(batch.tail_offset, batch.tail)
                return wire.BATCH, batch.tail_offset, len(batch.tail)
            return self._pack(batch)
        except Exception as error:
            if isinstance(error, StopIteration) and self._is_stream:
                self._ended = True
                return wire.ENDED, 0, 0
            return (wire.FAULT, *self._pack_fault(self._fault()))

    def _pack(self, batch: Any) -> tuple[int, int, int]:
        try:
            packed = self._packer.pack(batch, self._writer)
        except PoolMemoryError:
            raise
        except Exception as error:  # where torch's loader waits for ever
            collate_fn = self._brief.assignment.collate_fn
            name = getattr(collate_fn, "__qualname__", type(collate_fn).__qualname__)
            culprit = unpicklable.describe(batch, error, self._packer.can_pack)
            fault = self._fault(f", sending what collate_fn ({name}) returned: {culprit}")
            return (wire.FAULT, *self._pack_fault(fault))
        if self._templates.is_wanted and self._collation.is_default() and not self._packer.has_asked_others:
            self._templates.learn(batch, *packed)
        return (wire.BATCH, *packed)

    def _fault(self, at: str = "") -> WorkerFault:
        return WorkerFault(where=f"in DataLoader worker process {self._brief.worker}{at}")

    def _pack_fault(self, fault: WorkerFault) -> tuple[int, int]:
        """Packs an exception; one whose class or size does not travel becomes a RuntimeError that says what it was."""
        self._writer.reclaim()
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(fault))
            return self._packer.pack(fault, self._writer)
        fault.as_text()
        self._writer.rewind()
        return self._packer.pack(fault, self._writer)  # for so much there is room, see `SlotWriter.array`

    def _ask_for_room(self, need: int, written: int) -> int:
        self._send(wire.ASK, self._job.slot, self._job.seq, need, written)
        grant = self._inbox.get_grant(self._curbed)
        return grant.room if grant is not None else 0

    def _send(self, kind: int, slot: int = 0, seq: int = 0, size: int = 0, room: int = 0) -> None:
        generation = self._generation if kind == wire.RESUMED else self._job.generation
        self._brief.outbox.write((kind, self._brief.worker, generation, slot, seq, size, room))
