"""How far each worker has come, so that the successor of one that has died goes on from there. Pure.

Workers go from pass to pass one by one: each finishes what it was asked for in the pass before, and resumes then. One
that dies meanwhile leaves a pass to be finished before the next.
"""

from __future__ import annotations


class WorkerProgress:
    """Which pass each worker is in, and what it has delivered, together with those that it succeeds.

    Args:
        num_workers: how many workers there are.
        is_stream: whether the dataset is iterable, so that a pass cannot be entered in the middle.

    Attributes:
        generation: the pass that the loop is in.
    """

    def __init__(self, num_workers: int, is_stream: bool) -> None:
        self.generation = 0
        self._is_stream = is_stream
        self._behind: set[int] = set()  # workers that are in the pass before
        self._delivered = [0] * num_workers  # batches and faults, in all passes
        self._delivered_before = [0] * num_workers  # of these, in passes before the one that the worker is in
        self._ended: set[int] = set()  # workers that have told that there is no more data in the pass that each is in

    @property
    def is_complete(self) -> bool:
        """Whether all workers are in the loop's pass."""
        return not self._behind

    def begin_pass(self) -> None:
        """Notes that the loop begins another pass, while all workers are in the one before."""
        self.generation += 1
        self._behind = set(range(len(self._delivered)))

    def deliver(self, worker: int) -> None:
        """Notes that a batch, or a fault in its place, has come from ``worker``."""
        self._delivered[worker] += 1

    def resume(self, worker: int) -> None:
        """Notes that ``worker`` is done with the pass before, and is in the loop's."""
        self._behind.discard(worker)
        self._delivered_before[worker] = self._delivered[worker]
        self._ended.discard(worker)

    def end(self, worker: int) -> None:
        """Notes that ``worker`` has no more data in the pass that it is in."""
        self._ended.add(worker)

    def generation_of(self, worker: int) -> int:
        """Returns the pass that ``worker`` is in."""
        return self.generation - (worker in self._behind)

    def may_skip_to_the_pass(self, worker: int, owes: bool) -> bool:
        """Whether the successor of ``worker`` has nothing to do in the pass before, and can begin with the loop's.

        Args:
            worker: which one has died.
            owes: whether it was asked for a batch that has not come.
        """
        return worker in self._behind and not (self._is_stream or owes)

    def takeover(self, worker: int) -> tuple[int, int]:
        """Returns what the successor of ``worker`` goes on from: `brief.Takeover.tag`, and what is to be skipped.

        In a map-style dataset that is the state of the random generators behind the last batch that was delivered. In
        an iterable one it is the state at the beginning of the pass, and all that was delivered since is made again,
        the end too where it was told.
        """
        if not self._is_stream:
            return self._delivered[worker], 0
        delivered = self._delivered[worker] - self._delivered_before[worker]
        return self.generation_of(worker), delivered + (worker in self._ended)
