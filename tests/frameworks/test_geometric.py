"""PyTorch Geometric's loader with ours below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.support import by_either, needs, run_ranks

GRAPHS = """
    import torch
    from torch_geometric.data import Data, HeteroData

    seed = torch.manual_seed

    def graph(nodes):
        edges = torch.randint(nodes, (2, 3 * nodes))
        return Data(x=torch.randn(nodes, 7), edge_index=edges, y=torch.tensor([nodes]), name=f"graph {nodes}")

    def graph_of_two_kinds(nodes):
        data = HeteroData()
        data["paper"].x, data["author"].x = torch.randn(nodes, 3), torch.randn(4, 2)
        data["author", "writes", "paper"].edge_index = torch.randint(4, (2, 6))
        return data

    def make_loader(kind):
        graphs = [MAKE(nodes) for nodes in range(5, 23)]
        return kind(graphs, batch_size=4, shuffle=True, num_workers=2, follow_batch=FOLLOWED)

    def comparable(batch):
        return batch.to_dict()

    def assert_usable(batch):
        assert len(batch.to_data_list()) == batch.num_graphs
"""


@needs("torch_geometric")
@pytest.mark.parametrize(("make", "followed"), [("graph", ["x"]), ("graph_of_two_kinds", None)])
def test_torch_geometrics_loader_on_ours(make: str, followed: list[str] | None, tmp_path: Path) -> None:
    code = GRAPHS.replace("MAKE", make).replace("FOLLOWED", repr(followed))
    (told,) = run_ranks(by_either("torch_geometric.loader", code), tmp_path, ranks=1)
    assert told == ["torch", "shmloader", 5, 3]
