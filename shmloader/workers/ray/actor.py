"""A worker that is a Ray actor: what Ray calls in it. The parent's side is `workers`.

Ray runs calls of one concurrency group one after the other, in one thread. There are three of these: batches are made
in the first; in the second come the calls that have to be answered meanwhile; and in the third there is one call that
does not return, so that its failure tells the parent at once that the actor has ended, also when it owes nothing.

Nothing here imports Ray before the actor runs.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from shmloader.workers import kernel_state, tracebacks

from .maker import RemoteMaker
from .messages import Hello, Look, Orders, Reply, machine

CONTROL, STAY = "control", "stay"  # the concurrency groups


class RayWorker:
    """The class of the actors."""

    def __init__(self) -> None:
        self._worker: RemoteMaker | None = None
        self._lock = threading.Lock()  # of the threads of this process
        self._gate: tuple[int, int] | None = None
        self._is_stopped = False
        self._called = threading.Event()

    # -- where batches are made ----------------------------------------------------------------------------------

    def begin(self, orders: Orders, parcel: tuple[Any, ...], node: str | None = None) -> Hello:
        """Does what comes before the first batch.

        Args:
            orders: what this worker makes.
            parcel: of what; see `parcel`.
            node: Ray's id of the node; None: Ray is asked.
        """
        if node is None:
            import ray

            node = ray.get_runtime_context().get_node_id()
        said = Hello(node, os.getpid(), machine(), time.monotonic_ns())
        worker = RemoteMaker(orders, _unpacked(parcel), self._await_call)
        with self._lock:
            worker.shared_state.gate_words = orders.gate if self._gate is None else self._gate
            worker.shared_state.stopped = self._is_stopped
            self._worker = worker
        worker.begin()
        return said

    def make(self, job: bytes, seq: int, generation: int) -> Reply:
        """Makes a batch.

        Args:
            job: pickled indices.
            seq: its number.
            generation: of the pass.
        """
        assert self._worker is not None
        return self._worker.make(job, seq, generation)

    def resume(self, generation: int, shared_seed: int, epoch: int) -> Reply:
        """Begins another pass; see `SharedState` for the arguments."""
        assert self._worker is not None
        return self._worker.resume(generation, shared_seed, epoch)

    def finish(self) -> None:
        """Returns when all that was called for before is done."""

    def _await_call(self) -> bool:
        self._called.wait()
        self._called.clear()
        return not self._is_stopped

    # -- meanwhile -----------------------------------------------------------------------------------------------

    def set_gate(self, words: tuple[int, int]) -> None:
        """Has whoever waits at the gate look whether it may pass."""
        with self._lock:
            self._gate = words
            if self._worker is not None:
                self._worker.shared_state.gate_words = words
        self._called.set()

    def stop(self) -> None:
        """Drops what is not begun, and does not finish the batch if the gate is shut."""
        with self._lock:
            self._is_stopped = True
            if self._worker is not None:
                self._worker.shared_state.stopped = True
        self._called.set()

    def look(self) -> Look:
        """Returns what the thread does that makes batches."""
        thread = None if self._worker is None else self._worker.thread
        if thread is None:
            return Look("about to begin", [])
        state = kernel_state.read(f"/proc/self/task/{thread.native_id}")
        return Look(state, tracebacks.of_thread(thread.ident))

    def stay(self) -> None:
        """Does not return."""
        threading.Event().wait()


def _unpacked(parcel: tuple[Any, ...]) -> dict[str, Any]:
    from .parcel import Parcel, unpack  # which imports Ray

    parts: dict[str, Any] = unpack(Parcel(*parcel))
    return parts
