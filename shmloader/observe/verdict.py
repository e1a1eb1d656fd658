"""What limits a loop, in words, with the knob that would help. Pure: figures in, words out."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from enum import Enum

from .figures import PassStatistics, SlowSample, WorkerStatistics
from .table import duration, size

# Nothing is said of less. In some thirty batches each worker of a usual number has made a few, and what happens once,
# at the start, is a small part; a tenth of a second is longer than what else a machine does meanwhile.
LEAST_BATCHES = 32
LEAST_SECONDS = 0.1

# A loop that waits for less than this part of its time would gain less than that from any knob.
_LITTLE = 0.05
# Beginning and ending passes is worth a knob from here on: persistent workers save nearly all of it.
_START = 0.2
# Copies cost what copying a batch costs, room what the worker waits: below, another cause is larger.
_COPIES = 0.1
_ROOM = 0.1
# The largest part decides: of several causes, the one that explains half of the waiting.
_MOST = 0.5
# Workers on one machine differ by some ten percent; half as much again is another dataset, or another machine.
_SLOW_WORKER = 1.5
_LEAST_BATCHES_OF_WORKER = 8
# Workers that idle so much could have made what the loop waits for, had they been asked before.
_IDLE = 0.2
# What the loop's process itself takes for a worker's batch, waits left out, is some tens of microseconds.
_QUICK_SECONDS = 100e-6
# More is not guessed: the figures say what one worker takes, and not what so many do to a disk.
_MOST_WORKERS_FACTOR = 4


class Kind(Enum):
    """What a verdict says."""

    UNKNOWN = "too little to tell"
    LOOP_BOUND = "the loop is the limit"
    IN_PROCESS = "no workers"
    START_UP = "start-up"
    HELD_BATCHES = "held batches"
    MEMORY_CAP = "memory cap"
    OWN_WORK = "the loader's work in the loop's process"
    STRAGGLERS = "straggling samples"
    SLOW_WORKER = "one slow worker"
    SHORT_OF_SLOTS = "too few batches ahead"
    MORE_WORKERS = "too few workers"
    SLOW_DATASET = "samples take too long"


class Verdict(str):
    """A verdict in words. It is its text, a str, and has what code needs beside.

    Attributes:
        kind: what it says.
        knob: what would help: the name of an argument, "dataset" or "sampler"; None: nothing to be changed.
    """

    __slots__ = ("kind", "knob")

    kind: Kind
    knob: str | None

    def __new__(cls, text: str, kind: Kind = Kind.UNKNOWN, knob: str | None = None) -> Verdict:  # noqa: PYI034 - typing.Self is newer than the oldest Python
        """Makes one; see the class."""
        verdict = super().__new__(cls, text)
        verdict.kind, verdict.knob = kind, knob
        return verdict

    def __getnewargs__(self) -> tuple[str, Kind, str | None]:  # type: ignore[override]
        return str(self), self.kind, self.knob


@dataclass(frozen=True)
class Setting:
    """What a loader is, as far as a verdict depends on it.

    Attributes:
        num_workers: workers; 0: the loop's process makes batches.
        processors: how many this process may use.
        prefetch_factor: batches per worker that are made ahead.
        in_order: whether batches come in their order.
        stays: whether workers stay from pass to pass.
        num_slots: slots in the pool.
        max_bytes: its cap.
    """

    num_workers: int
    processors: int = 1
    prefetch_factor: int = 2
    in_order: bool = True
    stays: bool = False
    num_slots: int = 0
    max_bytes: int = 0


def is_enough(figures: PassStatistics) -> bool:
    """Whether a verdict can be given of so few batches."""
    return figures.batches >= LEAST_BATCHES and figures.seconds >= LEAST_SECONDS


def judge(figures: PassStatistics, setting: Setting, slowest: tuple[SlowSample, ...] = ()) -> Verdict:
    """Returns what limits the loop.

    Args:
        figures: of a pass, or of several.
        setting: of the loader.
        slowest: samples of the pass.
    """
    if not is_enough(figures):
        return _unknown(figures)
    case = _Case(figures, setting, slowest)
    if case.start_share >= _START and setting.num_workers and not setting.stays:
        return _start_up(case)
    if case.lost_share < _LITTLE:
        return _loop_bound(case)
    if setting.num_workers == 0:
        return _own_work(case) if case.own > case.wait else _in_process(case)
    return _of_copies_and_room(case) or _of_waiting(case)


class _Case:
    """Figures of a pass, less its beginning and end."""

    def __init__(self, figures: PassStatistics, setting: Setting, slowest: tuple[SlowSample, ...]) -> None:
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
        self.net_work = max(0.0, self.work - self.late)  # as if no batch were late

    @property
    def step(self) -> float:
        """Seconds that the loop takes for a batch when it does not wait."""
        return (self.loop + self.own) / self.figures.batches

    def keeps_up(self, work: float) -> bool:
        """Whether workers that work for so long in all could make batches as quickly as the loop takes them."""
        return bool(self.made) and work / self.made / self.setting.num_workers <= self.step

    @property
    def most_workers(self) -> int:
        """How many workers the processors can use."""
        shares = [worker.cpu_share for worker in self.workers if worker.cpu_share is not None]
        share = statistics.fmean(shares) if shares else 1.0
        processors = self.setting.processors
        return min(max(1, round(processors / max(share, 1e-3))), _MOST_WORKERS_FACTOR * processors)


def _unknown(figures: PassStatistics) -> Verdict:
    return Verdict(
        f"Too little to tell: {_batches(figures.batches)} in {duration(figures.seconds)}; a verdict takes "
        f"{LEAST_BATCHES} batches and {LEAST_SECONDS:g} s."
    )


def _loop_bound(case: _Case) -> Verdict:
    return Verdict(
        f"The loop is the limit: it waits for data in {_percent(case.lost_share)} of its time. Nothing is to be gained "
        "from the loader.",
        Kind.LOOP_BOUND,
    )


def _start_up(case: _Case) -> Verdict:
    return Verdict(
        f"Beginning and ending passes takes {_percent(case.start_share)} of the time "
        f"({duration(case.figures.start_seconds)}). persistent_workers=True keeps workers from pass to pass; "
        "epoch_size makes passes longer; worker_type='thread' starts at once.",
        Kind.START_UP,
        "persistent_workers",
    )


def _in_process(case: _Case) -> Verdict:
    if case.made and case.work / case.made < _QUICK_SECONDS:
        return Verdict(
            f"Batches are made in the loop's process, in {_percent(case.wait_share)} of its time and "
            f"{duration(case.work / case.made)} each. Workers would not be quicker: to take a batch from one takes as "
            "long. A larger batch_size takes less of the loop for each sample.",
            Kind.IN_PROCESS,
            "batch_size",
        )
    wanted, most = _workers_for(case), case.most_workers
    return Verdict(
        f"Batches are made in the loop's process, in {_percent(case.wait_share)} of its time. num_workers="
        f"{min(wanted, most)} would make them beside the loop.{_of_time(case)}",
        Kind.IN_PROCESS,
        "num_workers",
    )


def _of_copies_and_room(case: _Case) -> Verdict | None:
    figures, setting = case.figures, case.setting
    if figures.copies >= _COPIES * figures.batches:
        share = f"{_percent(figures.copies / figures.batches)} of the batches are handed out as private copies"
        if figures.copies_for_room >= _MOST * figures.copies:
            return Verdict(
                f"{share}, since the cap of {size(setting.max_bytes)} leaves no room to lend more. Raise "
                "max_pool_bytes, or hold fewer batches.",
                Kind.MEMORY_CAP,
                "max_pool_bytes",
            )
        return Verdict(
            f"{share}, since the loop holds so many: a pool of {setting.num_slots} slots has no more to lend. Clone "
            "what you keep, drop batches sooner, or raise num_slots.",
            Kind.HELD_BATCHES,
            "num_slots",
        )
    room = sum(worker.room_seconds for worker in case.workers)
    if room and room >= _ROOM * (room + case.work):
        return Verdict(
            f"Workers wait for room in {_percent(room / (room + case.work))} of their time: batches do not fit under "
            f"the cap of {size(setting.max_bytes)}. Raise max_pool_bytes, or make batches smaller or num_workers less.",
            Kind.MEMORY_CAP,
            "max_pool_bytes",
        )
    return None


def _of_waiting(case: _Case) -> Verdict:
    if case.own > case.wait:
        return _own_work(case)
    if case.late >= _MOST * case.wait and case.keeps_up(case.net_work):
        return _stragglers(case)
    if (slow := _slow_worker(case)) is not None:
        return slow
    idle = sum(worker.idle_seconds for worker in case.workers)
    if idle and case.keeps_up(case.work) and idle >= _IDLE * (idle + case.work):
        return Verdict(
            f"{_waits(case)} though workers idle in {_percent(idle / (idle + case.work))} of theirs: batches, or the "
            f"loop's steps, take unequal times. Raise prefetch_factor={case.setting.prefetch_factor}, so that more "
            "batches are ready.",
            Kind.SHORT_OF_SLOTS,
            "prefetch_factor",
        )
    return _too_slow(case)


def _own_work(case: _Case) -> Verdict:
    has_workers = case.setting.num_workers > 0
    return Verdict(
        f"The loader's own work in the loop's process takes {_percent(case.lost_share)} of the time: reading the "
        f"sampler{', and taking batches from slots' if has_workers else ''}. More workers do not help. Look at the "
        f"sampler{', and at how many tensors a batch has' if has_workers else ''}; larger batches have less of it.",
        Kind.OWN_WORK,
        "sampler",
    )


def _stragglers(case: _Case) -> Verdict:
    count = sum(worker.late_batches for worker in case.workers)
    named = "; ".join(f"{one.what} ({duration(one.seconds)})" for one in case.slowest[:3])
    others = "; in_order=False lets other batches go ahead" if case.setting.in_order else ""
    return Verdict(
        f"{_waits(case)} mostly for {_batches(count)} that took several times the others. Slowest: "
        f"{named or 'not known'}. Look at these samples{others}.",
        Kind.STRAGGLERS,
        "in_order" if case.setting.in_order else "dataset",
    )


def _slow_worker(case: _Case) -> Verdict | None:
    workers = [worker for worker in case.workers if worker.batches >= _LEAST_BATCHES_OF_WORKER]
    if len(workers) < 2:
        return None
    slow = max(workers, key=_seconds_a_batch)
    others = statistics.median(_seconds_a_batch(worker) for worker in workers if worker is not slow)
    if _seconds_a_batch(slow) < _SLOW_WORKER * others or _seconds_a_batch(slow) / len(workers) < case.step:
        return None
    remedy = "Others wait for it, since batches come in order; in_order=False lets them go ahead. "
    return Verdict(
        f"{_waits(case)} and worker {slow.number} takes {duration(_seconds_a_batch(slow))} a batch where others take "
        f"{duration(others)}. {remedy if case.setting.in_order else ''}Look at what that worker reads.",
        Kind.SLOW_WORKER,
        "in_order" if case.setting.in_order else "dataset",
    )


def _seconds_a_batch(worker: WorkerStatistics) -> float:
    return max(0.0, worker.work_seconds - worker.late_seconds) / worker.batches


def _too_slow(case: _Case) -> Verdict:
    now, wanted, most = case.setting.num_workers, _workers_for(case), case.most_workers
    processors = f"{case.setting.processors} processor{'s' if case.setting.processors != 1 else ''}"
    if now >= most or wanted <= now:
        busy = f"the {processors} that there are have no room for more workers" if now >= most else "all workers work"
        return Verdict(
            f"{_waits(case)} and {busy}. Make samples faster.{_of_time(case)} A CachedDataset keeps what was read "
            "once; __getitem_into__ writes samples in place.",
            Kind.SLOW_DATASET,
            "dataset",
        )
    limit = "" if wanted <= most else f" It would take {wanted}, and {processors} can use no more than about {most}."
    return Verdict(
        f"{_waits(case)} and {now} worker{'s' if now != 1 else ''} cannot keep up: num_workers={min(wanted, most)}."
        f"{limit}{_of_time(case)}",
        Kind.MORE_WORKERS,
        "num_workers",
    )


def _workers_for(case: _Case) -> int:
    """Returns how many workers make batches as quickly as the loop takes them."""
    if not case.made:
        return 1
    most = 100 * case.most_workers  # where the loop does next to nothing, any number is too small
    return max(1, math.ceil(min(most, case.work / case.made / case.step))) if case.step else most


def _of_time(case: _Case) -> str:
    fetch = sum(worker.fetch_seconds for worker in case.workers)
    if not case.made or not case.work:
        return ""
    return (
        f" A batch takes a worker {duration(case.work / case.made)}: {_percent(fetch / case.work)} reading samples, "
        f"{_percent(1 - fetch / case.work)} collating."
    )


def _waits(case: _Case) -> str:
    return f"The loop waits for batches in {_percent(case.wait_share)} of its time,"


def _batches(count: int) -> str:
    return f"{count} batch{'' if count == 1 else 'es'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"
