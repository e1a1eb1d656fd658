"""The parent's side of worker processes."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from types import SimpleNamespace

from shmloader.workers.processes.workers import ProcessWorkers, _Member, default_context
from shmloader.workers.wire import BATCH, Token, pipe


def test_a_worker_that_writes_and_dies_while_the_loop_looks() -> None:
    """The kernel looks at one descriptor after the other: at the pipe, then at the workers."""
    up, outbox = pipe(8)
    os.set_blocking(up.fd, False)
    inbox, token = pipe(8)
    workers = ProcessWorkers(default_context(), 0, 1)
    try:
        workers._up.close()
        workers._up = up
        process = os.fork()
        if process == 0:
            inbox.read()
            outbox.write(Token(BATCH, 0, 0, 0))
            os._exit(0)

        def ends() -> None:
            token.write(Token(BATCH, 0, 0, 0))
            os.waitpid(process, 0)

        looks = Looks(up.fd, ends)
        pidfd, other = os.pidfd_open(process), ended_process()
        workers._members = [_Member(SimpleNamespace(), fd, token, inbox) for fd in (pidfd, other)]  # type: ignore[arg-type]
        looks.register(pidfd)
        looks.register(other)
        workers._poll = looks  # type: ignore[assignment]
        tokens, dead = workers.wait(None)
        os.close(pidfd)
        os.close(other)
        assert tokens or dead == [1]
    finally:
        for end in (outbox, inbox, token, workers._outbox, up):
            end.close()
        workers._tracebacks.close()


def ended_process() -> int:
    """Returns the descriptor of a process that has ended."""
    process = os.fork()
    if process == 0:
        os._exit(0)
    pidfd = os.pidfd_open(process)
    os.waitpid(process, 0)
    return pidfd


class Looks:
    """A poll that is slow: at the first look, something happens after the pipe was looked at."""

    def __init__(self, pipe_fd: int, happens: Callable[[], object]) -> None:
        self.pipe = select.poll()
        self.pipe.register(pipe_fd, select.POLLIN)
        self.others = select.poll()
        self.happens = happens
        self.count = 0

    def register(self, fd: int) -> None:
        self.others.register(fd, select.POLLIN)

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        self.count += 1
        seen = self.pipe.poll(0)
        if self.count == 1:
            self.happens()
        return seen + self.others.poll(timeout)
