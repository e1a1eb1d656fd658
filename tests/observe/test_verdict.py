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
    Kind.LATE_BEGIN: (
        figures(wait=0.01, loop=0.3, start=0.4, workers=pair()),
        dataclasses.replace(TWO, stays=True),
        [{"stays": False}, {"start_seconds": 0.05}, {"batches": 3}, {"wait_seconds": 0.3}],
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
    Kind.INTERPRETER_LOCK: (
        figures(wait=0.5, loop=0.5, workers=pair(lock_seconds=0.005, cpu_share=0.5)),
        dataclasses.replace(TWO, worker_type="thread"),
        [
            {"worker_type": "process"},
            {"processors": 1},
            {"workers": pair(lock_seconds=2e-6, cpu_share=0.5)},  # samples that leave the lock
            {"workers": pair(cpu_share=0.5)},  # nobody knows
            {"workers": pair(lock_seconds=0.005, cpu_share=0.02), "wait_seconds": 0.0},  # the loop alone has it
        ],
    ),
    Kind.HELD_UP: (
        figures(wait=3.0, loop=0.5, workers=pair(0.1), waits=5),
        TWO,
        [
            {"workers": pair(1.2)},
            {"workers": pair(0.1, room_seconds=1.2)},
            {"workers": pair(0.1, paused_seconds=1.2)},
            {"waits": 10_000},  # too short each, as they are where batches are quick
        ],
    ),
    Kind.OWN_WORK: (
        figures(wait=0.1, loop=0.5, own=0.5, sampler_seconds=0.4, workers=pair()),
        TWO,
        [{"own_seconds": 0.05}, {"wait_seconds": 0.6}, {"batches": 3}],
    ),
    Kind.STRAGGLERS: (
        figures(wait=0.5, loop=0.5, workers=LATE),
        TWO,
        [
            {"workers": pair(0.2)},  # none is late
            {"workers": (worker(0, 2.0, late_seconds=0.8, late_batches=2), worker(1, 2.0))},  # the others are as slow
            {"workers": tuple(dataclasses.replace(one, queue_share=0.5) for one in LATE)},  # or had no processor
            {"wait_seconds": 0.01},
        ],
    ),
    Kind.SLOW_WORKER: (
        figures(wait=0.5, loop=0.5, workers=(worker(0, 0.5), worker(1, 1.0))),
        TWO,
        [
            {"workers": pair()},
            {"workers": (worker(0, 0.5), worker(1, 1.0, batches=3))},  # of which nobody knows
            {"workers": (worker(0, 0.5, queue_share=0.5), worker(1, 1.0, queue_share=0.5))},  # it had no processor
            {"workers": (worker(0, 0.02), worker(1, 0.04))},  # both are quick enough
            {"wait_seconds": 0.01},
        ],
    ),
    Kind.UNEQUAL_PARTS: (
        figures(wait=0.8, loop=0.2, workers=(worker(0, 1.0, batches=90), worker(1, 0.1, batches=10))),
        dataclasses.replace(TWO, is_stream=True),
        [
            {"is_stream": False},
            {"workers": pair()},
            {"workers": (worker(0, 1.0, batches=90), worker(1, 1.0, batches=10))},  # one is quicker
            {"workers": (worker(0, 0.09, batches=90), worker(1, 0.01, batches=10))},  # equal parts would save little
            {"wait_seconds": 0.001},
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
    Kind.LATE_BEGIN: "epoch_size",
    Kind.IN_PROCESS: "num_workers",
    Kind.HELD_BATCHES: "num_slots",
    Kind.MEMORY_CAP: "max_pool_bytes",
    Kind.INTERPRETER_LOCK: "worker_type",
    Kind.HELD_UP: None,
    Kind.OWN_WORK: "sampler",
    Kind.STRAGGLERS: "in_order",
    Kind.SLOW_WORKER: "in_order",
    Kind.UNEQUAL_PARTS: "dataset",
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
    assert "num_workers=8. It would take far more, and 8 processors can use no more than about 8." in judge(
        no_loop, TWO
    )


def test_workers_that_wait_are_more_than_processors() -> None:
    """Those that use a fiftieth of one may be a hundred on two: what limits them nobody knows before it is tried."""
    waits = figures(wait=0.5, loop=0.05, workers=pair(1.0, cpu_share=0.02))
    two = dataclasses.replace(TWO, processors=2)
    assert "num_workers=8. It would take far more, if so many do not hinder each other" in judge(waits, two)
    eight = dataclasses.replace(two, num_workers=8)
    verdict = judge(
        figures(wait=0.5, loop=0.05, workers=tuple(worker(i, 1.0, cpu_share=0.02) for i in range(8))), eight
    )
    assert "num_workers=16. It would take" in verdict, "and more than that when it was tried"


def test_a_first_batch_that_is_made_is_no_start_up() -> None:
    """Where batches take long, so do first ones, and persistent workers would not make them sooner."""
    slow = figures(wait=1.0, loop=0.1, start=0.5, workers=pair(20.0), passes=1)
    assert judge(slow, TWO).kind is Kind.MORE_WORKERS
    quick = dataclasses.replace(slow, workers=pair(2.0))
    assert judge(quick, TWO).kind is Kind.START_UP
    several = dataclasses.replace(quick, passes=10)
    assert judge(several, TWO).kind is Kind.MORE_WORKERS, "each pass has a first batch"
    verdict = judge(dataclasses.replace(slow, loop_seconds=1.0, wait_seconds=0.1, seconds=1.6), TWO)
    assert (verdict.kind, verdict.knob) == (Kind.LATE_BEGIN, "epoch_size")
    assert "workers are started once" not in verdict


def test_late_first_batches() -> None:
    """Where workers stay, they are said to be the start's; of the first pass nothing is to be changed."""
    found = figures(wait=0.01, loop=0.5, start=0.5, workers=pair())
    stay = dataclasses.replace(TWO, stays=True)
    for setting, knob in (
        (dataclasses.replace(stay, has_first_pass=True), None),
        (stay, "epoch_size"),
        (dataclasses.replace(stay, goes_on=True), "dataset"),
        (Setting(num_workers=0, processors=8), "epoch_size"),
    ):
        verdict = judge(found, setting)
        assert (verdict.kind, verdict.knob) == (Kind.LATE_BEGIN, knob)
        assert "50 % of the time (500 ms)" in verdict
    assert judge(dataclasses.replace(found, wait_seconds=0.5), stay).kind is Kind.MORE_WORKERS, "which is worth more"
    assert judge(dataclasses.replace(found, start_seconds=0.1), stay).kind is Kind.LOOP_BOUND


def test_a_sampler_that_takes_the_time_is_named_and_nothing_else() -> None:
    slow = figures(own=0.5, loop=0.5, sampler_seconds=0.4, workers=pair())
    verdict = judge(slow, TWO)
    assert "reads the sampler in 40 % of the time, 4.00 ms a batch" in verdict
    assert "larger batches help" in verdict
    assert judge(slow, dataclasses.replace(TWO, batching="batch_sampler")).knob == "batch_sampler"
    quick = dataclasses.replace(slow, sampler_seconds=0.001)
    verdict = judge(quick, TWO)
    assert "10.0 us of that is reading the sampler" in verdict
    assert verdict.endswith("Larger batches have less of it.")
    for setting, of in ((TWO, quick), (dataclasses.replace(TWO, is_stream=True), slow)):
        assert judge(of, setting).knob == "batch_size"


def test_a_sampler_of_torchs_is_not_blamed_where_samples_are_tiny() -> None:
    """What is read for a batch of one sample takes microseconds, and most of the loader's own work."""
    one_by_one = Setting(num_workers=0, processors=8, batching=None)
    made = (worker(batches=100_000, fetch=0.1),)
    tiny = figures(own=0.5, loop=0.2, wait=0.1, sampler_seconds=0.4, workers=made, batches=100_000)
    assert (judge(tiny, one_by_one).kind, judge(tiny, one_by_one).knob) == (Kind.OWN_WORK, "dataset")
    assert judge(dataclasses.replace(tiny, batches=10_000), one_by_one).knob == "sampler"


def test_deaths_are_told_with_what_the_loop_waits_for() -> None:
    """Which is for successors too, and more workers would not be what helps then."""
    few = dataclasses.replace(TWO, processors=2)
    held_up = figures(wait=0.5, loop=0.5, workers=pair(0.01))
    for of, setting in ((LOADER_BOUND, TWO), (LOADER_BOUND, few), (held_up, TWO)):
        assert "were replaced" not in judge(of, setting)
        assert " died and were replaced, 3 times" in judge(dataclasses.replace(of, restarts=3), setting)


def test_a_loader_that_was_paused_is_told_of_that() -> None:
    setting = dataclasses.replace(TWO, prefetch_factor=4)
    for paused, knob in ((0.0, "prefetch_factor"), (0.1, None)):
        workers = pair(0.2, idle_seconds=0.5, paused_seconds=paused)
        verdict = judge(figures(wait=0.3, loop=0.7, workers=workers), setting)
        assert (verdict.kind, verdict.knob) == (Kind.SHORT_OF_SLOTS, knob)
        assert ("paused" in verdict) == (paused > 0)


def test_threads_that_compute_are_told_of_processes() -> None:
    setting = dataclasses.replace(TWO, num_workers=1, worker_type="thread")
    for share, is_told in ((1.0, True), (0.1, False)):
        one = judge(figures(wait=0.5, loop=0.5, workers=(worker(batches=100, cpu_share=share),)), setting)
        assert one.knob == "num_workers"
        assert ("worker_type='process'" in one) == is_told


def test_workers_are_not_advised_where_there_is_one_processor_and_samples_use_it() -> None:
    setting = Setting(num_workers=0, processors=1)
    for share, knob in ((1.0, "dataset"), (0.3, "num_workers")):
        found = figures(wait=0.5, loop=0.5, workers=(worker(batches=BATCHES, fetch=0.5, cpu_share=share),))
        assert judge(found, setting).knob == knob


def test_what_is_advised_can_be_done() -> None:
    """Of any figures and settings: no argument is named that such a loader does not have, or has already."""
    draw = random.Random(1)
    knobs = set()
    for _ in range(20_000):
        setting = Setting(
            num_workers=draw.choice([0, 0, 1, 2, 4]),
            processors=draw.choice([1, 2, 8]),
            in_order=draw.random() < 0.5,
            stays=draw.random() < 0.5,
            goes_on=draw.random() < 0.3,
            has_first_pass=draw.random() < 0.5,
            worker_type=draw.choice(["process", "thread"]),
            is_stream=draw.random() < 0.3,
            is_cached=draw.random() < 0.3,
            batching=draw.choice(["batch_size", "batch_sampler", None]),
        )
        setting = dataclasses.replace(setting, stays=setting.stays or setting.goes_on)
        workers = tuple(
            worker(
                number,
                draw.choice([1e-4, 0.01, 0.5, 2.0]),
                collate_seconds=draw.choice([0.0, 0.1, 1.0]),
                cpu_share=draw.choice([0.01, 0.5, 1.0]),
                queue_share=draw.choice([None, 0.0, 0.9]),
                idle_seconds=draw.choice([0.0, 0.5]),
                room_seconds=draw.choice([0.0, 0.0, 1.0]),
                late_seconds=draw.choice([0.0, 0.0, 0.01]),
                lock_seconds=draw.choice([1e-6, 0.01]) if setting.has_threads else None,
            )
            for number in range(max(1, setting.num_workers))
        )
        wait, loop, own, start = (draw.choice([0.0, 0.01, 0.3, 1.0]) for _ in range(4))
        found = figures(
            wait, loop, own, start, workers, sampler_seconds=draw.choice([0, 1]) * own, waits=BATCHES,
            copies=draw.choice([0, 0, 50]) if setting.num_workers else 0,
        )  # fmt: skip
        verdict = judge(found, setting)
        knobs.add(verdict.knob)
        assert verdict.knob in _applicable(setting), (setting, verdict)
        for text, is_senseless in (
            ("in_order=False", not setting.in_order or not setting.num_workers),
            ("worker_type='process'", not setting.has_threads),
            ("worker_type='thread'", setting.has_threads or not setting.num_workers),
            ("persistent_workers", setting.stays or not setting.num_workers),
            ("epoch_size", setting.goes_on),
            ("CachedDataset", setting.is_stream or setting.is_cached),
            ("__getitem_into__", setting.is_stream),
            ("batch_size", setting.batching != "batch_size"),
            ("Larger batches have", setting.batching is None),
            ("prefetch_factor", not setting.num_workers),
        ):
            assert text not in verdict or not is_senseless, (setting, verdict)
    assert knobs >= {
        None,
        "num_workers",
        "dataset",
        "sampler",
        "batch_sampler",
        "batch_size",
        "worker_type",
        "in_order",
    }


def _applicable(setting: Setting) -> set[str | None]:
    """Returns what may be changed in such a loader to some effect."""
    found: set[str | None] = {None, "dataset", "num_workers", setting.batching or "dataset"}
    if not setting.is_stream:
        found.add("sampler")
    if not setting.goes_on:
        found.add("epoch_size")
    if setting.num_workers:
        found |= {"prefetch_factor", "num_slots", "max_pool_bytes"}
        found |= {"in_order"} if setting.in_order else set()
        found |= {"worker_type"} if setting.has_threads else set()
        found |= set() if setting.stays else {"persistent_workers"}
    return found


def test_workers_are_not_advised_where_batches_are_quicker_than_they() -> None:
    for fetch, batching, knob in (
        (0.5, "batch_size", "num_workers"),
        (0.0005, "batch_size", "batch_size"),
        (0.0005, "batch_sampler", "batch_sampler"),
        (0.0005, None, "dataset"),
    ):
        setting = Setting(num_workers=0, processors=8, batching=batching)
        found = judge(figures(wait=0.5, loop=0.5, workers=(worker(batches=BATCHES, fetch=fetch),)), setting)
        assert (found.kind, found.knob) == (Kind.IN_PROCESS, knob)
        assert ("batch_size" in found) == (knob == "batch_size")


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
    assert "stopped" not in verdict
    as_long = SlowSample(0.7, "index 17", 0), SlowSample(0.69, "index 18", 1)
    assert "were they stopped" in judge(CASES[Kind.STRAGGLERS][0], TWO, as_long), "which is not the samples' fault"


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
