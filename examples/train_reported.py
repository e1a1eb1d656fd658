"""Trains with two loaders side by side, and says how each of them does.

The loaders have names, so that lines, errors and figures say which of the two they are of. What their workers log comes
out of the training script's own handlers. Figures are logged every so many seconds, and appended to a file of
comma-separated values: one row for each line.

The pictures are the scans of digits that come with scikit-learn, shifted at random by the workers. Some of them are
said to be damaged. Run it with::

    pip install '.[examples]'
    python examples/train_reported.py
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

import shmloader
from shmloader import CsvSink, ShmDataLoader

log = logging.getLogger("digits")


class Digits(Dataset[tuple[NDArray[np.float32], int]]):
    """Digits of 8 x 8 pixels.

    Args:
        samples: which of them.
        shifts: whether they are shifted at random.
    """

    def __init__(self, samples: range, shifts: bool) -> None:
        digits = load_digits()
        self._images = (digits.images[samples] / 16).astype(np.float32)
        self._labels = digits.target[samples]
        self._shifts = shifts

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        if index % 500 == 499:
            log.warning("digit %d is damaged; read by process %d", index, os.getpid())
        image = self._images[index]
        if self._shifts:
            image = np.roll(image, tuple(np.random.randint(-1, 2, size=2)), axis=(0, 1))
        return image, int(self._labels[index])


def train(model: nn.Module, loader: ShmDataLoader[Any], optimizer: torch.optim.Optimizer) -> None:
    """Trains for one pass."""
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, loader: ShmDataLoader[Any]) -> float:
    """Returns the part of the digits that are known."""
    right: list[float] = [(model(images).argmax(1) == labels).float().mean().item() for images, labels in loader]
    return sum(right) / len(right)


def main() -> None:
    """Trains, and says where the figures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two lines")
    parser.add_argument("--csv", type=Path, help="where the figures go; by default a new file in a new folder")
    args = parser.parse_args()
    figures = args.csv or Path(tempfile.mkdtemp()) / "loaders.csv"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    torch.manual_seed(0)

    arguments: dict[str, Any] = {"batch_size": 32, "num_workers": args.num_workers, "forward_logs": True}
    training = ShmDataLoader(Digits(range(1500), shifts=True), shuffle=True, name="train", **arguments)
    validation = ShmDataLoader(Digits(range(1500, 1797), shifts=False), name="val", **arguments)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with shmloader.report([training, validation], every=args.every, to=CsvSink(figures)):
        for epoch in range(args.epochs):
            train(model, training, optimizer)
            log.info("epoch %d: %.1f %% right", epoch, 100 * accuracy(model, validation))
    print(f"{len(figures.read_text().splitlines()) - 1} rows in {figures}")


if __name__ == "__main__":
    main()
