"""Hugging Face's datasets: by index and as streams, in torch's and numpy's format, a rank's share, a stream's state."""

from __future__ import annotations

from pathlib import Path

from tests.frameworks.support import needs, run_ranks

ROWS = """
    import itertools
    import json
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import numpy as np
    import torch
    from datasets.distributed import split_dataset_by_node
    from torch.utils.data import DataLoader
    from shmloader import ShmDataLoader
    from tests.frameworks.support import compared, tell
    from tests.helpers.support import assert_same

    random = np.random.default_rng(0)
    COLUMNS = {
        "picture": random.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8),
        "label": np.arange(50),
        "weight": random.random(50).astype(np.float32),
        "name": [f"row {number}" for number in range(50)],
    }
    FEATURES = datasets.Features({
        "picture": datasets.Array3D((32, 32, 3), "uint8"), "label": datasets.Value("int64"),
        "weight": datasets.Value("float32"), "name": datasets.Value("string"),
    })
    ROWS = datasets.Dataset.from_dict(COLUMNS, features=FEATURES)
    STREAM = ROWS.to_iterable_dataset(num_shards=4)

    def loader(dataset, **others):
        return lambda kind: kind(dataset, batch_size=8, num_workers=2, **others)

    def epochs_of_stream(kind):
        stream = STREAM.with_format("torch").shuffle(seed=3, buffer_size=10)
        made = kind(stream, batch_size=8, num_workers=2, persistent_workers=True)
        for epoch in range(2):
            stream.set_epoch(epoch)
            yield [batch["label"].tolist() for batch in made]

    def rest_of_stream():
        def made():
            return ShmDataLoader(STREAM.with_format("torch"), batch_size=8, num_workers=2)

        whole = made()
        iterator = iter(whole)
        next(iterator), next(iterator), next(iterator)
        state = json.loads(json.dumps(whole.state_dict()))
        other = made()
        other.load_state_dict(state)
        assert_same(list(other), list(iterator))

    def main():
        def same(batch):
            return batch

        found = {}
        for kind in ("torch", "numpy"):
            rows, stream = ROWS.with_format(kind), STREAM.with_format(kind)
            found[f"{kind} rows"] = compared(loader(rows, shuffle=True), same, passes=2)
            found[f"{kind} stream"] = compared(loader(stream.shuffle(seed=3, buffer_size=10)), same)
            for rank in range(2):
                found[f"{kind} rows of {rank}"] = compared(loader(split_dataset_by_node(rows, rank, 2)), same)
                found[f"{kind} stream of {rank}"] = compared(loader(split_dataset_by_node(stream, rank, 2)), same)
        whole = loader(ROWS.with_format("torch"), shuffle=True, persistent_workers=True)
        found["persistent"] = compared(whole, same, passes=2)
        assert list(epochs_of_stream(ShmDataLoader)) == list(epochs_of_stream(DataLoader))
        rest_of_stream()
        tell(found)

    if __name__ == "__main__":
        main()
"""


@needs("datasets")
def test_rows_and_streams_of_datasets(tmp_path: Path) -> None:
    (found,) = run_ranks(ROWS, tmp_path, ranks=1)
    assert found.pop("persistent") == [14, 14]
    for kind in ("torch", "numpy"):
        assert found.pop(f"{kind} rows") == [14, 14]  # batches, and pictures that lay in a slot
        assert found.pop(f"{kind} stream") == [8, 8]
    assert all(batches == large == 4 for batches, large in found.values()), found
    assert len(found) == 8
