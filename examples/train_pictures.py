"""Trains a small network on JPEG files with random augmentation, then compares ShmDataLoader with torch's DataLoader.

The pictures are crops of six photographs that come with scikit-learn and scikit-image, and the network learns to say
which photograph a crop is from. They are written to a temporary folder first; those for validation are cut from
another region of the photographs than those for training. Nothing is downloaded. Most of a batch's time goes into
decoding. So jpeg_crops.py decodes only the part of a file that is seen, and with ShmDataLoader it is written straight
into its batch. Run it with::

    pip install '.[examples]'
    python examples/train_pictures.py

or, for pictures of your own, with ``--data FOLDER``, where FOLDER has one folder of JPEG files for each class. With
``--worker-type thread`` the loader's workers are threads, which decode side by side as processes do.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import skimage.data
import torch
from comparison import Comparison, compare
from jpeg_crops import Box, Pixels, mirror, random_box, read_crop, whole
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from training import accuracy, argument_parser, make_repeatable, train

from shmloader import ShmDataLoader

# Width and height of what the network sees.
SIDE = 64

# Width and height of the files that are made, and how many of each photograph.
CROP_SIDE = 176
TRAINING_CROPS = 120
VALIDATION_CROPS = 40

# Crops for training are cut from this part of a photograph's width, those for validation from the rest.
TRAINING_WIDTH = 0.6

# Of a user's own pictures, one in so many is for validation.
HELD_OUT = 5

LabelledFile = tuple[Path, int]


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """Pictures that are read from JPEG files when they are asked for.

    Args:
        files: the files and the numbers of their classes.
        view: reads a file's picture, or a part of it, into an array of SIDE x SIDE pixels.
    """

    def __init__(self, files: list[LabelledFile], view: Callable[[Path, Pixels], None]) -> None:
        self._files = files
        self._view = view

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Returns a picture, shape (row, column, channel), and the number of its class. Any loader can use this."""
        path, label = self._files[index]
        picture = np.empty((SIDE, SIDE, 3), np.uint8)
        self._view(path, picture)
        return torch.from_numpy(picture), label

    def __getitem_into__(self, index: int, out: tuple[Pixels, NDArray[np.int64]]) -> None:
        """Writes the same straight into the batch: ``out`` is the picture's and the label's place in it."""
        path, label = self._files[index]
        self._view(path, out[0])
        out[1][...] = label


def plain_view(path: Path, out: Pixels) -> None:
    """Reads the whole picture."""
    read_crop(path, whole, out)


def random_view(path: Path, out: Pixels) -> None:
    """Reads a random part of the picture, a quarter of its area or more, perhaps mirrored.

    It draws from Python's generator, which the loader seeds differently in every worker.
    """
    read_crop(path, random_part, out)
    if random.random() < 0.5:
        mirror(out)


def random_part(width: int, height: int) -> Box:
    """Draws a part of a picture that says what it is of."""
    return random_box(width, height, area=(0.25, 1))


def photographs() -> dict[str, Image.Image]:
    """Returns photographs that are in the wheels of scikit-image and scikit-learn."""
    arrays = {name: getattr(skimage.data, name)() for name in ("astronaut", "cat", "coffee", "rocket")}
    arrays |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(array) for name, array in arrays.items()}


def make_pictures(folder: Path) -> None:
    """Writes crops of the photographs to ``folder/training`` and ``folder/validation``."""
    for name, photograph in photographs().items():
        border = int(photograph.width * TRAINING_WIDTH)
        left = photograph.crop((0, 0, border, photograph.height))
        right = photograph.crop((border, 0, photograph.width, photograph.height))
        write_crops(left, TRAINING_CROPS, folder / "training" / name)
        write_crops(right, VALIDATION_CROPS, folder / "validation" / name)


def write_crops(region: Image.Image, count: int, folder: Path) -> None:
    """Writes squares from random places of a region as JPEG files."""
    folder.mkdir(parents=True)
    for number in range(count):
        left = random.randint(0, region.width - CROP_SIDE)
        top = random.randint(0, region.height - CROP_SIDE)
        crop = region.crop((left, top, left + CROP_SIDE, top + CROP_SIDE))
        crop.save(folder / f"{number:03}.jpg", quality=90)


def list_pictures(folder: Path) -> list[LabelledFile]:
    """Returns the JPEG files in the folders of ``folder``, each of which is a class."""
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in (".jpg", ".jpeg"))
    names = sorted({file.parent.name for file in files})
    labels = {name: label for label, name in enumerate(names)}
    return [(file, labels[file.parent.name]) for file in files]


def hold_out(files: list[LabelledFile]) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Splits files into those for training and those for validation."""
    return [file for number, file in enumerate(files) if number % HELD_OUT], files[::HELD_OUT]


def find_pictures(data: Path | None, scratch: Path) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Returns files for training and for validation: from ``data``, or made in ``scratch``."""
    if data is not None:
        return hold_out(list_pictures(data))
    make_pictures(scratch)
    return list_pictures(scratch / "training"), list_pictures(scratch / "validation")


class BytesToFloats(nn.Module):
    """Turns bytes into numbers around zero. Batches are bytes until here, a quarter of the size of floats."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns the pictures with channels first and values from -1 to 1."""
        return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def make_model(classes: int) -> nn.Module:
    """Returns a network with four convolutions."""
    return nn.Sequential(
        BytesToFloats(),
        convolution(3, 16),
        convolution(16, 32),
        convolution(32, 64),
        convolution(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def convolution(inputs: int, outputs: int) -> nn.Module:
    """Returns a convolution that halves width and height, with what belongs to it."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
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


def make_loader(dataset: PictureDataset, args: argparse.Namespace) -> ShmDataLoader[Any]:
    """Returns the loader that this example is about."""
    return ShmDataLoader(
        dataset,
        **loader_settings(args),
        sample_shapes=((SIDE, SIDE, 3), ()),
        sample_dtypes=(torch.uint8, torch.int64),
        worker_type=args.worker_type,
    )


def train_and_validate(training: list[LabelledFile], validation: list[LabelledFile], args: argparse.Namespace) -> float:
    """Trains a new model and returns its accuracy on the validation pictures."""
    model = make_model(classes=1 + max(label for _, label in training))
    train(model, make_loader(PictureDataset(training, random_view), args), args.epochs)
    validation_set = PictureDataset(validation, plain_view)
    return accuracy(model, ShmDataLoader(validation_set, args.batch_size, num_workers=args.num_workers))


def compare_loaders(training: list[LabelledFile], args: argparse.Namespace) -> Comparison:
    """Loads the training pictures with torch's loader and with ours, see `comparison.compare`."""
    # Threads have no random numbers of their own, so that only pictures that are not changed are the same.
    dataset = PictureDataset(training, random_view if args.worker_type == "process" else plain_view)
    stock = DataLoader(dataset, **loader_settings(args))
    return compare(stock, make_loader(dataset, args), checked_passes=2, rounds=21, passes=1)


def run(args: argparse.Namespace, scratch: Path) -> int:
    """Runs the example with a folder to write pictures to; returns the exit code."""
    training, validation = find_pictures(args.data, scratch)
    if not training:
        print(f"{args.data} has no folders with at least two JPEG files.", file=sys.stderr)
        return 1

    reached = train_and_validate(training, validation, args)
    print(f"validation accuracy: {reached:.1%} after {args.epochs} epochs")
    if reached < args.min_accuracy:
        print(f"That is less than {args.min_accuracy:.0%}, see --min-accuracy.", file=sys.stderr)
        return 1

    comparison = compare_loaders(training, args)
    print(comparison.table())
    return 0 if comparison.difference is None else 1


def main() -> int:
    """Reads the command line and runs the example; returns the exit code."""
    parser = argument_parser("Trains a small network on JPEG files.", epochs=8)
    parser.add_argument("--data", type=Path, help="folder with one folder of JPEG files for each class")
    parser.add_argument("--worker-type", choices=("process", "thread"), default="process", help="what workers are")
    parser.add_argument("--min-accuracy", type=float, default=0.75, help="to reach less is an error")
    args = parser.parse_args()
    make_repeatable(args.seed)
    random.seed(args.seed)
    with TemporaryDirectory() as scratch:
        return run(args, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
