"""Lines against a naive model, over random walks."""

from __future__ import annotations

import random

import pytest

from shmloader.passes.lines import Line, Lines


def always(job: object) -> bool:
    return True


def never(job: object) -> bool:
    return False


@pytest.mark.parametrize("seed", range(20))
def test_random_walk(seed: int) -> None:
    draw = random.Random(seed)
    look_ahead = draw.randint(1, 6)
    lines: Lines[int] = Lines(look_ahead)
    alive: dict[str, Line[int]] = {}
    asked: list[tuple[bytes, str]] = []  # in order, and by whom
    sent: list[str] = []
    for number in range(2000):
        action = draw.choice(["join", "ask", "ask", "ask", "send", "send", "arrive", "arrive", "leave"])
        if action == "join" and len(alive) < 4:
            alive[f"line {number}"] = Line()
        elif action == "leave" and alive and draw.random() < 0.2:
            name = draw.choice(list(alive))
            del alive[name]
            asked = [job for job in asked if job[1] != name]
        elif action == "ask" and alive:
            name = draw.choice(list(alive))
            lines.ask(alive[name], b"%d" % number)
            asked.append((b"%d" % number, name))
        elif action == "send":
            waits = draw.random() < 0.2
            may_be_sent = len(sent) < look_ahead and not (waits and sent)
            expected = asked.pop(0) if asked and may_be_sent else None
            assert lines.next_job(always if waits else never) == (None if expected is None else expected[0])
            sent += [] if expected is None else [expected[1]]
        elif action == "arrive" and sent:
            assert lines.arrive() is alive.get(sent.pop(0))
        expected_lengths = {name: sum(owner == name for _, owner in asked) + sent.count(name) for name in alive}
        assert {name: len(line) for name, line in alive.items()} == expected_lengths
