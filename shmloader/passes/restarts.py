"""Which workers that have died are replaced. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RestartCount:
    """The replacements of all passes of a loader.

    Attributes:
        total: how many there were.
    """

    total: int = 0


@dataclass
class RestartPolicy:
    """The replacements of one pass over the data.

    Attributes:
        limit: how many there may be.
        all_passes: counts those of all passes.
        count: how many there were.
    """

    limit: int
    all_passes: RestartCount = field(default_factory=RestartCount)
    count: int = 0
    _fatal: set[tuple[int, int]] = field(default_factory=set)  # passes and batches that a worker has died at

    def refusal(self, batch: int | None, generation: int = 0, made: str = "batch") -> str | None:
        """Notes a death, and says why the worker is not replaced; None: it is.

        Args:
            batch: the batch that the worker was at, or None.
            generation: the pass that the batch belongs to; it may be what is left of the one before.
            made: how the text calls a batch.
        """
        if self.limit == 0:
            return ""
        if batch is not None and (generation, batch) in self._fatal:
            return f"It is the second worker that {made} {batch} has ended, so it is not replaced. "
        if self.count >= self.limit:
            return f"All {self.limit} of worker_restarts are used up. "
        if batch is not None:
            self._fatal.add((generation, batch))
        self.count += 1
        self.all_passes.total += 1
        return None
