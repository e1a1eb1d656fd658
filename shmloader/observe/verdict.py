"""What limits a loop, in words, with the knob that would help. Pure: figures in, words out."""

from __future__ import annotations

from .case import Case, Setting
from .figures import PassStatistics, SlowSample
from .kinds import Kind, Verdict
from .table import duration, percent, size
from .waiting import MOST, faster_samples, of_stream, of_time, of_waiting, own_work

__all__ = ["LEAST_BATCHES", "LEAST_SECONDS", "Kind", "Setting", "Verdict", "is_enough", "judge"]

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
# What the loop's process itself takes for a worker's batch, waits left out, is some tens of microseconds.
_QUICK_SECONDS = 100e-6
# A look at the interpreter lock takes a microsecond where nobody else computes, and the interpreter's switch interval,
# five milliseconds, or several of them where somebody does.
_LOCK_SECONDS = 1e-3
# So much of a processor do threads use at least that slow down a loop which does not wait for them.
_LOCK_USED = 0.2
# Processes that compute so much of their time share processors, and not only a disk.
_COMPUTES = 0.8


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
    if case.start_up_share >= _START and setting.num_workers and not setting.stays:
        return _start_up(case)
    if (locked := of_lock(case)) is not None:
        return locked
    if begins_long and figures.start_seconds >= _FAR_LONGER * (case.wait + case.own):
        return _late_begin(case)
    if case.lost_share < LITTLE:
        return _loop_bound(case)
    if setting.num_workers == 0:
        return own_work(case) if case.own > case.wait else _in_process(case)
    return of_copies_and_room(case) or of_waiting(case)


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
    """Says what there is to say of first batches that are late, where that is not the start of workers."""
    setting = case.setting
    took = f"{percent(case.start_share)} of the time ({duration(case.figures.start_seconds)})"
    behind = f"Behind the first batch the loop waits in {percent(case.lost_share)} of its time."
    if setting.has_first_pass and setting.num_workers and setting.stays:
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
        f"the first samples{remedy}.{of_time(case)}",
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
    if setting.processors == 1 and case.demand >= _COMPUTES:
        return Verdict(
            f"{share}, and there is one processor, which they use. Workers help only where the loop's steps do not, as "
            f"those do that wait for a GPU. {faster_samples(case)}",
            Kind.IN_PROCESS,
            "dataset",
        )
    number = min(case.workers_wanted, case.workers_to_try)
    return Verdict(
        f"{share}. num_workers={number} would make them beside the loop.{of_stream(case)}{of_time(case)}",
        Kind.IN_PROCESS,
        "num_workers",
    )


def of_copies_and_room(case: Case, many: str = "batches") -> Verdict | None:
    """Returns what is said of private copies, and of workers that wait for room; None: neither costs much."""
    figures, setting = case.figures, case.setting
    if figures.copies >= _COPIES * figures.batches:
        share = f"{percent(figures.copies / figures.batches)} of the {many} are handed out as private copies"
        if figures.copies_for_room >= MOST * figures.copies:
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
