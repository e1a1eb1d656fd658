"""A trace of every slot's life, and of what loop and workers did meanwhile, for viewers of Chrome's trace events."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from shmloader import callers, interrupts, process_exit
from shmloader.errors import TraceWarning
from shmloader.passes.watching import Watch
from shmloader.slots.pool import Pool
from shmloader.version import __version__
from shmloader.weak_members import WeakMembers

from .trace_file import LEAST_BYTES, TraceFile
from .trace_log import TraceLog
from .trace_spans import Clock, Lines, Spans, Tracks, event

DEFAULT_BYTES = 256 << 20

# torch's profiler counts times from the beginning of such an interval, about three months long. So do we: events of
# both may be put into one file as they are, if the interval is the same, and either file says which it is.
_INTERVAL_SECONDS = 7_889_238

# Numbers of tracks, above any that the system gives a process or a thread.
_FIRST_TRACK = 10_000_000
_TRACKS_OF_A_PROCESS = 100
_numbers = itertools.count()


def clock() -> Clock:
    """Returns how CLOCK_MONOTONIC's times are written.

    Once for a trace is enough: both clocks are slewed alike, and differ by a constant until the time of day is set.
    """
    # The system may run something else between two readings: the closest of some counts.
    readings = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(5)]
    before, now, after = min(readings, key=lambda reading: reading[2] - reading[0])
    base = now - now % (_INTERVAL_SECONDS * 1_000_000_000)
    return Clock(now - (before + after) // 2 - base, base)


class Trace:
    """One file, and what is watched for it. Used in the process that made it.

    Args:
        path, max_bytes: of the file.
        label: how its tracks are called.

    Raises:
        OSError, ValueError: as `TraceFile`.
    """

    def __init__(self, path: Path, max_bytes: int, label: str) -> None:
        self._clock = clock()
        self._label = label
        self._file = TraceFile(path, max_bytes, {"shmloader": __version__, "baseTimeNanoseconds": self._clock.base})
        self._logs: dict[tuple[int, int], TraceLog] = {}  # by loader and pool; those of pools that are gone stay
        self._pools: dict[tuple[int, int], Pool | None] = {}
        self._labels: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._news = ""
        self._has_told = False

    def watcher_for(self, pool: Pool | None, number: int = 0, label: str | None = None) -> TraceLog:
        """Returns what watches it: for a pool that has one, the same; and for all passes without workers.

        Args:
            pool: of a pass; None: it has no workers.
            number: of the loader, if there are several.
            label: how that one's tracks are called, if there are several.
        """
        key = number, id(pool)
        if key not in self._logs:
            spans = Spans(self._tracks(label or self._label), self._clock)
            self._logs[key] = TraceLog(pool, spans, self._write, lambda: self._file.room, self.announce, self._lock)
            self._pools[key] = pool  # so that no other gets its number
        return self._logs[key]

    def _tracks(self, label: str) -> Tracks:
        pid, number = os.getpid(), next(_numbers)
        self._labels[label] += 1
        if self._labels[label] > 1:
            label = f"{label} ({self._labels[label]})"
        group = _FIRST_TRACK + pid * _TRACKS_OF_A_PROCESS + 2 * number % _TRACKS_OF_A_PROCESS
        return Tracks(pid, _FIRST_TRACK + number, group, group + 1, label)

    def _write(self, lines: Lines) -> None:
        self._file.write(*lines)
        if self._file.error is not None and not self._has_told:
            self._news = f"the trace {self._file.path} ends here, since it cannot be written to: {self._file.error}"
        elif self._file.is_full and not self._has_told:
            limit = self._file.max_bytes
            self._news = f"the trace {self._file.path} is full (max_bytes={limit}), and what follows is only counted"

    def announce(self) -> None:
        """Says once that something is not in the file.

        Warns:
            TraceWarning: as above.
        """
        if self._news and not self._has_told:
            self._has_told = True
            warnings.warn(self._news, TraceWarning, stacklevel=callers.stacklevel())

    def close(self) -> None:
        """Writes what is left, and closes the file. Safe to call again."""
        for log in self._logs.values():
            log.close()
        if lost := sum(log.lost for log in self._logs.values()):
            self._file.write(*event(ph="M", name="shmloader_lost", pid=os.getpid(), tid=0, args={"batches": lost}))
        self._file.close()
        self._logs.clear()
        self._pools.clear()

    def disown(self) -> None:
        """Leaves the file to the process that this one was forked from."""
        if self._file.is_open:
            self._file.disown()
        self._logs.clear()


@contextlib.contextmanager
def traced(watch: Watch, path: Path, max_bytes: int, label: str) -> Iterator[None]:
    """Traces a loader within a block; see `ShmDataLoader.trace`."""
    if max_bytes < LEAST_BYTES:
        raise ValueError(f"max_bytes must be {LEAST_BYTES} or more, got {max_bytes}")
    if watch.is_kept:
        raise RuntimeError("this loader is being traced already; end that trace first")
    trace, failure = None, None
    try:
        with interrupts.AllDeferred():  # behind which a signal's handler may raise
            trace = Trace(path, max_bytes, label)
            _open[id(trace)] = trace, WeakMembers([watch])
            watch.begin(trace.watcher_for)
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        if trace is not None:
            _end(trace)
            with contextlib.suppress(*([TraceWarning] if failure is not None else [])):  # where warnings are errors
                trace.announce()


class SharedTrace:
    """One file for several loaders, each with tracks of its own. Used in the process that made it.

    Args:
        path, max_bytes: of the file.

    Raises:
        OSError, ValueError: as `Trace`.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._numbers = itertools.count(1)
        with interrupts.AllDeferred():
            self._trace = Trace(path, max_bytes, "")
            _open[id(self._trace)] = self._trace, WeakMembers()

    def follow(self, watch: Watch, label: str) -> None:
        """Has a loader's passes traced from now on. In the thread that iterates it."""
        number = next(self._numbers)
        with interrupts.AllDeferred():
            if id(self._trace) in _open:
                _open[id(self._trace)][1].add(watch)
                watch.begin(lambda pool: self._trace.watcher_for(pool, number, label))

    def close(self) -> None:
        """Ends the trace, and closes the file. Safe to call again.

        Warns:
            TraceWarning: something is not in it.
        """
        if id(self._trace) in _open:
            _end(self._trace)
            self._trace.announce()


def _end(trace: Trace) -> None:
    with interrupts.AllDeferred():
        _, watches = _open.pop(id(trace), (trace, ()))
        for watch in watches:
            watch.end()
        trace.close()


_open: dict[int, tuple[Trace, WeakMembers[Watch]]] = {}


def _disown_in_child() -> None:
    for trace, watches in _open.values():
        trace.disown()
        for watch in watches:
            watch.end()
    _open.clear()


process_exit.in_child(process_exit.InChild.DISOWN_PASSES, _disown_in_child)
