"""What a worker is told once, when it starts. With `wire` and the slots, it is all that parent and worker share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from shmloader.batches.item_layout import ItemLayout
from shmloader.slots.arena import Arena
from shmloader.torch_private import DatasetKind
from shmloader.words import LOADER, PRODUCER, Words


class Source(Protocol):
    """What workers make, as far as it does not matter what that is."""

    @property
    def words(self) -> Words:
        """For texts about these workers."""

    @property
    def init_fn(self) -> Callable[[int], None] | None:
        """Called with the worker's number before anything else of the user's."""

    @property
    def base_seed(self) -> int:
        """With the worker's number, what its random generators are seeded with."""

    @property
    def is_stream(self) -> bool:
        """Whether workers have data of their own, so that what is made does not follow from the job."""

    @property
    def repeats_jobs(self) -> bool:
        """Whether a job that is sent to a successor makes the same again, and so may end it too."""

    @property
    def parts(self) -> dict[str, Any]:
        """What of the user's goes to the workers, by the argument's name."""

    def for_successor(self, tag: int, num_workers: int) -> Source:
        """Returns what the successor of a worker makes, see `Takeover.tag`."""


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
        sample_seed: the base seed of what is seeded for each sample; None: generators are seeded for the worker only.
        epoch: the number of the pass, for those seeds.
        words: for texts about these workers.
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
    sample_seed: int | None = None
    epoch: int = 0
    words: Words = LOADER

    @property
    def is_stream(self) -> bool:
        """Whether the dataset is iterable."""
        return bool(self.dataset_kind == DatasetKind.Iterable)

    @property
    def repeats_jobs(self) -> bool:
        """It does, so that a batch that has ended two workers is not tried again."""
        return True

    @property
    def parts(self) -> dict[str, Any]:
        """What of the user's goes to the workers, by the argument's name."""
        return {"dataset": self.dataset, "collate_fn": self.collate_fn, "worker_init_fn": self.init_fn}

    def for_successor(self, tag: int, num_workers: int) -> BatchSource:
        """Returns the same: a successor restores the state of the random generators."""
        return self


@dataclass(frozen=True)
class TargetSource:
    """A function that fills slots by itself, until it returns; the same for all workers.

    Attributes:
        target: the user's, called with the slots, and with what follows.
        args, kwargs: its other arguments.
        layout: what is in a slot.
        init_fn: called with the worker's number before anything else of the user's.
        base_seed: with the worker's number, what its random generators are seeded with.
        words: for texts about these workers.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layout: ItemLayout
    init_fn: Callable[[int], None] | None
    base_seed: int
    words: Words = PRODUCER

    @property
    def is_stream(self) -> bool:
        """Not as a dataset is: a successor begins anew, and skips nothing."""
        return False

    @property
    def repeats_jobs(self) -> bool:
        """A job is no more than a slot."""
        return False

    @property
    def parts(self) -> dict[str, Any]:
        """What of the user's goes to the workers, by the argument's name."""
        return {"target": self.target, "args": self.args, "kwargs": self.kwargs, "worker_init_fn": self.init_fn}

    def for_successor(self, tag: int, num_workers: int) -> TargetSource:
        """Returns the same with another seed, so that what was delivered does not come once more.

        Seeds of all workers and of all that follow them differ: modulo the number of workers they are a worker's own.
        """
        return dataclasses.replace(self, base_seed=self.base_seed + num_workers * (tag + 1))


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
class Resume:
    """Where a worker takes up a pass that another loader was in when its state was taken.

    Attributes:
        at_begin: the state of the random generators at the pass's beginning; None: what the seed gives.
        generators: and where it takes up; None: as at the beginning.
        data: the states of the dataset and of its iterator, pickled by `snapshots`; None: they have none.
        to_skip: batches of a stream without state, to be made once more.
        any_job: the pickled indices of one of them.
        is_over: whether the stream has no more in this pass.
    """

    at_begin: bytes | None = None
    generators: bytes | None = None
    data: bytes | None = None
    to_skip: int = 0
    any_job: bytes = b""
    is_over: bool = False


@dataclass(frozen=True)
class Snapshots:
    """What workers tell of themselves, so that a loader's state can be taken.

    Attributes:
        every: after how many batches the states of a dataset that has any are told; None: never.
        resumes: where workers take up a pass, by number; empty: at its beginning.
        of_generators: whether the states of random generators are told; not where samples are seeded one by one.
        length: how many batches a pass has; None where the sampler does not tell.
        given: how many of them are not asked for in the first pass, which is taken up behind them.
    """

    every: int | None = 1
    resumes: tuple[Resume, ...] = ()
    of_generators: bool = True
    length: int | None = None
    given: int = 0


@dataclass(frozen=True)
class Brief:
    """What a worker makes, whatever kind of worker it is.

    Attributes:
        worker: its number.
        num_workers: how many there are.
        source: what it makes that of.
        arena: where slots lie.
        cap_text: how errors call what limits the pool.
        slots_to_map: how many slots are mapped before the first batch.
        bytes_to_map: and how much of each.
        saves_rng_state: whether the state of the random generators is saved for a successor.
        generation: the pass that it begins with.
        takeover: what it goes on from, where it takes the place of one that has died.
        kind: what kind of worker it is, for texts.
        snapshots: what it tells of itself; None: nothing.
    """

    worker: int
    num_workers: int
    source: Source
    arena: Arena
    cap_text: str
    slots_to_map: int
    bytes_to_map: int
    saves_rng_state: bool
    generation: int
    takeover: Takeover | None = None
    kind: str = "process"
    snapshots: Snapshots | None = None

    @property
    def worker_text(self) -> str:
        """How errors call the worker."""
        return f"{self.source.words.owner} worker {self.kind} {self.worker}"
