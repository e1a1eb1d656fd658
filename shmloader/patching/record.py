"""Which loaders of this process have run on what, and why."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
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


class Entry:
    """One loader's.

    Args:
        loader: it is not held.

    Attributes:
        loader: a weak reference to it.
        ran: what it has run on; None: no pass has begun yet.
        figures: for who listens to the record, and has something to keep of the loader.
        notes: lines that they have to say of it.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = _reference(loader)
        self.ran: Ran | None = None
        self.figures: Any = None
        self.notes: tuple[str, ...] = ()
        self._label = registry.label_of(loader)
        self._kind = f"{type(loader).__module__}.{type(loader).__qualname__}"
        self._place = callers.place()

    def note(self, on: On, reason: str = "") -> None:
        """Notes that a pass has begun, and what makes its batches."""
        if self.ran is None:
            self.ran = Ran(self._label, self._kind, on, reason, self._place)
        else:
            self.ran = replace(self.ran, on=on, reason=reason, passes=self.ran.passes + 1)


def _reference(loader: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(loader)
    except TypeError:  # what torch's iterator is made for may be of any class
        return lambda: None


# Is told of each pass that begins: the loader's entry, the loader, and what has our workers for it: itself, what stands
# for it, or None. In the thread that iterates, before anything is drawn or started.
Listener = Callable[[Entry, Any, Any], None]


class Record:
    """The loaders of this process that have begun a pass. Safe from any thread; no loader is held.

    Attributes:
        begun: how many there were, those that are forgotten included.
        listeners: who is told of passes.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.listeners: tuple[Listener, ...] = ()
        self._entries: deque[Entry] = deque(maxlen=MOST)
        self._known: dict[int, Entry] = {}  # by numbers that may be another loader's later on

    def begins(self, loader: Any, ours: Any = None) -> Entry:
        """Returns a loader's entry, where a pass is about to begin.

        Args:
            loader: the one that is iterated.
            ours: what has workers of ours for it; None: nothing.
        """
        entry = self.entry_of(loader) or self._new_entry(loader)
        for listener in self.listeners:
            listener(entry, loader, ours)
        return entry

    def entry_of(self, loader: Any) -> Entry | None:
        """Returns a loader's entry, if it has begun a pass."""
        entry = self._known.get(id(loader))
        return entry if entry is not None and entry.loader() is loader else None

    def _new_entry(self, loader: Any) -> Entry:
        entry = Entry(loader)
        self.begun += 1
        self._entries.append(entry)
        if len(self._known) >= 2 * MOST:
            self._known = {number: one for number, one in list(self._known.items()) if one.loader() is not None}
        self._known[id(loader)] = entry
        return entry

    def entries(self) -> list[Entry]:
        """Returns what is known, in the order of the loaders' first passes."""
        return [entry for entry in list(self._entries) if entry.ran is not None]

    def all(self) -> tuple[Ran, ...]:
        """Returns the same, for users."""
        return tuple(entry.ran for entry in self.entries() if entry.ran is not None)

    def clear(self) -> None:
        """Forgets all, listeners too."""
        self.begun, self.listeners = 0, ()
        self._entries.clear()
        self._known.clear()


record = Record()
process_exit.in_child(InChild.DISOWN_PASSES, record.clear)
