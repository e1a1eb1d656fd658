"""Whose tracks a trace has, and what is on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .reading import Event

_LOOP, _WORKERS, _SLOTS = ": the loop", ": workers", ": slots"


class Span(NamedTuple):
    """Something that lasted.

    Attributes:
        name: what.
        began, ended: seconds on the trace's clock.
        batch: the batch's number in its pass, or None.
    """

    name: str
    began: float
    ended: float
    batch: int | None

    @property
    def seconds(self) -> float:
        """How long."""
        return self.ended - self.began


@dataclass
class Timeline:
    """The tracks of one loader's pool.

    Attributes:
        label: how they are called.
        loop: the loop's steps and waits, by their beginning; so are the others.
        workers: what each worker did.
        slots: what each slot was.
        instants: what happened at one time: seconds, what, and on which worker's track or None.
    """

    label: str
    loop: list[Span] = field(default_factory=list)
    workers: dict[int, list[Span]] = field(default_factory=lambda: defaultdict(list))
    slots: dict[int, list[Span]] = field(default_factory=lambda: defaultdict(list))
    instants: list[tuple[float, str, int | None]] = field(default_factory=list)

    @property
    def steps(self) -> list[Span]:
        """The loop's steps that gave a batch."""
        return [span for span in self.loop if span.name == "next" and span.batch is not None]

    @property
    def spans(self) -> Iterable[Span]:
        """All of them."""
        yield from self.loop
        for tracks in (self.workers, self.slots):
            for track in tracks.values():
                yield from track

    @property
    def begin(self) -> float:
        """When the first of it began."""
        return min((span.began for span in self.spans), default=0.0)

    @property
    def end(self) -> float:
        """When the last of it ended."""
        return max((span.ended for span in self.spans), default=0.0)


def timelines(events: list[Event]) -> list[Timeline]:
    """Returns the tracks of each pool; those of others, as torch's profiler, are left out.

    Files of several ranks, which were merged, may call theirs the same: process and thread of the loop are in the
    labels then.
    """
    found, tracks = _named(events)
    for event in events:
        pid = event.get("pid")
        if (track := tracks.get((pid, event.get("tid")), tracks.get((pid, None)))) is not None:
            _add(*track, event)
    for timeline in found:
        for spans in (timeline.loop, *timeline.workers.values(), *timeline.slots.values()):
            spans.sort(key=lambda span: (span.began, -span.ended))
    return found


# By process and thread; None: all of that process.
_Tracks = dict[tuple[Any, Any], tuple[Timeline, str]]


def _named(events: list[Event]) -> tuple[list[Timeline], _Tracks]:
    """Returns whom the names of tracks tell of. That of a loop comes before those of its workers and slots."""
    tracks: _Tracks = {}
    latest: dict[str, Timeline] = {}
    loops: dict[str, list[tuple[Timeline, Event]]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "M" and event.get("name") in ("thread_name", "process_name"):
            label, colon, suffix = str(event.get("args", {}).get("name")).rpartition(": ")
            what = colon + suffix
            if what not in (_LOOP, _WORKERS, _SLOTS):
                continue
            key = event.get("pid"), event.get("tid") if what == _LOOP else None
            if what == _LOOP and key not in tracks:
                latest[label] = Timeline(label)
                loops[label].append((latest[label], event))
            if label in latest:
                tracks.setdefault(key, (latest[label], what))
    for same in loops.values():
        for timeline, event in same if len(same) > 1 else []:
            timeline.label += f" (process {event.get('pid')}, thread {event.get('tid')})"
    return [timeline for same in loops.values() for timeline, _ in same], tracks


def _add(timeline: Timeline, what: str, event: Event) -> None:
    at, name, number = event.get("ts", 0) / 1e6, event.get("name", ""), event.get("tid")
    if event.get("ph") == "i":
        timeline.instants.append((at, name, number if what == _WORKERS and isinstance(number, int) else None))
    elif event.get("ph") == "X":
        span = Span(name, at, at + max(0, event.get("dur", 0)) / 1e6, event.get("args", {}).get("batch"))
        if what == _LOOP:
            timeline.loop.append(span)
        elif isinstance(number, int):  # as in all that are ours
            (timeline.workers if what == _WORKERS else timeline.slots)[number].append(span)
