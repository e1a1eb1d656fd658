"""What a worker does, by what its brief says. All kinds of workers run it, in processes and in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from shmloader.slots.writer import Hold, SlotWriter

from .batch_maker import BatchMaker
from .brief import Brief, TargetSource
from .job_loop import JobLoop
from .room_requests import Outbox
from .target_loop import TargetLoop
from .wire import Inbox


class WorkerLoop(Protocol):
    """One worker's work, from its first call of user code to its last token."""

    @property
    def writer(self) -> SlotWriter:
        """Writes to slots."""

    @property
    def dataset(self) -> Any:
        """What `get_worker_info` names as the dataset."""

    def install(self) -> None:
        """Has functions that user code calls do what they have to do in this worker process."""

    def install_in_thread(self) -> None:
        """Does the same in this thread alone."""

    def begin(self) -> None:
        """Calls the init function, and does what else comes first."""

    def serve(self) -> None:
        """Works until told to stop."""

    def holds(self) -> list[Hold]:
        """Returns the slots of which user code holds something through this worker. Safe from any thread."""


def make(brief: Brief, inbox: Inbox, outbox: Outbox, count: Callable[[], object] = lambda: None) -> WorkerLoop:
    """Returns the loop of a worker.

    Args:
        brief: what it makes.
        inbox: where tokens come from.
        outbox: where they go.
        count: called after each batch.
    """
    if isinstance(brief.source, TargetSource):
        return TargetLoop(brief, brief.source, inbox, outbox, count)
    return JobLoop(brief, BatchMaker(brief), inbox, outbox, count)
