"""Makes batches: job in, slot filled. It has to do with no transport, so that all kinds of workers share it.

What user code can observe here is torch's worker loop: the order of calls, and the text of errors
(torch/utils/data/_utils/worker.py says what they are).
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch.utils.data import default_collate

from shmloader.batches import unpicklable
from shmloader.batches.packing import Packer
from shmloader.batches.structure import leaves
from shmloader.collate import seeded
from shmloader.collate.checked import CheckedCollate
from shmloader.collate.chunk_fetcher import ChunkFetcher
from shmloader.collate.columns import ColumnCollate
from shmloader.collate.default import DirectCollation
from shmloader.collate.templates import Template, Templates
from shmloader.collate.write_into import DirectFetcher, as_is, way_of
from shmloader.data.chunks import rows_of
from shmloader.errors import PoolMemoryError, WorkerFault
from shmloader.slots.writer import SlotWriter
from shmloader.torch_private import DatasetKind, IterDataPipe, graph_settings

from . import fault_packing
from .brief import BatchSource, Brief, Resume
from .recorder import Recorder
from .states import generators, seeding, snapshots
from .states.snapshots import Stated, WorkerSnapshots
from .timed_gate import TimedGate


class Contents(IntEnum):
    """What a slot holds when its job is done."""

    BATCH = 0
    FAULT = 1  # an exception, in the batch's place
    NOTHING = 2  # the iterable dataset has ended


_Done = tuple[Contents, int, int]  # and the offset and the length of the tail


class Outcome(NamedTuple):
    """A job that is done.

    Attributes:
        contents: what is in the slot.
        offset: where its tail lies.
        nbytes: the tail's length.
        is_held: whether user code holds tensors of the slot, which must not be written again.
    """

    contents: Contents
    offset: int
    nbytes: int
    is_held: bool


class Shortage(NamedTuple):
    """A job that goes on when it is known how much of the slot may be used.

    Attributes:
        need: bytes that the slot needs.
        to_stay: its first bytes that have to stay as they are.
    """

    need: int
    to_stay: int


class BatchMaker:
    """Makes the batches of one worker, one at a time. Used by one thread.

    For each job `make` is called, and as long as that returns a `Shortage`, `go_on`.

    Args:
        brief: what is made.

    Attributes:
        dataset: the user's, shuffled if it is an IterDataPipe.
        writer: writes to slots.
        collation: what torch's default collate functions are to be replaced by, in the process or the thread.
        gate: where samples wait while the loader is paused.
        recorder: writes down what is done when.
        has_ended: whether the iterable dataset has no more in this pass, so that there is nothing to be made.
    """

    def __init__(self, brief: Brief) -> None:
        source = brief.source
        assert isinstance(source, BatchSource)
        self._brief = brief
        self._source = source
        self._shared_state = brief.arena.shared_state
        self._takeover = brief.takeover
        self._epoch = source.epoch
        self._made = 0 if brief.takeover is None else brief.takeover.tag
        self._packer = Packer()
        self.recorder = Recorder(self._shared_state.record(brief.worker), self._shared_state.samples)
        self.gate = TimedGate(self._shared_state, brief.worker, self.recorder)
        self._each = self.gate.enter  # how a fetcher goes through what it is asked for
        self._shared_rng = torch.Generator()
        self._fetcher: Any = None
        self._laid_out: Any = None  # what is packed as soon as there is room: a batch, or a fault
        self._init_fault: WorkerFault | None = None
        self._snapshots = None if brief.snapshots is None else WorkerSnapshots(brief, brief.snapshots)
        self._slot = -1
        self._tells_states = False  # whether those of the dataset are told with each batch
        self._is_over = False  # what a resumed pass has of the stream
        self.dataset = source.dataset
        self.writer = SlotWriter(brief.arena, brief.cap_text)
        self.collation = DirectCollation(self.writer)
        self.has_ended = False
        self._templates = Templates(self.writer)
        if source.collate_fn is default_collate:
            collate_fn: Callable[[Any], Any] = ColumnCollate(self._templates, self.writer, self.collation.is_default)
        else:
            collate_fn = self.writer.lending_to(source.collate_fn)
        self._collate = collate_fn
        self._shuffle(source.shared_seed)
        self._check: CheckedCollate | None = None
        if source.sample_spec is not None:
            self._check = self._collate = CheckedCollate(collate_fn, source.sample_spec, source.auto_collation)
        self._collate = self.recorder.collating(self._collate, source.auto_collation)

    # -- passes --------------------------------------------------------------------------------------------------

    def begin_first_pass(self) -> None:
        """Calls the init function, and does what else comes before the first job."""
        self._begin_pass(is_first=True)

    def end_pass(self, next_generation: int) -> None:
        """Saves what a successor would begin the next pass with. Called before the parent knows that it begins."""
        self._takeover = None  # where the pass before did not come to that
        if self._snapshots is not None:
            self._snapshots.end_pass(self.dataset)
        if self._source.is_stream:
            self._save_rng_state(next_generation)

    def begin_pass(self, shared_seed: int, epoch: int) -> None:
        """Begins another pass."""
        self._epoch = epoch
        self._shuffle(shared_seed)
        self._begin_pass(is_first=False)

    def _shuffle(self, shared_seed: int | None) -> None:
        """Shuffles an IterDataPipe, as torch's worker loop does at the beginning of each pass."""
        if isinstance(self.dataset, IterDataPipe):
            assert shared_seed is not None
            self._shared_rng.manual_seed(shared_seed)
            self.dataset = graph_settings.apply_random_seed(self.dataset, self._shared_rng)

    def _begin_pass(self, is_first: bool) -> None:
        source = self._source
        self.has_ended = False
        self._init_fault = None
        self._is_over = False
        self.recorder.begin_pass()
        self._templates.forget()
        try:
            if is_first and source.init_fn is not None:
                source.init_fn(self._brief.worker)
            resume = self._resume if is_first else Resume()
            is_taken_over = self._take_over_rng_state()
            if not is_taken_over and resume.at_begin is not None:
                generators.restore(resume.at_begin)
            # What is taken over is saved already; saved again under the same number, a death could tear it.
            if not is_taken_over and is_first and source.is_stream:
                self._save_rng_state(self._brief.generation)
            snapshots.load_dataset(self.dataset, resume.data)
            self._fetcher = self._new_fetcher()
            self._take_up(resume, is_taken_over)
            self._skip()
            if self._snapshots is not None:
                self._tells_states = self._snapshots.begin(self.dataset, self._fetcher)
        except Exception:
            self._init_fault = self._fault()
        finally:
            self._end_if_forked()
        self.recorder.rest()

    @property
    def _resume(self) -> Resume:
        resume = None if self._snapshots is None else self._snapshots.resume
        return Resume() if resume is None else resume

    def _take_up(self, resume: Resume, is_taken_over: bool) -> None:
        """Goes to where another loader was in this pass.

        In a map-style dataset, what is taken over from a worker that has died came after that.
        """
        snapshots.load_iterator(self._fetcher, resume.data)
        self._make_again(resume.to_skip, resume.any_job)
        if resume.generators is not None and (self._source.is_stream or not is_taken_over):
            generators.restore(resume.generators)
        self._is_over = resume.is_over

    def _new_fetcher(self) -> Any:
        source = self._source
        is_default = source.collate_fn is default_collate and self.collation.is_default()
        is_direct = is_default and source.auto_collation
        seed = None if source.sample_seed is None else seeding.SampleSeeder(source.sample_seed, self._epoch)
        # Chunks are read by ranges, and a row that is to be seeded for has to be read by itself.
        rows = rows_of(self.dataset) if is_direct and source.is_stream and seed is None else None
        read = self.dataset if rows is None else rows
        fetcher = DatasetKind.create_fetcher(
            source.dataset_kind,
            read if seed is None else seeded.dataset(read, seed, source.is_stream),
            source.auto_collation,
            self._collate,
            source.drop_last,
        )
        made_by = self.collation, self._templates, self.writer
        is_one_call = seed is None and not source.is_stream and seeded.makes_several(self.dataset)
        each = self.gate.each if source.auto_collation and not is_one_call else as_is
        self._each = self.gate.enter
        if rows is not None:
            return ChunkFetcher(fetcher, rows, source.drop_last, *made_by, self._check, self.gate.wait, each)
        if is_direct and not source.is_stream and (way := way_of(self.dataset, self.gate.each)) is not None:
            way = way if seed is None else seeded.way(way, self.dataset, seed, self.gate.each)
            return DirectFetcher(fetcher, *made_by, way, each)
        self._each = self.gate.enter if each is as_is else each
        return fetcher

    def _skip(self) -> None:
        """Makes once more what was delivered already, so that stream and random generators are where they were."""
        takeover, self._takeover = self._takeover, None
        if takeover is not None:
            self._make_again(takeover.to_skip, takeover.any_job)

    def _make_again(self, count: int, any_job: bytes) -> None:
        for _ in range(count):
            if self._shared_state.stopped:
                return
            with contextlib.suppress(Exception):  # which was delivered too
                self._fetch(pickle.loads(any_job))

    def _take_over_rng_state(self) -> bool:
        """Restores what the predecessor has saved, and returns whether there was anything."""
        if self._takeover is None:
            return False
        state = self._shared_state.saved(self._brief.worker, self._takeover.tag)
        if state is not None:
            generators.restore(state)
        return state is not None

    def _save_rng_state(self, tag: int) -> None:
        if self._brief.saves_rng_state:
            self._shared_state.save(self._brief.worker, tag, generators.capture())

    # -- batches -------------------------------------------------------------------------------------------------

    def make(self, slot: int, seq: int, room: int, job_bytes: int) -> Outcome | Shortage:
        """Makes a batch.

        Args:
            slot: where to; its first bytes are the job, pickled indices.
            seq: the batch's number.
            room: bytes of the slot that may be used.
            job_bytes: how long the job is.
        """
        self.recorder.begin(seq, slot, self._shared_state.begin(self._brief.worker, seq))
        self._slot = slot
        self.gate.seq = seq
        self.writer.open(slot, room)
        return self._end(self._make(slot, seq, job_bytes))

    def go_on(self, room: int) -> Outcome | Shortage:
        """Goes on with a job that was short of room.

        Args:
            room: bytes that the slot may use now; 0: it has to do with what any slot may use.
        """
        self.writer.grant(room)
        return self._end(self._fill_or_give_in())

    def _end(self, done: _Done | Shortage) -> Outcome | Shortage:
        """Ends a job. The batch is nobody's now but user code's: no frame of this class holds it any more."""
        if isinstance(done, Shortage):
            return done
        self.writer.close()
        is_held = self.writer.is_held
        if is_held:
            # Code that keeps one batch will keep another, and each would cost a slot. Or it was a reference cycle, and
            # looking for those after each batch would cost more than direct collation saves.
            self.writer.stop_lending()
            gc.collect()
            is_held = self.writer.is_held
        self._made += 1
        if not self._source.is_stream:
            self._save_rng_state(self._made)
        if self._snapshots is not None:
            self._snapshots.note(self._slot)
        return Outcome(*done, is_held)

    def _make(self, slot: int, seq: int, job_bytes: int) -> _Done | Shortage:
        if self._init_fault is not None:
            return self._pack_fault(self._init_fault)
        try:
            if self._is_over:
                raise StopIteration
            start = self._brief.arena.start(slot)
            batch = self._fetch(pickle.loads(self._brief.arena.memory[start : start + job_bytes]))
            if self._tells_states and self._snapshots is not None:
                batch = self._snapshots.with_states(batch, seq, self.dataset, self._fetcher)
            if type(batch) is Template:
                self.writer.write(batch.tail_offset, batch.tail)
                return Contents.BATCH, batch.tail_offset, len(batch.tail)
            return self._pack(batch)
        except Exception as error:
            if isinstance(error, StopIteration) and self._source.is_stream:
                self.has_ended = True
                if self._snapshots is not None:
                    self._snapshots.end_stream(self.dataset)
                return Contents.NOTHING, 0, 0
            return self._pack_fault(self._fault())

    def _fetch(self, index: Any) -> Any:
        if self._check is not None:
            self._check.indices = index
        recorder = self.recorder
        recorder.indices = index
        try:
            batch = self._fetcher.fetch(self._each(index))
        finally:
            self._end_if_forked()
        if not recorder.samples:  # they were not collated, but written into the slot
            recorder.samples = self._count(index, batch)
        return batch

    def _count(self, index: Any, batch: Any) -> int:
        """Returns how many samples a batch has that no list of samples was collated to."""
        if not self._source.auto_collation:
            return 1
        try:
            # The last batch of a stream has fewer samples than it was asked for; no template is of such a one.
            return len(index if type(batch) is Template else next(leaves(batch)))
        except (TypeError, StopIteration):
            return 0

    def _end_if_forked(self) -> None:
        """Ends a process that the user's code has forked and let come back: its jobs and its slot are the worker's."""
        if self.writer.is_inherited:
            os._exit(1)

    def _pack(self, batch: Any) -> _Done | Shortage:
        try:
            self._packer.lay_out(batch, self.writer)
        except Exception as error:  # where torch's loader waits for ever
            collate_fn = self._source.collate_fn
            name = getattr(collate_fn, "__qualname__", type(collate_fn).__qualname__)
            if type(batch) is Stated:
                batch = batch.batch
            culprit = unpicklable.describe(batch, error, self._packer.can_pack)
            return self._pack_fault(
                self._fault(f", sending what {self._source.words.maker} ({name}) returned: {culprit}")
            )
        finally:
            self._end_if_forked()
        self._laid_out = batch
        return self._fill_or_ask()

    def _pack_fault(self, fault: WorkerFault) -> _Done | Shortage:
        fault_packing.lay_out(fault, self._packer, self.writer)
        self._laid_out = fault
        return self._fill_or_ask()

    def _fill_or_ask(self) -> _Done | Shortage:
        need = self.writer.shortage
        return Shortage(need, self.writer.to_stay) if need else self._fill()

    def _fill_or_give_in(self) -> _Done | Shortage:
        """Writes what is laid out; if there is no room, an exception that says so, or what fits of an exception."""
        if not self.writer.shortage:
            return self._fill()
        laid_out, self._laid_out = self._laid_out, None
        self._packer.drop()
        if isinstance(laid_out, WorkerFault):
            fault_packing.lay_out_text(laid_out, self._packer, self.writer)
            self._laid_out = laid_out
            return self._fill_or_ask()
        del laid_out  # what it has of the slot may be used again
        try:
            self.writer.require(self._source.words)
        except PoolMemoryError:
            fault = self._fault()
        return self._pack_fault(fault)

    def _fill(self) -> _Done:
        laid_out, self._laid_out = self._laid_out, None
        packed = self._packer.fill(self.writer)
        if isinstance(laid_out, WorkerFault):
            return Contents.FAULT, packed.tail_offset, len(packed.tail)
        # No template has room for the states that a batch may come with.
        if (
            not self._tells_states
            and self._templates.is_wanted
            and self.collation.is_default()
            and not self._packer.has_asked_others
            and not self.collation.has_lent_storage()
        ):
            self._templates.learn(laid_out, packed)
        return Contents.BATCH, packed.tail_offset, len(packed.tail)

    def _fault(self, at: str = "") -> WorkerFault:
        return WorkerFault(where=f"in {self._brief.worker_text}{at}")
