"""What every kind of worker is to the parent: something that is told of jobs, and waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from shmloader.slots.writer import Hold

from .brief import Brief
from .wire import Fields, Token

# How long workers may take to finish what they are doing before they are ended; torch's loader waits as long.
GRACE_SECONDS = 5.0


class SilenceError(Exception):
    """No token came in time. Not a TimeoutError, which a signal handler of the user's may raise at any moment."""


class Workers(Protocol):
    """The workers of one iterator, by number. All of it is used in the parent.

    The dispatcher knows no more of them than this, so that another kind of worker is another class like it. There are
    `processes.workers.ProcessWorkers`, `threads.workers.ThreadWorkers` and `ray.workers.RayWorkers`.

    Attributes:
        num_workers: how many there are.
        method: how they are started, for texts: fork, spawn, forkserver, thread, ray.
    """

    num_workers: int
    method: str

    @property
    def imports_main(self) -> bool:
        """Whether each imports the main module anew, where what it is given has to be found."""

    @property
    def forwards_logs(self) -> bool:
        """Whether there may be anything to `hear`."""

    @property
    def is_forked(self) -> bool:
        """Whether workers have all that this process has, so that nothing has to be pickled."""

    @property
    def processes(self) -> list[Any]:
        """The processes that tools know workers by, in the order of their numbers; none where they are threads."""

    def start(self, briefs: list[Brief]) -> None:
        """Starts all of them."""

    def replace(self, brief: Brief) -> None:
        """Starts one in the place of one that has died."""

    def send(self, worker: int, token: Fields) -> None:
        """Sends a token. Does not block. To a worker that has ended it goes nowhere; `wait` tells of that.

        Raises:
            WorkerTimeoutError: there is no room for more, since the worker does not read.
        """

    def dismiss(self, worker: int, token: Fields) -> None:
        """Sends a worker its last token, once; its end is no news then."""

    def shut_gate(self, words: tuple[int, int]) -> None:
        """Tells workers that do not see the shared state that the gate is shut; of its opening a CALL tells them.

        Does not block.

        Args:
            words: what the shared state has of the gate.
        """

    def wait(self, timeout: float | None) -> tuple[list[Token], list[int]]:
        """Waits for tokens, or for workers to end, and returns both; see `ProcessWorkers.wait`.

        One thread at a time waits.

        Raises:
            SilenceError: nothing came in ``timeout`` seconds.
        """

    def read(self) -> list[Token]:
        """Returns the tokens that are there. Does not block."""

    def wake(self) -> None:
        """Ends a `wait`, which returns nothing then: the one that is under way, or else the next.

        At once where the workers were made so that they can be woken, and within a second otherwise. Does not block;
        safe from any thread and from signal handlers, and after `stop`.
        """

    def hear(self) -> None:
        """Hands what workers have logged to the handlers of this process. `wait` and `stop` do so by themselves.

        Blocks as these handlers do.
        """

    def name(self, worker: int) -> str:
        """Returns what the system knows a worker by: pid 123."""

    def ending(self, worker: int) -> str:
        """Says how a worker has ended, in a sentence that names it."""

    def state(self, worker: int) -> str:
        """Says whether a worker runs, waits, or is stopped."""

    def traceback(self, worker: int) -> list[str]:
        """Returns the Python frames that a worker is in, the innermost first; none where it does not answer."""

    def stop(self, token: Fields, grace: float) -> None:
        """Ends all of them, and blocks until they have ended, ``grace`` seconds if they do so by themselves."""

    def left_behind(self, act: Callable[[], object]) -> bool:
        """Whether `stop` has left workers that go on; then the last of them calls ``act`` as it ends."""

    def holds(self) -> list[Hold]:
        """Returns the slots of which code in this process holds something through a worker, also one that has ended.

        What a worker process holds is gone when it has ended.
        """

    def kill(self) -> None:
        """Ends all of them at once, and does not wait. Called in signal handlers too."""
