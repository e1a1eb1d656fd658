"""What a loader adds to the memory of the process tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from shmloader.cli.bench import memory
from tests.helpers.datasets import Mapped


def _loader(length: int, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(Mapped(float, length), **arguments)


def test_memory_is_found_in_the_process_tree() -> None:
    found = memory.growth(lambda: _loader(12, num_workers=1, batch_size=2))
    assert found is not None
    assert found.pss > 0
    assert memory.Memory(5, 3).since(memory.Memory(1, 1)) == memory.Memory(4, 2)
    assert memory.growth(lambda: _loader(0)) is None


def test_memory_is_not_known_without_the_kernels_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert memory.now() is None
    assert memory.growth(lambda: _loader(1)) is None
