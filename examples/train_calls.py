"""Trains a small network on batches that a JobQueue makes by calling one function again and again.

The pictures are photographs that come with scikit-image, and the network learns to say which of them a crop is from.
There is no dataset and no index: a call of ``random_batch`` cuts random crops, changes them and returns a batch.
``repeat`` keeps calls of it under way while the network trains; ``map`` then calls ``crops_at`` for validation, on a
grid of places. Run it with::

    pip install '.[examples]'
    python examples/train_calls.py
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shmloader import JobQueue

SIDE = 32
BATCH_SIZE = 64
NAMES = ("astronaut", "cat", "coffee", "rocket")

# Crops for training are cut from this part of a photograph's width, those for validation from the rest.
TRAINING_WIDTH = 0.6

# Forked workers have these as they are here: nothing is sent or copied.
PICTURES: list[NDArray[np.uint8]] = [getattr(skimage.data, name)() for name in NAMES]


def random_batch() -> dict[str, Tensor]:
    """Returns crops, (crop, channel, row, column) and bytes, and the numbers of their photographs. Runs in workers.

    It draws from NumPy's generator, which is seeded differently in every worker.
    """
    labels = np.random.randint(len(PICTURES), size=BATCH_SIZE)
    crops = np.stack([random_crop(PICTURES[label]) for label in labels])
    return {"crops": torch.from_numpy(crops), "labels": torch.from_numpy(labels)}


def random_crop(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns a crop of the left part of a picture, perhaps mirrored, and brighter or darker."""
    width = int(TRAINING_WIDTH * picture.shape[1])
    top, left = np.random.randint(picture.shape[0] - SIDE), np.random.randint(width - SIDE)
    crop = picture[top : top + SIDE, left : left + SIDE] * np.random.uniform(0.8, 1.2)
    if np.random.rand() < 0.5:
        crop = crop[:, ::-1]
    pixels: NDArray[np.uint8] = np.clip(crop, 0, 255).astype(np.uint8)
    return pixels.transpose(2, 0, 1)


def crops_at(label: int, top: int) -> dict[str, Tensor]:
    """Returns a row of crops of the right part of a picture; rows differ in length. Runs in workers."""
    picture = PICTURES[label]
    lefts = range(int(TRAINING_WIDTH * picture.shape[1]), picture.shape[1] - SIDE, SIDE // 2)
    crops = np.stack([picture[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1) for left in lefts])
    return {"crops": torch.from_numpy(crops), "labels": torch.full((len(crops),), label)}


def network() -> nn.Module:
    """Returns a network that takes crops as they come."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, len(NAMES)),
    )


def main() -> None:
    """Trains, and says how well that went and how fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--num-workers", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with JobQueue(random_batch, num_workers=args.num_workers) as batches:
        start = time.perf_counter()
        for batch in itertools.islice(batches.repeat(), args.steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch["crops"].float() / 255), batch["labels"])
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - start
    print(f"{args.steps} steps, {args.steps * BATCH_SIZE / seconds:.0f} crops/s, last loss {loss.item():.2f}")
    right = count = 0
    places = [
        (label, top) for label, picture in enumerate(PICTURES) for top in range(0, picture.shape[0] - SIDE, SIDE // 2)
    ]
    with JobQueue(crops_at, num_workers=args.num_workers) as rows, torch.inference_mode():
        for row in rows.map(places):
            right += int((model(row["crops"].float() / 255).argmax(1) == row["labels"]).sum())
            count += len(row["labels"])
    print(f"{right / count:.1%} of {count} crops of the other part of the photographs are recognised")


if __name__ == "__main__":
    main()
