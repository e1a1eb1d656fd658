"""What the tests of the benchmarks share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.output import Labels, dots
from shmloader.cli.bench.figures import figure


@pytest.fixture(autouse=True)
def _no_time_for_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("measure", "memory"):
        monkeypatch.setattr(f"shmloader.cli.bench.{module}.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr("shmloader.cli.bench.memory._SAMPLES", 2)


@pytest.fixture(scope="session")
def _matplotlib(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Matplotlib, which keeps the files of its fonts open once it has drawn."""
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("chart") / "first.png"
    dots(path, Labels("Title", ["note"], "values"), {"series": {"name": figure([1.0])}})
