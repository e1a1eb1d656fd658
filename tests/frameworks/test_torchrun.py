"""Ranks of torchrun: each gets its share, from our workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.support import flat, run_ranks, share


@pytest.mark.long
def test_each_rank_of_torchrun_gets_its_share(tmp_path: Path) -> None:
    script = """
        import torch.distributed
        from torch.utils.data import DistributedSampler
        from shmloader import ShmDataLoader
        from tests.frameworks.support import Traced, our_indices, tell

        def main():
            torch.distributed.init_process_group("gloo")
            sampler = DistributedSampler(Traced())
            loader = ShmDataLoader(Traced(), batch_size=4, sampler=sampler, num_workers=2)
            epochs = []
            for epoch in range(2):
                sampler.set_epoch(epoch)
                epochs.append(our_indices(loader))
            torch.distributed.destroy_process_group()
            tell(epochs)

        main()
    """
    told = run_ranks(script, tmp_path, ranks=2)
    assert told == [[share(rank, epoch) for epoch in range(2)] for rank in range(2)]
    for epoch in range(2):
        assert sorted(flat(told[0][epoch]) + flat(told[1][epoch])) == list(range(18))
