"""The cells, and the processes that make their batches without a loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.cells import CELLS, Cell, Samples, pad, pad_as_sequences
from benchmarks.limit import _filler, limit_of
from shmloader.cli.bench.compare import first_difference
from tests.helpers.support import children


def test_the_limit_runs_and_ends() -> None:
    before = children()
    limit = limit_of(Cell("tiny", lambda: [(np.ones((2, 3), np.uint8), 1)] * 4, 8), 2)
    took = limit.run(0.0)
    assert len(children() - before) == 2
    limit.close()
    assert took.batches == 2
    assert took.per_batch > 0


def test_the_limit_makes_the_batches_that_loaders_make() -> None:
    for cell in CELLS:
        if cell.name.startswith("rgb224"):  # large, and of the same kind as rgb64
            continue
        if cell.name in ("batch100mb", "memmap64"):  # the same, and too large for a test
            continue
        dataset = cell.source()
        fill = _filler(cell, dataset)
        samples = [dataset[index] for index in range(cell.batch_size)]
        fill(samples)
        expected = (cell.collate or torch.utils.data.default_collate)(samples)
        assert first_difference(expected, cell.batch()) is None, cell.name
        assert sorted(_buffers(fill)) == sorted(_buffers_of(expected)), cell.name


def _buffers(fill: Any) -> Iterator[bytes]:
    """Yields what lies in the buffers that a filler closes over."""
    for cell in fill.__closure__ or ():
        held = cell.cell_contents
        if isinstance(held, np.ndarray):
            yield held.tobytes()
        elif isinstance(held, torch.Tensor):
            yield held[: held.numel() // 2].numpy().tobytes()
        elif isinstance(held, list | dict):
            for inner in held.values() if isinstance(held, dict) else held:
                yield from _buffers(inner)


def _buffers_of(batch: Any) -> Iterator[bytes]:
    if isinstance(batch, torch.Tensor):
        yield batch.numpy().tobytes()
    else:
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _buffers_of(part)


def test_both_ways_to_pad_agree() -> None:
    samples = [[1, 2, 3], [4], [5, 6]]
    assert first_difference(pad(samples), pad_as_sequences(samples)) is None
    assert len(Samples(samples)) > 10**9
