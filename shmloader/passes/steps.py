"""Who is told of a loader's steps: nobody, nearly always. Pure."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """One who is told. Called in the thread that iterates, with nothing taken that could be lost."""

    def step(self) -> None:
        """The loop asks for a batch."""

    def end_pass(self) -> None:
        """A pass over the dataset or the sampler has ended."""


class Steps:
    """The listeners of one loader, in all its passes.

    Attributes:
        listeners: those that there are. An iterator looks whether there are any, and does no more for each batch.
    """

    def __init__(self) -> None:
        self.listeners: tuple[Listener, ...] = ()

    def add(self, listener: Listener) -> None:
        """Has a listener told from now on, also of passes that are under way."""
        self.listeners = (*self.listeners, listener)

    def remove(self, listener: Listener) -> None:
        """Ends that."""
        self.listeners = tuple(one for one in self.listeners if one is not listener)

    def tell(self) -> None:
        """Tells all that the loop asks for a batch."""
        for listener in self.listeners:
            listener.step()

    def tell_end(self) -> None:
        """Tells all that a pass has ended."""
        for listener in self.listeners:
            listener.end_pass()
