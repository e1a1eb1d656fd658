"""Trains a small network on handwritten digits, then compares ShmDataLoader with torch's DataLoader.

The data are the 1,797 scans of 8 x 8 pixels that come with scikit-learn. Nothing is downloaded. Run it with::

    pip install '.[examples]'
    python examples/train_digits.py
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from comparison import Comparison, compare
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training import accuracy, argument_parser, is_enough, make_repeatable, train

from shmloader import ShmDataLoader

# A sample is a picture with one channel, and its label. Declaring that is optional: the loader then has its memory
# ready before the first batch, and names a sample that is not as declared.
SAMPLE_SHAPES = ((1, 8, 8), ())
SAMPLE_DTYPES = (torch.float32, torch.int64)


def load_data(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Returns the digits to train with, and a fifth of them to test with."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    parts = train_test_split(range(len(labels)), test_size=0.2, random_state=seed, stratify=digits.target)
    train_set, test_set = (TensorDataset(images[part], labels[part]) for part in parts)
    return train_set, test_set


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
        "shuffle": True,
        "num_workers": args.num_workers,
        "persistent_workers": True,
        "generator": torch.Generator().manual_seed(args.seed),
    }


def make_loader(dataset: TensorDataset, args: argparse.Namespace) -> ShmDataLoader[Any]:
    """Returns the loader that this example is about."""
    return ShmDataLoader(
        dataset,
        **loader_settings(args),
        sample_shapes=SAMPLE_SHAPES,
        sample_dtypes=SAMPLE_DTYPES,
    )


def train_and_test(train_set: TensorDataset, test_set: TensorDataset, args: argparse.Namespace) -> float:
    """Trains a new model and returns its accuracy on the test set."""
    model = make_model()
    train(model, make_loader(train_set, args), args.epochs)
    return accuracy(model, ShmDataLoader(test_set, args.batch_size, num_workers=args.num_workers))


def compare_loaders(dataset: TensorDataset, args: argparse.Namespace) -> Comparison:
    """Loads the training set with torch's loader and with ours, see `comparison.compare`."""
    stock = DataLoader(dataset, **loader_settings(args))
    return compare(stock, make_loader(dataset, args), checked_passes=5, rounds=21, passes=5)


def main() -> int:
    """Runs the example; returns the exit code."""
    args = argument_parser("Trains a small network on handwritten digits.", epochs=15).parse_args()
    make_repeatable(args.seed)
    train_set, test_set = load_data(args.seed)

    reached = train_and_test(train_set, test_set, args)
    print(f"test accuracy: {reached:.1%} after {args.epochs} epochs")
    if not is_enough(reached):
        return 1

    comparison = compare_loaders(train_set, args)
    print(comparison.table())
    return 0 if comparison.difference is None else 1


if __name__ == "__main__":
    sys.exit(main())
