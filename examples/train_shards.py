"""Trains a small network on handwritten digits that lie in files of many rows, then compares the two loaders.

Large datasets are often kept as shards: a few files, each with some thousand samples side by side in its arrays. Here
the 1,797 scans of 8 x 8 pixels that come with scikit-learn are written to such files first, in a temporary folder.
Nothing is downloaded. Run it with::

    pip install '.[examples]'
    python examples/train_shards.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from comparison import Comparison, compare
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, get_worker_info
from tqdm import tqdm
from training import accuracy, argument_parser, make_repeatable, train_step

from shmloader import ChunkedDataset, ShmDataLoader

NEEDED_ACCURACY = 0.95
LEARNING_RATE = 2e-3
SHARD_ROWS = 150


def write_shards(folder: Path, seed: int) -> tuple[list[Path], TensorDataset]:
    """Writes four fifths of the digits to files, and returns these and the digits to test with."""
    digits = load_digits()
    images = digits.images[:, None].astype(np.float32) / 16
    labels = digits.target.astype(np.int64)
    training, test = train_test_split(range(len(labels)), test_size=0.2, random_state=seed, stratify=labels)
    files: list[Path] = []
    for start in range(0, len(training), SHARD_ROWS):
        rows = training[start : start + SHARD_ROWS]
        files.append(folder / f"digits-{len(files):03}.npz")
        np.savez(files[-1], images=images[rows], labels=labels[rows])
    return files, TensorDataset(torch.from_numpy(images[test]), torch.from_numpy(labels[test]))


class Shards:
    """The arrays of files, in another order of files and rows in each pass.

    Each worker reads its share of the files. The random numbers are those of torch's generator, which the loader seeds
    differently in every worker.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[Any]:
        """Yields images and labels of one file after the other, each an array of all of its rows."""
        info = get_worker_info()
        files = self.files if info is None else self.files[info.id :: info.num_workers]
        for number in torch.randperm(len(files)).tolist():
            with np.load(files[number]) as shard:
                order = torch.randperm(len(shard["labels"])).numpy()
                yield shard["images"][order], shard["labels"][order]


def make_model() -> nn.Module:
    """Returns a network with two convolutions for ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
    )


def loader_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of torch's DataLoader; ShmDataLoader takes them as they are."""
    return {
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "persistent_workers": True,
        "generator": torch.Generator().manual_seed(args.seed),
    }


def train(model: nn.Module, loader: DataLoader[Any], epochs: int) -> None:
    """Trains a classifier on a stream of batches, whose length nobody knows in advance."""
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    model.train()
    for _ in tqdm(range(epochs), desc="training", unit="epoch"):
        for images, labels in loader:
            train_step(model, optimizer, images, labels)


def train_and_test(files: list[Path], test_set: TensorDataset, args: argparse.Namespace) -> float:
    """Trains a new model and returns its accuracy on the test set."""
    model = make_model()
    train(model, ShmDataLoader(ChunkedDataset(Shards(files)), **loader_settings(args)), args.epochs)
    return accuracy(model, ShmDataLoader(test_set, args.batch_size, num_workers=args.num_workers))


def compare_loaders(files: list[Path], args: argparse.Namespace) -> Comparison:
    """Loads the files with torch's loader and with ours, see `comparison.compare`."""
    dataset = ChunkedDataset(Shards(files))
    stock = DataLoader(dataset, **loader_settings(args))
    return compare(stock, ShmDataLoader(dataset, **loader_settings(args)), checked_passes=5, rounds=11, passes=5)


def run(args: argparse.Namespace, folder: Path) -> int:
    """Runs the example with a folder to write shards to; returns the exit code."""
    files, test_set = write_shards(folder, args.seed)
    reached = train_and_test(files, test_set, args)
    print(f"test accuracy: {reached:.1%} after {args.epochs} epochs over {len(files)} files")
    if reached < NEEDED_ACCURACY:
        print(f"That is less than {NEEDED_ACCURACY:.0%}, which this network should reach.", file=sys.stderr)
        return 1

    comparison = compare_loaders(files, args)
    print(comparison.table())
    return 0 if comparison.difference is None else 1


def main() -> int:
    """Reads the command line and runs the example; returns the exit code."""
    args = argument_parser("Trains a small network on digits in shards.", epochs=15).parse_args()
    make_repeatable(args.seed)
    with TemporaryDirectory() as folder:
        return run(args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
