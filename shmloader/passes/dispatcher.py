"""Jobs go out to the workers, tokens come in, and batches leave in their turn.

Here the parts of a pass meet: the schedule says which worker is asked, the pool where the batch goes, the workers carry
the tokens, and their progress says what is begun again when one of them dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from shmloader import callers, interrupts, process_exit
from shmloader.errors import PoolMemoryError, WorkerDiedError, WorkerRestartWarning, WorkerTimeoutError
from shmloader.slots.pool import NO_SLOT, Pool
from shmloader.slots.results import Made, Result, Retained, Unsent
from shmloader.workers import interface, jobs, wire
from shmloader.workers.brief import Snapshots, Source
from shmloader.workers.interface import SilenceError, Workers
from shmloader.workers.recorder import Record
from shmloader.workers.wire import Token

from . import diagnosis
from .briefing import Briefing
from .growth_requests import GrowthRequests, Reply
from .restarts import RestartCount, RestartPolicy
from .schedule import Schedule, Task
from .watching import Watcher
from .worker_progress import WorkerProgress

# What workers may take to end after a Ctrl-C, before they are ended; the user is waiting.
_IMPATIENCE_SECONDS = 0.1

# How many CALLs a worker may not have read: with more to come it will look at the gate anyhow.
MAX_CALLS = 4


@dataclasses.dataclass(frozen=True)
class DispatchOptions:
    """How batches are made.

    Attributes:
        num_workers: how many workers.
        prefetch_factor: batches per worker that may be under way.
        in_order: whether batches leave by number.
        persistent: whether workers stay for another pass.
        worker_restarts: how many workers that die in a pass are replaced.
        to_the_free: whether a batch goes to a worker that owes least, and not in turns.
    """

    num_workers: int
    prefetch_factor: int
    in_order: bool
    persistent: bool
    worker_restarts: int
    to_the_free: bool = False

    @property
    def look_ahead(self) -> int:
        """How many batches may be under way."""
        return self.num_workers * self.prefetch_factor


class Dispatcher:
    """The workers of one iterator, and the batches that they make. Used in the parent.

    Args:
        source: what batches are made of.
        options: how.
        pool: where batches go.
        workers: who makes them; not started yet.
        restart_count: counts the workers that are replaced.
        snapshots: what workers tell of themselves; None: nothing.

    Attributes:
        is_open: whether there are workers, and they are this process's.
        notes: what workers have noted beside batches that were not taken, by the batches' numbers.
        begins: what each worker has noted at the beginning of a pass with the same workers.
        ends: what workers have noted of their generators when they had no more data in this pass.
        states_at_end: what they have noted of their dataset then.
        last: the batch that was taken last.
        watcher: who is told what happens; None: nobody.
    """

    last: Task[Result]
    watcher: Watcher | None = None

    def __init__(
        self,
        source: Source,
        options: DispatchOptions,
        pool: Pool,
        workers: Workers,
        restart_count: RestartCount,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.is_open = True
        self.notes: dict[int, bytes] = {}
        self.begins: dict[int, bytes | None] = {}
        self.ends: dict[int, bytes] = {}
        self.states_at_end: dict[int, bytes] = {}
        self._takes_notes = snapshots is not None
        self._words = source.words
        self._options = options
        self._pool = pool
        self._shared_state = pool.arena.shared_state
        self._note_lengths = self._shared_state.note_lengths
        self._schedule = self._new_schedule()
        self._restarts = RestartPolicy(options.worker_restarts, restart_count)
        self._requests = GrowthRequests(pool)
        self._progress = WorkerProgress(options.num_workers, source.is_stream)
        may_replace = options.worker_restarts > 0
        self._briefing = Briefing(source, options.num_workers, may_replace, pool, self._progress, snapshots)
        self._last_job = b""
        self._is_shut = False
        self._calls = [0] * options.num_workers
        self._workers = workers
        _open[id(self)] = weakref.ref(self)

    # -- passes --------------------------------------------------------------------------------------------------

    @property
    def processes(self) -> list[Any]:
        """The worker processes; none where workers are threads."""
        return self._workers.processes

    def records(self) -> list[Record]:
        """Returns what each worker writes of what it does; it holds the pool's memory."""
        return [Record(self._shared_state.record(number)) for number in range(self._options.num_workers)]

    @property
    def workers(self) -> Workers:
        """The workers, for those who only look."""
        return self._workers

    def _new_schedule(self) -> Schedule[Result]:
        options = self._options
        return Schedule(options.num_workers, options.prefetch_factor, options.in_order, options.to_the_free)

    def start(self) -> None:
        """Starts the workers.

        Raises:
            Exception: one cannot be started; where something of the user's cannot be pickled, the error names it.
        """
        self._shared_state.stopped = False
        for number in range(self._options.num_workers):
            self._shared_state.idle(number)
            self._shared_state.forget(number)
            self._shared_state.note_at_begin(number, None)
            self._shared_state.forget_calls(number)
            Record(self._shared_state.record(number)).forget()
        (self._shared_state.shut_gate if self._is_shut else self._shared_state.open_gate)()
        try:
            self._workers.start([self._briefing.first(number) for number in range(self._options.num_workers)])
        except Exception as error:
            parts = self._briefing.source.parts
            raise (diagnosis.failed_start(error, self._workers, parts) or error) from error.__cause__

    def resume(self, shared_seed: int | None, epoch: int, timeout: float) -> None:
        """Begins another pass with the same workers.

        Blocks until each of them is done with what it was asked for before. May be called again where it failed.

        Args:
            shared_seed: what DataPipes are shuffled by.
            epoch: the number of the pass, by which samples are seeded.
            timeout: as for `receive`.

        Raises:
            WorkerTimeoutError, WorkerDiedError: as `receive`.
        """
        if self.watcher is not None:
            self.watcher.note("a pass begins")
        self._briefing.begin_pass(shared_seed, epoch)
        self._shared_state.shared_seed = shared_seed or 0
        self._shared_state.epoch = epoch
        self._drop_batches()
        self.notes.clear()
        self.ends.clear()
        self.states_at_end.clear()
        self._progress.begin_pass()
        self._restarts = RestartPolicy(self._options.worker_restarts, self._restarts.all_passes)
        for number in range(self._options.num_workers):
            self._tell(number, wire.RESUME)
        with self._passable():  # what is under way has to be done first
            while not self._progress.is_complete:
                self.receive(timeout)
                self._drop_batches()
        self._pool.withdraw_all()
        self._schedule = self._new_schedule()

    def _drop_batches(self) -> None:
        for task in self._schedule.made():
            assert task.result is not None
            self._pool.release(task.result)
            self._schedule.forget(task.seq)
        self._send_all(self._requests.refuse_all())

    def watch(self, watcher: Watcher | None) -> None:
        """Tells ``watcher`` from now on what happens, and at once of what is under way; None: nobody."""
        self.watcher = watcher
        if watcher is not None:
            for task in self._schedule.tasks():
                if task.slot != NO_SLOT:
                    watcher.is_assigned(task.seq, task.worker, task.slot)
                    if isinstance(task.result, (Made, Retained)):
                        watcher.is_ready(task.slot)

    # -- the gate ------------------------------------------------------------------------------------------------

    def shut_gate(self) -> None:
        """Has workers begin no sample but those of the batch that is waited for. Does not block.

        They finish the sample that they are at, and wait for a token then.
        """
        self._is_shut = True
        self._shared_state.shut_gate()
        self._workers.shut_gate(self._shared_state.gate_words)

    def open_gate(self) -> None:
        """Has workers go on. Does not block."""
        self._is_shut = False
        self._shared_state.open_gate()
        self._call_all()

    @contextlib.contextmanager
    def _passable(self) -> Iterator[None]:
        was_shut = self._is_shut
        if was_shut:
            self.open_gate()
        try:
            yield
        finally:
            if was_shut:
                self.shut_gate()

    def _let_through(self) -> None:
        """Has the batch that is waited for made, though the gate is shut.

        All that was asked for, where a worker waits for room, which others may have to give first by ending theirs.
        """
        task = self._schedule.first_unmade()
        if self._requests:
            self._shared_state.let_all_through()
            self._call_all()
        elif task is not None:
            self._shared_state.let_through(task.seq)
            self._call(task.worker)

    def _call_all(self) -> None:
        for number in range(self._options.num_workers):
            self._call(number)

    def _call(self, number: int) -> None:
        """Has a worker look at the gate, if it waits there.

        A worker that has not read some CALLs will look again behind each of them, so another would tell it nothing. So
        many that none can be missed: it would have to read all of them between the change of the gate and this.
        """
        if self._calls[number] - self._shared_state.calls_read(number) < MAX_CALLS:
            self._calls[number] += 1
            self._tell(number, wire.CALL)

    # -- batches -------------------------------------------------------------------------------------------------

    def ask(self, index: Any) -> None:
        """Asks the worker whose turn it is for the batch of ``index``, if one can take it. Does not block."""
        number = self._schedule.next_worker()
        if number is None:
            return
        try:
            job = jobs.pickled(index)
        except Exception as error:
            self._fail(number, error)
        else:
            self._send(number, job)

    def ask_job(self, job: bytes) -> None:
        """Does the same for an index that is pickled already."""
        number = self._schedule.next_worker()
        if number is not None:
            self._send(number, job)

    def ask_nothing(self, error: Exception) -> None:
        """Has an error take the place of a batch."""
        number = self._schedule.next_worker()
        if number is not None:
            self._fail(number, error)

    def _fail(self, number: int, error: Exception) -> None:
        """Notes that a batch cannot be had; those before it can, and those after."""
        task = self._schedule.send(number, b"", NO_SLOT)
        self._schedule.arrive(task.seq, Unsent(error))

    def _send(self, number: int, job: bytes) -> None:
        try:
            slot, room = self._pool.claim(job)
        except Exception as error:
            self._fail(number, error)
            return
        self._last_job = job
        task = self._schedule.send(number, job, slot)
        generation = self._progress.generation
        if self.watcher is not None:
            self.watcher.is_assigned(task.seq, number, slot)
        self._workers.send(number, (wire.JOB, 0, number, generation, slot, task.seq, room, 0, len(job)))

    def dismiss_idle(self) -> None:
        """Lets workers end that owe nothing, since no more will be asked for. Does not block.

        A process takes some milliseconds to end, in which the loop can go on with the last batches. Not where tensors
        of other devices may be in these, which end with the process that has made them; such workers are not forked.
        """
        if self._workers.is_forked:
            for number in range(self._options.num_workers):
                if not self._schedule.load(number):
                    self._workers.dismiss(number, self._stop_token(number))

    def take(self) -> Result | None:
        """Returns what has become of the batch whose turn it is, or None where it is not made, or there is none."""
        task = self._schedule.take()
        if task is None:
            return None
        self.last = task
        return task.result

    def begin_with(self, worker: int) -> None:
        """Has ``worker`` get the first batch of the pass."""
        self._schedule.begin_with(worker)

    def over(self) -> set[int]:
        """Returns the workers that have no more data in this pass, and of which all batches were taken."""
        return self._schedule.over()

    @property
    def is_ready(self) -> bool:
        """Whether `take` has a batch."""
        return self._schedule.is_ready

    @property
    def under_way(self) -> int:
        """How many batches were asked for and not taken, and may still be made."""
        return self._schedule.under_way

    @property
    def is_active(self) -> bool:
        """Whether any worker has more data in this pass."""
        return self._schedule.is_active

    @property
    def is_done(self) -> bool:
        """Whether all that was asked for in this pass was taken, or will never be made."""
        return self._schedule.done

    def receive(self, timeout: float) -> int:
        """Waits for workers, and acts on what they tell.

        Blocks until one of them tells something; a worker's end and the timeout wake it too.

        Args:
            timeout: seconds to wait; 0: for ever.

        Returns:
            How many workers have found that they have no more data in this pass. Others may have, so that as many
            batches can be asked for.

        Raises:
            WorkerTimeoutError: nothing came within the timeout. It can be called again.
            WorkerDiedError: a worker has ended, and is not replaced. All that is left to do is to close.
        """
        self.prepare_to_wait()
        if self._is_shut:
            self._let_through()
        try:
            if self.watcher is None:
                tokens, dead = self._workers.wait(timeout or None)
            else:
                tokens, dead = self._watched_wait(self.watcher, timeout or None)
        except SilenceError:
            text = diagnosis.timeout(timeout, self._workers, self._schedule, self._shared_state, self._words)
            raise WorkerTimeoutError(text) from None
        return self.act_on(tokens, dead)

    def wake(self) -> None:
        """Ends a `receive` that another thread is in, with nothing received. Does not block."""
        self._workers.wake()

    def hear(self) -> None:
        """Hands what workers have logged to the handlers of this process."""
        self._workers.hear()

    def _watched_wait(self, watcher: Watcher, timeout: float | None) -> tuple[list[Token], list[int]]:
        began = time.monotonic_ns()
        try:
            return self._workers.wait(timeout)
        finally:
            watcher.has_waited(began)

    def prepare_to_wait(self) -> None:
        """Does what is due before workers are waited for: answers those that wait themselves. Does not block."""
        if self._requests:
            self._send_all(self._requests.answer(self._schedule))

    def act_on(self, tokens: list[Token], dead: list[int]) -> int:
        """Acts on what waiting for workers gave. `receive` in two parts, for those who wait elsewhere. Does not block.

        Returns:
            As `receive`.

        Raises:
            WorkerDiedError: as `receive`.
        """
        for number in dead:
            self._bury(number)
        return self._handle(tokens)

    def receive_ready(self) -> int:
        """Does the same with what is there. Does not block; `receive` tells of workers that have ended."""
        return self._handle(self._workers.read())

    def _handle(self, tokens: list[Token]) -> int:
        ended = 0
        for token in tokens:
            is_current = token.generation == self._progress.generation
            if token.kind == wire.BATCH or token.kind == wire.FAULT or token.kind == wire.ITEM:
                self._arrive(token, is_current)
            elif token.kind == wire.ASK:
                self._requests.add(token)
                self._say("asks for room", token.worker, token.seq)
            elif token.kind == wire.ENDED:
                self._end_worker(token)
                ended += is_current
            elif is_current:  # a RESUMED of an older pass comes if the wait for it timed out
                self._resumed(token.worker)
        return ended

    def _arrive(self, token: Token, is_current: bool) -> None:
        self._progress.deliver(token.worker)
        made = Made(token.slot, token.offset, token.nbytes, token.kind == wire.FAULT)
        self._pool.ready(made)
        result: Result = made
        if token.kind == wire.ITEM:
            self._pool.hold(token.slot, token.worker, bool(token.is_held))
        elif token.is_held:
            result = Retained(made, token.worker)
        if is_current:
            if self._takes_notes and self._note_lengths[token.slot]:
                self.notes[token.seq] = self._shared_state.note_of(token.slot)
            self._schedule.arrive(token.seq, result)
        else:
            self._pool.release(result)
            self._schedule.forget(token.seq)

    def _resumed(self, number: int) -> None:
        self._progress.resume(number)
        if self._takes_notes:
            self.begins[number] = self._shared_state.noted_at_begin(number)
            self._shared_state.note_at_begin(number, None)  # what is there at the pass's end is of its end
        self._shared_state.idle(number)  # what it began last was another pass's

    def _say(self, what: str, worker: int, seq: int | None = None) -> None:
        """Tells whoever watches of what happens rarely."""
        if self.watcher is not None:
            self.watcher.note(what, worker, seq)

    def _end_worker(self, token: Token) -> None:
        self._say("has no more data", token.worker)
        self._progress.end(token.worker)
        is_current = token.generation == self._progress.generation
        if is_current and self._takes_notes and self._note_lengths[token.slot]:
            self.ends[token.worker] = self._shared_state.note_of(token.slot)
        if is_current and self._takes_notes and (note := self._shared_state.noted_at_begin(token.worker)):
            self.states_at_end[token.worker] = note
        for task in self._schedule.end_worker(token.worker):
            if task.seq == token.seq and token.is_held:
                self._pool.retain(task.slot, token.worker)
            else:
                self._pool.withdraw(task.slot)
        if is_current and not self._options.persistent:
            self._workers.dismiss(token.worker, self._stop_token(token.worker))

    def _tell(self, number: int, kind: int, slot: int = 0, seq: int = 0, room: int = 0) -> None:
        if kind == wire.GRANT:
            self._say("gets room" if room else "gets no room", number, seq)
        self._workers.send(number, (kind, 0, number, self._progress.generation, slot, seq, room, 0, 0))

    def _send_all(self, replies: list[Reply]) -> None:
        """Sends replies; one that cannot be sent does not stop the others."""
        with contextlib.ExitStack() as stack:
            for reply in reversed(replies):
                stack.callback(self._tell, *reply)

    def _stop_token(self, number: int) -> Token:
        return Token(wire.STOP, 0, number, self._progress.generation)

    # -- workers -------------------------------------------------------------------------------------------------

    def _bury(self, number: int) -> None:
        """Replaces a worker that has ended, if it may."""
        text = diagnosis.death(number, self._workers, self._schedule, self._shared_state, self._words)
        at = diagnosis.current(number, self._schedule, self._shared_state)
        self._say("died", number, None if at is None else at[0].seq)
        batch = at[0].seq if at is not None and self._briefing.source.repeats_jobs else None
        refusal = self._restarts.refusal(batch, self._progress.generation_of(number), self._words.made)
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
            stacklevel=callers.stacklevel(),
        )

    def _replace(self, number: int) -> None:
        """Starts a worker that takes up where a dead one was: with its random streams, and at its first lost batch."""
        owed, holds = self._schedule.outstanding(number), self._workers.holds()
        for task in self._schedule.made():
            if isinstance(task.result, Retained) and task.result.worker == number and not holds:
                task.result = task.result.made  # it does not hold it any more
        self._requests.forget(number)
        self._pool.inherit(number, [task.slot for task in owed], holds)
        self._shared_state.idle(number)
        self._shared_state.note_at_begin(number, None)
        if self._progress.may_skip_to_the_pass(number, bool(owed)):
            self._resumed(number)
        brief = self._briefing.successor(number, self._last_job)
        self._calls[number] = 0
        self._shared_state.forget_calls(number)
        self._workers.replace(brief)
        self._say("was replaced", number)
        for task in owed:
            self._send_again(task, brief.generation)
        if brief.generation < self._progress.generation:  # it has the pass before to finish
            self._tell(number, wire.RESUME)

    def _send_again(self, task: Task[Result], generation: int) -> None:
        try:
            # No share of the pool: it may be more than the job had before, and the next one's arguments would lack it.
            task.slot, room = self._pool.claim(task.job, least=True)
        except PoolMemoryError as error:  # code in a worker thread that has ended holds its slot
            task.slot = NO_SLOT
            self._schedule.arrive(task.seq, Unsent(error))
            return
        if self.watcher is not None:
            self.watcher.is_assigned(task.seq, task.worker, task.slot)
        head = wire.JOB, 0, task.worker, generation
        self._workers.send(task.worker, (*head, task.slot, task.seq, room, 0, len(task.job)))

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> bool:
        """Ends the workers, and leaves the pool to others. Safe to call again; in a forked process it does nothing.

        Blocks until the workers have ended, `interface.GRACE_SECONDS` if they are in the middle of a sample.

        Returns:
            Whether the pool may be used again.
        """
        return self._stop(interface.GRACE_SECONDS, may_be_used=True)

    def give_up(self) -> None:
        """Ends the workers at once, and the pool with them.

        For exceptions that may come between any two instructions, as a Ctrl-C does: a token that was read may not be
        handled, a slot that was claimed may be nobody's.
        """
        self._stop(_IMPATIENCE_SECONDS, may_be_used=False)

    def _stop(self, grace: float, may_be_used: bool) -> bool:
        if not self.is_open:
            return False
        with interrupts.deferred(hurry=self._workers.kill):
            token = self._stop_token(0)
            self.is_open = False  # and from here on workers are stopped, whatever signals' handlers raise
            try:
                try:
                    _open.pop(id(self), None)
                    self._shared_state.stopped = True
                finally:
                    self._workers.stop(token, grace)
                    if self.watcher is not None:
                        self.watcher.is_over()
            finally:
                # What workers are left that go on may write to their slots.
                is_free = not self._workers.left_behind(self._close_pool) and self._dispose_of_pool(may_be_used)
        return is_free

    def _dispose_of_pool(self, may_be_used: bool) -> bool:
        """Leaves the pool to others, or closes it; returns which, after the workers have ended."""
        self._pool.follow(self._workers.holds())
        if may_be_used and self._pool.abandon():
            return True
        self._pool.close()
        return False

    def _close_pool(self) -> None:
        self._dispose_of_pool(may_be_used=False)


# Not held: by the user's dataset or collate function a dispatcher may refer to whoever owns its iterator, who could
# never be collected. With no callback, which would swallow a Ctrl-C: each takes itself out.
_open: dict[int, weakref.ref[Dispatcher]] = {}


def close_all() -> None:
    """Closes all dispatchers of this process, since it ends.

    multiprocessing would terminate the workers too, but later, and joins without a time limit.
    """
    for dispatcher in _all_open():
        dispatcher.close()


def _all_open() -> list[Dispatcher]:
    return [dispatcher for one in list(_open.values()) if (dispatcher := one()) is not None]


def _close_in_child() -> None:
    # Workers, slots and tokens are the parent's: here, nothing of them may be touched.
    for dispatcher in _all_open():
        dispatcher.is_open = False
    _open.clear()


process_exit.at_exit(process_exit.AtExit.CLOSE_PASSES, close_all)
process_exit.in_child(process_exit.InChild.DISOWN_PASSES, _close_in_child)
