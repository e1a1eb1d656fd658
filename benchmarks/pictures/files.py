"""JPEG files to read: made from photographs that come with scikit-image and scikit-learn, or a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Width and height of the files, as often as they occur; qualities from here to there; and the share of files whose
# colours have half the resolution, which most cameras and programs write.
_SIZES = ((500, 375), (500, 375), (500, 375), (500, 333), (375, 500))
_QUALITIES = (75, 96)
_HALF_COLOURS = 0.85

# The least part of a photograph's width that is in a file.
_LEAST = 0.6

LabelledFile = tuple[str, int]


def make_files(folder: Path, count: int) -> list[LabelledFile]:
    """Writes JPEG files, each another part of a photograph, and returns them with the photographs' numbers.

    The same files each time. Takes about five seconds for a thousand.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(array) for array in _photographs()]
    found = []
    for number in range(count):
        label = number % len(photographs)
        photograph = photographs[label]
        size = _SIZES[rng.integers(len(_SIZES))]
        shrunk = min(photograph.width / size[0], photograph.height / size[1]) * rng.uniform(_LEAST, 1)
        width, height = shrunk * size[0], shrunk * size[1]
        left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
        picture = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        path = folder / f"{number:06}.jpg"
        subsampling = "4:2:0" if rng.random() < _HALF_COLOURS else "4:4:4"
        picture.save(path, quality=int(rng.integers(*_QUALITIES)), subsampling=subsampling)
        found.append((str(path), label))
    return found


def _photographs() -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    import skimage.data
    from sklearn.datasets import load_sample_image

    ours = [getattr(skimage.data, name)() for name in ("astronaut", "cat", "coffee", "rocket")]
    return ours + [load_sample_image(f"{name}.jpg") for name in ("china", "flower")]


def find_files(folder: Path) -> list[LabelledFile]:
    """Returns the JPEG files in and below a folder, labelled by the folders that they are in."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    labels = {parent: label for label, parent in enumerate(sorted({path.parent for path in paths}))}
    return [(str(path), labels[path.parent]) for path in paths]


def nbytes(files: Sequence[LabelledFile]) -> int:
    """Returns the size of all files together."""
    return sum(Path(path).stat().st_size for path, _ in files)
