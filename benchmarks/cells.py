"""The cells: what is loaded."""

from __future__ import annotations

import io
import itertools
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset, Sampler, TensorDataset

from shmloader import ChunkedDataset

# As in a real dataset, the samples of a pass are more than the processor's caches hold.
_DATASET_BYTES = 64 << 20
_MAX_DISTINCT = 2048
_RECORDS = 512
_CHUNK_ROWS = 300

# How many batches a worker loads ahead: torch's default, which peers that know the notion are given too.
PREFETCH_FACTOR = 2

_ENDLESS = 1 << 40

_WAIT_SECONDS = 5e-3

Collate = Callable[[list[Any]], Any]


class Samples(Dataset[Any]):
    """Ready-made samples over and over, so many that no pass ever ends."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Any:
        return self._samples[index % len(self._samples)]


class Waits(Samples):
    """The same, each after a wait that takes no processor time, as for a network or a disk."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(_WAIT_SECONDS)
        return super().__getitem__(index)


class Pictures(Samples):
    """JPEG files in memory, decoded when they are asked for, with labels."""

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        jpeg, label = super().__getitem__(index)
        with Image.open(io.BytesIO(jpeg)) as picture:
            return np.array(picture.convert("RGB")), label


class Stream(IterableDataset[Any]):
    """The same samples as an endless stream, a share for each worker."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return itertools.islice(itertools.cycle(self._samples), first, None, step)


class _Shards:
    """The same chunks over and over, a share for each worker."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return itertools.islice(itertools.cycle(self._chunks), first, None, step)


class _Cycle(Sampler[int]):
    """The indices of a dataset over and over, for datasets that cannot be endless themselves."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return _ENDLESS

    def __iter__(self) -> Iterator[int]:
        return itertools.cycle(range(self._length))


@dataclass(frozen=True)
class Cell:
    """One thing to load.

    Attributes:
        name: what the command line and the table call it.
        make_samples: returns the samples.
        batch_size: samples a batch.
        collate: the user's collate function; None: torch's default one.
        read: makes a dataset of the samples, which is read by index.
        arrange: makes the dataset that loaders get of the samples, where that is another one.
    """

    name: str
    make_samples: Callable[[], Sequence[Any]]
    batch_size: int
    collate: Collate | None = None
    read: Callable[[Sequence[Any]], Samples] = Samples
    arrange: Callable[[Sequence[Any]], Dataset[Any]] | None = None

    def source(self) -> Samples:
        """Makes a dataset to read by index, endless."""
        return self.read(self.make_samples())

    def dataset(self) -> Dataset[Any]:
        """Makes the dataset that loaders get."""
        return (self.arrange or self.read)(self.make_samples())

    def sampler(self) -> Sampler[int] | None:
        """Makes the sampler of a dataset that is not endless; None for one that is."""
        return _Cycle(len(self.make_samples())) if self.arrange is _tensors else None

    def batch(self) -> Any:
        """Makes one batch, in this process; a typical one, if they differ."""
        source = self.source()
        samples = [source[number] for number in range(self.batch_size)]
        return (self.collate or torch.utils.data.default_collate)(samples)


def _distinct(*shape: int, itemsize: int = 1) -> tuple[int, ...]:
    """Returns the shape of all samples of ``shape`` together."""
    return min(_MAX_DISTINCT, _DATASET_BYTES // (math.prod(shape) * itemsize)), *shape


def _floats() -> list[Any]:
    return list(np.random.default_rng(0).random(_distinct(8, itemsize=4), dtype=np.float32))


def _images(*shape: int) -> list[Any]:
    images = np.random.default_rng(0).integers(0, 256, _distinct(*shape), dtype=np.uint8)
    return [(image, number % 10) for number, image in enumerate(images)]


def _float_images(*shape: int) -> list[Any]:
    images = np.random.default_rng(0).random(_distinct(*shape, itemsize=4), dtype=np.float32)
    return [(image, number % 10) for number, image in enumerate(images)]


def _records() -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        {f"vector{k}": rng.random(4, dtype=np.float32) for k in range(16)}
        | {f"count{k}": int(rng.integers(1000)) for k in range(8)}
        | {f"share{k}": float(rng.random()) for k in range(8)}
        for _ in range(_RECORDS)
    ]


def _many_fields() -> list[Any]:
    rng = np.random.default_rng(0)
    return [{f"vector{k}": rng.random(4, dtype=np.float32) for k in range(200)} for _ in range(_RECORDS // 4)]


def _token_lists(longest: int = 128, shortest: int = 1) -> list[Any]:
    rng = random.Random(0)
    return [[rng.randrange(1, 30_000) for _ in range(rng.randint(shortest, longest))] for _ in range(_RECORDS)]


def _token_arrays() -> list[Any]:
    return [np.array(ids) for ids in _token_lists(1000, 500)]


def jpegs() -> list[Any]:
    """Crops of photographs that come with scikit-image, of 224 x 224 pixels."""
    import skimage.data
    from PIL import Image

    rng = random.Random(0)
    photographs = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "cat", "coffee", "rocket")]
    found = []
    for number in range(256):
        photograph = photographs[number % len(photographs)]
        left, top = rng.randrange(photograph.width - 223), rng.randrange(photograph.height - 223)
        file = io.BytesIO()
        photograph.crop((left, top, left + 224, top + 224)).save(file, "JPEG", quality=90)
        found.append((file.getvalue(), number % 10))
    return found


def _mapped_images(*shape: int, nbytes: int = 256 << 20) -> Sequence[Any]:
    """Rows of a memory map, read in an order that no cache foresees."""
    images = np.memmap(tempfile.TemporaryFile(), np.uint8, "w+", shape=(nbytes // math.prod(shape), *shape))  # noqa: SIM115
    for start in range(0, len(images), 4096):
        images[start : start + 4096] = np.random.default_rng(start).integers(0, 256, images[start : start + 4096].shape)
    return [images[row] for row in np.random.default_rng(0).permutation(len(images))]


def _tensors(samples: Sequence[Any]) -> Dataset[Any]:
    images, labels = zip(*samples, strict=True)
    return TensorDataset(torch.from_numpy(np.stack(images)), torch.tensor(labels))


def chunks(samples: Sequence[Any]) -> Dataset[Any]:
    """Joins samples to chunks of a length that no batch size divides, and makes an endless stream of their rows."""
    images, labels = (np.stack(parts) for parts in zip(*samples, strict=True))
    starts = range(0, len(labels), _CHUNK_ROWS)
    return ChunkedDataset(
        _Shards([(images[start : start + _CHUNK_ROWS], labels[start : start + _CHUNK_ROWS]) for start in starts])
    )


def pad(samples: list[Any]) -> Any:
    """Pads lists of token ids with zeros to the longest, row by row."""
    padded = np.zeros((len(samples), max(map(len, samples))), np.int64)
    for row, ids in zip(padded, samples, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(padded)


def pad_as_sequences(samples: list[Any]) -> Any:
    """Does the same with torch's own function; making a tensor of each list is most of its work."""
    return pad_sequence([torch.tensor(ids) for ids in samples], batch_first=True)


CELLS = (
    Cell("floats8", _floats, 32),
    Cell("gray28", lambda: _images(28, 28), 64),
    Cell("rgb64", lambda: _images(3, 64, 64), 64),
    Cell("rgb224", lambda: _images(3, 224, 224), 64),
    Cell("rgb224b256", lambda: _images(3, 224, 224), 256),
    Cell("rgb224f32", lambda: _float_images(3, 224, 224), 64),
    Cell("fields32", _records, 64),
    Cell("tokens", _token_lists, 32, pad),
    Cell("tokenspad", _token_lists, 32, pad_as_sequences),
    Cell("tokens1000", _token_arrays, 32, pad),
    Cell("fields200", _many_fields, 64),
    Cell("single28", lambda: _images(28, 28), 1),
    Cell("batch100mb", lambda: _images(3, 224, 224), 664),
    Cell("memmap64", lambda: _mapped_images(3, 64, 64), 64),
    Cell("tensors28", lambda: _images(28, 28), 64, arrange=_tensors),
    Cell("stream28", lambda: _images(28, 28), 64, arrange=Stream),
    Cell("chunks28", lambda: _images(28, 28), 64, arrange=chunks),
    Cell("jpeg224", jpegs, 32, read=Pictures),
)

# Not one of the suite's, since no loader is faster than its samples.
WAITING = Cell("wait5", lambda: _images(28, 28), 4, read=Waits)
