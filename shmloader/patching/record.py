"""Which loaders of this process have run on what, and why."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from shmloader import callers, process_exit
from shmloader.observe import registry
from shmloader.process_exit import InChild


class On(Enum):
    """What makes a loader's batches."""

    OURS = "workers of shmloader"
    STOCK = "torch's own workers"
    IN_PROCESS = "the loop's process"


@dataclass(frozen=True)
class Ran:
    """What one loader has run on, when a pass of it began last.

    Attributes:
        label: the loader's name, or that of its dataset's class.
        kind: the loader's class, with its module.
        on: what makes its batches.
        reason: why those are not workers of ours; empty where they are.
        place: the file and the line that began its first pass. In a framework it is the framework's.
        passes: how many it has begun.
    """

    label: str
    kind: str
    on: On
    reason: str = ""
    place: str = ""
    passes: int = 1

    def __str__(self) -> str:
        """Returns a line."""
        passes = "1 pass" if self.passes == 1 else f"{self.passes:,} passes"
        reason = f" ({self.reason})" if self.reason else ""
        place = f", begun at {self.place}" if self.place else ""
        return f"{self.kind} of {self.label}: {self.on.value}{reason}; {passes}{place}"


# A program may make a loader for each pass. Of more than these, those that came first are forgotten.
MOST = 1000


@dataclass
class _Entry:
    loader: weakref.ref[Any]
    ran: Ran


class Record:
    """The loaders of this process that have begun a pass. Safe from any thread; no loader is held.

    Attributes:
        begun: how many there were, those that are forgotten included.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._entries: deque[_Entry] = deque(maxlen=MOST)
        self._known: dict[int, _Entry] = {}  # by numbers that may be another loader's later on

    def note(self, loader: Any, on: On, reason: str = "") -> None:
        """Notes that a loader begins a pass, and what makes its batches."""
        entry = self._known.get(id(loader))
        if entry is not None and entry.loader() is loader:
            entry.ran = replace(entry.ran, on=on, reason=reason, passes=entry.ran.passes + 1)
            return
        kind = f"{type(loader).__module__}.{type(loader).__qualname__}"
        entry = _Entry(weakref.ref(loader), Ran(registry.label_of(loader), kind, on, reason, callers.place()))
        self.begun += 1
        self._entries.append(entry)
        if len(self._known) >= 2 * MOST:
            self._known = {number: one for number, one in list(self._known.items()) if one.loader() is not None}
        self._known[id(loader)] = entry

    def all(self) -> tuple[Ran, ...]:
        """Returns what is known, in the order of the loaders' first passes."""
        return tuple(entry.ran for entry in list(self._entries))

    def clear(self) -> None:
        """Forgets all."""
        self.begun = 0
        self._entries.clear()
        self._known.clear()


record = Record()
process_exit.in_child(InChild.DISOWN_PASSES, record.clear)
