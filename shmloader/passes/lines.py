"""Who asked for which job, where several ask at once. Pure.

Results come out of the workers in the order in which jobs were sent. Each belongs to a *line*, which is what one caller
asked for, in order. A line that nobody refers to any more has left: of what it asked for, nothing more is sent, and
what comes belongs to nobody.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")

# A job as bytes, or why there is none; its error takes its place then.
Job = bytes | Exception


class Line(Generic[Result]):
    """What one caller has asked for and not got.

    Attributes:
        pending: jobs whose results have not come.
        ready: results that came while another line's were waited for.
    """

    def __init__(self) -> None:
        self.pending = 0
        self.ready: deque[Result] = deque()

    def __len__(self) -> int:
        return self.pending + len(self.ready)


class Lines(Generic[Result]):
    """All lines, and the order of their jobs.

    Args:
        look_ahead: how many jobs may be with the workers, made or not.
    """

    def __init__(self, look_ahead: int) -> None:
        self._look_ahead = look_ahead
        self._waiting: deque[tuple[Job, weakref.ref[Line[Result]]]] = deque()
        self._sent: deque[weakref.ref[Line[Result]]] = deque()

    def ask(self, line: Line[Result], job: Job) -> None:
        """Notes that a line asks for a job."""
        line.pending += 1
        self._waiting.append((job, weakref.ref(line)))

    def next_job(self, has_to_wait: Callable[[Job], bool] = lambda job: False) -> Job | None:
        """Returns the job that is to be sent now, and notes that it is; None where there is none, or no room.

        Args:
            has_to_wait: whether a job cannot be sent before results of others have arrived. It is not asked where there
                are no others.
        """
        while self._waiting and len(self._sent) < self._look_ahead:
            job, owner = self._waiting[0]
            is_wanted = owner() is not None
            if is_wanted and self._sent and has_to_wait(job):
                return None
            self._waiting.popleft()
            if is_wanted:
                self._sent.append(owner)
                return job
        return None

    def arrive(self) -> Line[Result] | None:
        """Notes that the result of the oldest job with the workers has come, and returns whose it is, if anybody's."""
        line = self._sent.popleft()()
        if line is not None:
            line.pending -= 1
        return line
