"""Batches in the making: jobs go out to the workers, tokens come in, and batches leave in their turn.

Everything that the parent knows of one set of workers meets here: the schedule says who is asked, the pool where the
batch goes, the crew carries the tokens, and a worker that dies is replaced or ends it all.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from typing import Any

from shmloader import interrupts
from shmloader.errors import WorkerDiedError, WorkerRestartWarning, WorkerTimeoutError
from shmloader.slots.pool import NO_SLOT, Packed, Pool
from shmloader.workers import jobs, parent_watch, process_main, processes, wire
from shmloader.workers.process_main import Assignment
from shmloader.workers.processes import ProcessWorkers, SilenceError
from shmloader.workers.wire import PipeEnd, Token

from . import diagnosis
from .growth_requests import GrowthRequests
from .restarts import RestartPolicy, Tally
from .schedule import Schedule

# What workers may take to end after a Ctrl-C, before they are ended; whoever pressed it is waiting.
_IMPATIENCE_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Terms:
    """How batches are made.

    Attributes:
        num_workers: worker processes.
        prefetch_factor: batches per worker that may be under way.
        in_order: whether batches leave by number.
        persistent: whether workers stay for another pass.
        worker_restarts: how many workers that die in a pass are replaced.
        slots_to_map: how many slots a new worker maps before its first batch.
        bytes_to_map: and how much of each.
    """

    num_workers: int
    prefetch_factor: int
    in_order: bool
    persistent: bool
    worker_restarts: int
    slots_to_map: int
    bytes_to_map: int


class Dispatcher:
    """The workers of one iterator, and the batches that they make. Used in the parent.

    Args:
        assignment: what is loaded.
        terms: how.
        pool: where batches go.
        context: the multiprocessing context that makes the workers.
        tally: counts the workers that are replaced.

    Raises:
        ValueError: so many batches cannot be under way.
    """

    def __init__(self, assignment: Assignment, terms: Terms, pool: Pool, context: Any, tally: Tally) -> None:
        self.is_open = True
        self._assignment = self._assignment_before = assignment
        self._terms = terms
        self._pool = pool
        self._shared_state = pool.arena.shared_state
        self._schedule = self._new_schedule()
        self._restarts = RestartPolicy(terms.worker_restarts, tally)
        self._requests = GrowthRequests(pool)
        self._generation = 0
        self._resuming: set[int] = set()
        self._received = [0] * terms.num_workers  # batches and faults, of each worker and those that it succeeds
        self._received_before = [0] * terms.num_workers  # those of earlier passes
        self._job = b""
        self._workers = ProcessWorkers(context, terms.num_workers, self._schedule.look_ahead)
        _open.add(self)

    # -- passes --------------------------------------------------------------------------------------------------

    @property
    def look_ahead(self) -> int:
        """How many batches may be under way."""
        return self._schedule.look_ahead

    @property
    def processes(self) -> list[Any]:
        """The worker processes."""
        return self._workers.processes

    def _new_schedule(self) -> Schedule[Packed]:
        return Schedule(self._terms.num_workers, self._terms.prefetch_factor, self._terms.in_order)

    def start(self) -> None:
        """Starts the workers.

        Raises:
            Exception: one cannot be started; where something of the user's cannot be pickled, the error names it.
        """
        self._shared_state.stopped = False
        for number in range(self._terms.num_workers):
            self._shared_state.idle(number)
            self._shared_state.forget(number)
        try:
            self._workers.start(process_main.run, self._make_brief)
        except Exception as error:
            names = {"dataset": "dataset", "collate_fn": "collate_fn", "init_fn": "worker_init_fn"}
            parts = {name: getattr(self._assignment, field) for field, name in names.items()}
            raise (diagnosis.failed_start(error, self._workers, parts) or error) from error.__cause__

    def resume(self, shared_seed: int | None, timeout: float) -> None:
        """Begins another pass with the same workers.

        Blocks until each of them is done with what it was asked for before. May be called again where it failed.

        Args:
            shared_seed: what DataPipes are shuffled by.
            timeout: as for `take`.

        Raises:
            WorkerTimeoutError, WorkerDiedError: as `take`.
        """
        self._assignment_before = self._assignment
        self._assignment = dataclasses.replace(self._assignment, shared_seed=shared_seed)
        self._drop_batches()
        self._generation += 1
        self._restarts = RestartPolicy(self._terms.worker_restarts, self._restarts.tally)
        self._resuming = set(range(self._terms.num_workers))
        for number in range(self._terms.num_workers):
            self._tell_to_resume(number)
        while self._resuming:
            for token in self._receive(timeout):
                self._handle(token)
            self._drop_batches()
        self._pool.withdraw_all()
        self._schedule = self._new_schedule()

    def _tell_to_resume(self, number: int) -> None:
        self._tell(number, wire.RESUME, size=self._assignment.shared_seed or 0)

    def _drop_batches(self) -> None:
        for task in self._schedule.made():
            assert task.result is not None
            self._pool.release(task.result)
            self._schedule.forget(task.seq)
        self._requests.refuse_all(self._tell)

    # -- batches -------------------------------------------------------------------------------------------------

    def ask(self, index: Any) -> None:
        """Asks the worker whose turn it is for the batch of ``index``, if one can take it. Does not block."""
        number = self._schedule.next_worker()
        if number is None:
            return
        try:
            job = jobs.pickled(index)
            slot, room = self._pool.claim(job)
        except Exception as error:  # its batch cannot be had; those before it can, and those after
            task = self._schedule.send(number, b"", NO_SLOT)
            self._schedule.arrive(task.seq, Packed(NO_SLOT, 0, 0, error=error))
            return
        self._job = job
        task = self._schedule.send(number, job, slot)
        self._tell(number, wire.JOB, slot, task.seq, len(job), room)

    def dismiss_idle(self) -> None:
        """Lets workers end that owe nothing, since no more will be asked for. Does not block.

        A process takes some milliseconds to end, in which the loop can go on with the last batches. Not where tensors
        of other devices may be in these, which end with the process that has made them; such workers are not forked.
        """
        if self._workers.is_forked:
            for number in range(self._terms.num_workers):
                if not self._schedule.load(number):
                    self._workers.dismiss(number, Token(wire.STOP, number, self._generation))

    def take(self, ask_for_more: Callable[[], None], timeout: float) -> Packed | None:
        """Returns the next batch, or None when there is none in this pass.

        Blocks until it is made; a worker's end and the timeout wake it too.

        Args:
            ask_for_more: called for each worker that has no more data, since others may have.
            timeout: seconds to wait for a token; 0: for ever.

        Raises:
            WorkerTimeoutError: nothing came within the timeout. It can be called again.
            WorkerDiedError: a worker has ended, and is not replaced. All that is left to do is to close.
        """
        while (task := self._schedule.take()) is None:
            if self._schedule.done:
                return None
            if self._requests:
                self._requests.answer(self._schedule, self._tell)
            for token in self._receive(timeout):
                if self._handle(token):
                    ask_for_more()
        return task.result

    def is_ready(self, ask_for_more: Callable[[], None]) -> bool:
        """Whether `take` would have a batch without waiting. Does not block; acts on what tokens there are.

        Args:
            ask_for_more: see `take`.
        """
        if not self._schedule.is_ready:
            for token in self._workers.read():
                if self._handle(token):
                    ask_for_more()
        return self._schedule.is_ready

    def _receive(self, timeout: float) -> list[Token]:
        """Waits for tokens, and for whatever may come in their place. Returns none where workers were replaced."""
        try:
            tokens, dead = self._workers.wait(timeout or None)
        except SilenceError:
            text = diagnosis.timeout(timeout, self._workers, self._schedule, self._shared_state)
            raise WorkerTimeoutError(text) from None
        for number in dead:
            self._bury(number)
        return tokens

    def _handle(self, token: Token) -> bool:
        """Acts on a token; returns whether it says that a worker has no more data in this pass."""
        kind = token.kind & ~wire.KEPT
        is_current = token.generation == self._generation
        if kind == wire.ASK:
            self._requests.add(token)
        elif kind == wire.ENDED:
            self._end_worker(token)
            return is_current
        elif kind == wire.RESUMED:
            if is_current:  # one of an older pass comes if the wait for it timed out
                self._resumed(token.worker)
        else:
            self._received[token.worker] += 1
            keeper = token.worker if token.kind != kind else None
            packed = Packed(token.slot, token.size, token.room, kind == wire.FAULT, keeper)
            self._pool.ready(packed)
            if is_current:
                self._schedule.arrive(token.seq, packed)
            else:
                self._pool.release(packed)
                self._schedule.forget(token.seq)
        return False

    def _resumed(self, number: int) -> None:
        self._resuming.discard(number)
        self._shared_state.idle(number)  # what it began last was another pass's
        self._received_before[number] = self._received[number]

    def _end_worker(self, token: Token) -> None:
        for task in self._schedule.end_worker(token.worker):
            if task.seq == token.seq and token.kind & wire.KEPT:
                self._pool.keep(task.slot, token.worker)
            else:
                self._pool.withdraw(task.slot)
        if token.generation == self._generation and not self._terms.persistent:
            self._workers.dismiss(token.worker, Token(wire.STOP, token.worker, self._generation))

    def _tell(self, number: int, kind: int, slot: int = 0, seq: int = 0, size: int = 0, room: int = 0) -> None:
        self._workers.send(number, (kind, number, self._generation, slot, seq, size, room))

    # -- workers -------------------------------------------------------------------------------------------------

    def _make_brief(self, number: int, inbox: PipeEnd, close_first: list[int]) -> process_main.Brief:
        return process_main.Brief(
            worker=number,
            num_workers=self._terms.num_workers,
            assignment=self._assignment,
            parent_pid=os.getpid(),
            dies_by_kernel=self._workers.has_own_children and parent_watch.in_first_thread(),
            arena=self._pool.arena,
            cap_text=self._pool.cap_text,
            inbox=inbox,
            outbox=self._workers.outbox,
            stack_outlet=self._workers.stacks.outlet,
            slots_to_map=self._terms.slots_to_map,
            bytes_to_map=self._terms.bytes_to_map,
            close_first=close_first,
            keeps_streams=self._terms.worker_restarts > 0,
            generation=self._generation,
        )

    def _bury(self, number: int) -> None:
        """Replaces a worker that has ended, if it may."""
        text = diagnosis.death(number, self._workers, self._schedule, self._shared_state)
        at = diagnosis.current(number, self._schedule, self._shared_state)
        generation = self._generation - (number in self._resuming)
        refusal = self._restarts.refusal(at[0].seq if at is not None else None, generation)
        if refusal is not None:
            raise WorkerDiedError(text + refusal)
        try:
            with interrupts.deferred():
                self._replace(number)
        except BaseException:
            self.give_up()
            raise
        warnings.warn(
            f"{text}It is replaced, {self._restarts.count} of worker_restarts={self._restarts.limit}",
            WorkerRestartWarning,
            stacklevel=8,
        )

    def _replace(self, number: int) -> None:
        """Starts a worker that takes up where a dead one was: with its random streams, and at its first lost batch."""
        owed = self._schedule.outstanding(number)
        for task in self._schedule.made():
            if task.result is not None and task.result.keeper == number:
                task.result = task.result._replace(keeper=None)
        self._requests.forget(number)
        self._pool.inherit(number, [task.slot for task in owed])
        self._shared_state.idle(number)
        is_stream = self._assignment.is_stream
        # Where the pass before is still to be finished, that comes first, and then this one as for everybody.
        is_behind = number in self._resuming and (is_stream or bool(owed))
        generation = self._generation - is_behind
        succession: dict[str, Any] = {"generation": generation, "predecessor": self._received[number]}
        if is_behind:
            succession["assignment"] = self._assignment_before
        if is_stream:
            delivered = self._received[number] - self._received_before[number] + self._schedule.has_ended(number)
            succession |= {"predecessor": generation, "to_skip": delivered, "any_job": self._job}

        def make_brief(number: int, inbox: PipeEnd, close_first: list[int]) -> process_main.Brief:
            return dataclasses.replace(self._make_brief(number, inbox, close_first), **succession)

        self._workers.replace(number, process_main.run, make_brief)
        for task in owed:
            task.slot, room = self._pool.claim(task.job)
            self._workers.send(number, (wire.JOB, number, generation, task.slot, task.seq, len(task.job), room))
        if is_behind:
            self._tell_to_resume(number)
        elif number in self._resuming:
            self._resumed(number)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> bool:
        """Ends the workers, and leaves the pool to others. Safe to call again; in a forked process it does nothing.

        Blocks until the workers have ended, `workers.GRACE_SECONDS` if they are in the middle of a sample.

        Returns:
            Whether the pool may be used again.
        """
        return self._stop(processes.GRACE_SECONDS, self._pool.abandon)

    def give_up(self) -> None:
        """Ends the workers at once, and the pool with them.

        For exceptions that may come between any two instructions, as a Ctrl-C does: a token that was read may not be
        handled, a slot that was claimed may be nobody's.
        """
        self._stop(_IMPATIENCE_SECONDS, self._pool.close)

    def _stop(self, grace: float, dispose_of_pool: Callable[[], None]) -> bool:
        if not self.is_open:
            return False
        with interrupts.deferred(hurry=self._workers.kill):
            self.is_open = False
            _open.discard(self)
            self._shared_state.stopped = True
            try:
                self._workers.stop(Token(wire.STOP, 0, self._generation), grace)
            finally:
                dispose_of_pool()
        return True


_open: set[Dispatcher] = set()  # by their own hands; a WeakSet's callback would swallow a Ctrl-C


def close_all() -> None:
    """Closes all productions of this process, since it ends."""
    for production in list(_open):
        production.close()


def _close_in_child() -> None:
    # Workers, slots and tokens are the parent's: here, nothing of them may be touched.
    for production in list(_open):
        production.is_open = False
    _open.clear()


if hasattr(os, "register_at_fork"):  # else this module is imported, and not used
    os.register_at_fork(after_in_child=_close_in_child)
