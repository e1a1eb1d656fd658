"""What a worker is told once, when it starts. With `wire` and the slots, it is all that parent and worker share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmloader.slots.arena import Arena
from shmloader.torch_private import DatasetKind


@dataclass(frozen=True)
class BatchSource:
    """What batches are made of, and how; the same for all workers.

    Attributes:
        dataset: the user's.
        dataset_kind: torch's number for map-style or iterable.
        auto_collation: whether samples are made into batches.
        collate_fn: makes a batch of samples, or changes one sample.
        drop_last: whether the last batch is dropped if it is smaller.
        init_fn: called with the worker's number before anything else of the user's.
        base_seed: with the worker's number, what its random generators are seeded with.
        shared_seed: what IterDataPipes are shuffled by in the first pass; None where the dataset is none.
        sample_spec: what `spec.declare` returned, or None.
    """

    dataset: Any
    dataset_kind: int
    auto_collation: bool
    collate_fn: Callable[[Any], Any]
    drop_last: bool
    init_fn: Callable[[int], None] | None
    base_seed: int
    shared_seed: int | None
    sample_spec: Any

    @property
    def is_stream(self) -> bool:
        """Whether the dataset is iterable."""
        return bool(self.dataset_kind == DatasetKind.Iterable)

    @property
    def parts(self) -> dict[str, Any]:
        """What of the user's goes to a worker, by the name of the argument."""
        return {"dataset": self.dataset, "collate_fn": self.collate_fn, "worker_init_fn": self.init_fn}


@dataclass(frozen=True)
class Takeover:
    """What the successor of a worker that has died goes on from.

    Attributes:
        tag: the number under which the state of the random generators was saved.
        to_skip: batches of this pass over a stream that the predecessor is done with, to be made once more.
        any_job: the pickled indices of one of them; a stream's jobs are all alike.
    """

    tag: int
    to_skip: int = 0
    any_job: bytes = b""


@dataclass(frozen=True)
class Brief:
    """What a worker makes, whatever kind of worker it is.

    Attributes:
        worker: its number.
        num_workers: how many there are.
        source: what batches are made of.
        arena: where slots lie.
        cap_text: how errors call what limits the pool.
        slots_to_map: how many slots are mapped before the first batch.
        bytes_to_map: and how much of each.
        saves_rng_state: whether the state of the random generators is saved for a successor.
        generation: the pass that it begins with.
        takeover: what it goes on from, where it takes the place of one that has died.
        kind: what kind of worker it is, for texts.
    """

    worker: int
    num_workers: int
    source: BatchSource
    arena: Arena
    cap_text: str
    slots_to_map: int
    bytes_to_map: int
    saves_rng_state: bool
    generation: int
    takeover: Takeover | None = None
    kind: str = "process"
