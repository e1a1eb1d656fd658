"""What limits those who take from a `Producer` or a `JobQueue`, with the argument that would help. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .case import Case, Setting
from .figures import PassStatistics
from .kinds import Kind, Verdict
from .table import duration, percent
from .verdict import LITTLE, is_enough, of_copies_and_room, of_lock, too_little
from .waiting import IDLE


@dataclass(frozen=True)
class StreamKind:
    """The words for one of the two, and its argument for how much is made ahead.

    Attributes:
        owner: what it is called where it has no name.
        many: what workers make.
        maker: what makes them, the user's.
        ahead: the argument.
        how: how more is made ahead.
        is_asked: whether workers begin nothing that they were not asked for.
    """

    owner: str
    many: str
    maker: str
    ahead: str
    how: str
    is_asked: bool


PRODUCER = StreamKind(
    "Producer", "items", "target", "num_slots", "Raise num_slots, so that more items are ready.", is_asked=False
)
QUEUE = StreamKind(
    "JobQueue",
    "results",
    "function",
    "prefetch_factor",
    "Put jobs further ahead, or raise prefetch_factor.",
    is_asked=True,
)


def judge_stream(figures: PassStatistics, setting: Setting, kind: StreamKind, consumers: int = 1) -> Verdict:
    """Returns what limits the consumers.

    Args:
        figures: of all that was taken.
        setting: of the workers.
        kind: whose they are.
        consumers: how many threads have taken.
    """
    if not is_enough(figures):
        return too_little(figures, kind.many)
    # The times of one of them, who takes its part of what workers make.
    parts = ("seconds", "start_seconds", "wait_seconds", "first_wait_seconds", "own_seconds", "loop_seconds")
    each = {name: getattr(figures, name) / consumers for name in parts}
    case = Case(dataclasses.replace(figures, **each), setting)
    if case.lost_share < LITTLE:
        return Verdict(
            f"The consumer is the limit: it waits for {kind.many} in {percent(case.lost_share)} of its time.",
            Kind.LOOP_BOUND,
        )
    return of_copies_and_room(case, kind.many) or of_lock(case) or _of_waiting(case, kind)


def _of_waiting(case: Case, kind: StreamKind) -> Verdict:
    waits = f"The consumer waits for {kind.many} in {percent(case.wait_share)} of its time"
    if case.own > case.wait:
        return Verdict(
            f"Taking {kind.many} takes {percent(case.lost_share)} of the consumer's time, "
            f"{duration(case.own / case.figures.batches)} each. More workers do not help; fewer {kind.many} that are "
            "larger do.",
            Kind.OWN_WORK,
            kind.maker,
        )
    idle = _idle(case, kind)
    keeps_up = case.keeps_up(case.work)
    if idle >= IDLE * (idle + case.work) and (keeps_up or case.is_half_used):
        share = percent(idle / (idle + case.work))
        unequal = f"{kind.many}, or the consumer's steps, take unequal times"
        return Verdict(
            f"{waits}, though workers idle in {share} of theirs: "
            f"{unequal if keeps_up else 'they would make as many in half of the time'}. {kind.how}",
            Kind.SHORT_OF_SLOTS,
            kind.ahead,
        )
    took = f"One takes a worker {duration(case.seconds_a_batch)}."
    now, most = case.setting.num_workers, case.most_workers
    number = min(case.workers_wanted, case.workers_to_try)
    if now >= most or number <= now:
        return Verdict(
            f"{waits}, and workers are busy with as many as the processors bear. Make the {kind.maker} faster. {took}",
            Kind.SLOW_DATASET,
            kind.maker,
        )
    workers = "1 worker" if now == 1 else f"{now} workers"
    return Verdict(
        f"{waits}, and {workers} cannot keep up: num_workers={number}. {took}", Kind.MORE_WORKERS, "num_workers"
    )


def _idle(case: Case, kind: StreamKind) -> float:
    """Returns the seconds in which workers had nothing to do. Those that have made nothing do not say so themselves."""
    unused = case.setting.num_workers - len(case.workers) if kind.is_asked else 0
    return sum(worker.idle_seconds for worker in case.workers) + unused * case.figures.seconds
