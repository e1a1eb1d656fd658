"""``loader.trace``: what is in the file after everything that may happen within its block."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from shmloader import ShmDataLoader, TraceWarning, WorkerRestartWarning
from shmloader.cli.trace.reading import read
from shmloader.cli.trace.timeline import Timeline, timelines
from shmloader.observe.trace_file import LEAST_BYTES
from tests.helpers.datasets import Images, Mapped, Shards
from tests.helpers.signals import SignalAt
from tests.helpers.support import detached, in_threads, run_file
from tests.observe.test_trace_file import FullDisk


def timeline(path: Path) -> Timeline:
    found = read(path)
    assert found.is_whole
    assert found.end["is_complete"]
    assert found.end["events"] == len(found.events) - 1
    (only,) = timelines(found.events)
    return only


def named(spans: list[Any], name: str) -> list[int | None]:
    return [span.batch for span in spans if span.name == name]


def on_slots(line: Timeline, name: str) -> Counter[int | None]:
    return Counter(batch for track in line.slots.values() for batch in named(track, name))


def on_workers(line: Timeline, name: str) -> Counter[int | None]:
    return Counter(batch for track in line.workers.values() for batch in named(track, name))


def assert_in_turn(line: Timeline) -> None:
    """Asserts that a slot is one thing at a time, that a worker is, and that what it does is within its slot's turn."""
    for track in line.slots.values():
        states = [span for span in track if span.name in ("writing", "ready", "held")]
        for one, following in itertools.pairwise(states):
            assert one.ended <= following.began + 1e-6
        for work in (span for span in track if span.name in ("fetch", "collate")):
            turns = [span for span in states if span.name == "writing" and span.batch == work.batch]
            assert any(turn.began <= work.began and work.ended <= turn.ended for turn in turns)
    for track in line.workers.values():
        done = [span for span in track if span.name in ("fetch", "collate")]
        for one, following in itertools.pairwise(done):
            assert one.ended <= following.began + 1e-6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"persistent_workers": True},
        {"worker_type": "thread"},
        {"in_order": False},
        {"batch_size": None},
        {"epoch_size": 5},
        {"seeding": "sample"},
    ],
    ids=str,
)
def test_every_slots_life_is_there(tmp_path: Path, arguments: dict[str, Any], name: str) -> None:
    loader = ShmDataLoader(Images(20), **{"batch_size": 4, "num_workers": 2, **arguments})
    with loader.trace(tmp_path / name):
        batches = sum(1 for _ in range(3) for _ in loader)
    line = timeline(tmp_path / name)
    assert len(line.steps) == batches
    made = on_slots(line, "ready")
    assert sum(made.values()) >= batches
    assert on_slots(line, "held").total() == batches
    assert on_workers(line, "fetch") == on_slots(line, "fetch")
    assert on_workers(line, "fetch").total() >= sum(made.values())
    assert_in_turn(line)
    assert sum(what == "a pass begins" for _, what, _ in line.instants) >= 1


def test_batches_are_those_of_an_untraced_loader(tmp_path: Path) -> None:
    def batches(is_traced: bool) -> list[Any]:
        torch.manual_seed(0)
        loader = ShmDataLoader(Images(40), batch_size=4, shuffle=True, num_workers=2)
        if not is_traced:
            return [detached(batch) for batch in loader]
        with loader.trace(os.fspath(tmp_path / "trace.json")):
            return [detached(batch) for batch in loader]

    for one, other in zip(batches(True), batches(False), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("arguments", [{}, {"seeding": "sample"}], ids=str)
def test_without_workers_there_are_the_loops_steps(tmp_path: Path, arguments: dict[str, Any]) -> None:
    loader = ShmDataLoader(Images(20), batch_size=4, **arguments)
    with loader.trace(tmp_path / "trace.json"):
        assert len(list(loader)) == 5
    line = timeline(tmp_path / "trace.json")
    assert len(line.steps) == 5
    assert line.slots == line.workers == {}


def test_a_stream_says_who_has_no_more(tmp_path: Path) -> None:
    loader = ShmDataLoader(Shards(), batch_size=2, num_workers=3)
    with loader.trace(tmp_path / "trace.json"):
        count = sum(1 for _ in loader)
    line = timeline(tmp_path / "trace.json")
    assert len(line.steps) == count
    assert sorted(worker for _, what, worker in line.instants if what == "has no more data") == [0, 1, 2]  # type: ignore[type-var]


def test_workers_that_run_already_are_traced(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(60), batch_size=4, num_workers=2)
    iterator = iter(loader)
    held = [next(iterator) for _ in range(3)]
    with loader.trace(tmp_path / "trace.json"):
        for _ in range(5):
            next(iterator)
        del held
        next(iterator)
    rest = sum(1 for _ in iterator)
    assert rest == 15 - 3 - 6
    line = timeline(tmp_path / "trace.json")
    assert [span.batch for span in line.steps] == [3, 4, 5, 6, 7, 8]
    assert set(on_slots(line, "held")) == {3, 4, 5, 6, 7, 8}
    assert_in_turn(line)


def test_what_is_held_is_drawn_to_the_end(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(20), batch_size=4, num_workers=2)
    with loader.trace(tmp_path / "trace.json"):
        batches = list(loader)
    line = timeline(tmp_path / "trace.json")
    assert on_slots(line, "held").total() == len(batches) == 5
    assert sum(span.ended > line.end - 1e-6 for track in line.slots.values() for span in track) == 5


def test_several_passes_at_a_time_have_tracks_of_their_own(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(20), batch_size=4, num_workers=1)
    with loader.trace(tmp_path / "trace.json"):
        assert sum(1 for _ in zip(loader, loader, strict=True)) == 5
    lines = timelines(read(tmp_path / "trace.json").events)
    assert [line.label for line in lines] == ["Images", "Images (2)"]
    for line in lines:
        assert len(line.steps) == 5
        assert_in_turn(line)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_file_is_whole_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    loader = ShmDataLoader(Images(20), batch_size=4, num_workers=2)
    with pytest.raises(error), loader.trace(tmp_path / "trace.json"):  # noqa: PT012
        for number, _ in enumerate(loader):
            if number == 2:
                raise error
    assert len(timeline(tmp_path / "trace.json").steps) == 3


def test_an_interrupt_in_next_leaves_a_whole_file(tmp_path: Path) -> None:
    def interrupt(index: int) -> int:
        if index == 10:
            os.kill(os.getppid(), signal.SIGINT)
            signal.pause()
        return index

    loader = ShmDataLoader(Mapped(interrupt), batch_size=2, num_workers=1)
    with pytest.raises(KeyboardInterrupt), loader.trace(tmp_path / "trace.json"):
        for _ in loader:
            pass
    line = timeline(tmp_path / "trace.json")
    assert len(line.steps) <= 5
    assert_in_turn(line)
    assert sum(1 for _ in ShmDataLoader(Images(20), batch_size=4, num_workers=2)) == 5


def test_errors_of_the_dataset_are_there(tmp_path: Path) -> None:
    def fail(index: int) -> int:
        if index == 5:
            raise ValueError("no")
        return index

    loader = ShmDataLoader(Mapped(fail), batch_size=2, num_workers=2)
    outcomes: list[Any] = []
    with loader.trace(tmp_path / "trace.json"):
        iterator = iter(loader)
        while len(outcomes) < 10:
            try:
                outcomes.append(next(iterator)[0])
            except ValueError:
                outcomes.append(None)
    line = timeline(tmp_path / "trace.json")
    assert outcomes.count(None) == 1
    assert len(line.steps) == 9
    assert named(line.loop, "next").count(None) == 1
    assert on_workers(line, "raising") == {2: 1}


def test_deaths_and_replacements_are_there(tmp_path: Path) -> None:
    marker = tmp_path / "died"

    def die(index: int) -> int:
        if index == 6 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    loader = ShmDataLoader(Mapped(die), batch_size=2, num_workers=2, worker_restarts=1)
    with loader.trace(tmp_path / "trace.json"), pytest.warns(WorkerRestartWarning):
        assert len([detached(batch) for batch in loader]) == 10
    line = timeline(tmp_path / "trace.json")
    assert [(what, worker) for _, what, worker in line.instants if worker is not None] == [
        ("died", 1),
        ("was replaced", 1),
    ]
    assert on_slots(line, "held").total() == 10


def test_asking_for_room_is_there(tmp_path: Path) -> None:
    loader = ShmDataLoader(
        Mapped(lambda index: torch.zeros(1 << (17 if index % 2 else 19)), 8),
        batch_size=1,
        num_workers=2,
        max_pool_bytes=6 << 20,
        num_slots=6,
    )
    with loader.trace(tmp_path / "trace.json"):
        assert sum(1 for _ in loader) == 8
    line = timeline(tmp_path / "trace.json")
    asked = sum(what == "asks for room" for _, what, _ in line.instants)
    assert asked > 0
    assert asked == sum(what == "gets room" for _, what, _ in line.instants)
    assert on_workers(line, "waiting for room or at the gate").total() == asked


def test_nobody_is_told_when_the_block_has_ended(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(40), batch_size=4, num_workers=2)
    iterator = iter(loader)
    for _ in range(2):
        with loader.trace(tmp_path / "trace.json"):
            next(iterator)
            next(iter(loader))
        gc.collect()
    size = (tmp_path / "trace.json").stat().st_size
    assert sum(1 for _ in iterator) == 8
    assert sum(1 for _ in loader) == 10
    pool = loader._lifetime.pool_cache.last
    assert pool is not None
    assert pool._ledger.watcher is None
    assert (tmp_path / "trace.json").stat().st_size == size


def test_a_loader_has_one_trace_at_a_time(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(), num_workers=1)
    with loader.trace(tmp_path / "one.json"):
        with pytest.raises(RuntimeError, match="traced already"), loader.trace(tmp_path / "two.json"):
            pass
        next(iter(loader))
    assert len(timeline(tmp_path / "one.json").steps) == 1
    assert not (tmp_path / "two.json").exists()
    with loader.trace(tmp_path / "one.json"):
        pass


@pytest.mark.parametrize("path", [None, 3, b"name", object()])
def test_paths_of_other_types_are_refused(path: Any) -> None:
    with pytest.raises(TypeError, match="path must be a str or an"):
        ShmDataLoader(Images()).trace(path)


def test_wrong_limits_and_places_are_refused(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images())
    for wrong in (0, -1, LEAST_BYTES - 1):
        with pytest.raises(ValueError, match="max_bytes must be"), loader.trace(tmp_path / "x", max_bytes=wrong):
            pass
    with pytest.raises(TypeError, match="max_bytes must be an int"):
        loader.trace(tmp_path / "x", max_bytes=1e9)  # type: ignore[arg-type]
    for place in (tmp_path, tmp_path / "nowhere" / "x"):
        with pytest.raises(OSError, match=str(place)), loader.trace(place):
            pass
    with loader.trace(tmp_path / "x"):  # for nothing of that is left
        pass


def test_a_full_trace_says_so_once_and_training_goes_on(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(4000, (1,)), batch_size=4, num_workers=2)
    with pytest.warns(TraceWarning, match=r"is full") as told, loader.trace(tmp_path / "t.json", max_bytes=LEAST_BYTES):
        assert sum(1 for _ in loader) == 1000
    assert len(told) == 1
    assert (tmp_path / "t.json").stat().st_size <= LEAST_BYTES
    assert read(tmp_path / "t.json").end["dropped"] > 1000


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_tracks_of_a_full_trace_end_at_one_time(tmp_path: Path, name: str) -> None:
    """What loop and workers did up to some time is there, and nothing of what came later."""
    loader = ShmDataLoader(Images(12_000, (1,)), batch_size=4, num_workers=2)
    with pytest.warns(TraceWarning, match=r"is full"), loader.trace(tmp_path / name, max_bytes=3 * LEAST_BYTES):
        assert sum(1 for _ in loader) == 3000
    line = timeline(tmp_path / name)
    steps = len(line.steps)
    assert 100 < steps < 2900
    assert (tmp_path / name).stat().st_size > 0.8 * 3 * LEAST_BYTES
    made = Counter(span.batch for track in line.workers.values() for span in track if span.name == "fetch")
    # Of what the loop has taken all is there, and beyond that no more than was under way.
    assert set(range(steps)) <= set(made)
    assert max(batch for batch in made if batch is not None) < steps + 8
    assert max(batch for batch in on_slots(line, "held") if batch is not None) < steps


def test_a_disk_that_becomes_full_ends_the_trace_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.observe.trace_log._INTERVAL_NANOSECONDS", 0)
    monkeypatch.setattr("shmloader.observe.trace_log._PAUSE_PER_WRITE", 0)
    loader = ShmDataLoader(Images(400), batch_size=4, num_workers=2)
    with pytest.warns(TraceWarning, match="space left") as told, loader.trace(tmp_path / "trace.json"):  # noqa: PT031
        monkeypatch.setattr(os, "pwrite", FullDisk(20_000))
        assert sum(1 for _ in loader) == 100
    assert len(told) == 1
    assert told[0].filename == __file__
    assert read(tmp_path / "trace.json").end["error"] == "ENOSPC"


def test_a_warning_that_is_an_error_loses_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.observe.trace_log._INTERVAL_NANOSECONDS", 0)
    monkeypatch.setattr("shmloader.observe.trace_log._PAUSE_PER_WRITE", 0)
    loader = ShmDataLoader(Images(400), batch_size=4, num_workers=2)
    seen, errors = [], 0
    with loader.trace(tmp_path / "trace.json"):
        monkeypatch.setattr(os, "pwrite", FullDisk(20_000))
        iterator = iter(loader)
        while True:
            try:
                seen += next(iterator)[1].tolist()
            except TraceWarning:
                errors += 1
            except StopIteration:
                break
    assert seen == list(range(400))
    assert errors == 1


def test_a_block_that_raises_is_not_silenced_by_a_warning(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(4000, (1,)), batch_size=4, num_workers=2)
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        loader.trace(tmp_path / "trace.json", max_bytes=LEAST_BYTES),
    ):
        for _ in loader:
            pass
        raise ZeroDivisionError


def test_forked_processes_write_nothing(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(40), batch_size=4, num_workers=2)
    pid = -1
    try:
        with loader.trace(tmp_path / "trace.json"):
            next(iter(loader))
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
                before = sum(1 for _ in loader)
            else:
                assert sum(1 for _ in loader) == 10
    except BaseException:
        if pid == 0:
            os._exit(1)
        raise
    if pid == 0:
        os._exit(0)
    line = timeline(tmp_path / "trace.json")
    assert len(line.steps) == 1 + before
    assert_in_turn(line)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_killed_process_leaves_what_was_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    done = run_file(
        f"""
        import os, signal
        from shmloader import ShmDataLoader
        from shmloader.observe import trace_log
        from tests.helpers.datasets import Images

        trace_log._INTERVAL_NANOSECONDS = trace_log._PAUSE_PER_WRITE = 0
        loader = ShmDataLoader(Images(400), batch_size=4, num_workers=2)
        with loader.trace({str(path)!r}):
            for number, _ in enumerate(loader):
                if number == 50:
                    os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert done.returncode == -signal.SIGKILL
    found = read(path)
    assert found.is_whole
    assert not found.end["is_complete"]
    (line,) = timelines(found.events)
    assert len(line.steps) == 51


@pytest.mark.long
def test_an_exit_within_the_block_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    done = run_file(
        f"""
        import sys
        from shmloader import ShmDataLoader
        from tests.helpers.datasets import Images

        loader = ShmDataLoader(Images(400), batch_size=4, num_workers=2)
        with loader.trace({str(path)!r}):
            for number, _ in enumerate(loader):
                if number == 50:
                    sys.exit(3)
        """
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert len(timeline(path).steps) == 51


def test_records_are_copied_before_they_are_written_over(tmp_path: Path) -> None:
    loader = ShmDataLoader(Images(3000, (1,)), batch_size=1, num_workers=1, prefetch_factor=4)
    with loader.trace(tmp_path / "trace.json"):
        assert sum(1 for _ in loader) == 3000
    found = read(tmp_path / "trace.json")
    assert found.lost == 0
    assert on_workers(timelines(found.events)[0], "fetch") == Counter(range(3000))


@pytest.mark.skipif(sys.platform != "linux", reason="workers are stock's elsewhere")
def test_a_copy_of_the_loader_is_not_traced(tmp_path: Path) -> None:
    import copy

    loader = ShmDataLoader(Images(20), batch_size=4, num_workers=1)
    with loader.trace(tmp_path / "trace.json"):
        other = copy.copy(loader)
        assert sum(1 for _ in other) == 5
        with other.trace(tmp_path / "other.json"):
            next(iter(other))
    assert timelines(read(tmp_path / "trace.json").events) == []


def test_passes_in_several_threads_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.observe.trace_log._INTERVAL_NANOSECONDS", 0)
    monkeypatch.setattr("shmloader.observe.trace_log._PAUSE_PER_WRITE", 0)
    loader = ShmDataLoader(Images(80), batch_size=4, num_workers=1)
    iterators = [iter(loader) for _ in range(3)]
    counts: list[int] = []
    with loader.trace(tmp_path / "trace.json"):
        in_threads(*(lambda iterator=iterator: counts.append(sum(1 for _ in iterator)) for iterator in iterators))
    assert counts == [20, 20, 20]
    found = read(tmp_path / "trace.json")
    assert found.end["events"] == len(found.events) - 1
    assert [len(line.steps) for line in timelines(found.events)] == [20, 20, 20]


@pytest.mark.sampled(10)
@pytest.mark.parametrize("moment", range(0, 1500, 60))
def test_an_interrupt_at_any_moment_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    monkeypatch.setattr("shmloader.observe.trace_log._INTERVAL_NANOSECONDS", 0)
    monkeypatch.setattr("shmloader.observe.trace_log._PAUSE_PER_WRITE", 0)
    loader = ShmDataLoader(Images(400), batch_size=4, num_workers=1)
    iterator = iter(loader)
    with contextlib.suppress(KeyboardInterrupt), loader.trace(tmp_path / "trace.json"):
        next(iterator)
        before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        sys.settrace(SignalAt(moment))
        try:
            for _ in iterator:
                pass
        finally:
            sys.settrace(None)
            signal.signal(signal.SIGUSR1, before)
    del iterator
    line = timeline(tmp_path / "trace.json")
    assert len(line.steps) <= 100
    assert_in_turn(line)
