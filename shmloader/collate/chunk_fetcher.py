"""Batches that are cut out of a dataset's chunks, and copied range by range. Runs in a worker.

What torch's function makes of one row it makes of all rows of that kind. So one row of each kind of chunk is collated,
and for batches only elements are copied. Rows go into the slot as soon as they are there, before the next chunk is
asked for. What is left of a chunk waits for the next batch where it is.

A batch whose rows are not all of one kind is read row by row, by torch's fetcher, from its first row on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any

from torch.utils.data import default_collate

from shmloader.batches.dtypes import carried
from shmloader.batches.tensors import Array
from shmloader.data.chunk import Chunk
from shmloader.data.chunks import Part, Rows
from shmloader.slots.writer import SlotWriter

from .checked import CheckedCollate
from .default import DirectCollation
from .templates import Templates
from .write_into import Each, SampleStructure, as_is, room_for

# Chunks of padded rows may all be of different kinds.
_MAX_KNOWN = 64


class ChunkFetcher:
    """Fetches batches of a `ChunkedDataset` as torch's fetcher does, but copies them where it is known how.

    Args:
        fetcher: torch's, of the same rows.
        rows: what is read.
        drop_last: whether a batch that the rows' end cuts short is dropped.
        collation: makes room for the first batch of each kind and size.
        templates: those of the batches before.
        writer: where batches go.
        check: compares samples with their declaration, if there is one.
        wait: called before chunks are read.
        each: how torch's fetcher goes through what it is asked for.
    """

    def __init__(
        self,
        fetcher: Any,
        rows: Rows,
        drop_last: bool,
        collation: DirectCollation,
        templates: Templates,
        writer: SlotWriter,
        check: CheckedCollate | None,
        wait: Callable[[], None] = lambda: None,
        each: Each = as_is,
    ) -> None:
        self._fetcher = fetcher
        self._rows = rows
        self._drop_last = drop_last
        self._collation = collation
        self._templates = templates
        self._writer = writer
        self._check = check
        self._wait = wait
        self._each = each
        self._structures: dict[Hashable, SampleStructure | None] = {}

    def fetch(self, indices: Any) -> Any:
        """Returns the next batch, of as many rows as there are indices, or its template if all of it is in the slot.

        Raises:
            StopIteration: there are no more.
            Exception: what the chunks raise.
        """
        chunk = self._rows.ahead()
        structure = None if chunk is None else self._structure_of(chunk)
        if chunk is None or structure is None:
            return self._fetcher.fetch(self._each(indices))
        return self._cut(chunk.kind, structure, indices)

    def _cut(self, kind: Hashable, structure: SampleStructure, indices: Any) -> Any:
        count = len(indices)
        key = "chunks", kind, count
        arrays, batch = room_for(key, count, structure, self._templates, self._collation, self._templates.arrays)
        taken: list[Part] = []
        filled, has_ended = self._fill(arrays, kind, count, taken)
        if self._collation.is_default() and (filled == count or has_ended):
            if self._check is not None:
                self._check.pass_over(filled)
            if filled == count:
                return batch
            if self._drop_last:
                raise StopIteration
            batch = structure.batch(_heads(arrays, structure, filled))
            del arrays  # which hold the slot
            self._writer.reclaim()
            return batch
        del arrays, batch
        self._writer.reclaim()
        self._rows.put_back(taken)
        return self._fetcher.fetch(self._each(indices))

    def _fill(self, arrays: list[Array], kind: Hashable, count: int, taken: list[Part]) -> tuple[int, bool]:
        """Copies rows while they are of one kind.

        Args:
            arrays: where to, one for each column.
            kind: of the rows.
            count: how many to copy.
            taken: what was copied is added here.

        Returns:
            How many were copied, and whether there are no more.
        """
        filled = 0
        while filled < count:
            self._wait()
            chunk = self._rows.ahead()
            # A process that the chunks have forked, and let come back, must not write to the worker's slot.
            if chunk is None or chunk.kind != kind or self._writer.is_inherited:
                return filled, chunk is None
            part = self._rows.take(count - filled)
            taken.append(part)
            end = filled + part.stop - part.start
            for column, array in zip(chunk.columns, arrays, strict=True):
                array[filled:end] = column[part.start : part.stop]
            filled = end
        return filled, False

    def _structure_of(self, chunk: Chunk) -> SampleStructure | None:
        """Returns what batches of a chunk's rows consist of, or None if they are to be read one by one."""
        kind = chunk.kind
        if kind is None or not self._collation.is_default():
            return None
        if kind not in self._structures:
            if len(self._structures) >= _MAX_KNOWN:
                self._structures.clear()
            self._structures[kind] = self._learn(chunk)
        return self._structures[kind]

    def _learn(self, chunk: Chunk) -> SampleStructure | None:
        row = chunk.row(0)
        if self._check is not None and not self._check.accepts(row):
            return None
        with contextlib.suppress(Exception):  # which comes in the batch's place, when torch's fetcher reads it
            structure = SampleStructure(row, default_collate([row]))
            return structure if structure.leaves == chunk.specs else None
        return None


def _heads(arrays: list[Array], structure: SampleStructure, count: int) -> list[Any]:
    """Returns copies of the first ``count`` rows, as tensors."""
    return [carried(array[:count].copy(), dtype) for array, (dtype, _) in zip(arrays, structure.leaves, strict=True)]
