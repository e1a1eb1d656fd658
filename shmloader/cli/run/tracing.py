"""One trace of all loaders of a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shmloader import process_exit
from shmloader.observe import registry, trace
from shmloader.passes import lifetime
from shmloader.patching.record import Entry, record
from shmloader.process_exit import AtExit


def trace_all(path: Path) -> None:
    """Has every pass of a loader traced into one file, from now on until this process ends.

    Raises:
        OSError, ValueError: the file cannot be opened, or is none; see `ShmDataLoader.trace`.
    """
    shared = trace.SharedTrace(path, trace.DEFAULT_BYTES)

    def follow(entry: Entry, loader: Any, ours: Any) -> None:
        if ours is not None and not lifetime.of(ours).watch.is_kept:
            shared.follow(lifetime.of(ours).watch, registry.label_of(ours))

    record.listeners = (*record.listeners, follow)
    process_exit.at_exit(AtExit.CLOSE_TRACES, shared.close)
