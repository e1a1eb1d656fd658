"""Numbers as columns of text, and rows as spans, compared with what plain Python makes of them."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from shmloader.observe.trace_lines import Line
from shmloader.observe.trace_spans import COLUMNS, FREE, HELD, NO_BATCH, READY, WRITING, Clock, Lines, Spans, Tracks

TRACKS = Tracks(process=1, loop=2, workers=3, slots=4, label="it")


def parsed(lines: Lines) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(b"[" + lines.text.rstrip(b",\n") + b"]")
    assert len(found) == lines.number
    return found


def test_numbers_of_every_length_are_json() -> None:
    line = Line('{"number":<number>,"ts":<ts>,"dur":<dur>},\n')
    edges = [0, 1, 9, 10, 999, 1000, 9999, 10_000, 10_001, 99_999_999, 100_000_000, 10**12 - 1]
    rng = random.Random(0)
    numbers = edges + [rng.randrange(10 ** rng.randint(1, 12)) for _ in range(500)]
    times = [number * 10 ** rng.randint(0, 4) + rng.randrange(1000) for number in numbers]
    text = line.format(number=np.array(numbers), ts=np.array(times), dur=np.array(numbers))
    for row, number, at in zip(text.decode().splitlines(), numbers, times, strict=True):
        found = json.loads(row.rstrip(","), parse_float=str)
        assert found["number"] == number
        assert found["ts"] == f"{at // 1000}.{at % 1000:03}"
        assert found["dur"] == f"{number // 1000}.{number % 1000:03}"


@pytest.mark.parametrize("seed", range(20))
def test_slots_are_followed_over_any_number_of_writes(seed: int) -> None:
    """A random walk: spans are what a naive model says, wherever the rows were cut into writes."""
    rng = random.Random(seed)
    state: dict[int, tuple[int, int, int]] = {}  # what each slot is: kind, since when, batch
    expected, rows, now = [], [], 1000
    for seq in range(200):
        now += rng.randrange(1, 5000)
        slot = rng.randrange(6)
        kind, since, batch = state.get(slot, (FREE, 0, NO_BATCH))
        following = {FREE: [WRITING], WRITING: [READY, FREE], READY: [HELD, FREE], HELD: [FREE]}[kind]
        then = rng.choice(following)
        if kind != FREE:
            expected.append((slot, kind, since, now - since, batch))
        state[slot] = then, now, seq if then == WRITING else batch
        rows.append((now, then, slot, seq if then == WRITING else NO_BATCH))
    spans, found = Spans(TRACKS, Clock(0, 0)), []
    while rows:
        cut = rng.randrange(0, 60)
        found += parsed(spans.of_parent(np.array(rows[:cut], np.int64).reshape(-1, COLUMNS)))
        del rows[:cut]
    found += parsed(spans.close(now + 7))
    expected += [(slot, kind, since, now + 7 - since, seq) for slot, (kind, since, seq) in state.items() if kind]
    names = {WRITING: "writing", READY: "ready", HELD: "held"}
    drawn = [
        (event["tid"], event["name"], round(event["ts"] * 1000), round(event["dur"] * 1000), event["args"]["batch"])
        for event in found
        if event["ph"] == "X"
    ]
    assert sorted(drawn) == sorted((slot, names[kind], *others) for slot, kind, *others in expected)


def test_what_was_in_use_before_is_not_drawn() -> None:
    spans = Spans(TRACKS, Clock(0, 0))
    rows = np.array([(10, FREE, 0, NO_BATCH), (20, READY, 1, NO_BATCH), (30, HELD, 1, NO_BATCH)])
    assert [event for event in parsed(spans.of_parent(rows)) if event["ph"] == "X"] == []
    assert parsed(Lines(b"[]"[:0]) + spans.close(40)) == []
