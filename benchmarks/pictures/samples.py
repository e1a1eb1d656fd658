"""The same parts of the same pictures, for whoever reads them, and how far two readings are apart."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np

from .files import LabelledFile
from .ideas import SIDE, Box, Choose, Pixels, Read
from .recipe import jpeg_crops


def part_of(number: int) -> Choose:
    """Returns what draws a part, the same for a picture of the same number and size."""
    return functools.partial(_part, number)


@functools.cache  # drawn once, so that drawing is not in what is measured
def _part(number: int, width: int, height: int) -> Box:
    random.seed(number)
    box: Box = jpeg_crops.random_box(width, height)
    return box


def difference(read: Read, reference: Read, files: Sequence[LabelledFile]) -> float:
    """Returns the mean difference between the pixels that two ways to read give, in levels of 255."""
    found = []
    for number, (path, _) in enumerate(files):
        ours, theirs = (read_part(one, path, number) for one in (read, reference))
        found.append(np.abs(ours.astype(np.int16) - theirs).mean())
    return float(np.mean(found))


def read_part(read: Read, path: str, number: int) -> Pixels:
    """Returns the part of a picture that belongs to a number."""
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    read(path, part_of(number), out)
    return out
