"""Errors and warnings of each front door name its own things, and knobs that it has."""

from __future__ import annotations

import inspect
import itertools
import multiprocessing
import re
import signal
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shmloader import HeldBatchesWarning, JobQueue, PoolMemoryError, Producer, ShmDataLoader, TensorSpec
from shmloader.words import LOADER, PRODUCER, QUEUE, Words, alternatives
from shmloader.workers.processes import ends, workers
from tests.helpers.datasets import Mapped

MIB = 1 << 20
DOORS = {LOADER: ShmDataLoader, PRODUCER: Producer, QUEUE: JobQueue}
ALL_WORDS = pytest.mark.parametrize("words", DOORS, ids=lambda words: words.owner)


def knobs_of(words: Words) -> set[str]:
    return set(inspect.signature(DOORS[words]).parameters)


# What only one kind of door has: its things, and its knobs.
KNOBS = set().union(*map(knobs_of, DOORS))
THINGS = {word for words in DOORS for word in (words.one.split()[-1], words.many)}


def assert_own(text: str, words: Words) -> None:
    """Asserts that a text names nothing that another front door has and this one does not."""
    named = set(re.findall(r"\w+", text))
    assert named & KNOBS <= knobs_of(words) | {"function", "target", "generator"}, text
    assert named & THINGS <= {words.one.split()[-1], words.many, words.made}, text
    assert "loop" not in named, text


def fill(slots: Any) -> None:
    for slot in slots:
        with slot as array:
            array[...] = 1


def producer(nbytes: int = 8, **arguments: Any) -> Producer:
    return Producer(fill, TensorSpec((nbytes,), torch.uint8), worker_type="thread", **arguments)


def job_queue(**arguments: Any) -> JobQueue:
    return JobQueue(np.zeros, num_workers=1, worker_type="thread", **arguments)


def result_of(*arguments: Any, **options: Any) -> None:
    with job_queue(**options) as jobs:
        jobs.put(*arguments)
        jobs.get()


def batch_of(nbytes: int, **options: Any) -> None:
    loader = ShmDataLoader(
        Mapped(lambda index: np.zeros(nbytes, np.uint8)), num_workers=1, worker_type="thread", **options
    )
    for _ in loader:
        pass


TOO_MUCH: dict[str, tuple[Words, Callable[[], Any], str]] = {
    "a pool for few bytes": (PRODUCER, lambda: producer(max_pool_bytes=10).start(), "lower num_slots or num_workers"),
    "a pool for few bytes, of a queue": (QUEUE, lambda: job_queue(max_pool_bytes=10).start(), "prefetch_factor"),
    "a pool for few bytes, of a loader": (LOADER, lambda: batch_of(1, max_pool_bytes=10), "prefetch_factor"),
    "declared items": (PRODUCER, lambda: producer(MIB, max_pool_bytes=4 * MIB).start(), "items of .* lower num_slots,"),
    "few slots": (QUEUE, lambda: job_queue(num_slots=1), "2 results are made ahead"),
    "few slots of a loader": (LOADER, lambda: batch_of(1, num_slots=1), "2 batches are made ahead"),
    "a result": (
        QUEUE,
        lambda: result_of(8 * MIB, max_pool_bytes=8 * MIB),
        "a result takes .*or return smaller results",
    ),
    "a batch": (LOADER, lambda: batch_of(64 * MIB, max_pool_bytes=8 * MIB), "a batch takes .*or make batches smaller"),
    "arguments": (
        QUEUE,
        lambda: result_of(bytes(9 * MIB), max_pool_bytes=8 * MIB),
        "the arguments of one job take .* under max_pool_bytes=8388608",
    ),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_does_not_fit(what: str) -> None:
    words, act, text = TOO_MUCH[what]
    with pytest.raises((ValueError, PoolMemoryError), match=text) as raised:
        act()
    lines = str(raised.value).splitlines()  # the last one, where there is a worker's traceback before it
    del raised  # which has this frame
    assert_own(lines[-1], words)


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def populate(arena: Any, slot: int, nbytes: int) -> None:
        raise PoolMemoryError("cannot make it resident")

    monkeypatch.setattr("shmloader.slots.arena.Arena.populate", populate)
    with pytest.raises(PoolMemoryError, match="resident; lower num_slots, or declare smaller shapes"):
        producer().start()


HOLDERS: dict[str, tuple[Words, Callable[[], Any]]] = {
    "items": (PRODUCER, lambda: producer()),
    "large items": (PRODUCER, lambda: producer(MIB, max_pool_bytes=8 * MIB)),
    "results": (QUEUE, lambda: job_queue().repeat(1)),
    "large results": (QUEUE, lambda: job_queue(max_pool_bytes=8 * MIB).repeat(MIB // 8)),
    "larger results": (QUEUE, lambda: job_queue(max_pool_bytes=8 * MIB).repeat(MIB // 4)),
}


@pytest.mark.parametrize("what", HOLDERS)
def test_who_holds_many(what: str) -> None:
    words, make = HOLDERS[what]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = make()
        held = list(itertools.islice(source, 60))
    texts = [str(one.message) for one in caught if one.category is HeldBatchesWarning]
    assert len(texts) == 1
    assert_own(texts[0], words)
    assert words.many in texts[0]
    (source.stop if isinstance(source, Producer) else source._queue.close)()
    del held


@ALL_WORDS
def test_workers_that_were_killed_for_lack_of_memory(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "oom_kills", lambda: 3)
    for end in (signal.SIGKILL, signal.SIGBUS):
        text = ends.ending(words, 7, -end, 1)
        assert "ower " in text
        assert_own(text, words)


@ALL_WORDS
def test_more_jobs_than_a_pipe_holds(words: Words) -> None:
    with pytest.raises(ValueError, match=r"is too large: .* do not fit into a pipe") as raised:
        workers.ProcessWorkers(multiprocessing.get_context("fork"), 1, 10**9, words=words)
    assert_own(str(raised.value), words)


def test_all_that_words_name_is_there() -> None:
    for words in DOORS:
        assert {*words.fewer, *words.less, "max_pool_bytes", "num_workers"} <= knobs_of(words)
        assert words.maker in knobs_of(words)
    assert [alternatives("abc"[:count]) for count in (1, 2, 3)] == ["a", "a or b", "a, b or c"]
