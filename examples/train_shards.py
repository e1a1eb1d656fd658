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
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, get_worker_info
from tqdm import tqdm
from train_digits import load_data, loader_settings, make_model
from training import accuracy, argument_parser, is_enough, make_repeatable, train_step

from shmloader import ChunkedDataset, ShmDataLoader

LEARNING_RATE = 2e-3
SHARD_ROWS = 150


def write_shards(folder: Path, train_set: TensorDataset) -> list[Path]:
    """Writes a training set to files, and returns these."""
    images, labels = (tensor.numpy() for tensor in train_set.tensors)
    files: list[Path] = []
    for start in range(0, len(labels), SHARD_ROWS):
        rows = slice(start, start + SHARD_ROWS)
        files.append(folder / f"digits-{len(files):03}.npz")
        np.savez(files[-1], images=images[rows], labels=labels[rows])
    return files


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


def stream_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of torch's DataLoader; a stream has an order of its own, and is not shuffled."""
    return {**loader_settings(args), "shuffle": False}


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
    train(model, ShmDataLoader(ChunkedDataset(Shards(files)), **stream_settings(args)), args.epochs)
    return accuracy(model, ShmDataLoader(test_set, args.batch_size, num_workers=args.num_workers))


def compare_loaders(files: list[Path], args: argparse.Namespace) -> Comparison:
    """Loads the files with torch's loader and with ours, see `comparison.compare`."""
    dataset = ChunkedDataset(Shards(files))
    stock = DataLoader(dataset, **stream_settings(args))
    return compare(stock, ShmDataLoader(dataset, **stream_settings(args)), checked_passes=5, rounds=11, passes=5)


def run(args: argparse.Namespace, folder: Path) -> int:
    """Runs the example with a folder to write shards to; returns the exit code."""
    train_set, test_set = load_data(args.seed)
    files = write_shards(folder, train_set)
    reached = train_and_test(files, test_set, args)
    print(f"test accuracy: {reached:.1%} after {args.epochs} epochs over {len(files)} files")
    if not is_enough(reached):
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
