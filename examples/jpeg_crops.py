"""Reads a part of a JPEG file straight into an array, decoding no more of it than it must: to copy.

A training picture is seldom the whole file: a random crop of it is brought to one size. Most programs decode all of the
file first. TurboJPEG 3 decodes only the rows and columns of the crop, and at a half, a quarter or an eighth of the size
where that is enough. It is in the wheel ``turbojpeg``, and the resizing in ``opencv-python-headless``. Where the first
is missing, OpenCV decodes the whole file; where both are, Pillow does it all::

    pip install turbojpeg opencv-python-headless

What TurboJPEG does not take (a damaged file, colours for printing, another format) is left to Pillow, which reads it or
says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import math
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    cv2: Any = importlib.import_module("cv2")
except ImportError:
    cv2 = None
else:
    cv2.setNumThreads(0)  # the loader's workers are side by side already

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, width, height


def random_box(
    width: int, height: int, area: tuple[float, float] = (0.08, 1), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Box:
    """Draws a part of a picture as torchvision's RandomResizedCrop does.

    It draws from Python's generator, which loaders seed differently in every worker process.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        area: the least and the greatest share of the picture's area.
        ratio: the least and the greatest width over height.
    """
    for _ in range(10):
        pixels = width * height * random.uniform(*area)
        shape = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        across, down = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < across <= width and 0 < down <= height:
            return random.randint(0, width - across), random.randint(0, height - down), across, down
    across = min(width, max(1, round(height * ratio[1])))  # a picture that is much longer one way: its middle
    down = min(height, max(1, round(width / ratio[0])))
    return (width - across) // 2, (height - down) // 2, across, down


def whole(width: int, height: int) -> Box:
    """Returns a box around all of a picture."""
    return 0, 0, width, height


def mirror(picture: Pixels) -> None:
    """Swaps left and right, in place."""
    if cv2 is not None:
        cv2.flip(picture, 1, dst=picture)
    else:
        picture[:] = picture[:, ::-1].copy()


def read_crop(path: str | Path, choose: Callable[[int, int], Box], out: Pixels) -> None:
    """Reads a part of a picture, brought to the size of ``out``, into it. May be called by several threads.

    Args:
        path: a JPEG file, or any that Pillow reads.
        choose: returns the part for a picture's width and height. It is called once.
        out: shape (row, column, 3): red, green and blue. A row of a batch's slot, for one.

    Raises:
        OSError: there is no such file, or it is no picture, or a damaged one.
    """
    data = Path(path).read_bytes()
    once = functools.cache(choose)  # whoever is asked next gets the same part
    for read in _READERS:
        if read(data, once, out):
            return
    _read_with_pillow(path, once, out)


def _read_with_turbojpeg(data: bytes, choose: Callable[[int, int], Box], out: Pixels) -> bool:
    decoder = _decoders.turbojpeg
    size = decoder.size(data)
    if size is None:
        return False
    box = choose(*size)
    eighths = next((eighths for eighths in (1, 2, 4) if _is_enough(box, eighths, out)), 8)
    part = decoder.decode(data, box, eighths)
    if part is None:
        return False
    cv2.resize(part, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    return True


def _is_enough(box: Box, eighths: int, out: Pixels) -> bool:
    """Whether a part has as many pixels as ``out`` when it is decoded at so many eighths of its size."""
    return bool(box[2] * eighths >= 8 * out.shape[1] and box[3] * eighths >= 8 * out.shape[0])


def _read_with_opencv(data: bytes, choose: Callable[[int, int], Box], out: Pixels) -> bool:
    if not data:
        return False
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        return False
    left, top, width, height = choose(picture.shape[1], picture.shape[0])
    part = picture[top : top + height, left : left + width]
    cv2.resize(part, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    return True


def _read_with_pillow(path: str | Path, choose: Callable[[int, int], Box], out: Pixels) -> None:
    with Image.open(path) as picture:
        left, top, width, height = choose(*picture.size)
        box = (left, top, left + width, top + height)
        out[:] = np.asarray(picture.convert("RGB").resize(out.shape[1::-1], Image.Resampling.BILINEAR, box))


# -- TurboJPEG 3, by ctypes: calls without Python's interpreter lock ---------------------------------------------------


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Scale(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("num", "denom")]


_DECOMPRESS, _RGB = 1, 0
_SUBSAMPLING, _WIDTH, _HEIGHT = 4, 5, 6  # parameters of a decoder

# Columns are decoded in blocks, whose width depends on how the colours of a file are sampled: 4:4:4, 4:2:2, 4:2:0,
# grey, 4:4:0, 4:1:1 and 4:4:1, by TurboJPEG's numbers for them.
_BLOCK_WIDTHS = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}


class TurboJpeg:
    """A decoder, and the memory that it decodes to. Not for several threads at a time.

    Colours are upsampled the accurate way. With the fast one, some versions write beyond the end of a part.

    Args:
        library: TurboJPEG 3, see `find_turbojpeg`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.handle = ctypes.c_void_p(library.tj3Init(_DECOMPRESS))
        self._pixels = np.empty(0, np.uint8)

    def __del__(self) -> None:
        self.library.tj3Destroy(self.handle)

    def size(self, data: bytes) -> tuple[int, int] | None:
        """Returns a picture's width and height in pixels; None if this is no JPEG file that can be decoded."""
        get = functools.partial(self.library.tj3Get, self.handle)
        failed = self.library.tj3DecompressHeader(self.handle, data, len(data))
        if failed or get(_SUBSAMPLING) not in _BLOCK_WIDTHS:
            return None
        return get(_WIDTH), get(_HEIGHT)

    def decode(self, data: bytes, box: Box, eighths: int = 8) -> Pixels | None:
        """Returns a part of the picture whose `size` was asked last; None if it is damaged.

        Args:
            data: the file.
            box: the part.
            eighths: of its size, from 1 to 8. 1, 2 and 4 are quicker than 8; the others are slower.

        Returns:
            Shape (row, column, 3). It is overwritten by the next call.
        """
        left, top = box[0] * eighths // 8, box[1] * eighths // 8
        right, bottom = _scaled(box[0] + box[2], eighths), _scaled(box[1] + box[3], eighths)
        block = _scaled(_BLOCK_WIDTHS[self.library.tj3Get(self.handle, _SUBSAMPLING)], eighths)
        start = left // block * block
        width, height = right - start, bottom - top
        if self._pixels.size < 3 * width * height:
            self._pixels = np.empty(3 * width * height, np.uint8)
        common = math.gcd(eighths, 8)  # 4/8 is refused, and 1/2 is not
        failed = (
            self.library.tj3SetScalingFactor(self.handle, _Scale(eighths // common, 8 // common))
            or self.library.tj3SetCroppingRegion(self.handle, _Region(start, top, width, height))
            or self.library.tj3Decompress8(self.handle, data, len(data), self._pixels.ctypes.data, 0, _RGB)
        )
        if failed:
            return None
        return self._pixels[: 3 * width * height].reshape(height, width, 3)[:, left - start :]


def _scaled(length: int, eighths: int) -> int:
    return -(-length * eighths // 8)


def find_turbojpeg() -> ctypes.CDLL | None:
    """Returns TurboJPEG 3, of the wheel ``turbojpeg`` or of the system; None where neither has it."""
    for name in (*_in_wheel(), "libturbojpeg.so.0"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            if hasattr(library, "tj3SetCroppingRegion"):
                _declare(library)
                return library
    return None


def _declare(library: Any) -> None:
    """Tells ctypes of pointers, which it would cut to the size of numbers."""
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    library.tj3Init.restype = pointer
    library.tj3Destroy.argtypes = [pointer]
    library.tj3Get.argtypes = [pointer, number]
    library.tj3DecompressHeader.argtypes = [pointer, ctypes.c_char_p, size]
    library.tj3SetScalingFactor.argtypes = [pointer, _Scale]
    library.tj3SetCroppingRegion.argtypes = [pointer, _Region]
    library.tj3Decompress8.argtypes = [pointer, ctypes.c_char_p, size, pointer, number, number]


def _in_wheel() -> Iterator[str]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("turbojpeg") or ():
            if file.name.startswith("libturbojpeg"):
                yield str(file.locate())


class _Decoders(threading.local):
    """What each thread has of its own."""

    @functools.cached_property
    def turbojpeg(self) -> TurboJpeg:
        assert _library is not None
        return TurboJpeg(_library)


_library = find_turbojpeg()
_decoders = _Decoders()
_READERS: list[Callable[[bytes, Callable[[int, int], Box], Pixels], bool]] = []
if cv2 is not None:
    _READERS = [_read_with_opencv if _library is None else _read_with_turbojpeg]
