"""The datasets of the contest: one random view of each file, as torch's loader, Grain and ours read it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from shmloader import CachedDataset

from .files import LabelledFile
from .ideas import SIDE, Pixels, Read
from .recipe import jpeg_crops

Sample = tuple[NDArray[np.uint8], int]


class Views(Dataset[Sample]):
    """Random crops of pictures, half of them mirrored: shape (row, column, channel), and the label.

    Args:
        files: what is read.
        read: reads a part of a file.
    """

    def __init__(self, files: Sequence[LabelledFile], read: Read) -> None:
        self._files = files
        self._read = read

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        out = np.empty((SIDE, SIDE, 3), np.uint8)
        return out, self.view(index, out)

    def view(self, index: int, out: Pixels) -> int:
        """Fills ``out`` with a view, and returns its label."""
        path, label = self._files[index]
        self._read(path, jpeg_crops.random_box, out)
        if random.random() < 0.5:
            jpeg_crops.mirror(out)
        return label


class WrittenViews(Views):
    """The same, written into the batch."""

    def __getitem_into__(self, index: int, out: tuple[Pixels, NDArray[np.int64]]) -> None:
        out[1][...] = self.view(index, out[0])


class Decoded(Dataset[Sample]):
    """Whole pictures, and their labels.

    Args:
        files: what is read.
    """

    def __init__(self, files: Sequence[LabelledFile]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        from PIL import Image

        path, label = self._files[index]
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB")), label


class CachedViews(Dataset[Sample]):
    """Random crops of pictures that a cache has.

    Args:
        pictures: whole pictures, and their labels.
    """

    def __init__(self, pictures: CachedDataset) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        out = np.empty((SIDE, SIDE, 3), np.uint8)
        return out, self._view(index, out)

    def __getitem_into__(self, index: int, out: tuple[Pixels, NDArray[np.int64]]) -> None:
        out[1][...] = self._view(index, out[0])

    def _view(self, index: int, out: Pixels) -> int:
        import cv2

        picture, label = self._pictures[index]
        left, top, width, height = jpeg_crops.random_box(picture.shape[1], picture.shape[0])
        part = picture[top : top + height, left : left + width]
        cv2.resize(part, (SIDE, SIDE), dst=out, interpolation=cv2.INTER_LINEAR)
        if random.random() < 0.5:
            jpeg_crops.mirror(out)
        return int(label)


class EndlessShuffle(torch.utils.data.Sampler[int]):
    """Indices in a random order, pass after pass without a border, as a training loop reads that counts steps.

    Args:
        length: of the dataset.
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def __iter__(self) -> Any:
        while True:
            yield from torch.randperm(self._length).tolist()
