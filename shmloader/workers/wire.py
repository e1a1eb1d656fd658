"""Tokens and the pipes that they travel on.

A token is one fixed-size record, far smaller than PIPE_BUF: the kernel writes it whole or not at all, so a process
that is killed at any instruction leaves no half message behind, and no lock, because there is none. Batches and jobs
never travel on a pipe; they lie in the slot that the token names.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any, NamedTuple

with contextlib.suppress(ImportError):  # on Windows, where this module is imported and not used
    import fcntl

# Down: from the parent to one worker.
JOB = 1  # make batch `seq` in `slot`
GRANT = 2  # the answer to an ASK; a `room` of 0: no more can be had
CURB = 3  # `slot`, whose job `seq` is not begun since the worker waits for a GRANT, has another `room` now
RESUME = 4  # a new pass begins, which is `generation`; see `SharedState.shared_seed`
STOP = 5  # no job will follow
CALL = 12  # a worker that waits at the gate is to look whether it may pass; see `SharedState.may_pass`

# Up: from every worker to the parent, over one pipe.
BATCH = 6  # batch `seq` is packed in `slot`
FAULT = 7  # as BATCH, but what is packed is the exception that making the batch raised
ENDED = 8  # this worker has no batch `seq`, nor a later one: its iterable dataset, or a producer's target, has ended
ASK = 9  # batch `seq` does not fit into `slot`; the worker waits for a GRANT
RESUMED = 10  # all jobs before `generation` are done: this worker owns no slot
ITEM = 11  # as BATCH, of a producer's target, which goes on by itself

NO_SEQ = (1 << 64) - 1  # in an ENDED that answers no job


class Token(NamedTuple):
    """One message. Each field means the same in all kinds that have it, and is 0 in the others.

    Attributes:
        kind: one of the constants above.
        is_held: of a slot that comes back: whether code in the worker still holds tensors of it, so that it must
            not be written again. In an ITEM, when that is not known yet, it is said of this worker's ITEM before.
        worker: who is told, or who tells.
        generation: the pass that this belongs to.
        slot: the slot that is handed over.
        seq: the batch's number.
        room: bytes of the slot that its writer may use; in an ASK, those that it would need.
        offset: where in the slot that lies which the reader needs: 0 for a JOB's indices, a BATCH's tail.
        nbytes: and how long it is. In an ASK, the slot's first bytes that have to stay as they are.
    """

    kind: int
    is_held: int
    worker: int
    generation: int
    slot: int = 0
    seq: int = 0
    room: int = 0
    offset: int = 0
    nbytes: int = 0


# A token as a plain tuple, for senders: to make a named one costs as much as to pack it.
Fields = tuple[int, int, int, int, int, int, int, int, int]

_LAYOUT = struct.Struct("<BBHIIQQQQ")
_as_token: Callable[[Fields], Token] = functools.partial(tuple.__new__, Token)
TOKEN_BYTES = _LAYOUT.size
_READ_BYTES = TOKEN_BYTES * 128
_MAX_PIPE_BYTES = 1 << 30
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032


class PipeEnd:
    """One end of a pipe. It can be handed to a process that is being started, whatever the start method."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, token: Fields) -> None:
        """Writes one token, whole. Blocks while the pipe is full, until the other side reads.

        Raises:
            BlockingIOError: the pipe is full, and this end does not block. Nothing was written.
            BrokenPipeError: no process has the other end open. SIGPIPE comes first, and where a program has set it to
                its default that is the end. So the parent has both ends of its pipes to workers open.
        """
        os.write(self.fd, _LAYOUT.pack(*token))

    def read(self) -> list[Token]:
        """Returns the tokens that are there, at least one; empty at end of file. Blocks while there is none."""
        return list(map(_as_token, _LAYOUT.iter_unpack(os.read(self.fd, _READ_BYTES))))

    def read_ready(self) -> list[Token]:
        """Returns the tokens that are there, from an end that does not block."""
        try:
            return self.read()
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Closes the descriptor, once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __reduce__(self) -> tuple[Callable[[type[PipeEnd], Any], PipeEnd], tuple[type[PipeEnd], Any]]:
        return _adopt, (type(self), reduction.DupFd(self.fd))


class Outbox(PipeEnd):
    """A worker's end of the pipe to the parent, which has the other end open as long as it lives."""

    def write(self, token: Fields) -> None:
        """Writes one token, whole; see `PipeEnd.write`.

        Raises:
            SystemExit: the parent has ended. Its descriptors are closed before its workers are killed, and a traceback
                of what came in between would say nothing that matters.
        """
        try:
            os.write(self.fd, _LAYOUT.pack(*token))  # for every batch: a call of the other method would cost a quarter
        except BrokenPipeError:
            raise SystemExit(1) from None


def pipe(tokens: int) -> tuple[PipeEnd, PipeEnd]:
    """Returns the reading and the writing end of a new pipe that holds ``tokens`` tokens; neither survives an exec.

    Raises:
        OSError: the kernel does not make pipes of that size (/proc/sys/fs/pipe-max-size), or not for a user who has so
            many (/proc/sys/fs/pipe-user-pages-soft).
    """
    # The kernel's buffers are pages. No token is split, and a page that is read in part is not written to again.
    nbytes = (-(-tokens // (mmap.PAGESIZE // TOKEN_BYTES)) + 1) * mmap.PAGESIZE
    if nbytes > _MAX_PIPE_BYTES:
        raise OSError(errno.EINVAL, f"no pipe holds {tokens} tokens")
    reader, writer = os.pipe()
    try:
        if fcntl.fcntl(writer, _F_GETPIPE_SZ) < nbytes:
            fcntl.fcntl(writer, _F_SETPIPE_SZ, nbytes)
    except BaseException:
        os.close(reader)
        os.close(writer)
        raise
    return PipeEnd(reader), PipeEnd(writer)


def _adopt(kind: type[PipeEnd], duplicate: Any) -> PipeEnd:
    return kind(duplicate.detach())


@dataclass(frozen=True)
class Link:
    """How a worker process and its parent reach each other.

    Attributes:
        parent_pid: the parent.
        dies_by_kernel: whether the kernel can end this process with its parent; see `parent_watch`.
        inbox: where tokens come from.
        outbox: where they go.
        traceback_outlet: where the process writes its stack when it is asked.
        close_first: the parent's ends of pipes, which a forked child has open too.
    """

    parent_pid: int
    dies_by_kernel: bool
    inbox: PipeEnd
    outbox: PipeEnd
    traceback_outlet: PipeEnd
    close_first: Sequence[int]


class Inbox:
    """A worker's view of what it is sent: tokens in order, or None where no more will come. Used in the worker only.

    The parent's end is not looked for here: a worker does not outlive it, see `parent_watch`.

    Args:
        read: blocks until there are tokens, and returns them; none where no more will come.
    """

    def __init__(self, read: Callable[[], list[Token]]) -> None:
        self._read = read
        self._waiting: list[Token] = []

    def get(self) -> Token | None:
        """Returns the next token. Blocks until there is one."""
        if not self._waiting:
            self._waiting = self._read()
            self._waiting.reverse()
        return self._waiting.pop() if self._waiting else None

    def get_one(self, kind: int, curbed: dict[int, int]) -> Token | None:
        """Returns the next token of a kind, a GRANT or a CALL, leaving what was sent before it in its order.

        Blocks as `get`. None when there will be none: the parent has said STOP, or closed the pipe.

        Args:
            kind: which.
            curbed: takes up the jobs whose CURB came in the meantime, and the bytes that they may use.
        """
        passed: list[Token] = []
        while (token := self.get()) is not None and token.kind != kind:
            if token.kind == CURB:
                curbed[token.seq] = token.room
                continue
            passed.append(token)
            if token.kind == STOP:
                token = None
                break
        self._waiting.extend(reversed(passed))
        return token
