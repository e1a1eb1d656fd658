"""What the tests of the benchmarks share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def _no_time_for_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("measure", "memory"):
        monkeypatch.setattr(f"shmloader.cli.bench.{module}.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr("shmloader.cli.bench.memory._SAMPLES", 2)
