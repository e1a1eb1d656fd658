"""Sinks that write where others read: TensorBoard's event files, and what has `log` as Weights & Biases has it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import shmloader
from shmloader import JobQueue, LogSink, ShmDataLoader, TensorBoardSink


def loader_of(name: str | None = "train") -> ShmDataLoader[Any]:
    return ShmDataLoader(TensorDataset(torch.arange(80)), batch_size=4, num_workers=2, name=name)


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loader = loader_of()
    writer = tensorboard.SummaryWriter(str(tmp_path))
    try:
        with shmloader.report(loader, every=1e-9, to=TensorBoardSink(writer)):
            for _ in range(2):
                assert sum(1 for _ in loader) == 20
    finally:
        writer.close()
    found = accumulator.EventAccumulator(str(tmp_path), size_guidance={accumulator.SCALARS: 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    batches = found.Scalars("shmloader/train/batches")
    assert [one.value for one in batches] == [one.step for one in batches], "the step is how many were handed out"
    assert batches[-1].value == 40
    assert found.Scalars("shmloader/train/last_pass/samples")[-1].value == 80
    assert {"shmloader/train/wait_seconds", "shmloader/train/last_pass/workers/1/batches"} <= set(tags)
    assert all(math.isfinite(one.value) for tag in tags for one in found.Scalars(tag))


class Run:
    """As a run of Weights & Biases: steps only grow, and a row is whole when it is committed."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._row: dict[str, float] = {}
        self._step = 0

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise TypeError("a dict with names is logged")
        if step is not None and step < self._step:
            raise ValueError("steps only grow")
        self._row |= data
        if commit is not False:
            self.rows.append(self._row)
            self._row = {}


def test_a_run_is_given_rows_of_numbers() -> None:
    run = Run()
    queue = JobQueue(int, num_workers=1, name="parser")
    train, val = loader_of("train"), loader_of("val")
    with queue, shmloader.report([train, val, queue], every=1e-9, to=LogSink(run.log, commit=False)):
        for loader in (train, val):
            assert sum(1 for _ in loader) == 20
        assert list(queue.map((text,) for text in "1234")) == [1, 2, 3, 4]
        run.log({"loss": 0.5})
    row = run.rows[0]
    assert row["loss"] == 0.5
    assert (row["shmloader/train/batches"], row["shmloader/val/batches"]) == (20, 20)
    assert "shmloader/parser/wait_seconds" in row
    assert all(type(value) in (int, float) for value in row.values())
    assert not [key for key in row if "None" in key]
