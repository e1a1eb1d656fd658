"""Trains a small network on handwritten digits on a GPU, to which the loader moves the batches ahead of the loop.

Without a CUDA device the same program runs on the processor: that is what ``device="cpu"`` means. Nothing is
downloaded. Run it with::

    pip install '.[examples]'
    python examples/train_gpu.py
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from train_digits import SAMPLE_DTYPES, SAMPLE_SHAPES, load_data, loader_settings, make_model
from training import MAX_LEARNING_RATE, accuracy, argument_parser, is_enough, make_repeatable

from shmloader import ShmDataLoader


def make_loader(dataset: TensorDataset, device: torch.device, args: argparse.Namespace) -> ShmDataLoader[Any]:
    """Returns a loader whose batches are on ``device``; there is no ``.to`` in the loop, and no ``pin_memory``."""
    return ShmDataLoader(
        dataset,
        **loader_settings(args),
        sample_shapes=SAMPLE_SHAPES,
        sample_dtypes=SAMPLE_DTYPES,
        device=device,
    )


def train(model: nn.Module, loader: ShmDataLoader[Any], device: torch.device, epochs: int) -> Tensor:
    """Trains a classifier and returns the mean loss of the last pass.

    Nothing in the loop waits for the device: the loss stays there until the pass is over.
    """
    optimizer = torch.optim.Adam(model.parameters())
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
    return total / len(loader)


def main() -> int:
    """Runs the example; returns the exit code."""
    parser = argument_parser("Trains a small network on handwritten digits on a GPU, if there is one.", epochs=15)
    parser.add_argument("--device", type=torch.device, help="by default the first GPU, or the processor")
    args = parser.parse_args()
    make_repeatable(args.seed)
    device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_set, test_set = load_data(args.seed)
    model = make_model().to(device)

    start = time.perf_counter()
    mean_loss = train(model, make_loader(train_set, device, args), device, args.epochs).item()
    seconds = time.perf_counter() - start
    print(f"mean loss {mean_loss:.3f} after {args.epochs} epochs on {device}, {seconds:.1f} s")

    reached = accuracy(model, make_loader(test_set, device, args))
    print(f"test accuracy: {reached:.1%}")
    return 0 if is_enough(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
