"""The figures of a loader, of one of its passes, and of its workers. Immutable, and pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SlowSample:
    """One of the slowest samples of a pass.

    Attributes:
        seconds: how long it took.
        what: its index; or the indices of its batch, where samples are too quick to be timed one by one.
        worker: who has made it.
    """

    seconds: float
    what: str
    worker: int


@dataclass(frozen=True)
class WorkerStatistics:
    """What one worker has done; and, with ``num_workers=0``, what the loop's process has done in its place.

    Batches that were made and not handed out count too. The times do not overlap.

    Attributes:
        number: the worker's.
        batches: batches made.
        samples: samples in them.
        bytes: what they take in their slots.
        fetch_seconds: reading samples. Writing them into the slot too, where the dataset does that directly.
        collate_seconds: collating, and packing what is not in the slot yet.
        idle_seconds: waiting for a job, that is for the loop.
        room_seconds: waiting for room in a slot.
        paused_seconds: waiting because the loader is paused.
        growth: how many batches needed more room than their slots had.
        late_batches: batches that took more than three times the mean, and a millisecond.
        late_seconds: by how much these took longer than the mean.
        cpu_share: the part of its work in which it used a processor: near 1 where samples are computed, and less where
            files or networks are waited for, or processors are short. None: not known yet.
        queue_share: the part of its work in which it waited for a processor: other programs have them, there are more
            workers than processors, or a container's quota is used up. None: not known yet.
        lock_seconds: how long a worker thread waits, in the mean, when it asks for the interpreter lock: microseconds,
            or some milliseconds where other threads compute. None: not known, or the worker is a process.
    """

    number: int
    batches: int = 0
    samples: int = 0
    bytes: int = 0
    fetch_seconds: float = 0.0
    collate_seconds: float = 0.0
    idle_seconds: float = 0.0
    room_seconds: float = 0.0
    paused_seconds: float = 0.0
    growth: int = 0
    late_batches: int = 0
    late_seconds: float = 0.0
    cpu_share: float | None = None
    queue_share: float | None = None
    lock_seconds: float | None = None

    @property
    def work_seconds(self) -> float:
        """The time in which it made batches, waits left out."""
        return self.fetch_seconds + self.collate_seconds


@dataclass(frozen=True, kw_only=True)
class PassStatistics:
    """What one pass has given and taken, or all passes of a loader.

    Attributes:
        batches: batches handed out. With ``device``, those that are on their way there count.
        samples: samples in them; items, where no batches are made.
        bytes: what they took in their slots, descriptions included. 0 with ``num_workers=0``, where there are none.
        copies: batches handed out as private copies, because the loop held so many or the cap left no room to lend
            more. `HeldBatchesWarning` says which; raise ``num_slots`` or ``max_pool_bytes``, or clone what you keep.
        copies_for_room: those of them because the cap left no room.
        restarts: workers that died and were replaced.
        seconds: all that follows together: the time from ``iter`` to the last ``next``. Not the time between passes.
        start_seconds: beginning and ending passes: in ``iter``, until the first batch, and ending the workers.
        wait_seconds: blocked in ``next`` until workers had a batch, the first included; with ``num_workers=0``, making
            batches.
        first_wait_seconds: the part of that before the first batch, which is in ``start_seconds`` too.
        waits: how often ``next`` has blocked.
        own_seconds: the loader's own work in ``next``: reading the sampler, taking batches from slots.
        sampler_seconds: the part of that in which the sampler was read, without the first batches; with workers it
            follows from some of the reads, so that it is known of passes of some tens of batches only.
        loop_seconds: what the loop did between one ``next`` and the following one.
        passes: how many were begun; 0 for a `Producer` and a `JobQueue`.
        workers: each worker, by number.
    """

    batches: int = 0
    samples: int = 0
    bytes: int = 0
    copies: int = 0
    copies_for_room: int = 0
    restarts: int = 0
    seconds: float = 0.0
    start_seconds: float = 0.0
    wait_seconds: float = 0.0
    first_wait_seconds: float = 0.0
    waits: int = 0
    own_seconds: float = 0.0
    sampler_seconds: float = 0.0
    loop_seconds: float = 0.0
    passes: int = 0
    workers: tuple[WorkerStatistics, ...] = ()

    @property
    def batches_per_second(self) -> float:
        """Batches a second, from begin to end."""
        return self.batches / self.seconds if self.seconds else 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples a second, from begin to end."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second, from begin to end."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def growth(self) -> int:
        """How many batches needed more room than their slots had."""
        return sum(worker.growth for worker in self.workers)
