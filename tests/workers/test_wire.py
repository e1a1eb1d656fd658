"""Tokens and pipes."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from shmloader.workers import wire
from shmloader.workers.wire import Inbox, PipeEnd, Token, pipe


@pytest.fixture
def ends() -> Iterator[tuple[PipeEnd, PipeEnd]]:
    reader, writer = pipe(16)
    yield reader, writer
    reader.close()
    writer.close()


def token(kind: int, seq: int = 0) -> Token:
    rest = {"room": 1 << 51, "offset": 1 << 49, "nbytes": 1 << 50}
    return Token(kind, is_held=1, worker=3, generation=7, slot=5, seq=seq, **rest)


def test_tokens_arrive_as_they_were_sent(ends: tuple[PipeEnd, PipeEnd]) -> None:
    reader, writer = ends
    sent = [token(kind, seq) for seq, kind in enumerate([wire.JOB, wire.BATCH, wire.STOP])]
    for one in sent:
        writer.write(one)
    assert reader.read() == sent


def test_a_token_is_written_whole_or_not_at_all() -> None:
    assert wire.TOKEN_BYTES * 10 < select.PIPE_BUF


def test_end_of_file_is_no_token(ends: tuple[PipeEnd, PipeEnd]) -> None:
    reader, writer = ends
    writer.close()
    assert reader.read() == []


def test_a_pipe_holds_as_many_tokens_as_asked_for() -> None:
    reader, writer = pipe(10_000)
    os.set_blocking(writer.fd, False)
    for seq in range(10_000):
        writer.write(token(wire.JOB, seq))
    assert reader.read()[0].seq == 0
    reader.close()
    writer.close()


def test_a_pipe_that_the_kernel_does_not_make() -> None:
    with pytest.raises(OSError, match=r".*"):
        pipe(1 << 40)


def test_closing_twice_closes_once() -> None:
    reader, writer = pipe(1)
    reader.close()
    other, another = pipe(1)
    reader.close()
    another.write(token(wire.JOB))
    assert other.read()
    for end in (writer, other, another):
        end.close()


@pytest.fixture
def inbox(ends: tuple[PipeEnd, PipeEnd]) -> Inbox:
    return Inbox(ends[0].read)


def test_an_inbox_keeps_the_order(inbox: Inbox, ends: tuple[PipeEnd, PipeEnd]) -> None:
    for seq in range(5):
        ends[1].write(token(wire.JOB, seq))
    assert [inbox.get().seq for _ in range(5)] == list(range(5))  # type: ignore[union-attr]


def test_a_grant_overtakes_jobs(inbox: Inbox, ends: tuple[PipeEnd, PipeEnd]) -> None:
    for kind, seq in [(wire.JOB, 0), (wire.JOB, 1), (wire.GRANT, 2), (wire.JOB, 3)]:
        ends[1].write(token(kind, seq))
    grant = inbox.get_one(wire.GRANT, {})
    assert grant is not None
    assert grant.kind == wire.GRANT
    assert [inbox.get().seq for _ in range(3)] == [0, 1, 3]  # type: ignore[union-attr]


def test_a_stop_ends_the_wait_for_a_grant(inbox: Inbox, ends: tuple[PipeEnd, PipeEnd]) -> None:
    ends[1].write(token(wire.JOB, 0))
    ends[1].write(token(wire.STOP, 1))
    assert inbox.get_one(wire.GRANT, {}) is None
    assert [inbox.get().kind for _ in range(2)] == [wire.JOB, wire.STOP]  # type: ignore[union-attr]


def test_end_of_file_ends_an_inbox(inbox: Inbox, ends: tuple[PipeEnd, PipeEnd]) -> None:
    ends[1].close()
    assert inbox.get() is None
