"""Which pass of a loader is next, and the seed of all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Epochs:
    """What a loader keeps from pass to pass, so that samples of each pass have seeds of their own.

    Both are plain, so that they can be saved, and set in another loader that goes on.

    Attributes:
        next: the number of the pass that begins next; the loader counts from 0.
        base_seed: what samples are seeded by in all passes. None: it will be the first one that is drawn.
    """

    next: int = 0
    base_seed: int | None = None

    def kept_seed(self, drawn: int) -> int:
        """Returns the base seed of the loader's life, which is ``drawn`` if it has none yet.

        torch's loader draws one for each of its iterators. Those are drawn here too, since the loop's generator is to
        move as it does there, but which of them is used must not depend on how often workers were started.
        """
        if self.base_seed is None:
            self.base_seed = drawn
        return self.base_seed
