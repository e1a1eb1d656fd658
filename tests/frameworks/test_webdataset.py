"""WebDataset: shards that workers share, and its own pipelines around our loader."""

from __future__ import annotations

from pathlib import Path

from tests.frameworks.support import needs, run_ranks

SHARDS = """
    import sys
    import numpy as np
    import torch
    import webdataset
    from tests.frameworks.support import compared, tell
    from torch.utils.data import DataLoader
    from shmloader import ShmDataLoader
    from tests.helpers.support import assert_same

    FOLDER = sys.argv[1]

    def write():
        for shard in range(4):
            with webdataset.TarWriter(f"{FOLDER}/shard-{shard}.tar") as tar:
                for row in range(12):
                    picture = np.random.default_rng(12 * shard + row).integers(0, 256, (3, 32, 32), dtype=np.uint8)
                    about = {"row": row, "shard": shard}
                    tar.write({"__key__": f"{shard}-{row:02}", "npy": picture, "cls": row % 10, "json": about})

    def stream(batched=False):
        dataset = webdataset.WebDataset(FOLDER + "/shard-{0..3}.tar", shardshuffle=False, detshuffle=True, seed=3)
        dataset = dataset.compose(webdataset.detshuffle(10, 5, seed=3)).decode().to_tuple("npy", "cls", "json")
        return dataset.batched(6) if batched else dataset

    def main():
        write()
        tell({
            "samples": compared(lambda kind: kind(stream(), batch_size=6, num_workers=2), list, passes=2),
            "batches": compared(lambda kind: kind(stream(batched=True), batch_size=None, num_workers=2), list),
            "pipeline": compared_pipelines(),
        })

    def compared_pipelines():
        def load(kind):
            loader = kind(stream(batched=True), batch_size=None, num_workers=2)
            return list(webdataset.DataPipeline(loader, webdataset.unbatched(), webdataset.batched(5)))

        ours = load(ShmDataLoader)
        assert_same(ours, load(DataLoader))
        return len(ours)

    if __name__ == "__main__":
        main()
"""


@needs("webdataset")
def test_streams_of_shards(tmp_path: Path) -> None:
    (found,) = run_ranks(SHARDS, tmp_path, ranks=1)
    assert found == {"samples": [16, 16], "batches": [8, 8], "pipeline": 10}
