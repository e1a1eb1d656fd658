"""A line of figures every so often, while a loader is iterated.

There is no thread and no timer, which a process that forks workers must not have. The loop's own steps drive the clock:
each `next` looks at it before it takes anything. So nothing is said while the loop does not step, and what is due comes
with the next step. A last line comes at the end of each pass and of the block.
"""

from __future__ import annotations

import logging
import math
import numbers
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from shmloader.passes import lifetime
from shmloader.passes.delivery import Delivery
from shmloader.passes.steps import Steps

from .registry import labels_of
from .statistics import StreamStatistics

Sink = Callable[[Any], object]  # of what `statistics` returns

_logger = logging.getLogger("shmloader")

# Of an interval: a loop that waits so much of its time would gain from faster loading.
_LAG = 0.2
# Lines for one warning.
_LINES_A_WARNING = 10


class Reported(Protocol):
    """What can be reported: a `ShmDataLoader`, a `Producer` or a `JobQueue`."""

    def statistics(self) -> StreamStatistics | None:
        """Returns the figures as they are now."""


def report(loader: Reported | Iterable[Reported], *, every: float = 30.0, to: Sink | Iterable[Sink] = ()) -> Report:
    """Has a loader's figures logged, and given to sinks, while a ``with`` block runs.

    For example:

        with shmloader.report([train, val], every=60, to=[shmloader.TensorBoardSink(writer)]):
            for epoch in range(epochs):
                ...

    Each line goes to the logger ``shmloader``, at the level INFO: batches made, batches a second, how much of the time
    the loop has waited. Where it has waited for more than a fifth of it, loading lags behind, and a WARNING says so,
    once in ten lines, with what would help; not with a loader's first line, since its workers were just started.

    The loop's own steps drive the clock, and there is no thread. ``next`` of an iterator looks at the clock before it
    takes a batch, in the thread that iterates. While the loop does something else nothing is said; what is due comes
    with the next step. A line also comes at the end of each pass over the dataset or the sampler, and at the end of the
    block, where batches came since the last one. Where there is no report, a step looks at one attribute.

    Args:
        loader: one, or several; a `Producer` or a `JobQueue` too, whose consumers' `get` drives the clock then.
        every: seconds between two lines of a loader.
        to: a sink, or several: each is called with a loader's statistics at each line, in the thread that iterates. The
            loop waits for it. The statistics' ``name`` is what the line calls the loader: its own name, or else that of
            its dataset's class, its target or its function, with a number where several of this report would be called
            the same. One that raises is logged once, with its traceback, and is called again the next time.
            `TensorBoardSink`, `LogSink`, `CsvSink` and `TqdmSink` are some.

    Returns:
        The context manager. It may be entered again when it was left. A forked process reports nothing of its parent's.

    Raises:
        TypeError: ``loader`` is no loader, ``every`` no number, or a sink cannot be called.
        ValueError: ``every`` is not positive.
    """
    loaders = (loader,) if hasattr(loader, "statistics") else loader
    sinks = (to,) if callable(to) else to
    return Report(_checked_loaders(loaders), _checked_seconds(every), _checked_sinks(sinks))


class Report:
    """What `report` returns.

    Args:
        loaders: whose figures.
        every: seconds between two lines of each.
        sinks: who is told.
    """

    def __init__(self, loaders: tuple[Reported, ...], every: float, sinks: tuple[Sink, ...]) -> None:
        self._loaders = loaders
        self._every = every
        self._sinks = tuple(_Guarded(sink) for sink in sinks)
        self._watches: tuple[_Watch, ...] = ()

    def __enter__(self) -> Report:  # noqa: PYI034 - Python 3.10 has no Self
        """Begins to report.

        Raises:
            RuntimeError: it has begun already.
        """
        if self._watches:
            raise RuntimeError("this report is being made already; make another one, or leave its block first")
        watched = zip(self._loaders, labels_of(self._loaders), strict=True)
        self._watches = tuple(_Watch(one, label, self._every, self._sinks) for one, label in watched)
        for watch in self._watches:
            _steps_of(watch.loader).add(watch)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        watches, self._watches = self._watches, ()
        for watch in watches:
            _steps_of(watch.loader).remove(watch)
        for watch in watches:
            watch.end_pass()


@dataclass(frozen=True)
class _Moment:
    """What was known of a loader at a time of the monotonic clock; a figure that it does not have is None."""

    at: float
    batches: int = 0
    samples: int | None = None
    waited: float | None = None

    @classmethod
    def now(cls, at: float, statistics: StreamStatistics) -> _Moment:
        return cls(
            at, statistics.batches, getattr(statistics, "samples", None), getattr(statistics, "wait_seconds", None)
        )


class _Watch:
    """Says what there is to be said of one loader, when it is due.

    Args:
        loader: whose figures.
        label: what it is called, in lines and to sinks.
        every: seconds between two lines.
        sinks: who is told.
    """

    def __init__(self, loader: Reported, label: str, every: float, sinks: tuple[_Guarded, ...]) -> None:
        self.loader = loader
        self._label = label
        self._every = every
        self._sinks = sinks
        self._owner_pid = os.getpid()
        self._in_turn = threading.Lock()  # nobody waits for it: neither another thread, nor a sink that steps a loader
        statistics, now = loader.statistics(), time.monotonic()
        self._last = _Moment(now) if statistics is None else _Moment.now(now, statistics)
        self._due = 0.0  # the first step, of each pass too, is where the time begins that a line is about
        self._lines = 0
        self._may_warn_at = 1

    def step(self) -> None:
        """Says what is due. It is called for each batch."""
        if time.monotonic() >= self._due:
            self._say(is_last=False)

    def end_pass(self) -> None:
        """Says what there is, if there is anything new."""
        self._say(is_last=True)

    def _say(self, is_last: bool) -> None:
        if os.getpid() != self._owner_pid or not self._in_turn.acquire(blocking=False):
            return
        try:
            statistics = self.loader.statistics()
            if statistics is not None:
                now = _Moment.now(time.monotonic(), statistics)
                if now.batches != self._last.batches:
                    self._say_of(statistics, now, is_last)
                self._last = now
        finally:
            # Not earlier, should a sink take as long.
            self._due = 0.0 if is_last else time.monotonic() + self._every
            self._in_turn.release()

    def _say_of(self, statistics: StreamStatistics, now: _Moment, is_last: bool) -> None:
        since = self._last
        label, verdict = self._label, _verdict(statistics)
        _logger.info("%s: %s%s", label, _progress(since, now), verdict if is_last else "")
        share = _waited_share(since, now)
        if not is_last and share is not None and share > _LAG and self._lines >= self._may_warn_at:
            self._may_warn_at = self._lines + _LINES_A_WARNING
            _logger.warning(
                "%s: loading lags behind: the loop has waited for batches %.0f %% of the last %.3g s%s",
                label,
                100 * share,
                now.at - since.at,
                verdict,
            )
        self._lines += 1
        named = statistics if statistics.name == label else replace(statistics, name=label)
        for sink in self._sinks:
            sink(named)


class _Guarded:
    """Calls a sink, and logs what it raises, once.

    Args:
        sink: the user's.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._has_raised = False

    def __call__(self, statistics: StreamStatistics) -> None:
        try:
            self._sink(statistics)
        except Exception:
            if not self._has_raised:
                self._has_raised = True
                # As text: who keeps records would keep the frames of a traceback, and with them the iterator.
                text = traceback.format_exc().rstrip()
                _logger.error("the sink %r of a report raised; its later errors are not logged\n%s", self._sink, text)


def _progress(since: _Moment, now: _Moment) -> str:
    """Says how far a loader is, and how fast it was since a moment."""
    seconds = now.at - since.at
    # Where the pool is another one than before, figures begin anew.
    batches = _new(since.batches, now.batches)
    text = f"{now.batches:,} batches, {batches:,} in the last {seconds:.3g} s ({batches / max(seconds, 1e-9):.3g}/s)"
    if now.samples is not None:
        text += f", {_new(since.samples, now.samples) / max(seconds, 1e-9):.3g} samples/s"
    if (share := _waited_share(since, now)) is not None:
        text += f", {share:.0%} waiting"
    return text


def _waited_share(since: _Moment, now: _Moment) -> float | None:
    """Returns how much of the time since a moment the loop has waited; None where that is not known."""
    if now.waited is None:
        return None
    return min(1.0, _new(since.waited, now.waited) / max(now.at - since.at, 1e-9))


def _new(before: float | None, now: float) -> float:
    return now - before if before is not None and before <= now else now


def _verdict(statistics: StreamStatistics) -> str:
    verdict = getattr(statistics, "verdict", None)
    return f"; {verdict}" if verdict else ""


def _checked_loaders(loaders: Any) -> tuple[Reported, ...]:
    found = tuple(loaders) if isinstance(loaders, Iterable) else (loaders,)
    for one in found:
        if not callable(getattr(one, "statistics", None)) or _found_steps(one) is None:
            raise TypeError(f"report takes a ShmDataLoader, a Producer, a JobQueue, or several, got {one!r}")
    return found


def _steps_of(loader: Reported) -> Steps:
    steps = _found_steps(loader)
    assert steps is not None
    return steps


def _found_steps(one: Any) -> Steps | None:
    if lifetime.is_of(one):
        return lifetime.of(one).steps
    delivery = getattr(one, "__dict__", {}).get("_delivery")
    return delivery.steps if isinstance(delivery, Delivery) else None


def _checked_seconds(every: Any) -> float:
    if isinstance(every, bool) or not isinstance(every, numbers.Real):
        raise TypeError(f"every must be a number of seconds, got {every!r}")
    number: Any = every
    if not number > 0:
        raise ValueError(f"every must be a positive number of seconds, got {every}")
    try:
        return float(every)
    except OverflowError:  # an int, or a fraction, may be larger than any float
        return math.inf


def _checked_sinks(sinks: Any) -> tuple[Sink, ...]:
    found = tuple(sinks) if isinstance(sinks, Iterable) else (sinks,)
    for one in found:
        if not callable(one):
            raise TypeError(f"to must be a function of a loader's statistics, or several, got {one!r}")
    return found
