"""Trains with steps that need every processor, while the loader is paused.

A training step on the CPU runs in native code, on as many threads as there are processors. Workers that load ahead at
the same time take turns with these threads, and each of them waits for the slowest. So the loader is paused for the
length of a step, and loads ahead in between: here while the loop rests, as one does that talks to a simulator or writes
to a disk.

The pictures are the scans of digits that come with scikit-learn, made larger, and changed at random by the workers. The
example times the steps with the loader loading ahead, and with the loader paused. Run it with::

    pip install '.[examples]'
    python examples/train_paused.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from shmloader import ShmDataLoader

SIDE = 64
BATCH_SIZE = 32


class ChangedDigits(Dataset[tuple[NDArray[np.float32], int]]):
    """Digits of 64 x 64 pixels, shifted and with noise that was smoothed: some milliseconds of work each."""

    def __init__(self) -> None:
        digits = load_digits()
        self._images = np.kron(digits.images / 16, np.ones((SIDE // 8, SIDE // 8))).astype(np.float32)
        self._labels = digits.target

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        noise = np.fft.irfft2(np.fft.rfft2(np.random.randn(4 * SIDE, 4 * SIDE)), s=(4 * SIDE, 4 * SIDE))
        shift = np.random.randint(-4, 5, size=2)
        image = np.roll(self._images[index], tuple(shift), axis=(0, 1)) + 0.1 * noise[:SIDE, :SIDE]
        return image.astype(np.float32)[None], int(self._labels[index])


def network() -> nn.Module:
    """Returns a network whose steps keep all processors busy."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * (SIDE // 16) ** 2, 10),
    )


class Training:
    """A network, and what trains it."""

    def __init__(self) -> None:
        self._model = network()
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-3)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Trains on one batch, and returns the loss."""
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self._model(images), labels)
        loss.backward()
        self._optimizer.step()
        return loss.item()


def run(loader: ShmDataLoader[Any], training: Training, steps: int, pauses: bool, rest: float) -> list[float]:
    """Trains for some steps, and returns how long each took, in seconds."""
    took: list[float] = []
    loader.resume()
    for images, labels in loader:
        if len(took) == steps:
            break
        if pauses:
            loader.pause()
        start = time.perf_counter()
        training.step(images, labels)
        took.append(time.perf_counter() - start)
        loader.resume()
        time.sleep(rest)
    return took


def main() -> None:
    """Trains in both ways, and says how long steps take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--rest", type=float, default=0.15, help="seconds between steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    # Batches enough that the workers are never out of work.
    loader = ShmDataLoader(
        ChangedDigits(), batch_size=BATCH_SIZE, shuffle=True, num_workers=args.num_workers, prefetch_factor=8
    )
    training = Training()
    run(loader, training, 3, pauses=False, rest=0)
    for pauses in (False, True):
        took = run(loader, training, args.steps, pauses, args.rest)
        what = "paused" if pauses else "loading ahead"
        print(f"{what:>13}: {1000 * statistics.median(took):.0f} ms a step, {1000 * max(took):.0f} ms the longest")


if __name__ == "__main__":
    main()
