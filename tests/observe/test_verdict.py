"""Verdicts by their figures: each is said where it holds, and not said where one of its conditions does not."""

from __future__ import annotations

import dataclasses
import pickle
import random
from typing import Any

import pytest

from shmloader.observe.figures import PassStatistics, SlowSample, WorkerStatistics
from shmloader.observe.verdict import LEAST_BATCHES, Kind, Setting, Verdict, judge

BATCHES = 100


def figures(
    wait: float = 0.0,
    loop: float = 0.0,
    own: float = 0.0,
    start: float = 0.0,
    workers: tuple[WorkerStatistics, ...] = (),
    **others: Any,
) -> PassStatistics:
    """Returns the figures of 100 batches: seconds of the steady part, and of the start beside it."""
    seconds = wait + loop + own + start
    return PassStatistics(
        **{
            "batches": BATCHES, "samples": 400, "seconds": seconds, "start_seconds": start, "wait_seconds": wait,
            "own_seconds": own, "loop_seconds": loop, "workers": workers, **others,
        }
    )  # fmt: skip


def worker(number: int = 0, fetch: float = 1.0, **others: Any) -> WorkerStatistics:
    return WorkerStatistics(number, **{"batches": 50, "fetch_seconds": fetch, "cpu_share": 1.0, **others})


def pair(fetch: float = 1.0, **others: Any) -> tuple[WorkerStatistics, ...]:
    return worker(0, fetch, **others), worker(1, fetch, **others)


TWO = Setting(num_workers=2, processors=8, num_slots=20, max_bytes=1 << 30)

# Of each verdict: figures and a setting that call for it; and changes of either, after which it must not be said.
LOADER_BOUND = figures(wait=0.5, loop=0.5, workers=pair())
IDLE = pair(0.2, idle_seconds=0.5)
LATE = worker(0, 1.0, late_seconds=0.8, late_batches=2), worker(1, 0.2)
CASES: dict[Kind, tuple[PassStatistics, Setting, list[dict[str, Any]]]] = {
    Kind.LOOP_BOUND: (
        figures(wait=0.01, loop=1.0, workers=pair()),
        TWO,
        [{"wait_seconds": 0.2}, {"own_seconds": 0.2}, {"batches": LEAST_BATCHES - 1}],
    ),
    Kind.START_UP: (
        figures(wait=0.1, loop=0.3, start=0.4, workers=pair()),
        TWO,
        [{"stays": True}, {"start_seconds": 0.1}, {"batches": 3}, {"num_workers": 0}],
    ),
    Kind.IN_PROCESS: (
        figures(wait=0.5, loop=0.5, workers=(worker(batches=100, fetch=0.5),)),
        Setting(num_workers=0, processors=8),
        [{"num_workers": 2}, {"wait_seconds": 0.01}, {"batches": 3}],
    ),
    Kind.HELD_BATCHES: (
        figures(wait=0.5, loop=0.5, workers=pair(), copies=40),
        TWO,
        [{"copies": 5}, {"copies_for_room": 40}, {"wait_seconds": 0.0}],
    ),
    Kind.MEMORY_CAP: (
        figures(wait=0.5, loop=0.5, workers=pair(room_seconds=0.4)),
        TWO,
        [{"workers": pair(room_seconds=0.01)}, {"wait_seconds": 0.0}, {"copies": 40}],
    ),
    Kind.OWN_WORK: (
        figures(wait=0.1, loop=0.5, own=0.5, workers=pair()),
        TWO,
        [{"own_seconds": 0.05}, {"wait_seconds": 0.6}, {"batches": 3}],
    ),
    Kind.STRAGGLERS: (
        figures(wait=0.5, loop=0.5, workers=LATE),
        TWO,
        [
            {"workers": pair(0.2)},  # none is late
            {"workers": (worker(0, 2.0, late_seconds=0.8, late_batches=2), worker(1, 2.0))},  # the others are as slow
            {"wait_seconds": 0.01},
        ],
    ),
    Kind.SLOW_WORKER: (
        figures(wait=0.5, loop=0.5, workers=(worker(0, 0.5), worker(1, 1.0))),
        TWO,
        [
            {"workers": pair()},
            {"workers": (worker(0, 0.5), worker(1, 1.0, batches=3))},  # of which nobody knows
            {"workers": (worker(0, 0.02), worker(1, 0.04))},  # both are quick enough
            {"wait_seconds": 0.01},
        ],
    ),
    Kind.SHORT_OF_SLOTS: (
        figures(wait=0.3, loop=0.7, workers=IDLE),
        TWO,
        [{"workers": pair(0.2)}, {"workers": pair(2.0, idle_seconds=1.0)}, {"wait_seconds": 0.01}],
    ),
    Kind.MORE_WORKERS: (
        LOADER_BOUND,
        TWO,
        [{"processors": 2}, {"wait_seconds": 0.01}, {"workers": IDLE}, {"batches": 3}, {"seconds": 0.01}],
    ),
    Kind.SLOW_DATASET: (
        LOADER_BOUND,
        dataclasses.replace(TWO, processors=2),
        [{"processors": 8}, {"wait_seconds": 0.01}, {"workers": pair(cpu_share=0.1)}],
    ),
    Kind.UNKNOWN: (
        figures(wait=0.5, loop=0.5, workers=pair(), batches=LEAST_BATCHES - 1),
        TWO,
        [{"batches": LEAST_BATCHES}],
    ),
}  # fmt: skip
KNOBS = {
    Kind.LOOP_BOUND: None,
    Kind.START_UP: "persistent_workers",
    Kind.IN_PROCESS: "num_workers",
    Kind.HELD_BATCHES: "num_slots",
    Kind.MEMORY_CAP: "max_pool_bytes",
    Kind.OWN_WORK: "sampler",
    Kind.STRAGGLERS: "in_order",
    Kind.SLOW_WORKER: "in_order",
    Kind.SHORT_OF_SLOTS: "prefetch_factor",
    Kind.MORE_WORKERS: "num_workers",
    Kind.SLOW_DATASET: "dataset",
    Kind.UNKNOWN: None,
}
SETTINGS = {one.name for one in dataclasses.fields(Setting)}


def test_there_is_a_case_of_each_verdict() -> None:
    assert set(CASES) == set(KNOBS) == set(Kind)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.name)
def test_it_is_said_where_it_holds(kind: Kind) -> None:
    found, setting, _ = CASES[kind]
    verdict = judge(found, setting)
    assert (verdict.kind, verdict.knob) == (kind, KNOBS[kind])
    if verdict.knob not in (None, "dataset", "sampler"):
        assert str(verdict.knob) in verdict
    assert verdict.endswith(".")
    assert "  " not in verdict


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for kind, (_, _, changes) in CASES.items() for change in changes]
)
def test_it_is_not_said_where_it_does_not(kind: Kind, change: dict[str, Any]) -> None:
    found, setting, _ = CASES[kind]
    of_setting = {name: value for name, value in change.items() if name in SETTINGS}
    found = dataclasses.replace(found, **{name: value for name, value in change.items() if name not in SETTINGS})
    assert judge(found, dataclasses.replace(setting, **of_setting)).kind is not kind


def test_how_many_workers() -> None:
    """A worker takes 20 ms a batch: it takes four for a loop of 5 ms, if the processors can use them."""
    found = figures(wait=0.5, loop=0.5, workers=pair(1.0))
    assert "num_workers=4." in judge(found, TWO)
    assert "num_workers=3. It would take 4," in judge(found, dataclasses.replace(TWO, processors=3))
    waits_for_files = figures(wait=0.5, loop=0.5, workers=pair(1.0, cpu_share=0.5))
    assert "num_workers=4." in judge(waits_for_files, dataclasses.replace(TWO, processors=2))
    no_loop = figures(wait=0.5, workers=pair(1.0))
    assert "num_workers=8. It would take" in judge(no_loop, TWO)


def test_workers_are_not_advised_where_batches_are_quicker_than_they() -> None:
    setting = Setting(num_workers=0, processors=8)
    for fetch, knob in ((0.5, "num_workers"), (0.0005, "batch_size")):
        found = judge(figures(wait=0.5, loop=0.5, workers=(worker(batches=BATCHES, fetch=fetch),)), setting)
        assert (found.kind, found.knob) == (Kind.IN_PROCESS, knob)


def test_what_takes_a_samples_time() -> None:
    found = figures(wait=0.5, loop=0.5, workers=pair(0.75, collate_seconds=0.25))
    assert "20.0 ms: 75 % reading samples, 25 % collating" in judge(found, TWO)


def test_stragglers_are_named() -> None:
    slowest = (SlowSample(0.7, "index 17", 0), SlowSample(0.1, "the batch of [1, 2]", 1))
    verdict = judge(CASES[Kind.STRAGGLERS][0], TWO, slowest)
    assert "index 17 (700 ms); the batch of [1, 2] (100 ms)" in verdict
    assert "in_order=False" in verdict
    verdict = judge(CASES[Kind.STRAGGLERS][0], dataclasses.replace(TWO, in_order=False), slowest)
    assert "in_order" not in verdict
    assert verdict.knob == "dataset"


def test_of_any_figures_there_is_some_verdict() -> None:
    """With zeros and extremes of all kinds; and none from too few batches."""
    draw = random.Random(0)

    def value() -> float:
        return draw.choice([0.0, 0.0, 1e-9, 0.01, 0.3, 1.0, 1e6]) * draw.random()

    for _ in range(5000):
        names = "fetch_seconds", "collate_seconds", "idle_seconds", "room_seconds", "late_seconds"
        workers = tuple(
            WorkerStatistics(
                number,
                batches=draw.choice([0, 1, 50]),
                cpu_share=draw.choice([None, 0.0, draw.random()]),
                **{name: value() for name in names},  # type: ignore[arg-type]
            )
            for number in range(draw.randrange(4))
        )
        found = figures(
            value(), value(), value(), value(), workers, batches=draw.choice([0, 31, 32, 10**6]),
            copies=draw.randrange(10**6), copies_for_room=draw.randrange(100),
        )  # fmt: skip
        setting = Setting(draw.randrange(4), draw.choice([1, 2, 64]), stays=draw.random() < 0.5)
        verdict = judge(found, setting)
        assert (verdict.kind is Kind.UNKNOWN) == (found.batches < LEAST_BATCHES or found.seconds < 0.1)
        assert "nan" not in verdict
        assert "inf" not in verdict


def test_a_verdict_is_a_text_and_survives_pickle() -> None:
    verdict = judge(*CASES[Kind.MORE_WORKERS][:2])
    assert isinstance(verdict, str)
    copy = pickle.loads(pickle.dumps(verdict))
    assert (copy, copy.kind, copy.knob) == (verdict, verdict.kind, verdict.knob)
    assert type(copy) is Verdict
