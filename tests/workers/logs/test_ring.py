"""The ring against a naive model, and records that come back as they were."""

from __future__ import annotations

import enum
import logging
import pickle
import random
import sys
from collections import deque
from typing import Any

import pytest
import torch

from shmloader.workers.logs.records import MAX_RECORD_BYTES, packed, unpacked
from shmloader.workers.logs.ring import LogRing

HEAD = 8
HEADER = 192


@pytest.mark.parametrize("seed", range(8))
def test_a_ring_is_a_queue_that_drops_what_does_not_fit(seed: int) -> None:
    draw = random.Random(seed)
    size = 1 + draw.randrange(400)
    memory = memoryview(bytearray(HEADER + size))
    writer, reader = LogRing(memory), LogRing(memory)
    model: deque[bytes] = deque()
    used = dropped = 0
    for _ in range(3000):
        if draw.random() < 0.6:
            record = draw.randbytes(draw.randrange(60))
            fits = used + HEAD + len(record) <= size
            assert writer.put(record) == fits
            if fits:
                model.append(record)
                used += HEAD + len(record)
            else:
                dropped += 1
        elif draw.random() < 0.5:
            assert list(reader.take()) == list(model)
            model.clear()
            used = 0
        else:
            for record in reader.take():  # left after the first
                assert record == model.popleft()
                used -= HEAD + len(record)
                break
        assert reader.dropped == dropped
        assert reader.has_any == bool(model)
        if draw.random() < 0.1:  # a successor
            writer = LogRing(memory)


def test_what_is_being_written_is_not_read() -> None:
    """A writer that ends at any step, or whose bytes are not seen yet, leaves whole records only."""
    memory = bytearray(HEADER + 64)
    ring = LogRing(memoryview(memory))
    assert ring.put(b"first")
    whole = bytes(memory)
    assert ring.put(b"second")
    for cut in range(HEADER, len(memory)):
        torn = bytearray(whole)
        torn[:8] = memory[:8]  # the count is seen first, and of the bytes some
        torn[HEADER:cut] = memory[HEADER:cut]
        seen = list(LogRing(memoryview(torn)).take())
        assert seen == [b"first", b"second"][: 1 + (torn[HEADER:] == memory[HEADER:])]
        torn[HEADER:] = memory[HEADER:]
        assert [*seen, *LogRing(memoryview(torn)).take()] == [b"first", b"second"]


def record_of(msg: Any, *args: Any, extra: dict[str, Any] | None = None, **more: Any) -> logging.LogRecord:
    return logging.getLogger("app").makeRecord("app", 30, "file.py", 3, msg, args, None, extra=extra, **more)


def both(record: logging.LogRecord) -> tuple[logging.LogRecord, logging.LogRecord]:
    data = packed(record)
    assert len(data) <= MAX_RECORD_BYTES
    return record, unpacked(data)


def test_plain_records_come_as_they_were() -> None:
    for args in ((), (1, "two"), ({"a": 1},), ((1, (2.5, None)), [b"x"])):
        sent, got = both(record_of("%s " * len(args) if not (args and type(args[0]) is dict) else "%(a)s", *args))
        assert vars(got) == vars(sent)


class Loud:
    """What no pickle takes."""

    def __str__(self) -> str:
        return "loud"

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


@pytest.mark.parametrize("value", [Loud(), torch.ones(2), {1: Loud()}, "x" * 100_000, 10**400, "\ud800" * 50_000])
def test_arguments_that_do_not_travel_are_formatted(value: Any) -> None:
    _, got = both(record_of("it is %s.", value, extra={"mine": value}))
    text = f"it is {value}."
    if len(text) > 20_000:
        assert got.getMessage().startswith(text[:1000].encode("utf-8", "backslashreplace").decode()[:1000])
        assert "more bytes were cut" in got.getMessage()
    else:
        assert got.getMessage() == text


def test_a_huge_tensor_is_not_pickled_for_its_text() -> None:
    assert len(packed(record_of("%s", torch.zeros(1 << 20)))) < 3000


def test_attributes_of_the_users() -> None:
    extra = {"shape": torch.Size([2, 3]), "count": 3, "loud": Loud(), "big": {"x": list(range(5000))}}
    _, got = both(record_of("m", extra=extra))
    assert vars(got)["shape"] == torch.Size([2, 3])
    assert type(vars(got)["shape"]) is torch.Size
    assert vars(got)["count"] == 3
    assert "Loud" in vars(got)["loud"]
    assert vars(got)["big"] == extra["big"]


def test_a_message_that_is_no_text() -> None:
    assert both(record_of(Loud()))[1].getMessage() == "loud"
    assert both(record_of({"a": 1}))[1].getMessage() == "{'a': 1}"


def test_tracebacks_and_stacks_arrive_as_text() -> None:
    record = record_of("m", sinfo="Stack (most recent call last): here")
    try:
        raise LookupError("this one")
    except LookupError:
        record.exc_info = sys.exc_info()
    expected = logging.Formatter().format(record)
    record.exc_text = None
    text = logging.Formatter().format(both(record)[1])
    record.exc_info = None
    assert text == expected
    assert "LookupError: this one" in text


def test_a_message_that_cannot_be_formatted_is_the_writers_error() -> None:
    for record in (record_of("%d", "x"), record_of("%d and %d", 1)):
        with pytest.raises(TypeError):
            packed(record)


class Level(enum.IntEnum):
    LOUD = 33


def test_levels_of_the_users_own() -> None:
    record = logging.getLogger("app").makeRecord("app", Level.LOUD, "file.py", 3, "m", (), None)
    got = both(record)[1]
    assert (got.levelno, type(got.levelno), got.levelname) == (33, int, "Level 33")
    logging.addLevelName(33, "LOUD")  # here, and not in the worker
    try:
        assert unpacked(packed(record)).levelname == "LOUD"
    finally:
        logging._levelToName.pop(33)
        logging._nameToLevel.pop("LOUD")


def test_what_cannot_be_unpickled_here_is_said() -> None:
    fields, extras = pickle.loads(packed(record_of("m")))
    extras["lost"] = (b"not a pickle", True)
    assert "not unpickled" in vars(unpacked(pickle.dumps((fields, extras))))["lost"]
