"""What workers record: rows and sums that fit together, whoever reads them when."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

import shmloader.workers.recorder as module
from shmloader import ShmDataLoader
from shmloader.slots.shared_state import RECORD_BYTES
from shmloader.workers.recorder import KINDS, ROW_WORDS, ROWS, Record, Recorder, Row, Sums

BATCH, FAULT, NOTHING = range(3)


@pytest.fixture
def memory() -> memoryview:
    return memoryview(mmap.mmap(-1, RECORD_BYTES))


@dataclass
class Clock:
    """A clock that is set."""

    now: int = 1_000_000

    def monotonic_ns(self) -> int:
        return self.now

    def thread_time_ns(self) -> int:
        return self.now // 2

    def sleep(self, _: float) -> None:
        self.now += 100_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@dataclass
class Naive:
    """Remembers everything."""

    rows: list[Row] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Sums._fields, 0))

    def add(self, **more: int) -> None:
        for name, value in more.items():
            self.sums[name] += value


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(8))
def test_random_walk(memory: memoryview, clock: Clock, seed: int) -> None:
    """Jobs of all kinds, waits, passes and successors, against a model that remembers everything."""
    draw = random.Random(seed)
    naive, record = Naive(), Record(memory)
    recorder, generation = Recorder(memory), 0
    recorder.rest()

    def let_pass(most: int = 100_000) -> int:
        took = draw.randrange(most)
        clock.now += took
        return took

    for seq in range(3 * ROWS):
        event = draw.random()
        if event < 0.04:
            for _ in range(draw.choice([1, 1, 2, 3])):  # without a job in between, as where it dies at the first one
                let_pass(10**9)
                if event < 0.02:  # a successor, which takes a while to come
                    recorder = Recorder(memory)
                else:  # a pause between two passes
                    generation += 1
                    recorder.begin_pass()
                recorder.rest()
                assert record.sums().idle == naive.sums["idle"]
        naive.add(idle=let_pass())
        began = clock.now
        slot, contents, samples, nbytes = draw.randrange(9), draw.choice([BATCH] * 9 + [FAULT, NOTHING]), 0, 0
        recorder.begin(seq, slot, began)
        paused = 0
        if draw.random() < 0.1:
            start = clock.now
            paused = let_pass()
            recorder.wait_at_gate(start)
        fetch = let_pass()
        if contents == BATCH:
            samples, nbytes = draw.randrange(100), draw.randrange(1 << 40)
        collates = draw.random() < 0.8 and contents == BATCH
        if collates:
            recorder.collating(lambda given: given, counts=True)(range(samples))
        recorder.samples = samples
        collate = let_pass() if collates else 0
        room = 0
        if draw.random() < 0.1:
            start = clock.now
            room = let_pass()
            recorder.wait_for_room(start)
            naive.add(asks=1)
            collates = True
        recorder.end(generation, contents, nbytes)
        naive.add(
            batches=contents == BATCH, samples=samples, nbytes=nbytes, fetch=fetch, collate=collate, room=room,
            paused=paused,
        )  # fmt: skip
        row = record.rows()[-1]
        assert row[:5] == (seq, slot, generation, contents, began)
        assert (row.ended, row.waited) == (clock.now, paused + room)
        assert row.fetched - row.began == fetch + paused + (0 if collates else collate)
        naive.rows.append(row)
        found = record.sums()
        for name in ("batches", "samples", "nbytes", "fetch", "collate", "idle", "room", "paused", "asks"):
            assert getattr(found, name) == naive.sums[name], name
        assert 0 <= found.cpu <= found.cpu_work // 2 + 10 * clock.now  # of this clock
    assert record.count == len(naive.rows)
    assert record.rows() == naive.rows[-(ROWS - 1) :]
    assert record.rows(record.count - 5) == naive.rows[-5:]
    assert record.rows(record.count) == []
    for first in (0, record.count - 5, record.count):
        start, data = record.raw_rows(first)
        raw = [words[:7] for words in struct.iter_unpack(f"@{ROW_WORDS}q", data)]
        rows = record.rows(first)
        assert raw == [(row.seq, row.slot, row.generation * KINDS + row.contents, *row[4:8]) for row in rows]
        assert start + len(rows) == record.count
    record.forget()
    assert (record.count, record.rows(), record.sums(), record.slowest()) == (0, [], Sums(), [])


def test_late_batches_are_what_took_several_times_the_mean(memory: memoryview, clock: Clock) -> None:
    recorder, record = Recorder(memory), Record(memory)
    recorder.rest()
    for seq in range(200):
        recorder.begin(seq, 0, clock.now)
        recorder.indices = [seq, seq + 1]
        clock.now += 100_000_000 if seq in (50, 120) else 10_000_000
        recorder.end(0, BATCH, 1)
    sums = record.sums()
    assert sums.lates == 2
    assert 0.9 * 180_000_000 < sums.late < 1.1 * 180_000_000
    assert [slow.what for slow in record.slowest()] == ["the batch of [50, 51]", "the batch of [120, 121]"]
    assert record.slowest()[0].seconds == 0.1
    recorder.begin_pass()
    assert record.slowest() == []


@pytest.mark.parametrize("slow", [1_000, 100_000])
def test_batches_that_take_alike_are_not_late(memory: memoryview, clock: Clock, slow: int) -> None:
    draw = random.Random(slow)
    recorder, record = Recorder(memory), Record(memory)
    recorder.rest()
    for seq in range(300):
        recorder.begin(seq, 0, clock.now)
        clock.now += draw.randrange(slow, 2 * slow)
        recorder.end(0, BATCH, 1)
    assert (record.sums().lates, record.slowest()) == (0, [])


class Strange:
    """An index that cannot be shown."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


@dataclass
class Named:
    """An index whose text is a file's name: one that is not UTF-8 has surrogates in it."""

    name: str

    def __repr__(self) -> str:
        return self.name


def test_the_slowest_are_told_as_text_of_any_index(memory: memoryview) -> None:
    recorder, record = Recorder(memory), Record(memory)
    for number, index in enumerate([3, "a\nb", Strange(), "long" * 1000, ("é", 7), 4]):
        if recorder.is_slow(1000 * number):
            recorder.note_slow(1000 * number, "index", index)
    found = record.slowest()
    assert [slow.what[:16] for slow in found] == ["index 4", "index ('é', 7)", "index 'longlongl", "index a Strange"]
    assert all(len(slow.what) <= 100 for slow in found)
    assert not recorder.is_slow(2000)
    recorder.note_slow(9000, "index", Named("\udce9.jpg"))
    assert record.slowest()[0].what == r"index \udce9.jpg"


def test_rows_are_whole_while_another_process_writes(memory: memoryview) -> None:
    """Which is killed in the end; a successor goes on with its sums."""
    record = Record(memory)
    child = os.fork()
    if not child:
        recorder = Recorder(memory)
        recorder.rest()
        seq = 0
        while True:
            recorder.begin(seq, seq % 7, time.monotonic_ns())
            recorder.samples = seq % 5
            recorder.end(0, BATCH, seq)
            seq += 1
    try:
        next_one, checked = 0, 0
        while checked < 50 * ROWS:
            rows = record.rows(next_one)
            if rows:
                next_one = rows[-1].seq + 1
            for one, other in itertools.pairwise(rows):
                assert (other.seq, other.slot) == (one.seq + 1, other.seq % 7)
                assert other.work_sum - one.work_sum == other.ended - other.began
                assert other.bytes_sum - one.bytes_sum == other.seq
                assert other.samples_sum - one.samples_sum == other.seq % 5
                assert one.ended <= other.began
            checked += len(rows)
            assert min(record.sums()) >= 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    before = record.sums()
    successor = Recorder(memory)
    successor.rest()
    successor.begin(0, 0, time.monotonic_ns())
    successor.samples = 2
    successor.end(0, BATCH, 10)
    after = record.sums()
    assert after.samples == before.samples + 2
    assert after.nbytes == before.nbytes + 10
    assert after.batches == before.batches + 1


class Numbers(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return torch.full((3,), index)

    def __len__(self) -> int:
        return 50


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(torch.arange(23))


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize(
    "how",
    [{}, {"worker_type": "thread"}, {"multiprocessing_context": "spawn"}, {"persistent_workers": True}],
    ids=["fork", "thread", "spawn", "persistent"],
)
def test_rows_of_a_loaders_batches(how: dict[str, Any]) -> None:
    loader = ShmDataLoader(Numbers(), batch_size=4, num_workers=2, **how)
    for epoch in range(2):
        iterator: Any = iter(loader)
        records = iterator._dispatcher.records()
        started = time.monotonic_ns()
        sizes = [len(batch) for batch in iterator]
        now = time.monotonic_ns()
        for worker, record in enumerate(records):
            generation = epoch if "persistent_workers" in how else 0
            rows = [row for row in record.rows() if row.generation == generation]
            assert [row.seq for row in rows] == list(range(worker, 13, 2))
            assert all(row.contents == BATCH and row.began <= row.fetched <= row.ended < now for row in rows)
            assert epoch == 0 or generation == 0 or started - 10**10 < rows[0].began
            assert all(one.ended <= other.began for one, other in itertools.pairwise(rows))
            before = [0, *(row.samples_sum for row in record.rows())]
            made = [one - other for one, other in zip(before[1:], before, strict=False)]
            assert made[-len(rows) :] == sizes[worker::2]
    del iterator, records, record


def test_rows_of_a_stream_have_the_samples_that_there_were_and_its_end() -> None:
    loader = ShmDataLoader(Stream(), batch_size=4, num_workers=1)
    iterator: Any = iter(loader)
    (record,) = iterator._dispatcher.records()
    sizes = [len(batch) for batch in iterator]
    assert sizes == [4, 4, 4, 4, 4, 3]
    sums = record.sums()
    assert (sums.batches, sums.samples) == (6, 23)
    assert record.rows()[6].contents == NOTHING


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_by_extracts_is_the_record_by_another_clock(memory: memoryview, clock: Clock, seed: int) -> None:
    """As the record of a worker on another machine gets to the parent: what is new, batch by batch or less often."""
    draw = random.Random(seed)
    shift = draw.choice([0, 10**15, -(10**5)])
    copied = memoryview(mmap.mmap(-1, RECORD_BYTES))
    recorder, source, copy = Recorder(memory), Record(memory), Record(copied)
    known = 0
    recorder.rest()
    for seq in range(draw.choice([3, 40, 2 * ROWS + 7])):
        clock.now += draw.randrange(3_000_000)
        recorder.begin(seq, 1, clock.now)
        clock.now += draw.randrange(5_000_000)
        recorder.samples = 4
        recorder.end(3, draw.choice([BATCH, BATCH, FAULT]), 100)
        if draw.random() < 0.9:
            copy.insert(source.extract(known), 9, shift)
            known = source.count
    copy.insert(source.extract(known), 9, shift)
    assert (copy.count, copy.sums(), copy.slowest()) == (source.count, source.sums(), source.slowest())
    moved = [
        row._replace(slot=9, began=row.began + shift, fetched=row.fetched + shift, ended=row.ended + shift)
        for row in source.rows()
    ]
    assert copy.rows() == moved
    assert source.extract(source.count - 1).ended == source.rows()[-1].ended
    # A successor elsewhere goes on with the sums.
    heir = memoryview(mmap.mmap(-1, RECORD_BYTES))
    Record(heir).insert(copy.extract(copy.count - 1), None, -shift)
    assert Record(heir).sums() == source.sums()


def test_waits_for_the_interpreter_lock_are_no_idle_time(memory: memoryview, clock: Clock) -> None:
    """Jobs follow each other at once, in several passes; the only time between them is what the lock takes."""
    record, recorder = Record(memory), Recorder(memory)
    recorder.shares_lock = True
    recorder.rest()
    for seq in range(40):
        recorder.begin(seq, 0, recorder.ended)
        clock.now = recorder.ended + 1_000_000
        recorder.end(seq // 8, BATCH, 0)
        if seq % 8 == 7:
            recorder.rest()
        found = record.sums()
        assert (found.idle, found.fetch) == (0, 1_000_000 * (seq + 1))
    assert found.lock == found.locks * 100_000 > 0
