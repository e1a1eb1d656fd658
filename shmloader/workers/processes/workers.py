"""The parent's side of the worker processes: start, tell, wait, replace, stop, reap.

The parent waits in one place, on the pipe that all workers write to and on every worker's process descriptor, so
that a batch, a death and a timeout all wake it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import process as multiprocessing_process
from multiprocessing.process import BaseProcess
from typing import Any

from shmloader import deadlines, interrupts, process_exit
from shmloader.errors import WorkerTimeoutError
from shmloader.slots import fork_copies
from shmloader.slots.limits import oom_kills
from shmloader.slots.writer import Hold
from shmloader.words import LOADER, Words
from shmloader.workers import kernel_state
from shmloader.workers.brief import Brief
from shmloader.workers.interface import SilenceError
from shmloader.workers.logs.forwarded import ForwardedLogs
from shmloader.workers.tracebacks import TracebackPipe
from shmloader.workers.wire import Fields, Link, Outbox, PipeEnd, Token, pipe

from . import ends, main, parent_watch
from .start import Parcel, start, start_elsewhere

_TERM_SECONDS = 1.0

# What a pipe to a worker may hold that nobody reads: its jobs, a CURB for each, a GRANT, a STOP, some CALLs
# (`dispatcher.MAX_CALLS`), and a RESUME for each time that the wait for its answer ran out. Only these last could be
# more than there is room for.
_CONTROL_TOKENS = 16

# What is written to an eventfd, and read from it.
_RING_BYTES = 8
_RING = (1).to_bytes(_RING_BYTES, sys.byteorder)


@functools.cache
def default_context() -> Any:
    """Returns the context that makes workers where the user has chosen none: fork.

    Forked workers need nothing to be picklable, and start fastest; Python 3.14's own default is another. To ask
    multiprocessing for its default would also settle that for good, and the user may still want to.
    """
    from multiprocessing.context import ForkContext, ForkProcess  # not there on all platforms that import this

    class Process(ForkProcess):  # which gives processes the name that they have in torch's loader: Process-1
        pass

    context = ForkContext()
    context.Process = Process  # type: ignore[misc]
    return context


@dataclass
class _Member:
    """One worker, as the parent sees it."""

    process: BaseProcess
    pidfd: int
    down: PipeEnd
    inbox: PipeEnd  # the other end of `down`, which is never read here, so that a write never meets a closed pipe
    is_leaving: bool = False  # it was told that no job will follow, so that its end is no news

    def close_pipe(self) -> None:
        """Closes both ends, once."""
        self.down.close()
        self.inbox.close()


class ProcessWorkers:
    """The worker processes of one iterator.

    Args:
        context: the multiprocessing context that makes processes.
        num_workers: how many.
        max_jobs: how many jobs may be under way to one worker.
        can_wake: whether `wake` ends a wait at once; it takes a descriptor.
        words: of whom the workers belong to.
        forward_logs: whether what they log is handed to the handlers of this process; it takes three descriptors, and a
            megabyte for each worker that says so much.

    Raises:
        ValueError: so many jobs do not fit into a pipe.
    """

    def __init__(
        self,
        context: Any,
        num_workers: int,
        max_jobs: int,
        can_wake: bool = False,
        words: Words = LOADER,
        forward_logs: bool = False,
    ) -> None:
        self._words = words
        self._context = context
        self.method: str = context.get_start_method()
        self.num_workers = num_workers
        self._max_jobs = max_jobs
        self._members: list[_Member] = []
        self._is_woken = False  # where there is no bell
        self._was_read = False
        with contextlib.ExitStack() as undo:
            self._up, outbox = self._pipe()
            self._outbox = Outbox(outbox.fd)
            undo.callback(self._up.close)
            undo.callback(self._outbox.close)
            os.set_blocking(self._up.fd, False)
            self._tracebacks = TracebackPipe()
            undo.callback(self._tracebacks.close)
            # The waits of poll(2) grow with the number of workers.
            self._poll = select.epoll()
            undo.callback(self._poll.close)
            self._poll.register(self._up.fd, select.EPOLLIN)
            self._bell: io.FileIO | None = None
            if can_wake:
                # A file, and not a bare number: whoever rings while it is being closed must not write to another file.
                self._bell = io.FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+")
                self._poll.register(self._bell.fileno(), select.EPOLLIN)
            self._logs = ForwardedLogs(num_workers, words) if forward_logs else None
            if self._logs is not None:
                undo.callback(self._logs.close)
                self._poll.register(self._logs.bell_fd, select.EPOLLIN)
            undo.pop_all()
        self._oom_kills_before = oom_kills()

    @property
    def forwards_logs(self) -> bool:
        """Whether there may be anything to `hear`."""
        return self._logs is not None

    @property
    def processes(self) -> list[BaseProcess]:
        """The processes, by worker."""
        return [member.process for member in self._members]

    @property
    def is_forked(self) -> bool:
        """Whether workers are forked from this process, and nothing has to be pickled."""
        return self.method == "fork"

    @property
    def imports_main(self) -> bool:
        """Whether each imports the main module anew."""
        return not self.is_forked

    @property
    def has_own_children(self) -> bool:
        """Whether workers are this process's children, and not a fork server's."""
        return self.method != "forkserver"

    def _pipe(self) -> tuple[PipeEnd, PipeEnd]:
        try:
            return pipe(2 * self._max_jobs + _CONTROL_TOKENS)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise ValueError(
                f"{self._words.less[0]} is too large: {self._max_jobs} jobs do not fit into a pipe ({error})"
            ) from error

    def start(self, briefs: list[Brief]) -> None:
        """Starts the processes, one for each brief, in the order of their numbers."""
        _all.add(self)
        with fork_copies.gathered():
            for brief in briefs:
                with self._whole():
                    self._members.append(self._start_one(brief))

    def replace(self, brief: Brief) -> None:
        """Starts a process in the place of a worker that has died."""
        dead = self._members[brief.worker]
        self._poll.unregister(dead.pidfd)
        # Marked first: should the start fail, nothing of the dead one is used again.
        pidfd, dead.pidfd = dead.pidfd, -1
        os.close(pidfd)
        dead.close_pipe()
        with self._whole():
            self._members[brief.worker] = self._start_one(brief)

    def _whole(self) -> contextlib.AbstractContextManager[object]:
        """A context for the start of one process: no handler raises between a fork and the noting of what it returned.

        Where the dataset is pickled none is held up, for that may take minutes.
        """
        return interrupts.AllDeferred() if self.is_forked else contextlib.nullcontext()

    def _start_one(self, brief: Brief) -> _Member:
        inbox, down = self._pipe()
        os.set_blocking(down.fd, False)
        link = Link(
            parent_pid=os.getpid(),
            dies_by_kernel=self.has_own_children and parent_watch.in_first_thread(),
            inbox=inbox,
            outbox=self._outbox,
            traceback_outlet=self._tracebacks.outlet,
            close_first=[*self._foreign_descriptors(), down.fd] if self.is_forked else [],
        )
        process = None
        logs = None if self._logs is None else self._logs.outlet(brief.worker, self.is_forked)
        try:
            if self.is_forked:
                process = self._context.Process(target=main.run, args=((brief, link), logs), daemon=True)
                pidfd = start(process)
            else:
                with contextlib.closing(Parcel((brief, link), logs)) as parcel:
                    process = self._context.Process(target=main.run, args=(parcel,), daemon=True)
                    name = f"{self._words.owner} worker {brief.worker} of {self.num_workers}"
                    pidfd = start_elsewhere(process, self.method, parcel, name)
            member = _Member(process, pidfd, down, inbox)
        except BaseException:
            down.close()
            inbox.close()
            if process is not None and process.pid is not None:
                process.kill()
                process.join()
            raise
        self._poll.register(member.pidfd, select.EPOLLIN)
        return member

    def _foreign_descriptors(self) -> list[int]:
        """The parent's ends of these workers' pipes, which a forked child inherits and has no use for.

        Other start methods inherit nothing. What other loaders' workers have is left: another thread may be closing it,
        and its number may be another file's by the time of the fork. Nothing here relies on end-of-file.
        """
        ours = [self._up.fd, self._tracebacks.fd, self._poll.fileno()]
        ours += [self._bell.fileno()] if self._bell is not None else []
        theirs = [fd for member in self._members for fd in (member.down.fd, member.inbox.fd, member.pidfd)]
        return ours + [fd for fd in theirs if fd >= 0]

    def send(self, worker: int, token: Fields) -> None:
        """Sends a token to a worker. Does not block: the pipe has room for all that may be under way.

        To one that has ended it goes nowhere; `wait` tells of that.

        Raises:
            WorkerTimeoutError: the worker has not read what it was sent for so long that there is no room for more.
        """
        try:
            self._members[worker].down.write(token)
        except BlockingIOError:
            pid = self._members[worker].process.pid
            raise WorkerTimeoutError(
                f"{self._words.owner} worker {worker} (pid {pid}) does not read what it is sent"
            ) from None

    def shut_gate(self, words: tuple[int, int]) -> None:
        """Does nothing: the gate is in memory that workers see."""

    def dismiss(self, worker: int, token: Fields) -> None:
        """Sends a worker that has nothing left to do its last token, once; its end is no news then."""
        if not self._members[worker].is_leaving:
            self._members[worker].is_leaving = True
            self.send(worker, token)

    def wait(self, timeout: float | None) -> tuple[list[Token], list[int]]:
        """Waits for workers.

        Blocks until a token is there or a worker has ended, ``timeout`` seconds at most (None: for ever).

        Returns:
            Tokens, and the workers that have ended without being told to; both are empty only after a `wake`, or where
            a handler of log records has `read` what there was. While there are tokens, the dead are not mentioned: they
            may have finished their work before they died.

        Raises:
            SilenceError: nothing came in time.
        """
        deadline = deadlines.after(timeout)
        self._was_read = False
        # Reading first: where workers are ahead of the loop, that is the only system call.
        while not (tokens := self._up.read_ready()):
            ready = self._poll_once(deadline)
            # The kernel looks at one descriptor after the other: what a worker wrote before it ended may have come in
            # after the pipe's turn. So that is read again before anybody is taken for dead.
            if tokens := self._up.read_ready():
                break
            self.hear()  # in particular of those that have ended, before that is known
            if self._is_woken or self._was_read:
                self._is_woken = False
                return [], []
            ended = [worker for worker, member in enumerate(self._members) if member.pidfd in ready]
            dead = [worker for worker in ended if not self._members[worker].is_leaving]
            if dead:
                return [], dead
            for worker in ended:
                self._poll.unregister(self._members[worker].pidfd)
            if self._bell is not None and self._bell.fileno() in ready:
                self._bell.read(_RING_BYTES)
                return [], []
        return tokens, []

    def wake(self) -> None:
        """Ends a `wait`, which returns nothing then: the one that is under way, or else the next."""
        with contextlib.suppress(ValueError):  # it is closed
            if self._bell is not None:
                self._bell.write(_RING)
            else:
                self._is_woken = True

    def hear(self) -> None:
        """Hands what workers have logged to the handlers of this process."""
        if self._logs is not None:
            self._logs.hear()

    def read(self) -> list[Token]:
        """Returns the tokens that are there. Does not block; `wait` tells of workers that have ended."""
        tokens = self._up.read_ready()
        if tokens:
            self._was_read = True  # where a handler of log records does it, the `wait` that it came in is over
        return tokens

    def _poll_once(self, deadline: float | None) -> list[int]:
        while True:
            if ready := [fd for fd, _ in self._poll.poll(deadlines.next_part(deadline))]:
                return ready
            if self._is_woken:
                return []
            if deadlines.is_over(deadline):
                raise SilenceError

    def name(self, worker: int) -> str:
        """Returns what the system knows a worker by."""
        return f"pid {self._members[worker].process.pid}"

    def ending(self, worker: int) -> str:
        """Says how a worker has ended. Blocks until its exit code is known, for a second at most."""
        process = self._members[worker].process
        process.join(_TERM_SECONDS)
        return ends.ending(self._words, process.pid, process.exitcode, self._oom_kills_before)

    def state(self, worker: int) -> str:
        """Says what the kernel knows of a worker: whether it runs, waits, or is stopped."""
        return kernel_state.read(f"/proc/{self._members[worker].process.pid}")

    def traceback(self, worker: int) -> list[str]:
        """Returns the Python frames that a worker is in, the innermost first; none where it does not answer."""
        return self._tracebacks.ask(self._members[worker].pidfd)

    def stop(self, token: Fields, grace: float) -> None:
        """Ends all workers and reaps them: tells each with ``token``, then waits.

        Blocks until they have finished the sample that they are at, ``grace`` seconds at most; what has not ended
        then is terminated, and after another second killed, which reaches stopped processes too; or at once, by `kill`
        in a signal handler.
        """
        try:
            for worker, member in enumerate(self._members):
                if member.down.fd >= 0:
                    with contextlib.suppress(WorkerTimeoutError):  # it is not waited for any longer than others
                        self.dismiss(worker, token)
                    member.close_pipe()
            self._reap(grace, None)
            self._reap(min(grace, _TERM_SECONDS), signal.SIGTERM)
        finally:  # whatever comes, no process is left behind; and what an alarm's handler raises comes after that
            try:
                with interrupts.AllDeferred():
                    self._end()
            except BaseException:
                self._end()  # it may have come before the block had begun
                raise

    def _end(self) -> None:
        """Kills what is left, and closes all that there is for processes that have ended. Safe to call again."""
        _all.discard(self)
        self._reap(None, signal.SIGKILL)
        for member in self._members:
            member.close_pipe()
            if member.pidfd >= 0:
                os.close(member.pidfd)
                member.pidfd = -1
            _close_files(member.process)
        self._poll.close()
        if self._bell is not None:
            self._bell.close()
        self._up.close()
        self._outbox.close()
        self._tracebacks.close()
        if self._logs is not None:
            self._logs.close()

    def left_behind(self, act: Callable[[], object]) -> bool:
        """Whether `stop` has left workers that go on: never, since a process can be killed."""
        return False

    def holds(self) -> list[Hold]:
        """Returns what code in this process holds of slots through a worker: nothing."""
        return []

    def kill(self) -> None:
        """Kills all workers, and does not wait for their end."""
        for member in self._members:
            self._signal(member, signal.SIGKILL)

    def _signal(self, member: _Member, number: signal.Signals) -> None:
        if member.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member.pidfd, number)

    def _reap(self, seconds: float | None, first_send: signal.Signals | None) -> None:
        deadline = deadlines.after(seconds)
        for member in self._members:
            if first_send is not None and member.process.exitcode is None:
                self._signal(member, first_send)
        for member in self._members:
            member.process.join(deadlines.left(deadline))


_all: set[ProcessWorkers] = set()  # those that are not stopped


def _forget_in_child() -> None:
    # At its exit multiprocessing terminates whatever it takes for its children, and in a forked process it takes the
    # parent's children for its own.
    for workers in _all:
        multiprocessing_process._children.difference_update(workers.processes)  # type: ignore[attr-defined]


process_exit.in_child(process_exit.InChild.DISOWN_PROCESSES, _forget_in_child)


def _close_files(process: BaseProcess) -> None:
    # Left to the garbage collector, multiprocessing's finalizer would swallow a Ctrl-C that came meanwhile. Closing the
    # process would do it too, but no one could ask it for its exit code then.
    finalizer = getattr(getattr(process, "_popen", None), "finalizer", None)
    if finalizer is not None:
        finalizer()
