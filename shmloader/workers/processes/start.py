"""Starting worker processes, so that no signal and no early death of theirs harms the parent.

A process that is not forked is sent what it needs by multiprocessing, over a pipe. It may end before it has read that,
as one does that cannot import the main module.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from multiprocessing import process as multiprocessing_process
from multiprocessing import reduction, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from shmloader import interrupts
from shmloader.errors import WorkerDiedError
from shmloader.workers.logs.handler import LogOutlet

# What multiprocessing's pipe takes of a brief; 64 KB are there, and what else it sends needs some.
_MAX_BRIEF_BYTES = 1 << 15


class Parcel:
    """A brief on its way to a process that is not forked, where it arrives as the brief itself.

    multiprocessing writes what a process is given to a pipe. If the process ends before it has read that, as one does
    that cannot import the main module, the write would block for ever, or meet a pipe that nobody reads: so what a pipe
    does not hold goes into a file in memory.

    Args:
        brief: what is sent.
        logs: what is installed there before the brief is unpickled, since modules that are imported for that may log.

    Attributes:
        is_packed: whether it has been pickled.
        mask: the signals that are blocked while code of the user's pickles; None: those that are blocked anyhow.
    """

    mask: set[int] | None = None

    def __init__(self, brief: Any, logs: LogOutlet | None = None) -> None:
        self._brief = brief
        self._logs = logs
        self._fd = -1
        self.is_packed = False

    def close(self) -> None:
        """Closes the file, once the process has it."""
        if self._fd >= 0:
            os.close(self._fd)

    def __reduce__(self) -> tuple[Callable[[Any, Any], Any], tuple[Any, Any]]:
        data = self._packed()
        self.is_packed = True
        if len(data) > _MAX_BRIEF_BYTES:
            with contextlib.suppress(OSError):  # a limit on descriptors or on file sizes: it goes through the pipe then
                self._fd = os.memfd_create("shmloader-brief", os.MFD_CLOEXEC)
                with open(self._fd, "wb", closefd=False) as file:
                    file.write(data)
                return _unpack_file, (self._logs, reduction.DupFd(self._fd))
        return _unpack, (self._logs, bytes(data))

    def _packed(self) -> Any:
        with interrupts.Undeferred():  # a large dataset takes minutes, and one that waits for something may for ever
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            try:
                if self.mask is not None:
                    signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
                return reduction.ForkingPickler.dumps(self._brief)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unpack(logs: LogOutlet | None, data: bytes | mmap.mmap) -> Any:
    if logs is not None:
        logs.install()
    return pickle.loads(data)


def _unpack_file(logs: LogOutlet | None, duplicate: Any) -> Any:
    fd = duplicate.detach()
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as data:
            return _unpack(logs, data)
    finally:
        os.close(fd)


def start(process: BaseProcess) -> int:
    """Starts a process, and returns its descriptor."""
    _start(process)
    return os.pidfd_open(process.pid)  # type: ignore[arg-type]


def start_elsewhere(process: BaseProcess, method: str, parcel: Parcel, name: str) -> int:
    """Starts a process that is not forked from this one, and returns its descriptor.

    Args:
        process: what is started.
        method: spawn or forkserver.
        parcel: what the process is given.
        name: how an error calls the worker: DataLoader worker 1 of 2.

    Raises:
        WorkerDiedError: it, or the fork server, ended meanwhile.
    """
    # First, and apart: it would open the signals that _start blocks.
    with _without_sigpipe():
        resource_tracker.ensure_running()
    try:
        if method == "forkserver":
            _start_by_server(process, parcel)
        else:
            _start(process, parcel)
        return os.pidfd_open(process.pid)  # type: ignore[arg-type]
    except (ConnectionError, EOFError, ProcessLookupError) as error:
        if not parcel.is_packed:  # code of the user's raised it
            raise
        raise WorkerDiedError(
            f"{name} ended while it was being started ({error!r}). If it printed an error, that is "
            f"why; the start method {method!r} imports the main module anew"
        ) from error


@contextlib.contextmanager
def _without_sigpipe() -> Iterator[None]:
    """Stops writes of this thread to pipes that nobody reads from raising SIGPIPE, which might end the program.

    What is started meanwhile inherits that, so it must be nothing that runs code of the user's.
    """
    was_pending = signal.SIGPIPE in signal.sigpending()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if not was_pending and signal.SIGPIPE in signal.sigpending():
            signal.sigtimedwait({signal.SIGPIPE}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_by_server(process: BaseProcess, parcel: Parcel) -> None:
    # The pipe's other end is the new process's alone.
    from multiprocessing import forkserver  # not there on all platforms that import this

    forkserver.ensure_running()  # what it inherits, its processes do
    with _without_sigpipe():
        _start(process, parcel)


def _start(process: BaseProcess, parcel: Parcel | None = None) -> None:
    # A Ctrl-C between the fork and the moment when the worker can ignore it would end the worker with a traceback:
    # workers are born with the signal blocked, and open up when they are ready.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if parcel is not None:
        parcel.mask = {int(number) for number in mask}
    try:
        process.start()
        # A list for the tests of multiprocessing. Its callbacks are Python code: one that runs where the process is
        # dropped would swallow a Ctrl-C.
        multiprocessing_process._dangling.discard(process)  # type: ignore[attr-defined]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
