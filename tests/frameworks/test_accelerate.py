"""Accelerate: what it prepares, our loader beside it and inside, and its saved states."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.support import needs, run_ranks, share

ACCELERATE_RESUMES = """
    import sys
    import torch
    from accelerate import Accelerator
    from shmloader import ShmDataLoader
    from tests.frameworks.support import Traced, our_indices, tell

    def prepared(accelerator, loader):
        prepared = accelerator.prepare(loader)
        prepared.use_stateful_dataloader = True  # torchdata's is not there, and not asked for
        generator = torch.Generator().manual_seed(3)
        prepared.base_dataloader = ShmDataLoader(
            Traced(), batch_size=4, shuffle=True, num_workers=2, generator=generator
        )
        return prepared

    def main():
        torch.manual_seed(1)
        accelerator = Accelerator(cpu=True)
        loader = prepared(accelerator, ShmDataLoader(Traced(), batch_size=4))
        whole = []
        for number, batch in enumerate(loader):
            whole += our_indices([batch])
            if number == 1:
                accelerator.save_state(sys.argv[1] + "/saved")
        whole += our_indices(loader)
        accelerator.free_memory()
        again = prepared(accelerator, ShmDataLoader(Traced(), batch_size=4))
        accelerator.load_state(sys.argv[1] + "/saved")
        rest = our_indices(again)
        tell([whole, rest, our_indices(again)])
        accelerator.end_training()

    main()
"""


@needs("accelerate")
def test_accelerate_saves_and_loads_our_state(tmp_path: Path) -> None:
    ((whole, rest, following),) = run_ranks(ACCELERATE_RESUMES, tmp_path, ranks=1)
    assert whole[2:5] == rest
    assert whole[5:] == following


ACCELERATE = """
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DistributedSampler
    from shmloader import ShmDataLoader
    from tests.frameworks.support import Traced, indices, our_indices, readers, tell

    def main():
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(torch.nn.Linear(1, 1))

        sampler = DistributedSampler(Traced(), accelerator.num_processes, accelerator.process_index)
        loader = ShmDataLoader(Traced(), batch_size=4, sampler=sampler, num_workers=2)
        beside = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            beside.append([])
            for batch in loader:
                beside[-1] += our_indices([batch])
                accelerator.backward(model(batch[0].to(accelerator.device).float().reshape(-1, 1)).sum())

        prepared = accelerator.prepare(ShmDataLoader(Traced(), batch_size=4, num_workers=2))
        found = {"beside": beside, "prepared": indices(prepared), "readers": list(readers(prepared))}
        prepared.base_dataloader = ShmDataLoader(
            prepared.dataset, batch_sampler=prepared.batch_sampler, num_workers=prepared.num_workers
        )
        found["exchanged"] = our_indices(prepared)
        accelerator.end_training()
        tell(found)

    main()
"""


@needs("accelerate")
@pytest.mark.parametrize("ranks", [1, 2])
def test_accelerate_builds_torchs_loader_and_ours_works_beside_it_and_inside(ranks: int, tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(ACCELERATE, tmp_path, ranks)):
        assert found["beside"] == [share(rank, epoch, ranks) for epoch in range(2)]
        assert found["readers"] == ["torch.utils.data._utils.worker"]  # docs/recipes.md says so
        assert found["exchanged"] == found["prepared"]
