"""Files of Chrome's trace events, whole or as a killed process has left them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shmloader.cli.console import UsageError

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS
_END = "shmloader_trace"  # the name of a file's last event
_LOST = "shmloader_lost"
_LARGEST = 1e30  # of numbers: no time is as large, in whatever unit

Event = dict[str, Any]


@dataclass
class TraceEvents:
    """What stands in a file.

    Attributes:
        events: all of them.
        rest: what else the file says, where it is an object with the events in it.
        is_whole: whether the file has its end.
    """

    events: list[Event]
    rest: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = True

    @property
    def end(self) -> dict[str, Any]:
        """What a file of ours says of itself in its last event; empty where there is none."""
        return next((event.get("args", {}) for event in reversed(self.events) if event.get("name") == _END), {})

    @property
    def lost(self) -> int:
        """Batches of which nobody knows what the worker did when."""
        found = (event.get("args", {}).get("batches", 0) for event in self.events if event.get("name") == _LOST)
        return sum(count for count in found if isinstance(count, int))

    @property
    def base(self) -> int:
        """Nanoseconds since 1970 from which times count."""
        base = self.rest.get("baseTimeNanoseconds", self.end.get("baseTimeNanoseconds", 0))
        return int(base) if _is_number(base) else 0


def read(path: Path) -> TraceEvents:
    """Reads a file; one without its end up to the last event that is whole.

    Raises:
        UsageError: there is none, it has no trace events, or it is too large for the memory.
    """
    try:
        return _read(path)
    except MemoryError:
        raise UsageError(f"{path} does not fit into memory") from None


def _read(path: Path) -> TraceEvents:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if data.startswith(_GZIP_MAGIC):
        data = _unpacked(data, path)
    try:
        found = json.loads(data)
    except ValueError:
        return _salvaged(data, path)
    except RecursionError:
        raise UsageError(f"{path} has no trace events") from None
    return _parsed(found, path)


def _unpacked(data: bytes, path: Path) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        return stream.decompress(data)  # of one without its end, what is there
    except zlib.error as error:
        raise UsageError(f"{path} cannot be unpacked: {error}") from None


def _parsed(found: Any, path: Path) -> TraceEvents:
    rest: dict[str, Any] = {}
    if isinstance(found, dict):
        found, rest = found.get("traceEvents"), {name: what for name, what in found.items() if name != "traceEvents"}
    if not isinstance(found, list) or not all(isinstance(event, dict) for event in found):
        raise UsageError(f"{path} has no trace events")
    for number, event in enumerate(found):
        for name, is_right in _FIELDS.items():
            if name in event and not is_right(event[name]):
                raise UsageError(f"{path} is not a trace: its event {number} has a {name!r} of another kind")
    return TraceEvents(found, rest)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and -_LARGEST < value < _LARGEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, str))


# What is looked at of an event, of others' too, and what it has to be where it is there at all.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "ph": _is_text,
    "name": _is_text,
    "pid": _is_plain,
    "tid": _is_plain,
    "ts": _is_number,
    "dur": _is_number,
    "args": lambda value: isinstance(value, dict),
}


def _salvaged(data: bytes, path: Path) -> TraceEvents:
    """Reads an event a line, as ours are written."""
    first, _, body = data.partition(b"\n")
    if first.strip() != b"[":
        raise UsageError(f"{path} is neither JSON nor a trace without its end")
    body = body[: body.rfind(b"\n") + 1].rstrip(b"\n,")
    try:
        found = json.loads(b"[" + body + b"]")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a trace: {error}") from None
    return TraceEvents(_parsed(found, path).events, is_whole=False)
