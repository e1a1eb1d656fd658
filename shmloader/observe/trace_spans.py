"""Rows of numbers into spans on tracks: from when to when a slot was what, and a worker or the loop did what. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .trace_lines import Column, Line

# What becomes of a slot, and what the loop does. A row is (time, one of these, slot, batch); of the loop's, the slot
# is the time at which it ended.
FREE, WRITING, READY, HELD, RETAINED, NEXT, WAIT, FLUSH = range(8)
_NOTHING = -NEXT  # a step that gave no batch
COLUMNS = 4
NO_BATCH = -1

_SLOT_SPANS = {WRITING: "writing", READY: "ready", HELD: "held", RETAINED: "held by a worker"}
_LOOP_SPANS = {NEXT: "next", _NOTHING: "next", WAIT: "wait", FLUSH: "writing the trace"}
_FETCH, _COLLATE, _PAUSE, _RAISE = range(8, 12)
_WORK_SPANS = {_FETCH: "fetch", _COLLATE: "collate", _PAUSE: "waiting for room or at the gate", _RAISE: "raising"}

# Contents of a slot that are a batch, and those that are an exception.
_BATCH, _FAULT = 0, 1


class Clock(NamedTuple):
    """How times are written.

    Attributes:
        offset: added to CLOCK_MONOTONIC's nanoseconds; the sum counts from ``base``.
        base: nanoseconds since 1970 from which times in the file count.
    """

    offset: int
    base: int


class Tracks(NamedTuple):
    """Where events are drawn: process and thread numbers as viewers have them.

    Attributes:
        process: the loop's process.
        loop: the loop's track in it.
        workers: the group of the workers' tracks.
        slots: the group of the slots' tracks.
        label: how the groups are called.
    """

    process: int
    loop: int
    workers: int
    slots: int
    label: str


class Lines(NamedTuple):
    """Events as text.

    Attributes:
        text: a line each.
        number: how many.
    """

    text: bytes = b""
    number: int = 0

    def __add__(self, other: Lines) -> Lines:  # type: ignore[override]
        return Lines(self.text + other.text, self.number + other.number)


def event(**fields: Any) -> Lines:
    """Returns one event."""
    return Lines(json.dumps(fields).encode() + b",\n", 1)


class Spans:
    """Makes lines of rows, and remembers what each slot was last.

    Args:
        tracks: where they are drawn.
        clock: how times are written.
    """

    def __init__(self, tracks: Tracks, clock: Clock) -> None:
        self._tracks = tracks
        self._offset = clock.offset
        self._open = np.empty((0, COLUMNS), np.int64)  # the last row of each slot that is not free
        self._named: set[int] = set()  # slots that were used
        slots = tracks.slots, "<tid>", "<seq>"
        self._on_slots = {kind: _line(name, *slots) for kind, name in {**_SLOT_SPANS, **_WORK_SPANS}.items()}
        self._on_workers = {kind: _line(name, tracks.workers, "<tid>", "<seq>") for kind, name in _WORK_SPANS.items()}
        self._on_loop = {
            kind: _line(name, tracks.process, str(tracks.loop), "<seq>" if kind == NEXT else "null")
            for kind, name in _LOOP_SPANS.items()
        }

    # -- tracks --------------------------------------------------------------------------------------------------

    def name_groups(self, has_workers: bool) -> Lines:
        """Returns the names of the loop's track, and of the groups of the others."""
        process, loop, workers, slots, label = self._tracks
        lines = self._name(process, loop, f"{label}: the loop")
        for group, what in [(workers, "workers"), (slots, "slots")] if has_workers else []:
            lines += event(ph="M", name="process_name", pid=group, tid=0, args={"name": f"{label}: {what}"})
            lines += event(ph="M", name="process_sort_index", pid=group, tid=0, args={"sort_index": group})
        return lines

    def name_worker(self, number: int) -> Lines:
        """Returns the name of a worker's track."""
        return self._name(self._tracks.workers, number, f"worker {number}")

    def _name(self, pid: int, tid: int, name: str) -> Lines:
        named = event(ph="M", name="thread_name", pid=pid, tid=tid, args={"name": name})
        return named + event(ph="M", name="thread_sort_index", pid=pid, tid=tid, args={"sort_index": tid})

    # -- events --------------------------------------------------------------------------------------------------

    def instant(self, at: int, what: str, worker: int | None, **args: Any) -> Lines:
        """Returns what has happened at one time, on a worker's track or the loop's."""
        pid, tid = (self._tracks.process, self._tracks.loop) if worker is None else (self._tracks.workers, worker)
        return event(ph="i", s="t", pid=pid, tid=tid, ts=(at + self._offset) / 1000, name=what, args=args)

    def of_parent(self, rows: Column) -> Lines:
        """Returns the spans of the loop and of slots.

        Args:
            rows: (n, COLUMNS), those of slots by time.
        """
        is_slots = rows[:, 1] < NEXT
        began, kind, ended, seq = rows[~is_slots].T
        kind = np.where((kind == NEXT) & (seq == NO_BATCH), _NOTHING, kind)
        return self._of_slots(rows[is_slots]) + self._lines(self._on_loop, kind, began, ended, seq=seq)

    def of_worker(self, worker: int, rows: Column, kinds: int, since: int) -> Lines:
        """Returns the spans of a worker, on its track and on those of the slots that it wrote to.

        Args:
            worker: its number.
            rows: (n, 7 or more): batch, slot, generation and contents, began, fetched, ended, waited.
            kinds: how many kinds of contents there are, which generations are multiplied by.
            since: what was before is not drawn.
        """
        seq, slot, what = rows.T[:3]
        began, fetched, ended = np.maximum(rows.T[3:6], since)
        waited = np.minimum(rows.T[6], ended - began)
        contents = what % kinds
        is_batch, waits = contents == _BATCH, (waited > 0) & (contents <= _FAULT)
        those = [is_batch, is_batch & (ended > fetched), waits, contents == _FAULT]
        # When within the job it waited is not recorded. It is drawn where waits for room are.
        pause = np.where(fetched + waited <= ended, fetched, began)
        begins, ends = [began, fetched, pause, began], [fetched, ended, pause + waited, ended]
        kind = np.concatenate([np.full(len(rows), one) for one in _WORK_SPANS])[(chosen := np.concatenate(those))]
        begin, end = np.concatenate(begins)[chosen], np.concatenate(ends)[chosen]
        seq, slot = np.tile(seq, 4)[chosen], np.tile(slot, 4)[chosen]
        on_worker = self._lines(self._on_workers, kind, begin, end, seq=seq, tid=np.full_like(slot, worker))
        return on_worker + self._lines(self._on_slots, kind, begin, end, seq=seq, tid=slot)

    def close(self, now: int) -> Lines:
        """Returns the spans of slots that are in use, up to ``now``."""
        ends = self._open.copy()
        ends[:, 0], ends[:, 1] = now, FREE
        return self._of_slots(ends)

    def _of_slots(self, rows: Column) -> Lines:
        """Returns what slots were between their rows, and keeps the last row of each."""
        carried = len(self._open)
        rows = np.concatenate([self._open, rows])
        if not len(rows):
            return Lines()
        knows = rows[:, 1] == WRITING
        knows[:carried] = True
        order = np.argsort(rows[:, 2], kind="stable")
        rows, knows = rows[order], knows[order]
        at, kind, slot, seq = rows.T
        # The batch is the one that was assigned last. Of a slot that was in use when the trace began, nobody knows.
        source = np.maximum.accumulate(np.where(knows, np.arange(len(rows)), 0))
        rows[:, 3] = np.where(knows[source] & (slot[source] == slot), seq[source], NO_BATCH)
        is_use = (kind != FREE) & (rows[:, 3] != NO_BATCH)
        is_last = np.append(slot[1:] != slot[:-1], True)
        self._open = rows[is_last & is_use]
        drawn = np.flatnonzero(~is_last & is_use)
        names = self._name_slots(set(slot[is_last].tolist()))
        return names + self._lines(
            self._on_slots, kind[drawn], at[drawn], at[drawn + 1], tid=slot[drawn], seq=rows[drawn, 3]
        )

    def _name_slots(self, used: set[int]) -> Lines:
        lines = Lines()
        for number in sorted(used - self._named):
            lines += self._name(self._tracks.slots, number, f"slot {number}")
        self._named |= used
        return lines

    def _lines(self, by_kind: dict[int, Line], kind: Column, began: Column, ended: Column, **others: Column) -> Lines:
        columns = {"ts": began + self._offset, "dur": np.maximum(ended - began, 0), **others}
        found = (
            line.format(**{name: column[those] for name, column in columns.items()})
            for each, line in by_kind.items()
            if len(those := np.flatnonzero(kind == each))
        )
        return Lines(b"".join(found), len(kind))


def joined(lines: Iterable[Lines]) -> Lines:
    """Returns all of them behind each other."""
    lines = list(lines)
    return Lines(b"".join(one.text for one in lines), sum(one.number for one in lines))


def _line(name: str, pid: int, tid: str, batch: str) -> Line:
    return Line(
        f'{{"ph":"X","pid":{pid},"tid":{tid},"ts":<ts>,"dur":<dur>,"name":"{name}","args":{{"batch":{batch}}}}},\n'
    )
