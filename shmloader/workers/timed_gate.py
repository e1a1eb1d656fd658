"""How long single samples take. It is measured where samples are slow, and costs nothing where they are quick."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from shmloader.slots.shared_state import SharedState

from .gate import WorkerGate
from .recorder import Recorder

# Samples that take less in the mean are not timed one by one: to time one takes some 100 ns.
_SLOW_NS = 50_000


class TimedGate(WorkerGate):
    """A worker's gate that times samples on their way through. Used in the process and the thread that make batches.

    Only samples that are read one after the other pass a gate one by one. Others count as a batch.

    Args:
        shared_state: has the gate.
        worker: its number.
        recorder: is told of the slowest.
    """

    def __init__(self, shared_state: SharedState, worker: int, recorder: Recorder) -> None:
        super().__init__(shared_state, worker)
        self._recorder = recorder
        self._sum = 0
        self._samples = 0

    def each(self, indices: Any) -> Any:
        """Does what `WorkerGate.each` does, and times samples if those of the batch before were slow."""
        gated = super().each(indices)
        if gated is indices:
            return indices
        before, self._sum = self._sum, self._recorder.fetch_sum
        samples, self._samples = self._samples, _count(indices)
        if not samples or self._sum - before < samples * _SLOW_NS:
            return gated
        return _Timed(gated, self._recorder)


def _count(indices: Any) -> int:
    try:
        return len(indices)
    except TypeError:  # a sampler may give an iterator
        return 0


class _Timed:
    __slots__ = ("_indices", "_recorder")

    def __init__(self, indices: Any, recorder: Recorder) -> None:
        self._indices = indices
        self._recorder = recorder

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Any]:
        now = time.monotonic_ns
        recorder = self._recorder
        recorder.times_samples = True
        for number, index in enumerate(self._indices):
            began = now()
            yield index
            took = now() - began
            if recorder.is_slow(took):
                if index is None:  # a stream's samples have none
                    recorder.note_slow(took, f"sample {number} of batch", recorder.seq)
                else:
                    recorder.note_slow(took, "index", index)
