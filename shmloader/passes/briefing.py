"""What each worker is told when it starts: as the first in its place, or as the successor of one that has died."""

from __future__ import annotations

import dataclasses

from shmloader.slots.pool import Pool
from shmloader.workers.brief import BatchSource, Brief, Resume, Snapshots, Source, Takeover

from .worker_progress import WorkerProgress


class Briefing:
    """What the workers of one iterator are told when they start. Used in the parent.

    A successor goes on where the one before it was, so it may have to be told of the pass before the loop's.

    Args:
        source: what batches are made of.
        num_workers: how many workers there are.
        may_replace: whether workers that die are replaced, so that the states of their random generators are needed.
        pool: where batches go.
        progress: how far each worker has come.
        snapshots: what workers tell of themselves; None: nothing.

    Attributes:
        source: what batches are made of in the loop's pass.
    """

    source: Source

    def __init__(
        self,
        source: Source,
        num_workers: int,
        may_replace: bool,
        pool: Pool,
        progress: WorkerProgress,
        snapshots: Snapshots | None,
    ) -> None:
        self.source = source
        self._source_before = source
        self._num_workers = num_workers
        self._may_replace = may_replace
        self._pool = pool
        self._progress = progress
        self._snapshots = snapshots

    def begin_pass(self, shared_seed: int | None, epoch: int) -> None:
        """Notes that the loop begins another pass with the same workers.

        Args:
            shared_seed: what DataPipes are shuffled by.
            epoch: the number of the pass, by which samples are seeded.
        """
        assert isinstance(self.source, BatchSource)
        self._source_before = self.source
        self.source = dataclasses.replace(self.source, shared_seed=shared_seed, epoch=epoch)

    def first(self, number: int) -> Brief:
        """Returns what worker ``number`` is told that takes nothing over."""
        return Brief(
            worker=number,
            num_workers=self._num_workers,
            source=self.source,
            arena=self._pool.arena,
            cap_text=self._pool.cap_text,
            slots_to_map=self._pool.populated_slots,
            bytes_to_map=self._pool.populated_bytes,
            saves_rng_state=self._may_replace,
            generation=self._progress.generation,
            snapshots=self._snapshots,
        )

    def successor(self, number: int, last_job: bytes) -> Brief:
        """Returns what the successor of worker ``number`` is told.

        Where that one was in the pass before the loop's, so is the brief: the pass is to be finished first.

        Args:
            number: which one has died.
            last_job: the job that was sent last, to whichever worker.
        """
        generation = self._progress.generation_of(number)
        source = self._source_before if generation < self._progress.generation else self.source
        takeover = Takeover(*self._progress.takeover(number), last_job)
        return dataclasses.replace(
            self.first(number),
            source=source.for_successor(takeover.tag, self._num_workers),
            generation=generation,
            takeover=takeover,
            snapshots=self._snapshots_in(generation),
        )

    def _snapshots_in(self, generation: int) -> Snapshots | None:
        snapshots = self._snapshots
        if snapshots is None or generation == 0:
            return snapshots
        # Another pass than that which was resumed. But where the worker has made nothing since, its random generators
        # are still where they were resumed.
        is_stream = self.source.is_stream
        resumes = () if is_stream else tuple(Resume(one.generators or one.at_begin) for one in snapshots.resumes)
        return dataclasses.replace(snapshots, resumes=resumes)
