"""What the examples have in common: the command line, and a training loop that does not know which loader it has."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

MAX_LEARNING_RATE = 3e-3
NEEDED_ACCURACY = 0.95


def argument_parser(description: str, epochs: int) -> argparse.ArgumentParser:
    """Returns a parser of the options that all examples have; ``epochs`` is a default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=positive, default=epochs, help="passes over the training data")
    parser.add_argument("--batch-size", type=positive, default=32, help="samples in a batch")
    parser.add_argument("--num-workers", type=positive, default=2, help="workers of each loader")
    parser.add_argument("--seed", type=int, default=0, help="where all random numbers start from")
    return parser


def make_repeatable(seed: int) -> None:
    """Seeds torch's generator, and keeps torch to one thread in this process."""
    torch.manual_seed(seed)
    # Several threads may add numbers in another order each time. They would not be faster either: there is too little
    # to share in networks as small as these, and the workers need the processors.
    torch.set_num_threads(1)


def positive(text: str) -> int:
    """Reads a number of which there must be at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def train(model: nn.Module, loader: DataLoader[Any], epochs: int) -> None:
    """Trains a classifier on batches of inputs and labels, with a progress bar."""
    steps = epochs * len(loader)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LEARNING_RATE, total_steps=steps)
    model.train()
    with tqdm(total=steps, desc="training", unit="batch") as bar:
        for epoch in range(1, epochs + 1):
            total_loss = 0.0
            for inputs, labels in loader:
                total_loss += train_step(model, optimizer, inputs, labels)
                schedule.step()
                bar.update()
            bar.set_postfix(epoch=epoch, mean_loss=f"{total_loss / len(loader):.3f}")


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> float:
    """Improves the model by one batch, and returns the loss."""
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Returns the fraction of samples that the model labels correctly."""
    model.eval()
    right = total = 0
    for inputs, labels in loader:
        right += int((model(inputs).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def is_enough(reached: float) -> bool:
    """Whether an accuracy is what a network should reach on the digits; says so where it is less."""
    if reached < NEEDED_ACCURACY:
        print(f"That is less than {NEEDED_ACCURACY:.0%}, which this network should reach.", file=sys.stderr)
    return reached >= NEEDED_ACCURACY
