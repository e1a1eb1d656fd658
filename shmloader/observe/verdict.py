"""What limits a loop, in words, with the knob that would help. Pure: figures in, words out."""

from __future__ import annotations

import statistics
from enum import Enum

from .case import Case, Setting
from .figures import PassStatistics, SlowSample, WorkerStatistics
from .table import duration, size

__all__ = [
    "IDLE",
    "LEAST_BATCHES",
    "LEAST_SECONDS",
    "LITTLE",
    "Kind",
    "Setting",
    "Verdict",
    "is_enough",
    "judge",
    "of_copies_and_room",
    "of_lock",
    "percent",
    "too_little",
]

# Nothing is said of less. In some thirty batches each worker of a usual number has made a few, and what happens once,
# at the start, is a small part; a tenth of a second is longer than what else a machine does meanwhile.
LEAST_BATCHES = 32
LEAST_SECONDS = 0.1

# A loop that waits for less than this part of its time would gain less than that from any knob.
LITTLE = 0.05
# Beginning and ending passes is worth a knob from here on: persistent workers save nearly all of it.
_START = 0.2
_FAR_LONGER = 2  # where workers stay, than all else that the loop waits for
# Copies cost what copying a batch costs, room what the worker waits: below, another cause is larger.
_COPIES = 0.1
_ROOM = 0.1
# The largest part decides: of several causes, the one that explains half of the waiting.
_MOST = 0.5
# Workers on one machine differ by some ten percent; half as much again is another dataset, or another machine.
_SLOW_WORKER = 1.5
_LEAST_BATCHES_OF_WORKER = 8
# Workers that idle so much could have made what the loop waits for, had they been asked before.
IDLE = 0.2
# What the loop's process itself takes for a worker's batch, waits left out, is some tens of microseconds.
_QUICK_SECONDS = 100e-6
# A look at the interpreter lock takes a microsecond where nobody else computes, and the interpreter's switch interval,
# five milliseconds, or several of them where somebody does.
_LOCK_SECONDS = 1e-3
# So much of a processor do threads use at least that slow down a loop which does not wait for them.
_LOCK_USED = 0.2
# Waiting for a worker that is there takes some ten microseconds beside its work; more on a machine that is busy.
_HELD_UP_SECONDS = 0.5e-3
# Processes that compute so much of their time share processors, and not only a disk.
_COMPUTES = 0.8
# Samples of two workers that take as long are chance, or it is not the samples.
_ALIKE = 0.9
# Collating is worth writing samples in place from here on.
_COLLATES = 0.2
_FAR_MORE = 16  # times as many workers as there are: a loop that does next to nothing


class Kind(Enum):
    """What a verdict says."""

    UNKNOWN = "too little to tell"
    LOOP_BOUND = "the loop is the limit"
    IN_PROCESS = "no workers"
    START_UP = "start-up"
    LATE_BEGIN = "late first batches"
    HELD_BATCHES = "held batches"
    MEMORY_CAP = "memory cap"
    OWN_WORK = "the loader's work in the loop's process"
    INTERPRETER_LOCK = "the interpreter lock"
    HELD_UP = "workers held up"
    STRAGGLERS = "straggling samples"
    SLOW_WORKER = "one slow worker"
    SHORT_OF_SLOTS = "too few batches ahead"
    MORE_WORKERS = "too few workers"
    SLOW_DATASET = "samples take too long"


class Verdict(str):
    """A verdict in words. It is its text, a str, and has what code needs beside.

    Attributes:
        kind: what it says.
        knob: what would help: the name of an argument; "dataset", "sampler", "target" and "function" are among them.
            None: nothing that is to be changed there.
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
        return too_little(figures)
    case = Case(figures, setting, slowest)
    begins_long = case.start_share >= _START
    if begins_long and setting.num_workers and not setting.stays:
        return _start_up(case)
    if (locked := of_lock(case)) is not None:
        return locked
    if begins_long and figures.start_seconds >= _FAR_LONGER * (case.wait + case.own):
        return _late_begin(case)
    if case.lost_share < LITTLE:
        return _loop_bound(case)
    if setting.num_workers == 0:
        return _own_work(case) if case.own > case.wait else _in_process(case)
    return of_copies_and_room(case) or _of_waiting(case)


def too_little(figures: PassStatistics, many: str = "batches") -> Verdict:
    """Returns that nothing is said of so few batches, or whatever workers make."""
    return Verdict(
        f"Too little to tell: {figures.batches} {many} in {duration(figures.seconds)}; a verdict takes "
        f"{LEAST_BATCHES} of them and {LEAST_SECONDS:g} s."
    )


def _loop_bound(case: Case) -> Verdict:
    return Verdict(
        f"The loop is the limit: it waits for data in {percent(case.lost_share)} of its time. Nothing is to be gained "
        "from the loader.",
        Kind.LOOP_BOUND,
    )


def _start_up(case: Case) -> Verdict:
    at_once = "" if case.setting.has_threads else "; worker_type='thread' starts at once"
    return Verdict(
        f"Beginning and ending passes takes {percent(case.start_share)} of the time "
        f"({duration(case.figures.start_seconds)}). persistent_workers=True keeps workers from pass to pass; "
        f"epoch_size makes passes longer{at_once}.",
        Kind.START_UP,
        "persistent_workers",
    )


def _late_begin(case: Case) -> Verdict:
    """Says what there is to say of first batches that are late, where workers stay or there are none."""
    setting = case.setting
    took = f"{percent(case.start_share)} of the time ({duration(case.figures.start_seconds)})"
    behind = f"Behind the first batch the loop waits in {percent(case.lost_share)} of its time."
    if setting.has_first_pass and setting.num_workers:
        return Verdict(
            f"Beginning takes {took}: workers are started once, and stay. {behind} A later pass tells what passes wait "
            "for.",
            Kind.LATE_BEGIN,
        )
    ahead = "" if not setting.num_workers else " Workers make nothing between passes."
    first = "what the dataset's __iter__ does" if setting.is_stream else "what the sampler does"
    remedy = "" if setting.goes_on else "; epoch_size makes passes longer"
    return Verdict(
        f"Beginning passes takes {took}: what comes before a pass's first batch. {behind}{ahead} Look at {first}, and "
        f"the first samples{remedy}.",
        Kind.LATE_BEGIN,
        "dataset" if setting.goes_on else "epoch_size",
    )


def _waits_for_lock(case: Case) -> bool:
    """Whether threads compute at a time when the loop, or another of them, needs the interpreter."""
    if not case.setting.has_threads or case.lock_seconds < _LOCK_SECONDS or case.setting.processors == 1:
        return False
    return case.lost_share >= LITTLE or case.processors_used >= _LOCK_USED


def of_lock(case: Case) -> Verdict | None:
    """Returns what is said of threads that wait for the interpreter lock; None: they do not."""
    if not _waits_for_lock(case):
        return None
    return Verdict(
        f"Threads wait for the interpreter lock, {duration(case.lock_seconds)} in the mean whenever a worker asks for "
        "it, and so do the loop's steps, as where samples are made by Python code: one thread runs it at a time. "
        f"Workers use {case.processors_used:.1f} processors together. With worker_type='process' each has a lock.",
        Kind.INTERPRETER_LOCK,
        "worker_type",
    )


def _in_process(case: Case) -> Verdict:
    setting = case.setting
    share = f"Batches are made in the loop's process, in {percent(case.wait_share)} of its time"
    if case.made and case.seconds_a_batch < _QUICK_SECONDS:
        larger = f"A larger {setting.batching}" if setting.batching else "A dataset that returns more at a time"
        larger = larger.replace("larger batch_sampler", "batch_sampler of larger batches")
        return Verdict(
            f"{share} and {duration(case.seconds_a_batch)} each. Workers would not be quicker: to take a batch from "
            f"one takes as long. {larger} takes less of the loop for each sample.",
            Kind.IN_PROCESS,
            setting.batching or "dataset",
        )
    if setting.processors == 1 and case.cpu_share >= _COMPUTES:
        return Verdict(
            f"{share}, and there is one processor, which they use. Workers help only where the loop's steps do not, as "
            f"those do that wait for a GPU. {_faster_samples(case)}",
            Kind.IN_PROCESS,
            "dataset",
        )
    number = min(case.workers_wanted, case.workers_to_try)
    return Verdict(
        f"{share}. num_workers={number} would make them beside the loop.{_of_stream(case)}{_of_time(case)}",
        Kind.IN_PROCESS,
        "num_workers",
    )


def of_copies_and_room(case: Case, many: str = "batches") -> Verdict | None:
    """Returns what is said of private copies, and of workers that wait for room; None: neither costs much."""
    figures, setting = case.figures, case.setting
    if figures.copies >= _COPIES * figures.batches:
        share = f"{percent(figures.copies / figures.batches)} of the {many} are handed out as private copies"
        if figures.copies_for_room >= _MOST * figures.copies:
            return Verdict(
                f"{share}, since the cap of {size(setting.max_bytes)} leaves no room to lend more. Raise "
                f"max_pool_bytes, or hold fewer {many}.",
                Kind.MEMORY_CAP,
                "max_pool_bytes",
            )
        return Verdict(
            f"{share}, since the loop holds so many: a pool of {setting.num_slots} slots has no more to lend. Clone "
            f"what you keep, drop {many} sooner, or raise num_slots.",
            Kind.HELD_BATCHES,
            "num_slots",
        )
    room = sum(worker.room_seconds for worker in case.workers)
    if room and room >= _ROOM * (room + case.work):
        return Verdict(
            f"Workers wait for room in {percent(room / (room + case.work))} of their time: {many} do not fit under "
            f"the cap of {size(setting.max_bytes)}. Raise max_pool_bytes, or make {many} smaller or num_workers less.",
            Kind.MEMORY_CAP,
            "max_pool_bytes",
        )
    return None


def _of_waiting(case: Case) -> Verdict:
    if case.own > case.wait:
        return _own_work(case)
    if _is_held_up(case):
        return _held_up(case)
    if case.late >= _MOST * case.wait and case.wait_left(case.net_work) < _MOST * case.wait:
        return _stragglers(case)
    if (slow := _slow_worker(case)) is not None:
        return slow
    idle = sum(worker.idle_seconds for worker in case.workers)
    if idle and case.keeps_up(case.work) and idle >= IDLE * (idle + case.work):
        return Verdict(
            f"{_waits(case)} though workers idle in {percent(idle / (idle + case.work))} of theirs: batches, or the "
            f"loop's steps, take unequal times. Raise prefetch_factor={case.setting.prefetch_factor}, so that more "
            "batches are ready.",
            Kind.SHORT_OF_SLOTS,
            "prefetch_factor",
        )
    return _too_slow(case)


def _own_work(case: Case) -> Verdict:
    setting, figures = case.setting, case.figures
    sampler = figures.sampler_seconds
    if not setting.is_stream and sampler >= _MOST * case.own:
        return Verdict(
            f"The loop's process reads the sampler in {percent(sampler / figures.seconds)} of the time, "
            f"{duration(sampler / figures.batches)} a batch. Neither more workers nor larger batches help. Make it "
            "draw its indices quicker: all at once when a pass begins, say.",
            Kind.OWN_WORK,
            "batch_sampler" if setting.batching == "batch_sampler" else "sampler",
        )
    what = "which is much only where batches take so little"
    if setting.num_workers:
        what = "taking batches from slots, which is slow where they have hundreds of tensors or processors are short"
    read = f" {duration(sampler / figures.batches)} of that is reading the sampler." if sampler else ""
    larger = "Larger batches have" if setting.batching else "A dataset that returns more at once has"
    return Verdict(
        f"The loader's own work in the loop's process takes {percent(case.own / figures.seconds)} of the time, "
        f"{duration(case.own / figures.batches)} a batch: {what}.{read} More workers do not help. {larger} less of it.",
        Kind.OWN_WORK,
        setting.batching or "dataset",
    )


def _is_held_up(case: Case) -> bool:
    least = max(LEAST_SECONDS, _MOST * case.wait, _HELD_UP_SECONDS * case.figures.waits)
    return case.unexplained >= least


def _held_up(case: Case) -> Verdict:
    replaced = f" {case.figures.restarts} died and were replaced." if case.figures.restarts else ""
    return Verdict(
        f"{_waits(case)} {duration(case.wait)}, and workers were at work for {duration(case.work)}: they were stopped "
        "(by SIGSTOP, a debugger, a frozen container), or had no processor, or are at a batch that is not made yet."
        f"{replaced} More workers would not help.",
        Kind.HELD_UP,
    )


def _stragglers(case: Case) -> Verdict:
    count = sum(worker.late_batches for worker in case.workers)
    named = "; ".join(f"{one.what} ({duration(one.seconds)})" for one in case.slowest[:3])
    others = "; in_order=False lets other batches go ahead" if case.setting.in_order else ""
    two = case.slowest[:2]
    alike = len({one.worker for one in two}) == 2 and two[1].seconds > _ALIKE * two[0].seconds
    stopped = " Two workers were late by as much: were they stopped meanwhile?" if alike else ""
    return Verdict(
        f"{_waits(case)} mostly for {_batches(count)} that took several times the others. Slowest: "
        f"{named or 'not known'}. Look at these samples{others}.{stopped}",
        Kind.STRAGGLERS,
        "in_order" if case.setting.in_order else "dataset",
    )


def _slow_worker(case: Case) -> Verdict | None:
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


def _too_slow(case: Case) -> Verdict:
    setting, wanted = case.setting, case.workers_wanted
    now, most = setting.num_workers, case.most_workers
    processors = f"{setting.processors} processor{'s' if setting.processors != 1 else ''}"
    if now >= most or wanted <= now:
        busy = f"the {processors} that there are have no room for more workers" if now >= most else "all workers work"
        return Verdict(f"{_waits(case)} and {busy}. {_faster_samples(case)}", Kind.SLOW_DATASET, "dataset")
    number = min(wanted, case.workers_to_try)
    limit = ""
    if wanted > number:
        takes = f"It would take {wanted}" if wanted < _FAR_MORE * now else "It would take far more"
        limit = f" {takes}, and {processors} can use no more than about {most}."
        if number < most:
            limit = f" {takes}, if so many do not hinder each other at a disk or a server: try these first."
    lock = ""
    if setting.has_threads and case.cpu_share >= _MOST:
        lock = " Threads help as far as samples release the interpreter lock; worker_type='process' helps in any case."
    return Verdict(
        f"{_waits(case)} and {now} worker{'s' if now != 1 else ''} cannot keep up: num_workers={number}."
        f"{limit}{lock}{_of_stream(case)}{_of_time(case)}",
        Kind.MORE_WORKERS,
        "num_workers",
    )


def _faster_samples(case: Case) -> str:
    """Says what else there is where workers cannot be more."""
    keeps = case.fetch_share >= _MOST and not case.setting.is_stream and not case.setting.is_cached
    writes = case.fetch_share < 1 - _COLLATES and not case.setting.is_stream
    return (
        f"Make samples faster.{_of_time(case)}"
        f"{' A CachedDataset keeps what was read once.' if keeps else ''}"
        f"{' __getitem_into__ writes samples in place.' if writes else ''}"
    )


def _of_stream(case: Case) -> str:
    if not case.setting.is_stream:
        return ""
    return " Each worker iterates over the dataset itself, which has to give each a part of its own (get_worker_info)."


def _of_time(case: Case) -> str:
    if not case.made or not case.work:
        return ""
    whose = "a worker" if case.setting.num_workers else "it"
    return (
        f" A batch takes {whose} {duration(case.seconds_a_batch)}: {percent(case.fetch_share)} reading samples, "
        f"{percent(max(0.0, 1 - case.fetch_share))} collating."
    )


def _waits(case: Case) -> str:
    return f"The loop waits for batches in {percent(case.wait_share)} of its time,"


def _batches(count: int) -> str:
    return f"{count} batch{'' if count == 1 else 'es'}"


def percent(share: float) -> str:
    """Writes a share of time, with a digit behind the point where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"
