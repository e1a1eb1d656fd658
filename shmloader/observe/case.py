"""What a verdict is given of: the figures of a pass less its beginning and end, and what the loader is. Pure."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from .figures import PassStatistics, SlowSample

# Far more workers than processors are not advised at once: the figures say what one worker takes, and not what so many
# do to a disk or a server.
_MOST_WORKERS_FACTOR = 4


@dataclass(frozen=True)
class Setting:
    """What a loader is, as far as a verdict depends on it.

    Attributes:
        num_workers: workers; 0: the loop's process makes batches.
        processors: how many this process may use.
        prefetch_factor: batches per worker that are made ahead.
        in_order: whether batches come in their order.
        stays: whether workers stay from pass to pass.
        goes_on: whether passes go on with the stream, as ``epoch_size`` has it.
        has_first_pass: whether the figures are of the loader's first pass, or of all.
        num_slots: slots in the pool.
        max_bytes: its cap.
        worker_type: the kind of workers.
        is_stream: whether the dataset is iterable.
        is_cached: whether it has a cache.
        batching: the argument by which batches would be larger; None: samples come one by one.
    """

    num_workers: int
    processors: int = 1
    prefetch_factor: int = 2
    in_order: bool = True
    stays: bool = False
    goes_on: bool = False
    has_first_pass: bool = False
    num_slots: int = 0
    max_bytes: int = 0
    worker_type: str = "process"
    is_stream: bool = False
    is_cached: bool = False
    batching: str | None = "batch_size"

    @property
    def has_threads(self) -> bool:
        """Whether workers are threads."""
        return self.num_workers > 0 and self.worker_type == "thread"


class Case:
    """Figures of a pass, less its beginning and end.

    Args:
        figures: of the pass.
        setting: of the loader.
        slowest: samples of the pass.

    Attributes:
        wait: seconds that the loop has waited, behind the first batch.
        own: seconds of the loader's own work in the loop's process.
        loop: seconds of the loop's own.
        lost_share, wait_share: the part of these that is not the loop's, and that is waiting.
        start_share: the part of all time that beginning and ending took.
        start_up_share: that without what making a first batch takes, wherever it is made.
        workers: those that have made anything.
        made: batches of theirs.
        work: seconds in which they made them.
        late: the part of that by which batches took longer than several times the others.
        unexplained: the part of ``wait`` in which no worker can have been at work.
    """

    def __init__(self, figures: PassStatistics, setting: Setting, slowest: tuple[SlowSample, ...] = ()) -> None:
        self.figures = figures
        self.setting = setting
        self.slowest = slowest
        self.wait = max(0.0, figures.wait_seconds - figures.first_wait_seconds)
        self.own = max(0.0, figures.own_seconds)
        self.loop = max(0.0, figures.loop_seconds)
        steady = self.wait + self.own + self.loop
        self.lost_share = (self.wait + self.own) / steady if steady else 0.0
        self.wait_share = self.wait / steady if steady else 0.0
        self.start_share = figures.start_seconds / figures.seconds
        self.workers = [worker for worker in figures.workers if worker.batches]
        self.made = sum(worker.batches for worker in self.workers)
        self.late = sum(worker.late_seconds for worker in self.workers)
        self.work = sum(worker.work_seconds for worker in self.workers)
        self.net_work = max(0.0, self.work - self.late)
        # While the loop waits for a batch, some worker makes it, or waits for what it needs to go on.
        delays = sum(worker.room_seconds + worker.paused_seconds for worker in self.workers)
        self.unexplained = max(0.0, self.wait - self.work - delays)
        first_batches = max(1, figures.passes) * self.net_work / self.made if self.made else 0.0
        self.start_up_share = max(0.0, figures.start_seconds - first_batches) / figures.seconds

    @property
    def step(self) -> float:
        """Seconds that the loop takes for a batch when it does not wait."""
        return (self.loop + self.own) / self.figures.batches

    @property
    def seconds_a_batch(self) -> float:
        """Seconds that a batch takes a worker."""
        return self.work / self.made if self.made else 0.0

    @property
    def fetch_share(self) -> float:
        """The part of workers' work in which they read samples."""
        return sum(worker.fetch_seconds for worker in self.workers) / self.work if self.work else 0.0

    @property
    def cpu_share(self) -> float:
        """The part of workers' work in which they used a processor; 1 where that is not known."""
        shares = [worker.cpu_share for worker in self.workers if worker.cpu_share is not None]
        return statistics.fmean(shares) if shares else 1.0

    @property
    def queue_share(self) -> float:
        """The part of workers' work in which they waited for a processor; 0 where that is not known."""
        shares = [worker.queue_share for worker in self.workers if worker.queue_share is not None]
        return statistics.fmean(shares) if shares else 0.0

    @property
    def demand(self) -> float:
        """The part of workers' work in which they used a processor, or would have used one."""
        return min(1.0, self.cpu_share + self.queue_share)

    @property
    def processors_used(self) -> float:
        """How many processors all workers used together, in the mean."""
        return self.cpu_share * self.work / self.figures.seconds

    @property
    def lock_seconds(self) -> float:
        """Seconds that a worker thread waits for the interpreter lock, in the mean."""
        found = [worker.lock_seconds for worker in self.workers if worker.lock_seconds is not None]
        return statistics.fmean(found) if found else 0.0

    def keeps_up(self, work: float) -> bool:
        """Whether workers that work for so long in all could make batches as quickly as the loop takes them."""
        return bool(self.made) and work / self.made / self.setting.num_workers <= self.step

    @property
    def is_half_used(self) -> bool:
        """Whether workers have worked in no more than half of the time: they could make as much in half of it."""
        return 2 * self.work <= self.setting.num_workers * self.figures.seconds

    def wait_left(self, work: float) -> float:
        """Seconds that the loop would wait all the same if workers worked for so long in all."""
        return max(0.0, work / max(1, self.setting.num_workers) - self.loop - self.own)

    @property
    def most_workers(self) -> int:
        """How many workers the processors can use."""
        return max(1, round(self.setting.processors / max(self.demand, 1e-3)))

    @property
    def workers_to_try(self) -> int:
        """How many workers may be advised at once; those who wait for something else may be many more in the end."""
        guess = max(_MOST_WORKERS_FACTOR * self.setting.processors, 2 * self.setting.num_workers)
        return min(self.most_workers, guess)

    @property
    def workers_wanted(self) -> int:
        """How many workers make batches as quickly as the loop takes them."""
        if not self.made:
            return 1
        most = 100 * self.most_workers  # where the loop does next to nothing, any number is too small
        return max(1, math.ceil(min(most, self.seconds_a_batch / self.step))) if self.step else most
