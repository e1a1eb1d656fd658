"""Batches that wait for room."""

from __future__ import annotations

from shmloader.passes.growth_requests import GrowthRequests, Reply
from shmloader.passes.schedule import Schedule
from shmloader.slots.ledger import MIN_SLOT_BYTES
from shmloader.slots.pool import Pool
from shmloader.slots.results import Result
from shmloader.workers import wire
from shmloader.workers.wire import Token


def test_a_job_that_cannot_begin_is_told_once_to_make_do() -> None:
    """However often the batches of others wake the loop meanwhile; and its next worker again."""
    pool = Pool(num_slots=6, in_flight=4, max_bytes=32 * MIN_SLOT_BYTES)
    schedule: Schedule[Result] = Schedule(num_workers=2, prefetch_factor=2, in_order=True)
    for number in range(4):
        slot, _ = pool.claim(b"")
        schedule.send(number % 2, b"", slot)
    requests = GrowthRequests(pool)
    first = schedule.task(0)
    assert first is not None
    ask = Token(wire.ASK, 0, 0, 0, first.slot, 0, room=31 * MIN_SLOT_BYTES)
    curb = (0, wire.CURB, 2)
    requests.add(ask)
    assert [told for _ in range(50) for told in heads(requests.answer(schedule))] == [curb]
    requests.forget(0)
    requests.add(ask)
    assert heads(requests.answer(schedule)) == [curb]
    assert heads(requests.refuse_all()) == [(0, wire.GRANT, 0)]
    requests.add(ask)
    assert heads(requests.answer(schedule)) == [curb]
    pool.close()


def heads(replies: list[Reply]) -> list[tuple[int, int, int]]:
    return [(reply.worker, reply.kind, reply.seq) for reply in replies]
