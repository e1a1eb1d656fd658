"""Libraries with a loader of their own, and ranks of torchrun, under patch: no script is changed."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.frameworks.support import OUR, PATCHED, STOCKS, assert_patched, needs, run_ranks, share

GEOMETRIC = """
    import torch
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from tests.frameworks.support import Numbers

    class Graphs(Numbers):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            nodes = 3 + index % 5
            edges = torch.randint(nodes, (2, 2 * nodes))
            return Data(x=torch.randn(nodes, 7), edge_index=edges, name=f"graph {index}", reader=sample["reader"])

    def main():
        torch.manual_seed(5)
        loader = DataLoader(Graphs(), batch_size=4, shuffle=True, num_workers=2, follow_batch=["x"])
        batches = [batch for _ in range(2) for batch in loader]
        readers = {number for batch in batches for number in batch.reader.tolist()}
        fields = "x", "edge_index", "batch", "ptr", "x_batch"
        return [
            sorted(readers),
            [[batch[name].tolist() for name in fields] + [batch.name] for batch in batches],
            [graph.x.tolist() for batch in batches for graph in batch.to_data_list()],
        ]
"""

MONAI = """
    import torch
    from monai.data import DataLoader, Dataset, decollate_batch
    from monai.transforms import Compose, EnsureTyped, RandFlipd, RandGaussianNoised
    from monai.utils import set_determinism
    from tests.frameworks.support import Numbers

    def main():
        set_determinism(5)
        volumes = [{"image": torch.arange(64.0).reshape(1, 4, 4, 4) + number, "number": number} for number in range(18)]
        transform = Compose([
            EnsureTyped("image"), RandFlipd("image", prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=0.7),
            lambda sample: {**sample, "reader": Numbers()[0]["reader"]},
        ])
        loader = DataLoader(Dataset(volumes, transform), batch_size=4, shuffle=True, num_workers=2)
        batches = list(loader)
        return [
            sorted({number for batch in batches for number in batch["reader"].tolist()}),
            [[batch["image"].tolist(), batch["number"].tolist()] for batch in batches],
            [type(batch["image"]).__name__ for batch in batches],
            [one["image"].tolist() for batch in batches for one in decollate_batch(batch)],
        ]
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(GEOMETRIC, marks=[needs("torch_geometric"), pytest.mark.slow], id="torch_geometric"),
        pytest.param(MONAI, marks=[needs("monai"), pytest.mark.slow], id="monai"),
    ],
)
def test_a_librarys_loader_gives_the_same(code: str, tmp_path: Path) -> None:
    (told,) = run_ranks(textwrap.dedent(code) + textwrap.dedent(PATCHED), tmp_path, ranks=1)
    assert_patched(told)


# A file that is run as it is, by torchrun or by what patches first.
RANKS = """
    import torch
    import torch.distributed
    from torch.utils.data import DataLoader, DistributedSampler
    from tests.frameworks.support import Numbers, tell

    def main():
        torch.distributed.init_process_group("gloo")
        torch.manual_seed(torch.distributed.get_rank())
        sampler = DistributedSampler(Numbers(18))
        loader = DataLoader(Numbers(18), batch_size=4, sampler=sampler, num_workers=2, persistent_workers=True)
        epochs, drawn, readers = [], [], set()
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches = list(loader)
            epochs.append([batch["index"].tolist() for batch in batches])
            drawn += [batch["x"].tolist() for batch in batches]
            readers |= {number for batch in batches for number in batch["reader"].tolist()}
        torch.distributed.destroy_process_group()
        tell([sorted(readers), drawn, epochs])

    if __name__ == "__main__":
        main()
"""
RUN_PATCHED = """
    import runpy, sys
    import shmloader

    shmloader.patch()
    runpy.run_path(sys.argv[1] + "/unchanged.py", run_name="__main__")
"""


@pytest.mark.slow
def test_each_rank_of_torchrun_has_our_workers(tmp_path: Path) -> None:
    (tmp_path / "unchanged.py").write_text(textwrap.dedent(RANKS))
    plain = run_ranks(RANKS, tmp_path, ranks=2)
    patched = run_ranks(RUN_PATCHED, tmp_path, ranks=2)
    for rank in range(2):
        assert [plain[rank][0], patched[rank][0]] == [[STOCKS], [OUR]]
        assert patched[rank][1:] == plain[rank][1:]
        assert patched[rank][2] == [share(rank, epoch) for epoch in range(2)]
