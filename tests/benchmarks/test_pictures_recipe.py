"""The decoder of `examples/jpeg_crops.py`: Pillow's parts, of any picture, part and size, and no byte beside them."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from benchmarks.pictures import recipe
from benchmarks.pictures.samples import part_of

jpeg_crops: Any = recipe.jpeg_crops

GUARD = 77


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A smooth picture: where decoders round otherwise, by an offset of a part of a pixel even, it shows little."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize(
        (400, 300), Image.Resampling.BICUBIC
    )


@pytest.fixture(params=["turbojpeg", "opencv", "pillow"])
def _reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads with one of the three decoders that the recipe knows."""
    readers: dict[str, list[Any]] = {"pillow": []}
    if jpeg_crops.cv2 is not None:
        readers["opencv"] = [jpeg_crops._read_with_opencv]
        if jpeg_crops.find_turbojpeg() is not None:
            readers["turbojpeg"] = [jpeg_crops._read_with_turbojpeg]
    if request.param not in readers:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(jpeg_crops, "_READERS", readers[request.param])


def written(picture: Image.Image, rng: random.Random) -> bytes:
    file = io.BytesIO()
    picture.save(
        file,
        "JPEG",
        quality=rng.randint(80, 97),
        subsampling=rng.randrange(3),
        progressive=rng.random() < 0.2,
        restart_marker_rows=rng.choice([0, 0, 1]),
    )
    return file.getvalue()


def some_part(rng: random.Random, width: int, height: int) -> tuple[int, int, int, int]:
    left, top = rng.randrange(width), rng.randrange(height)
    return left, top, rng.randint(1, width - left), rng.randint(1, height - top)


def pillows(path: Path, box: tuple[int, int, int, int], side: int) -> np.ndarray[Any, Any]:
    out = np.empty((side, side, 3), np.uint8)
    jpeg_crops._read_with_pillow(path, lambda width, height: box, out)
    return out


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_parts_are_pillows(mode: str, tmp_path: Path, photograph: Image.Image) -> None:
    path, rng = tmp_path / "picture.jpg", random.Random(mode)
    for number in range(60):
        size = rng.randint(1, photograph.width), rng.randint(1, photograph.height)
        path.write_bytes(written(photograph.crop((0, 0, *size)).convert(mode), rng))
        box = jpeg_crops.random_box(*size) if number % 2 else some_part(rng, *size)
        side = rng.choice([24, 100, 224])
        out = np.full((side + 2, side, 3), GUARD, np.uint8)
        jpeg_crops.read_crop(path, lambda width, height, box=box: box, out[1:-1])
        assert (out[[0, -1]] == GUARD).all()
        # Pillow blurs what it makes smaller, and OpenCV does not: the mean over the part is near.
        assert np.abs(out[1:-1].mean((0, 1)) - pillows(path, box, side).mean((0, 1))).max() < 6


@pytest.mark.skipif(jpeg_crops.find_turbojpeg() is None, reason="turbojpeg is not installed")
def test_parts_are_cut_from_the_whole(photograph: Image.Image) -> None:
    decoder, rng = jpeg_crops.TurboJpeg(jpeg_crops.find_turbojpeg()), random.Random(0)
    for _ in range(200):
        size = rng.randint(1, photograph.width), rng.randint(1, photograph.height)
        data = written(photograph.crop((0, 0, *size)), rng)
        left, top, width, height = some_part(rng, *size)
        eighths = rng.choice([1, 2, 4, 8, rng.randint(1, 8)])
        assert decoder.size(data) == size
        decoder._pixels = np.full(3 * 410 * 310, GUARD, np.uint8)
        whole = decoder.decode(data, (0, 0, *size), eighths).copy()
        assert (decoder._pixels[whole.size :] == GUARD).all()
        part = decoder.decode(data, (left, top, width, height), eighths)
        start, first = left * eighths // 8, top * eighths // 8
        stop, last = -(-(left + width) * eighths // 8), -(-(top + height) * eighths // 8)
        expected = whole[first:last, start:stop]
        assert part.shape == expected.shape
        # Colours of half the size are spread from the pixels beside, which a part does not have at its edges.
        assert np.abs(part[2:-2, 2:-2].astype(int) - expected[2:-2, 2:-2]).max(initial=0) <= 2


@pytest.mark.skipif(jpeg_crops.find_turbojpeg() is None, reason="turbojpeg is not installed")
def test_large_parts_are_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.jpg"
    decoded: list[Any] = []
    Image.new("RGB", (1024, 800), (200, 100, 50)).save(path)

    def decode(decoder: Any, data: bytes, box: Any, eighths: int) -> Any:
        part = real(decoder, data, box, eighths)
        decoded.append((eighths, part.shape))
        return part

    real = jpeg_crops.TurboJpeg.decode
    monkeypatch.setattr(jpeg_crops.TurboJpeg, "decode", decode)
    for side in (100, 101, 200, 300):
        out = np.empty((side, side, 3), np.uint8)
        jpeg_crops.read_crop(path, jpeg_crops.whole, out)
        assert np.abs(out.astype(int) - (200, 100, 50)).max() < 4
    assert decoded == [(1, (100, 128, 3)), (2, (200, 256, 3)), (2, (200, 256, 3)), (4, (400, 512, 3))]


@pytest.mark.usefixtures("_reader")
def test_what_is_no_jpeg_file_is_read_by_pillow(tmp_path: Path, photograph: Image.Image) -> None:
    out = np.empty((64, 64, 3), np.uint8)
    for name, mode in (("a.png", "RGBA"), ("b.jpg", "CMYK")):
        photograph.convert(mode).save(tmp_path / name)
        jpeg_crops.read_crop(tmp_path / name, jpeg_crops.whole, out)
        assert np.abs(out.mean((0, 1)) - np.asarray(photograph).mean((0, 1))).max() < 6


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"nothing", lambda data: data[:20]])
def test_what_is_no_picture_is_an_error_that_names_it(
    damage: Callable[[bytes], bytes], tmp_path: Path, photograph: Image.Image
) -> None:
    path = tmp_path / "damaged.jpg"
    path.write_bytes(damage(written(photograph, random.Random(0))))
    with pytest.raises(OSError, match=r"damaged\.jpg"):
        jpeg_crops.read_crop(path, jpeg_crops.whole, np.empty((8, 8, 3), np.uint8))
    with pytest.raises(FileNotFoundError):
        jpeg_crops.read_crop(tmp_path / "none.jpg", jpeg_crops.whole, np.empty((8, 8, 3), np.uint8))


@pytest.mark.skipif(jpeg_crops.find_turbojpeg() is None, reason="turbojpeg is not installed")
def test_a_file_that_ends_too_soon_is_an_error(tmp_path: Path, photograph: Image.Image) -> None:
    path = tmp_path / "short.jpg"
    data = written(photograph, random.Random(1))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="truncated"):
        jpeg_crops.read_crop(path, jpeg_crops.whole, np.empty((8, 8, 3), np.uint8))


@pytest.mark.usefixtures("_reader")
def test_threads_read_side_by_side(tmp_path: Path, photograph: Image.Image) -> None:
    path = tmp_path / "picture.jpg"
    found: list[tuple[int, bytes]] = []
    path.write_bytes(written(photograph, random.Random(2)))
    for number in range(20):
        part_of(number)(*photograph.size)  # drawn here: threads share Python's generator

    def read() -> None:
        out = np.empty((100, 100, 3), np.uint8)
        for number in range(20):
            jpeg_crops.read_crop(path, part_of(number), out)
            found.append((number, out.tobytes()))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    assert len(dict(found)) == len(set(found)) == 20


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1, 1), (1000, 3), (3, 1000)])
def test_boxes_lie_in_the_picture(size: tuple[int, int]) -> None:
    random.seed(0)
    for _ in range(200):
        left, top, width, height = jpeg_crops.random_box(*size)
        assert left >= 0
        assert top >= 0
        assert width >= 1
        assert height >= 1
        assert left + width <= size[0]
        assert top + height <= size[1]


def test_boxes_have_the_distribution_that_is_asked_for() -> None:
    random.seed(0)
    boxes = [jpeg_crops.random_box(1000, 1000, area=(0.1, 0.5), ratio=(1, 1)) for _ in range(2000)]
    areas = np.array([width * height for _, _, width, height in boxes]) / 1e6
    assert all(width == height for _, _, width, height in boxes)
    assert areas.min() > 0.099
    assert areas.max() < 0.501
    assert abs(areas.mean() - 0.3) < 0.02


@pytest.mark.usefixtures("_reader")
def test_pictures_are_mirrored_in_place() -> None:
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    expected = picture[:, ::-1].copy()
    jpeg_crops.mirror(picture)
    assert (picture == expected).all()
