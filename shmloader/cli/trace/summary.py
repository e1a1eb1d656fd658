"""A trace in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from shmloader.observe import table

from .reading import TraceEvents
from .timeline import Span, Timeline

_SLOWEST = 5
_WAITING = "waiting for room or at the gate"


def lines(trace: TraceEvents, timelines: list[Timeline]) -> Iterator[str]:
    """Returns the summary of a file, line by line."""
    for timeline in timelines:
        yield from _of_loader(timeline)
        yield ""
    if not timelines:
        yield "no pass of a loader is in this trace"
    yield from _lacks(trace)


def _lacks(trace: TraceEvents) -> Iterator[str]:
    end = trace.end
    if not trace.is_whole or not end.get("is_complete", True):
        yield "The program ended within the traced block: what came after the last write is not here."
    if end.get("error"):
        yield f"The trace ends early: it could not be written to ({end['error']})."
    if end.get("dropped"):
        room = "" if end.get("error") else ", for which there was no room (max_bytes)"
        yield f"What came later is not here: {end['dropped']} events{room}."
    if trace.lost:
        yield f"Of {trace.lost} batches it is not known what their workers did when."


def _of_loader(timeline: Timeline) -> Iterator[str]:
    seconds = timeline.end - timeline.begin
    count = len(timeline.steps)
    rate = table.count(count / seconds if seconds else 0)
    yield f"{timeline.label}: {count} batches in {table.duration(seconds)}, {rate} a second"
    rows = [*_loop(timeline, seconds), *_workers(timeline, seconds), *_slots(timeline)]
    rows += [("seen", f"{what} x {times}") for what, times in Counter(what for _, what, _ in timeline.instants).items()]
    yield from (f"  {name:<12}{text}" for name, text in rows)
    slowest = list(_slowest(timeline))
    if slowest:
        yield "  slowest batches"
        yield from (f"    {line}" for line in slowest)


def _loop(timeline: Timeline, seconds: float) -> Iterator[tuple[str, str]]:
    waited, stepped, wrote = (total(timeline.loop, name) for name in ("wait", "next", "writing the trace"))
    yield "the loop", f"waited for workers {part(waited, seconds)}, {table.duration(waited)}"
    yield "", f"other work of the loader {part(stepped - waited, seconds)}, {table.duration(max(stepped - waited, 0))}"
    yield "", f"its own {part(seconds - stepped - wrote, seconds)}, {table.duration(max(seconds - stepped - wrote, 0))}"
    if wrote:
        yield "", f"writing this trace {part(wrote, seconds)}, {table.duration(wrote)}"


def _workers(timeline: Timeline, seconds: float) -> Iterator[tuple[str, str]]:
    for number, track in sorted(timeline.workers.items()):
        fetch, collate, raising = (total(track, name) for name in ("fetch", "collate", "raising"))
        paused = total(track, _WAITING)
        batches = sum(span.name in ("fetch", "raising") for span in track)
        busy = part(fetch + collate + raising - paused, seconds)
        text = f"busy {busy}: {batches} batches, fetching {table.duration(fetch)}, collating {table.duration(collate)}"
        yield (
            f"worker {number}",
            text + (f", waiting for room or at the gate {table.duration(paused)}" if paused else ""),
        )


def _slots(timeline: Timeline) -> Iterator[tuple[str, str]]:
    spans = [span for track in timeline.slots.values() for span in track]
    if spans:
        most = {name: _at_once(span for span in spans if span.name == name) for name in ("ready", "held")}
        yield "slots", f"{len(timeline.slots)} used; at once at most {most['ready']} ready, {most['held']} held"


def _slowest(timeline: Timeline) -> Iterator[str]:
    found = []
    for number, track in timeline.workers.items():
        waits, work = _waits(track), [span for span in track if span.name != _WAITING]
        # A fetch is followed by the collation of the same batch, if that is there at all.
        for span, following in zip(work, [*work[1:], None], strict=True):
            if span.name in ("fetch", "raising"):
                is_same = following is not None and following.name == "collate" and following.batch == span.batch
                collate = following.seconds if is_same and following else 0.0
                until = span.began + span.seconds + collate
                waited = sum(one.seconds for one in waits.get(repr(span.batch), ()) if span.began <= one.began <= until)
                found.append(
                    (max(0.0, span.seconds + collate - waited), waited, span.seconds, collate, number, span.batch)
                )
    found.sort(key=lambda one: -one[0])
    for took, waited, fetch, collate, number, batch in found[:_SLOWEST]:
        parts = f"fetch {table.duration(fetch)}, collate {table.duration(collate)}"
        text = f"{parts}, {table.duration(waited)} of that {_WAITING}" if waited else parts
        yield f"batch {batch}, worker {number}: {table.duration(took)} ({text})"


def _waits(track: Iterable[Span]) -> dict[str, list[Span]]:
    """Returns a worker's waits for room or at the gate, which lie within its other spans, by batch."""
    found: dict[str, list[Span]] = {}  # by its text, since in a file from elsewhere it may be anything
    for span in track:
        if span.name == _WAITING:
            found.setdefault(repr(span.batch), []).append(span)
    return found


def _at_once(spans: Iterable[Span]) -> int:
    """Returns how many spans there were at a time, at most."""
    # Ends come first: a slot is nobody's for a moment.
    edges = sorted(edge for span in spans for edge in ((span.began, 1), (span.ended, -1)))
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def total(spans: Iterable[Span], name: str) -> float:
    """Returns how many seconds all spans of that name took."""
    return sum(span.seconds for span in spans if span.name == name)


def part(seconds: float, of: float) -> str:
    """Writes a share of time."""
    return f"{100 * max(seconds, 0) / of if of else 0:.0f} %"
