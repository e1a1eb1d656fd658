"""Whether a loader loads ahead now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from shmloader.weak_members import WeakMembers


class Gated(Protocol):
    """A pass that loads ahead while the gate is open."""

    def gate_has_shut(self) -> None:
        """Loads ahead no longer."""

    def gate_has_opened(self) -> None:
        """Loads ahead again."""


class Gate:
    """The gate of one loader, and of all of its passes. Used in the thread that iterates.

    Attributes:
        is_open: whether what is loaded may be more than what the loop waits for.
    """

    def __init__(self) -> None:
        self.is_open = True
        self._depth = 0
        self._passes: WeakMembers[Gated] = WeakMembers()

    def add(self, one: Gated) -> None:
        """Tells a pass of what comes; it has looked how the gate is now. Passes are not held."""
        self._passes.add(one)

    def shut(self) -> None:
        """Shuts the gate, whether or not it was."""
        self.is_open = False
        for one in list(self._passes):
            one.gate_has_shut()

    def open(self) -> None:
        """Opens the gate, whether or not it was.

        Raises:
            Exception: what a pass raises that asks for more. All others have been told.
        """
        self.is_open = True
        with contextlib.ExitStack() as stack:
            for one in list(self._passes):
                stack.callback(one.gate_has_opened)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Opens the gate for a block. Behind the outermost one it is shut, behind others as it was."""
        was_open = self.is_open and self._depth > 0
        self._depth += 1
        try:
            self.open()
            yield
        finally:
            self._depth -= 1
            if not was_open:
                self.shut()
