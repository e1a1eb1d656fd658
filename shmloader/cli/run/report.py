"""What is printed at the end: every loader of the process, what it has run on, its figures, and the verdict."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from shmloader import process_exit
from shmloader.patching.record import Entry, Ran, record
from shmloader.process_exit import AtExit

from .ranks import rank

# Loaders that are alike and were begun in the same place are listed one by one up to here; one that is made for each
# epoch would fill the screen.
_MOST_ALIKE = 4


def at_end() -> None:
    """Has the report printed on stderr when this process ends, by itself, by an exception or by `sys.exit`."""
    owner = os.getpid()

    def tell() -> None:
        if os.getpid() == owner:  # forked children of the script's have its exit functions
            _print(f"{text(record.entries(), record.begun, rank(), owner)}\n")

    process_exit.at_exit(AtExit.TELL, tell)


def _print(report: str) -> None:
    # The script's own words come first, where both go the same way. Whoever reads may be gone, and streams closed.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(report)  # at once: other ranks write there too
        sys.stderr.flush()


def text(entries: Sequence[Entry], begun: int, number: int | None, pid: int) -> str:
    """Returns the report.

    Args:
        entries: the loaders that are known.
        begun: how many there were.
        number: the rank; None: there is one process.
        pid: of the process.
    """
    who = f"process {pid}" if number is None else f"rank {number} (process {pid})"
    count = "no loader has" if not begun else "1 loader has" if begun == 1 else f"{begun:,} loaders have"
    parts = [f"shmloader, {who}: {count} begun a pass"]
    parts += [_part(alike) for alike in _alike(entries)]
    if begun > len(entries) and entries:
        parts.append(f"{begun - len(entries):,} loaders that came first, or have never begun, are not listed")
    lines = "\n\n".join(parts).splitlines()
    mark = "" if number is None else f"[rank {number}] "
    return "\n".join(f"{mark}{line}".rstrip() for line in lines)


def _alike(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Returns loaders by themselves, or with all that are alike where those are many; in the order of the first."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        if entry.ran is not None:
            ran = entry.ran
            groups.setdefault((ran.label, ran.kind, ran.on, ran.reason, ran.place), []).append(entry)
    found = []
    for group in groups.values():
        found += [group] if len(group) > _MOST_ALIKE else [[one] for one in group]
    order = {id(entry): place for place, entry in enumerate(entries)}
    return sorted(found, key=lambda group: order[id(group[0])])


def _part(alike: list[Entry]) -> str:
    ran = [entry.ran for entry in alike if entry.ran is not None]
    title = "\n".join([str(ran[0]) if len(ran) == 1 else _title(ran), *dict.fromkeys(alike[0].notes)])
    figures = [entry.figures for entry in alike if entry.figures is not None]
    kinds = {type(one) for one in figures}
    try:
        if len(figures) == 1:
            return f"{title}\n{figures[0].statistics()}"
        if len(kinds) == 1:
            return f"{title}\n{kinds.pop().together(figures)}"
    except Exception as error:  # the script's own end must not fail for it
        return f"{title}\n(no figures: {type(error).__name__}: {error})"
    return title


def _title(ran: list[Ran]) -> str:
    first = ran[0]
    reason = f" ({first.reason})" if first.reason else ""
    passes = sum(one.passes for one in ran)
    return (
        f"{len(ran):,} of {first.kind} of {first.label}: {first.on.value}{reason}; {passes:,} passes, "
        f"begun at {first.place}"
    )
