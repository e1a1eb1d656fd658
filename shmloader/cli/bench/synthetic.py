"""The dataset that is measured when the user names none."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset


class SyntheticImages(Dataset[Any]):
    """Small colour images with a label: 3x64x64 bytes as a numpy array, and an int.

    A sample costs next to nothing to make, so that what is measured is the loader.

    Args:
        length: how many samples there are; they repeat.
    """

    _DISTINCT = 256

    def __init__(self, length: int = 1_000_000) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (self._DISTINCT, 3, 64, 64), dtype=np.uint8)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._images[index % self._DISTINCT], index % 10
