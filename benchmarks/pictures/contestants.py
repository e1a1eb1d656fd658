"""Who loads the pictures: this loader, torch's, and other libraries, each set up as its own documentation recommends.

All of them get the same files, as many workers or threads, and the same distribution of crops. Whoever has no decoder
of its own is given one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from shmloader import CachedDataset, ShmDataLoader

from . import ideas
from .datasets import CachedViews, Decoded, EndlessShuffle, Views, WrittenViews
from .files import LabelledFile
from .ideas import SIDE, Read, is_there
from .recipe import jpeg_crops

BATCH_SIZE = 64

Files = Sequence[LabelledFile]
Batches = Iterator[Any]


@dataclass(frozen=True)
class Contestant:
    """One way to load the pictures.

    Attributes:
        name: what the table calls it.
        load: returns an endless iterator over batches of files, made by so many workers.
        needed: modules; and "turbojpeg" for TurboJPEG 3.
        is_other: whether it is none of ours and has none of our decoder.
    """

    name: str
    load: Callable[[Files, int], Batches]
    needed: tuple[str, ...] = ()
    is_other: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether all that it needs is there."""
        return all(map(is_there, self.needed))


def _loading(
    make: Callable[..., DataLoader[Any]], dataset: Callable[[Files], Dataset[Any]], **arguments: Any
) -> Callable[[Files, int], Batches]:
    def load(files: Files, num_workers: int) -> Batches:
        sampler = EndlessShuffle(len(files))
        return iter(make(dataset(files), BATCH_SIZE, sampler=sampler, num_workers=num_workers, **arguments))

    return load


def _views(kind: type[Views], read: Callable[[], Read]) -> Callable[[Files], Dataset[Any]]:
    return lambda files: kind(files, read())


def _recipe() -> Read:
    return jpeg_crops.read_crop


def _cached(files: Files) -> Dataset[Any]:
    return CachedViews(CachedDataset(Decoded(files)))


def _grain(files: Files, num_workers: int) -> Batches:
    """Grain: a MapDataset over the files, shuffled, mapped, batched, and prefetched by processes."""
    import grain

    views = Views(files, ideas.simplejpeg())
    batches = grain.MapDataset.range(len(files)).shuffle(0).repeat().map(views.__getitem__).batch(BATCH_SIZE)
    return iter(batches.to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers)))


def _dali(files: Files, num_workers: int) -> Batches:
    """DALI's pipeline for the CPU, whose decoder crops as it decodes; only what the crop needs is decoded."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    paths, labels = map(list, zip(*files, strict=True))

    @pipeline_def(  # type: ignore[untyped-decorator, unused-ignore]
        batch_size=BATCH_SIZE, num_threads=num_workers, device_id=None, prefetch_queue_depth=2
    )
    def pipeline() -> Any:
        data, label = fn.readers.file(files=paths, labels=labels, random_shuffle=True, name="reader")
        picture = fn.decoders.image_random_crop(
            data,
            device="cpu",
            output_type=types.RGB,
            random_area=[0.08, 1],
            random_aspect_ratio=[3 / 4, 4 / 3],
            num_attempts=10,
        )
        view = fn.resize(picture, size=[SIDE, SIDE], interp_type=types.INTERP_LINEAR, antialias=False)
        return fn.flip(view, horizontal=fn.random.coin_flip()), label

    built = pipeline()
    built.build()
    return iter(DALIGenericIterator([built], ["picture", "label"]))


def _spdl(files: Files, num_workers: int) -> Batches:
    """SPDL: a pipeline of threads that read, decode, crop and resize by FFmpeg, and put batches together."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    def source() -> Iterator[LabelledFile]:
        for index in EndlessShuffle(len(files)):
            yield files[index]

    def decode(file: LabelledFile) -> Any:
        packets = spdl.io.demux_image(file[0])
        left, top, width, height = jpeg_crops.random_box(packets.width, packets.height)
        mirror = ",hflip" if random.random() < 0.5 else ""
        how = f"crop={width}:{height}:{left}:{top}:exact=1,scale={SIDE}:{SIDE}:flags=bilinear{mirror},format=rgb24"
        return spdl.io.decode_packets(packets, filter_desc=how), file[1]

    def batch(decoded: Sequence[Any]) -> Any:
        frames, labels = zip(*decoded, strict=True)
        return spdl.io.to_torch(spdl.io.convert_frames(list(frames))), labels

    pipeline = (
        PipelineBuilder()
        .add_source(source())
        .pipe(decode, concurrency=num_workers)
        .aggregate(BATCH_SIZE)
        .pipe(batch)
        .add_sink(2 * num_workers)
        .build(num_threads=num_workers)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


OURS = "ours, the recipe"
STOCK = "torch's, Pillow"

_BOTH = ("turbojpeg", "cv2")

CONTESTANTS = (
    Contestant(OURS, _loading(ShmDataLoader, _views(WrittenViews, _recipe)), _BOTH),
    Contestant(
        "ours, the recipe, threads",
        _loading(ShmDataLoader, _views(WrittenViews, _recipe), worker_type="thread"),
        _BOTH,
    ),
    Contestant("ours, OpenCV", _loading(ShmDataLoader, _views(WrittenViews, ideas.opencv)), ("cv2",)),
    Contestant("ours, Pillow", _loading(ShmDataLoader, _views(WrittenViews, ideas.pillow)), ("PIL",)),
    Contestant("ours, cached pictures", _loading(ShmDataLoader, _cached), ("PIL", "cv2")),
    Contestant("torch's, the recipe", _loading(DataLoader, _views(Views, _recipe)), _BOTH),
    Contestant(
        "torch's, simplejpeg", _loading(DataLoader, _views(Views, ideas.simplejpeg)), ("simplejpeg", "cv2"), True
    ),
    Contestant("torch's, OpenCV", _loading(DataLoader, _views(Views, ideas.opencv)), ("cv2",), True),
    Contestant(STOCK, _loading(DataLoader, _views(Views, ideas.pillow)), ("PIL",), True),
    Contestant("DALI", _dali, ("nvidia.dali",), True),
    Contestant("SPDL", _spdl, ("spdl.io",), True),
    Contestant("Grain, simplejpeg", _grain, ("grain", "simplejpeg", "cv2"), True),
)
