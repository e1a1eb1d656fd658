"""Ways to read a part of a picture: decoders, and what of the work each of them leaves out.

All read the same files and fill the same kind of array, `SIDE` x `SIDE` pixels, with the same parts of them, without
the means to draw a part that a loader has: whoever calls them says which.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recipe import jpeg_crops

SIDE = 224

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, width, height
Choose = Callable[[int, int], Box]
Read = Callable[[str, Choose, Pixels], None]


@dataclass(frozen=True)
class Idea:
    """A way to read a part of a picture.

    Attributes:
        name: what it is.
        make: returns it. Called where ``needed`` can be imported.
        needed: modules; and "turbojpeg" for TurboJPEG 3, wherever that is found.
    """

    name: str
    make: Callable[[], Read]
    needed: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether all that it needs is there."""
        return all(map(is_there, self.needed))


def is_there(module: str) -> bool:
    """Whether a module, or TurboJPEG 3, is installed."""
    if module == "turbojpeg":  # another package has a module of this name
        return jpeg_crops.find_turbojpeg() is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


# -- Pillow ----------------------------------------------------------------------------------------------------------


def pillow(draft: str = "", gap: float | None = None) -> Read:
    """Returns what decodes all by Pillow, as most programs do."""
    from PIL import Image

    def read(path: str, choose: Choose, out: Pixels) -> None:
        with Image.open(path) as picture:
            left, top, width, height = choose(*picture.size)
            if draft:
                picture.draft(draft, picture.size)
            decoded = picture if draft else picture.convert("RGB")
            box = (left, top, left + width, top + height)
            part = decoded.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box, gap)
            out[:] = np.asarray(part.convert("RGB"))

    return read


# -- decoders of whole pictures; OpenCV resizes ----------------------------------------------------------------------


def _whole(decode: Callable[[bytes], Pixels], interpolation: str = "INTER_LINEAR") -> Read:
    import cv2

    how = getattr(cv2, interpolation)

    def read(path: str, choose: Choose, out: Pixels) -> None:
        picture = decode(Path(path).read_bytes())
        left, top, width, height = choose(picture.shape[1], picture.shape[0])
        cv2.resize(picture[top : top + height, left : left + width], (SIDE, SIDE), dst=out, interpolation=how)

    return read


def opencv(interpolation: str = "INTER_LINEAR") -> Read:
    """Returns what decodes all by OpenCV."""
    import cv2

    def decode(data: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)

    return _whole(decode, interpolation)


def simplejpeg(*, fast: bool = False) -> Read:
    """Returns what decodes all by libjpeg-turbo, in the wheel simplejpeg."""
    from simplejpeg import decode_jpeg

    kept = np.empty(1 << 24, np.uint8)
    return _whole(lambda data: decode_jpeg(data, "RGB", fast, fast, buffer=kept))


def _imagecodecs() -> Read:
    import imagecodecs

    return _whole(imagecodecs.jpeg8_decode)


def _kornia() -> Read:
    from kornia_rs.io import decode_image_jpeg

    return _whole(lambda data: np.asarray(decode_image_jpeg(data)))


def _vips() -> Read:
    os.environ["VIPS_CONCURRENCY"] = "1"
    import cv2
    import pyvips

    def read(path: str, choose: Choose, out: Pixels) -> None:
        picture = pyvips.Image.new_from_file(path, access="sequential")
        part = picture.crop(*choose(picture.width, picture.height)).numpy()
        cv2.resize(part, (SIDE, SIDE), dst=out, interpolation=cv2.INTER_LINEAR)

    return read


# -- TurboJPEG -------------------------------------------------------------------------------------------------------


def _turbo(
    how: str, *, fast: bool = False, interpolation: str = "INTER_LINEAR", load: Callable[[str], Any] | None = None
) -> Read:
    import cv2

    from .parts import Parts

    decode = getattr(Parts(SIDE, fast=fast), how)
    flag = getattr(cv2, interpolation)
    read_bytes = load or _bytes

    def read(path: str, choose: Choose, out: Pixels) -> None:
        cv2.resize(decode(read_bytes(path), choose), (SIDE, SIDE), dst=out, interpolation=flag)

    return read


def _bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _with_advice(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        return os.read(file, os.fstat(file).st_size)
    finally:
        os.close(file)


def _recipe() -> Read:
    return jpeg_crops.read_crop


# The first is what the others are compared with. TurboJPEG's fast upsampling is not among them: together with a region
# it fails or writes beyond the pixels, in the version of the wheel.
IDEAS = (
    Idea("Pillow: all, then crop and resize", pillow, ("PIL",)),
    Idea("Pillow: all as YCbCr, converted when small", lambda: pillow(draft="YCbCr"), ("PIL",)),
    Idea("Pillow: resize with reducing_gap=1", lambda: pillow(gap=1.0), ("PIL",)),
    Idea("libvips: sequential, cropped", _vips, ("pyvips", "cv2")),
    Idea("kornia-rs: all", _kornia, ("kornia_rs", "cv2")),
    Idea("imagecodecs: all", _imagecodecs, ("imagecodecs", "cv2")),
    Idea("OpenCV: all", opencv, ("cv2",)),
    Idea("OpenCV: all, resized by area", lambda: opencv("INTER_AREA"), ("cv2",)),
    Idea("simplejpeg: all", simplejpeg, ("simplejpeg", "cv2")),
    Idea("simplejpeg: all, fast transform and upsampling", lambda: simplejpeg(fast=True), ("simplejpeg", "cv2")),
    Idea("TurboJPEG: all", lambda: _turbo("whole"), ("turbojpeg", "cv2")),
    Idea("TurboJPEG: planes, converted when small", lambda: _turbo("planes"), ("turbojpeg", "cv2")),
    Idea("TurboJPEG: rows of the part", lambda: _turbo("rows"), ("turbojpeg", "cv2")),
    Idea("TurboJPEG: rows and columns of the part", lambda: _turbo("part"), ("turbojpeg", "cv2")),
    Idea("the same, fast transform", lambda: _turbo("part", fast=True), ("turbojpeg", "cv2")),
    Idea("the same, at 4, 5, 6 or 7 eighths", lambda: _turbo("in_eighths"), ("turbojpeg", "cv2")),
    Idea("the same, resized by area", lambda: _turbo("part", interpolation="INTER_AREA"), ("turbojpeg", "cv2")),
    Idea("the same, the file announced first", lambda: _turbo("part", load=_with_advice), ("turbojpeg", "cv2")),
    Idea("the recipe", _recipe, ("PIL",)),
)
