"""The random generators of a worker: where their seeds come from, how they are seeded, and their state as bytes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.random  # which numpy would import when it is first used: in every worker anew
import torch

from shmloader.torch_private import numpy_seed

from .sample_seeds import SampleSeeds


def draw_base_seed(generator: torch.Generator | None) -> int:
    """Returns a new base seed, from ``generator`` or torch's global one, as torch's loader draws its own."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator).item())


def seed(base_seed: int, worker: int) -> None:
    """Seeds torch's, numpy's and Python's generators of this process as torch's worker loop does."""
    random.seed(base_seed + worker)
    torch.manual_seed(base_seed + worker)
    np.random.seed(numpy_seed(base_seed, worker))


class SampleSeeder:
    """Seeds the generators of this process before each sample, where ``seeding`` is "sample".

    Of torch's generators it is the default one of the CPU: `torch.manual_seed` looks for every accelerator as well,
    which takes longer than most samples. torch uses the lower 32 bits of a seed, and numpy takes no more.

    Args:
        base_seed: of the loader's life.
        epoch: the number of the pass.
    """

    def __init__(self, base_seed: int, epoch: int) -> None:
        self._seeds = SampleSeeds(base_seed, epoch)

    def __call__(self, index: Any) -> None:
        """Seeds them for the sample of ``index``.

        Raises:
            TypeError: no seed can be made of it; see `SampleSeeds.of`.
        """
        _seed_all(*self._seeds.of(index))

    def begin(self) -> None:
        """Seeds them for what comes before the first sample of an iterable dataset."""
        _seed_all(*self._seeds.of_the_beginning())


def _seed_all(of_torch: int, of_numpy: int, of_python: int) -> None:
    torch.default_generator.manual_seed(of_torch)
    np.random.seed(of_numpy)
    random.seed(of_python)
