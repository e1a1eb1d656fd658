"""MONAI's loader with ours below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.support import by_either, needs, run_ranks

VOLUMES = """
    import numpy as np
    from monai import transforms
    from monai.data import CacheDataset, Dataset, decollate_batch
    from monai.utils import set_determinism as seed

    IN_COMMON = [
        transforms.EnsureChannelFirstd(["image", "label"], channel_dim="no_channel"),
        transforms.RandFlipd(["image", "label"], prob=0.5),
        transforms.RandGaussianNoised("image", prob=0.5),
    ]
    CROPS = {
        1: transforms.RandSpatialCropd(["image", "label"], (8, 8, 8), random_size=False),
        4: transforms.RandCropByPosNegLabeld(["image", "label"], "label", (8, 8, 8), num_samples=4),
    }

    def make_loader(kind):
        random = np.random.default_rng(0)
        volumes = [
            {
                "image": random.normal(size=(12, 12, 12)).astype("float32"),
                "label": (random.random((12, 12, 12)) > 0.5).astype("uint8"),
                "name": f"case {number}",
            }
            for number in range(18)
        ]
        dataset = MAKE(volumes, transforms.Compose([*IN_COMMON, CROPS[SAMPLES]]))
        return kind(dataset, batch_size=4, shuffle=True, num_workers=2)

    def comparable(part):
        # But for what says which object in which process a transform was.
        if isinstance(part, dict):
            return {key: comparable(value) for key, value in part.items() if key != "id"}
        if isinstance(part, list):
            return [comparable(value) for value in part]
        if hasattr(part, "applied_operations"):
            return [part.as_tensor(), comparable(dict(part.meta)), comparable(part.applied_operations)]
        return part

    def assert_usable(batch):
        parts = decollate_batch(batch)
        assert len(parts) == len(batch["image"])
        assert parts[0]["image"].applied_operations
"""


@needs("monai")
@pytest.mark.parametrize(("make", "samples"), [("Dataset", 1), ("CacheDataset", 4)])
def test_monais_loader_on_ours(make: str, samples: int, tmp_path: Path) -> None:
    code = VOLUMES.replace("MAKE", make).replace("SAMPLES", str(samples))
    (told,) = run_ranks(by_either("monai.data", code), tmp_path, ranks=1)
    assert told == ["torch", "shmloader", 5, 3]
