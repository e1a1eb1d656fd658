"""One file of two: of a loader's trace and of torch's profiler, or of two processes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from shmloader.cli.console import UsageError

from .reading import Event, TraceEvents


def merged(one: TraceEvents, other: TraceEvents) -> TraceEvents:
    """Returns the events of both on the clock of ``other``.

    Both say from when their times count, in nanoseconds since 1970. A file that does not say so counts from then.
    """
    shift = (one.base - other.base) / 1000
    moved: list[Event] = [
        {**event, "ts": event["ts"] + shift} if shift and "ts" in event else event for event in one.events
    ]
    return TraceEvents([*other.events, *moved], {**other.rest, "baseTimeNanoseconds": other.base})


def write(trace: TraceEvents, path: Path) -> None:
    """Writes a file, which is compressed if its name ends in .gz.

    Raises:
        UsageError: it cannot be written.
    """
    data = json.dumps({**trace.rest, "traceEvents": trace.events}).encode()
    try:
        path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from None
