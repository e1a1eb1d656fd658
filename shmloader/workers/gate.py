"""Where a worker waits while its loader is paused: before the next sample, and before whatever else takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from shmloader.slots.shared_state import SharedState

# Where a batch with all around it takes less, the gate is looked at before each batch, and not before each sample. To
# look takes some 60 ns.
_QUICK_SECONDS = 300e-6


class ToldToStop(BaseException):
    """The worker is to end, and not to finish its batch. Raised between samples, where no code of the user's runs."""


class WorkerGate:
    """The gate as one worker sees it. Used in the process and the thread that make its batches.

    To look at it costs one byte that the parent writes, for each sample. Only who finds it shut does more: it waits for
    tokens, so that it takes no processor time, and looks again at each CALL.

    Args:
        shared_state: has the gate.
        worker: its number.

    Attributes:
        seq: the batch that is made; None before the first, when what is read is not stopped: a worker that takes a dead
            one's place has to get to where that was before it can make what the loop waits for.
        await_call: blocks until a CALL has come, and returns whether one has: False where none will.
    """

    def __init__(self, shared_state: SharedState, worker: int) -> None:
        self.seq: int | None = None
        self.await_call: Callable[[], bool] = lambda: True
        self._shared_state = shared_state
        self._worker = worker
        self._memory, self._place = shared_state.gate
        self._last = 0.0

    def wait(self) -> None:
        """Blocks while no sample of this batch may be begun. What wakes it: a CALL, or STOP.

        Raises:
            ToldToStop: the worker is to end.
        """
        if not self._memory[self._place] or self.seq is None:
            return
        while not self._shared_state.may_pass(self.seq):
            if not self.await_call():
                raise ToldToStop
            self._shared_state.count_call(self._worker)

    def enter(self, indices: Any) -> Any:
        """Waits, and returns the indices of a batch as they are."""
        if self._memory[self._place]:
            self.wait()
        return indices

    def each(self, indices: Any) -> Any:
        """Waits, and returns what goes through the indices of a batch and waits before each; else as they are.

        The indices themselves, if the batch before was so quick that it would be over sooner than anybody could tell.
        """
        if self._memory[self._place]:
            self.wait()
        before, self._last = self._last, time.perf_counter()
        return indices if self._last - before < _QUICK_SECONDS else _Gated(indices, self)


class _Gated:
    __slots__ = ("_gate", "_indices")

    def __init__(self, indices: Any, gate: WorkerGate) -> None:
        self._indices = indices
        self._gate = gate

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Any]:
        gate = self._gate
        memory, place = gate._memory, gate._place
        for index in self._indices:
            if memory[place]:
                gate.wait()
            yield index
