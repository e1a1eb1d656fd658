"""What is said of a loop that waits for batches, or for the loader's own work. Pure; see `verdict`."""

from __future__ import annotations

import statistics

from .case import Case
from .figures import WorkerStatistics
from .kinds import Kind, Verdict
from .table import duration, percent

# The largest part decides: of several causes, the one that explains half of the waiting.
MOST = 0.5
# Workers on one machine differ by some ten percent; half as much again is another dataset, or another machine.
_SLOW_WORKER = 1.5
_LEAST_BATCHES_OF_WORKER = 8
# Times the mean: a worker that makes so many batches of a stream has a larger part of it.
_UNEQUAL = 1.5
_WORTH = 0.25  # of the waiting, which equal parts would save
# Workers that idle so much could have made what the loop waits for, had they been asked before.
IDLE = 0.2
# Waiting for a worker that is there takes some ten microseconds beside its work; more on a machine that is busy.
_HELD_UP_SECONDS = 0.5e-3
_LEAST_HELD_UP = 0.1  # seconds in all, longer than what else a machine does meanwhile
# Samples of two workers that take as long are chance, or it is not the samples.
_ALIKE = 0.9
# Collating is worth writing samples in place from here on.
_COLLATES = 0.2
# What workers wait for a processor beside one loop and no other program is less.
_QUEUES = 0.25
# What samplers of torch's take for a sample by itself is a microsecond or two, of which nothing can be saved.
_SAMPLER_SECONDS = 10e-6
_FAR_MORE = 16  # times as many workers as there are: a loop that does next to nothing


def of_waiting(case: Case) -> Verdict:
    """Returns what a loop waits for that takes batches from workers."""
    if case.own > case.wait:
        return own_work(case)
    if _is_held_up(case):
        return _held_up(case)
    # Where workers wait for processors, it is by chance that one of them, or one batch, gets a processor late.
    is_crowded = case.queue_share >= _QUEUES
    if not is_crowded and case.late >= MOST * case.wait and case.wait_left(case.net_work) < MOST * case.wait:
        return _stragglers(case)
    if not is_crowded and (slow := _slow_worker(case)) is not None:
        return slow
    if (alone := _unequal_parts(case)) is not None:
        return alone
    idle = sum(worker.idle_seconds for worker in case.workers)
    if idle and case.keeps_up(case.work) and idle >= IDLE * (idle + case.work):
        return _short_of_slots(case, idle)
    return _too_slow(case)


def _short_of_slots(case: Case, idle: float) -> Verdict:
    though = f"{_waits(case)} though workers idle in {percent(idle / (idle + case.work))} of theirs"
    if any(worker.paused_seconds for worker in case.workers):
        return Verdict(
            f"{though}: the loader was paused meanwhile, and makes nothing ahead then. Resume it sooner, or give it "
            "longer blocks of prefetching().",
            Kind.SHORT_OF_SLOTS,
        )
    return Verdict(
        f"{though}: batches, or the loop's steps, take unequal times. Raise "
        f"prefetch_factor={case.setting.prefetch_factor}, so that more batches are ready.",
        Kind.SHORT_OF_SLOTS,
        "prefetch_factor",
    )


def own_work(case: Case) -> Verdict:
    """Returns what the loader's own work in the loop's process is."""
    setting, figures = case.setting, case.figures
    sampler = figures.sampler_seconds
    is_slow = sampler >= _SAMPLER_SECONDS * figures.batches
    if is_slow and not setting.is_stream and sampler >= MOST * case.own:
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
    least = max(_LEAST_HELD_UP, MOST * case.wait, _HELD_UP_SECONDS * case.figures.waits)
    return case.unexplained >= least


def _held_up(case: Case) -> Verdict:
    return Verdict(
        f"{_waits(case)} {duration(case.wait)}, and workers were at work for {duration(case.work)}: they were stopped "
        "(by SIGSTOP, a debugger, a frozen container), or had no processor, or are at a batch that is not made yet."
        f"{_of_deaths(case)} More workers would not help.",
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


def _unequal_parts(case: Case) -> Verdict | None:
    """Says that one worker had data when others had none, which cannot help then."""
    workers = case.figures.workers
    if not case.setting.is_stream or len(workers) < 2:
        return None
    most = max(workers, key=lambda worker: worker.batches)
    mean = case.work / len(workers)
    # A worker that is merely quicker makes more batches too, and works no longer than the others.
    is_alone = most.batches >= _UNEQUAL * case.made / len(workers) and most.work_seconds >= _UNEQUAL * mean
    if not is_alone or most.work_seconds - mean < _WORTH * case.wait:
        return None
    return Verdict(
        f"{_waits(case)} and worker {most.number} has made {percent(most.batches / case.made)} of the batches, while "
        "others had no more data: the parts of the dataset that workers iterate over are unequal. Have its __iter__ "
        "give each as much (get_worker_info). More workers would not help.",
        Kind.UNEQUAL_PARTS,
        "dataset",
    )


def _seconds_a_batch(worker: WorkerStatistics) -> float:
    return max(0.0, worker.work_seconds - worker.late_seconds) / worker.batches


def _too_slow(case: Case) -> Verdict:
    setting, wanted = case.setting, case.workers_wanted
    now, most = setting.num_workers, case.most_workers
    processors = f"{setting.processors} processor{'s' if setting.processors != 1 else ''}"
    if now >= most or wanted <= now:
        busy = f"the {processors} that there are have no room for more workers" if now >= most else "all workers work"
        queue = ""
        if case.queue_share >= _QUEUES:
            fewer = f" {most} would make as many batches." if now > most else ""
            queue = f" Workers wait for a processor in {percent(case.queue_share)} of their work.{fewer}"
        return Verdict(
            f"{_waits(case)} and {busy}.{queue}{_of_deaths(case)} {faster_samples(case)}", Kind.SLOW_DATASET, "dataset"
        )
    number = min(wanted, case.workers_to_try)
    limit = ""
    if wanted > number:
        takes = f"It would take {wanted}" if wanted < _FAR_MORE * now else "It would take far more"
        limit = f" {takes}, and {processors} can use no more than about {most}."
        if number < most:
            limit = f" {takes}, if so many do not hinder each other at a disk or a server: try these first."
    lock = ""
    if setting.has_threads and case.demand >= MOST:
        lock = " Threads help as far as samples release the interpreter lock; worker_type='process' helps in any case."
    return Verdict(
        f"{_waits(case)} and {now} worker{'s' if now != 1 else ''} cannot keep up: num_workers={number}."
        f"{limit}{_of_deaths(case)}{lock}{of_stream(case)}{of_time(case)}",
        Kind.MORE_WORKERS,
        "num_workers",
    )


def faster_samples(case: Case) -> str:
    """Says what else there is where workers cannot be more."""
    keeps = case.fetch_share >= MOST and not case.setting.is_stream and not case.setting.is_cached
    writes = case.fetch_share < 1 - _COLLATES and not case.setting.is_stream
    return (
        f"Make samples faster.{of_time(case)}"
        f"{' A CachedDataset keeps what was read once.' if keeps else ''}"
        f"{' __getitem_into__ writes samples in place.' if writes else ''}"
    )


def of_stream(case: Case) -> str:
    """Says what more workers need of an iterable dataset."""
    if not case.setting.is_stream:
        return ""
    return " Each worker iterates over the dataset itself, which has to give each a part of its own (get_worker_info)."


def of_time(case: Case) -> str:
    """Says what a batch takes, and for what."""
    if not case.made or not case.work:
        return ""
    whose = "a worker" if case.setting.num_workers else "it"
    return (
        f" A batch takes {whose} {duration(case.seconds_a_batch)}: {percent(case.fetch_share)} reading samples, "
        f"{percent(max(0.0, 1 - case.fetch_share))} collating."
    )


def _of_deaths(case: Case) -> str:
    restarts = case.figures.restarts
    return "" if not restarts else f" Workers died and were replaced, {restarts} times: what they made is made again."


def _waits(case: Case) -> str:
    return f"The loop waits for batches in {percent(case.wait_share)} of its time,"


def _batches(count: int) -> str:
    return f"{count} batch{'' if count == 1 else 'es'}"
