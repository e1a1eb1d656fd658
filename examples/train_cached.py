"""Trains a small network on JPEG files that are decoded once: decode, cache, augment.

What does not change from pass to pass, a decoded picture of one size, is kept by a CachedDataset: the worker that comes
to a picture first decodes it, and all workers have it from then on. What is random comes behind the cache. The time of
each epoch stands in the progress bar, and that of the first beside the later ones at the end. With ``--cache FILE`` the
pictures are kept in a file, and the next run decodes none. The pictures are those of train_pictures.py. Run it with::

    pip install '.[examples]'
    python examples/train_cached.py

or, for pictures of your own, with ``--data FOLDER``, where FOLDER has one folder of JPEG files for each class.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from train_pictures import SIDE, LabelledFile, PictureDataset, find_pictures, make_model, plain_view
from training import accuracy, argument_parser, make_repeatable, train_step

from shmloader import CachedDataset, ShmDataLoader

# Width and height of what is kept: more than the network sees, so that crops of it differ.
KEPT_SIDE = 160

Decoded = tuple[NDArray[np.uint8], int]


class DecodedPictures(Dataset[Decoded]):
    """Pictures that are decoded and brought to one size when they are asked for: what is worth to be kept.

    Args:
        files: the files and the numbers of their classes.
    """

    def __init__(self, files: list[LabelledFile]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Decoded:
        """Returns a picture, shape (row, column, channel), and the number of its class."""
        name, label = self._files[index]
        with Image.open(name) as picture:
            return np.asarray(picture.convert("RGB").resize((KEPT_SIDE, KEPT_SIDE), Image.Resampling.BILINEAR)), label


class RandomCrops(Dataset[tuple[Tensor, int]]):
    """Random crops of pictures, perhaps mirrored: what has to be done anew each time.

    Args:
        pictures: gives a picture, shape (row, column, channel), and the number of its class.
    """

    def __init__(self, pictures: CachedDataset) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Returns a crop, shape (row, column, channel), and the number of its class."""
        picture, label = self._pictures[index]
        top, left, is_mirrored = torch.randint(KEPT_SIDE - 2 * SIDE + 1, (3,)).tolist()
        crop = picture[top : top + 2 * SIDE : 2, left : left + 2 * SIDE : 2]
        return torch.from_numpy((crop[:, ::-1] if is_mirrored % 2 else crop).copy()), label


def train_epochs(model: torch.nn.Module, loader: ShmDataLoader[Any], epochs: int) -> list[float]:
    """Trains a classifier, with a progress bar; returns the seconds of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    took: list[float] = []
    with tqdm(total=epochs * len(loader), desc="training", unit="batch") as bar:
        for _ in range(epochs):
            start = time.perf_counter()
            for inputs, labels in loader:
                train_step(model, optimizer, inputs, labels)
                bar.update()
            took.append(time.perf_counter() - start)
            bar.set_postfix_str(f"first epoch {took[0]:.2f} s, last {took[-1]:.2f} s")
    return took


def report(took: Sequence[float], cached: CachedDataset) -> str:
    """Returns what the epochs took, and what the cache has done."""
    found = cached.statistics()
    later = min(took[1:], default=float("nan"))
    return (
        f"first epoch: {took[0]:.2f} s, the quickest later one: {later:.2f} s\n"
        f"{found.samples} of {found.length} pictures are kept, in {found.bytes / 1e6:.1f} MB; "
        f"{found.misses} were decoded, {found.hits} came from the cache"
    )


def run(args: argparse.Namespace, scratch: Path) -> int:
    """Runs the example with a folder to write pictures to; returns the exit code."""
    training, validation = find_pictures(args.data, scratch)
    if not training:
        print(f"{args.data} has no folders with at least two JPEG files.", file=sys.stderr)
        return 1
    # A file is refused where anything of this is another than in the run that made it.
    fingerprint = f"side {KEPT_SIDE}, data {args.data}, seed {args.seed}"
    cached = CachedDataset(DecodedPictures(training), path=args.cache, fingerprint=fingerprint)
    loader = ShmDataLoader(RandomCrops(cached), args.batch_size, shuffle=True, num_workers=args.num_workers)
    model = make_model(classes=1 + max(label for _, label in training))
    print(report(train_epochs(model, loader, args.epochs), cached))
    validation_set = PictureDataset(validation, plain_view)
    reached = accuracy(model, ShmDataLoader(validation_set, args.batch_size, num_workers=args.num_workers))
    print(f"validation accuracy: {reached:.1%} after {args.epochs} epochs")
    return 0


def main() -> int:
    """Reads the command line and runs the example; returns the exit code."""
    parser = argument_parser("Trains a small network on JPEG files that are decoded once.", epochs=8)
    parser.add_argument("--data", type=Path, help="folder with one folder of JPEG files for each class")
    parser.add_argument("--cache", type=Path, help="file to keep the decoded pictures in; default: shared memory")
    args = parser.parse_args()
    make_repeatable(args.seed)
    with TemporaryDirectory() as scratch:
        return run(args, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
