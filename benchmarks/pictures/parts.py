"""Parts of pictures by TurboJPEG, in the recipe's way and in others, beside which it was chosen."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recipe import jpeg_crops

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, width, height
Choose = Callable[[int, int], Box]

_SUBSAMPLING, _FAST_DCT = 4, 10  # parameters of a decoder
_EIGHTHS = (4, 5, 6, 7)


class Parts:
    """Each method decodes a file and returns the pixels of a part of it, which the next call overwrites.

    Args:
        side: how many pixels the part is going to have each way.
        fast: whether the inverse transform is the quick one.
    """

    def __init__(self, side: int, *, fast: bool = False) -> None:
        library: Any = jpeg_crops.find_turbojpeg()
        pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
        library.tj3Set.argtypes = [pointer, number, number]
        library.tj3DecompressToYUVPlanes8.argtypes = [pointer, ctypes.c_char_p, size, pointer, pointer]
        self._side = side
        self._library = library
        self._decoder = jpeg_crops.TurboJpeg(library)
        self._planes = [np.empty(1 << 22, np.uint8) for _ in range(3)]
        library.tj3Set(self._decoder.handle, _FAST_DCT, int(fast))

    def part(self, data: bytes, choose: Choose) -> Pixels:
        """Decodes the rows and columns of the part: the recipe's way."""
        return self._decoded(data, choose(*self._size(data)))

    def rows(self, data: bytes, choose: Choose) -> Pixels:
        """Decodes all columns of the rows of the part."""
        width, height = self._size(data)
        left, top, across, down = choose(width, height)
        return self._decoded(data, (0, top, width, down))[:, left : left + across]

    def whole(self, data: bytes, choose: Choose) -> Pixels:
        """Decodes the whole picture."""
        width, height = self._size(data)
        left, top, across, down = choose(width, height)
        return self._decoded(data, (0, 0, width, height))[top : top + down, left : left + across]

    def in_eighths(self, data: bytes, choose: Choose) -> Pixels:
        """Decodes the part at the least number of eighths of its size that is enough."""
        box = choose(*self._size(data))
        return self._decoded(data, box, next((n for n in _EIGHTHS if min(box[2:]) * n >= 8 * self._side), 8))

    def planes(self, data: bytes, choose: Choose) -> Pixels:
        """Decodes the planes of brightness and colour, whole, as they are in the file; resizes, and then converts."""
        import cv2

        width, height = self._size(data)
        left, top, across, down = choose(width, height)
        resized = []
        for plane in self._all_planes(data, width, height):
            x, y = plane.shape[1] / width, plane.shape[0] / height
            right, bottom = round((left + across) * x), round((top + down) * y)
            part = plane[round(top * y) : max(bottom, round(top * y) + 1), round(left * x) : right]
            resized.append(cv2.resize(part, (self._side, self._side), interpolation=cv2.INTER_LINEAR))
        brightness, blue, red = resized
        return np.asarray(cv2.cvtColor(cv2.merge([brightness, red, blue]), cv2.COLOR_YCrCb2RGB), np.uint8)

    def _all_planes(self, data: bytes, width: int, height: int) -> list[Pixels]:
        kind = self._library.tj3Get(self._decoder.handle, _SUBSAMPLING)
        pointers = (ctypes.c_void_p * 3)(*(plane.ctypes.data for plane in self._planes))
        if self._library.tj3DecompressToYUVPlanes8(self._decoder.handle, data, len(data), pointers, None):
            raise ValueError("the picture is damaged")
        across = [self._library.tj3YUVPlaneWidth(number, width, kind) for number in range(3)]
        down = [self._library.tj3YUVPlaneHeight(number, height, kind) for number in range(3)]
        found = zip(self._planes, across, down, strict=True)
        return [plane[: columns * rows].reshape(rows, columns) for plane, columns, rows in found]

    def _size(self, data: bytes) -> tuple[int, int]:
        size = self._decoder.size(data)
        if size is None:
            raise ValueError("this is no JPEG file")
        return size

    def _decoded(self, data: bytes, box: Box, eighths: int = 8) -> Pixels:
        part = self._decoder.decode(data, box, eighths)
        if part is None:
            raise ValueError("the picture is damaged")
        return part
