"""skorch, which makes its loaders of the class that it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.support import needs, run_ranks

SKORCH = """
    import torch
    from skorch import NeuralNetRegressor
    from torch.utils.data import DataLoader
    from shmloader import ShmDataLoader
    from tests.frameworks.support import Logits, Pairs, tell

    def trained(kind, **own):
        torch.manual_seed(5)
        net = NeuralNetRegressor(
            Logits, max_epochs=2, lr=0.1, batch_size=4, train_split=None, verbose=0, iterator_train=kind,
            iterator_valid=kind, iterator_train__shuffle=True, iterator_train__num_workers=2,
            iterator_valid__num_workers=2, **own
        )
        net.fit(Pairs(), None)
        return [*net.module_.told(), net.predict(Pairs(7)).tolist()]

    def main():
        tell([trained(DataLoader), trained(ShmDataLoader, iterator_train__worker_restarts=2)])

    main()
"""


@pytest.mark.slow
@needs("skorch")
def test_skorch_fits_and_predicts_on_ours(tmp_path: Path) -> None:
    ((plain, ours),) = run_ranks(SKORCH, tmp_path, ranks=1)
    assert (plain[0], ours[0]) == ([1], [2])
    assert ours[1:] == plain[1:]
