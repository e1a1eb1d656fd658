"""Ignite's engines, of which one builds the loader again."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader

from shmloader import ShmDataLoader
from tests.frameworks.support import OURS, Traced, indices, our_indices
from tests.helpers.support import detached, seed_everything


@pytest.mark.parametrize("name", ["Engine", "DeterministicEngine"])
def test_ignite_runs_and_rebuilds(name: str) -> None:
    ignite = pytest.importorskip("ignite.engine.deterministic", reason="needs ignite, of the extra named frameworks")

    def run(loader: DataLoader[Any]) -> list[Any]:
        def process(engine: Any, batch: Any) -> None:
            assert type(engine.state.dataloader) is type(loader)
            assert (engine.state.dataloader is loader) == (name == "Engine")  # the other one rebuilds it
            batches.append(detached(batch))

        batches: list[Any] = []
        seed_everything(5)
        getattr(ignite, name)(process).run(loader, max_epochs=2)
        return batches

    ours = run(ShmDataLoader(Traced(), batch_size=4, shuffle=True, num_workers=2, **OURS))
    assert our_indices(ours) == indices(run(DataLoader(Traced(), batch_size=4, shuffle=True)))
