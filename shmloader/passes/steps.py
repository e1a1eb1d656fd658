"""Who is told of a loader's steps: nobody, nearly always. Pure."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """One who is told. Called in the thread that iterates, with nothing taken that could be lost."""

    def step(self) -> None:
        """The loop asks for a batch."""

    def end_pass(self) -> None:
        """A pass over the dataset or the sampler has ended."""


class Steps:
    """The watchers of one loader, in all its passes.

    Attributes:
        watchers: those that there are. An iterator looks whether there are any, and does no more for each batch.
    """

    def __init__(self) -> None:
        self.watchers: tuple[Watcher, ...] = ()

    def add(self, watcher: Watcher) -> None:
        """Has a watcher told from now on, also of passes that are under way."""
        self.watchers = (*self.watchers, watcher)

    def remove(self, watcher: Watcher) -> None:
        """Ends that."""
        self.watchers = tuple(one for one in self.watchers if one is not watcher)

    def tell(self) -> None:
        """Tells all that the loop asks for a batch."""
        for watcher in self.watchers:
            watcher.step()

    def tell_end(self) -> None:
        """Tells all that a pass has ended."""
        for watcher in self.watchers:
            watcher.end_pass()
