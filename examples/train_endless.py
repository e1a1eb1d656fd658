"""Trains on an endless stream of randomly changed digits, which a Producer's workers write into shared memory.

There is no dataset and there are no epochs: each worker draws scans, shifts, dims and dirties them, and goes on. The
data are the 1,797 scans of 8 x 8 pixels that come with scikit-learn. Nothing is downloaded. Run it with::

    pip install '.[examples]'
    python examples/train_endless.py
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from train_digits import load_data, make_model
from training import MAX_LEARNING_RATE, accuracy, argument_parser, is_enough, make_repeatable, train_step

from shmloader import Producer, TensorSpec

STEPS_PER_EPOCH = 45  # as many batches of 32 as there are scans to train with
_MARGIN = 2  # pixels


def augment(slots: Any, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    """Fills batches with changed pictures, until the training ends. Runs in each worker, which has its own seed."""
    padded = np.pad(images, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))
    height, width = images.shape[1:]
    for slot in slots:
        with slot as (batch, its_labels):
            chosen = np.random.randint(len(images), size=len(batch))
            for row, index in zip(batch, chosen, strict=True):
                top, left = np.random.randint(_MARGIN - 1, _MARGIN + 2, size=2)
                row[0] = padded[index, top : top + height, left : left + width]
            batch *= np.random.uniform(0.7, 1.0, size=(len(batch), 1, 1, 1))
            batch += np.random.normal(0, 0.05, size=batch.shape)
            its_labels[:] = labels[chosen]


def train(model: nn.Module, producer: Producer, steps: int) -> float:
    """Trains a classifier on so many batches, and returns the seconds that it took."""
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LEARNING_RATE, total_steps=steps)
    model.train()
    start = time.perf_counter()
    for _ in tqdm(range(steps), desc="training", unit="batch"):
        images, labels = producer.get()
        train_step(model, optimizer, images, labels)
        schedule.step()
    return time.perf_counter() - start


def train_and_test(args: argparse.Namespace) -> tuple[float, float]:
    """Trains a new model and returns its accuracy on the test set, and the seconds that the training took."""
    train_set, test_set = load_data(args.seed)
    images, labels = (tensor.numpy() for tensor in train_set.tensors)
    specs = (
        TensorSpec((args.batch_size, *images.shape[1:]), torch.float32),
        TensorSpec((args.batch_size,), torch.int64),
    )
    model = make_model()
    with Producer(augment, specs, args=(images[:, 0], labels), num_workers=args.num_workers) as producer:
        seconds = train(model, producer, args.epochs * STEPS_PER_EPOCH)
    return accuracy(model, DataLoader(test_set, args.batch_size)), seconds


def main() -> int:
    """Runs the example; returns the exit code."""
    args = argument_parser("Trains on an endless stream of changed digits.", epochs=20).parse_args()
    make_repeatable(args.seed)
    reached, seconds = train_and_test(args)
    steps = args.epochs * STEPS_PER_EPOCH
    print(f"test accuracy: {reached:.1%} after {steps} batches, {steps / seconds:.0f} a second")
    return 0 if is_enough(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
