"""The random generators of a worker: where their seeds come from, how they are seeded, and their state as bytes."""

from __future__ import annotations

import pickle
import random

import numpy as np
import numpy.random  # which numpy would import when it is first used: in every worker anew
import torch

from shmloader.torch_private import numpy_seed


def draw_base_seed(generator: torch.Generator | None) -> int:
    """Returns a new base seed, from ``generator`` or torch's global one, as torch's loader draws its own."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator).item())


def seed(base_seed: int, worker: int) -> None:
    """Seeds torch's, numpy's and Python's generators of this process as torch's worker loop does."""
    random.seed(base_seed + worker)
    torch.manual_seed(base_seed + worker)
    np.random.seed(numpy_seed(base_seed, worker))


def capture() -> bytes:
    """Returns the state of torch's, numpy's and Python's generators; not of generators that user code has made."""
    return pickle.dumps((torch.get_rng_state().numpy().tobytes(), np.random.get_state(), random.getstate()), 5)


def restore(state: bytes) -> None:
    """Sets the generators to what `capture` returned."""
    of_torch, of_numpy, of_python = pickle.loads(state)
    torch.set_rng_state(torch.frombuffer(bytearray(of_torch), dtype=torch.uint8))
    np.random.set_state(of_numpy)
    random.setstate(of_python)
