"""Times batches of other libraries' objects and datasets with torch's loader and with ours.

Graphs of PyTorch Geometric and volumes of MONAI are made in advance, and their libraries' own functions make batches
of them. Rows and streams of Hugging Face's datasets and WebDataset's shards are read from files. Texts are padded by a
data collator, or encoded in the collate function. What a batch takes is the library's own work and the way to the loop;
only the way differs. Cells whose library is not installed are left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import os
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, ratio, times
from shmloader.cli.bench.measure import Round
from shmloader.cli.console import positive, shown

from .cells import Cell, Samples
from .contest import SECONDS, WARM_UP, contest
from .output import Found, as_dicts, markdown, some_of

_LOADERS: dict[str, Callable[..., DataLoader[Any]]] = {"shmloader": ShmDataLoader, "stock": DataLoader}

_PICTURES = 512
_SHARDS = 4
_SHAPE = 3, 64, 64


class Rows(Samples):
    """Rows of a dataset that reads many at a time, over and over."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        rows: list[Any] = self._samples.__getitems__([index % len(self._samples) for index in indices])  # type: ignore[attr-defined]
        return rows


def _of(module: str, name: str) -> Any:
    """Returns a library's function or class, imported when it is needed."""
    return getattr(importlib.import_module(module), name)


def _graphs() -> list[Any]:
    make = _of("torch_geometric.data", "Data")
    draw = torch.Generator().manual_seed(0)
    return [
        make(
            x=torch.randn(nodes, 32, generator=draw),
            edge_index=torch.randint(nodes, (2, 4 * nodes), generator=draw),
            y=torch.tensor([nodes]),
        )
        for nodes in (20 + number % 80 for number in range(256))
    ]


def _volumes() -> list[Any]:
    make = _of("monai.data", "MetaTensor")
    draw = torch.Generator().manual_seed(0)
    return [{"image": make(torch.randn(1, 48, 48, 48, generator=draw)), "label": number % 2} for number in range(32)]


def _pictures() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (_PICTURES, *_SHAPE), dtype=np.uint8)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="shmloader-benchmarks-")


def _table(form: str) -> Any:
    datasets = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    shape = datasets.Array3D(_SHAPE, "uint8")
    features = datasets.Features({"picture": shape, "label": datasets.Value("int64")})
    columns = {"picture": _pictures(), "label": np.arange(_PICTURES) % 10}
    folder = tempfile.mkdtemp(dir=_folder().name)
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder, num_shards=_SHARDS)
    return datasets.load_from_disk(folder).with_format(form)


def _stream(table: Any) -> Dataset[Any]:
    stream: Dataset[Any] = table.to_iterable_dataset(num_shards=_SHARDS).repeat(None)
    return stream


def _shards() -> Sequence[Any]:
    folder = tempfile.mkdtemp(dir=_folder().name)
    pictures = np.array_split(_pictures(), _SHARDS)
    for number, part in enumerate(pictures):
        with tarfile.open(Path(folder, f"{number}.tar"), "w") as tar:
            for row, picture in enumerate(part):
                _add(tar, f"{number}-{row:04}.npy", picture)
    return sorted(map(str, Path(folder).glob("*.tar")))


def _add(tar: tarfile.TarFile, name: str, picture: Any) -> None:
    file = io.BytesIO()
    np.save(file, picture)
    about = tarfile.TarInfo(name)
    about.size = file.tell()
    file.seek(0)
    tar.addfile(about, file)


def _webdataset(shards: Sequence[Any]) -> Dataset[Any]:
    make = _of("webdataset", "WebDataset")
    stream: Dataset[Any] = make(shards, shardshuffle=False).repeat().decode().to_tuple("npy")
    return stream


@functools.cache
def _tokenizer() -> Any:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of its own, beside which it is not forked safely
    tokenizers, transformers = map(importlib.import_module, ("tokenizers", "transformers"))
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *map(str, range(1000))])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")


def _texts() -> list[str]:
    draw = random.Random(0)
    return [" ".join(str(draw.randrange(1000)) for _ in range(draw.randint(50, 200))) for _ in range(256)]


def _encoded() -> list[Any]:
    return [dict(_tokenizer()(text)) for text in _texts()]


def _graph_batch(samples: list[Any]) -> Any:
    return _of("torch_geometric.data", "Batch").from_data_list(samples)


def _volume_batch(samples: list[Any]) -> Any:
    return _of("monai.data", "list_data_collate")(samples)


def _padded(samples: list[Any]) -> Any:
    return _of("transformers", "DataCollatorWithPadding")(_tokenizer())(samples)


def _encode(texts: list[str]) -> Any:
    return _tokenizer()(texts, padding=True, return_tensors="pt")


def _encode_to_dict(texts: list[str]) -> Any:
    return dict(_encode(texts))


@dataclass(frozen=True)
class Library:
    """A cell and the library that it takes.

    Attributes:
        module: what has to be importable.
        cell: what is loaded.
    """

    module: str
    cell: Cell

    @property
    def name(self) -> str:
        """What the command line and the table call it."""
        return self.cell.name


LIBRARIES = (
    Library("torch_geometric", Cell("graphs", _graphs, 64, _graph_batch)),
    Library("monai", Cell("volumes", _volumes, 4, _volume_batch)),
    Library("datasets", Cell("rows", lambda: _table("torch"), 64, read=Rows)),
    Library("datasets", Cell("rowsnumpy", lambda: _table("numpy"), 64, read=Rows)),
    Library("datasets", Cell("stream", lambda: _table("numpy"), 64, arrange=_stream)),
    Library("webdataset", Cell("shards", _shards, 64, arrange=_webdataset)),
    Library("transformers", Cell("padded", _encoded, 32, _padded)),
    Library("transformers", Cell("encoded", _texts, 32, _encode)),
    Library("transformers", Cell("encodeddict", _texts, 32, _encode_to_dict)),
)


@dataclass(frozen=True)
class Libraries(Found):
    """What was measured of each cell, for one batch, by loader.

    Attributes:
        seconds: how long it took.
        loop: seconds of the processor that the loop's process took meanwhile.
    """

    seconds: dict[str, dict[str, Figure]]
    loop: dict[str, dict[str, Figure]]

    def faster(self, cell: str) -> Figure:
        """Stock's time over ours, round by round."""
        found = self.seconds[cell]
        return ratio(found["stock"].rounds, found["shmloader"].rounds)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "seconds_per_batch": {name: as_dicts(found) for name, found in self.seconds.items()},
            "loop_cpu_seconds_per_batch": {name: as_dicts(found) for name, found in self.loop.items()},
            "faster": as_dicts({name: self.faster(name) for name in self.seconds}),
        }

    def lines(self) -> list[str]:
        """Returns a table."""
        head = "cell", "torch", "shmloader", "faster", "processor time of the loop: torch", "shmloader"
        return markdown(head, map(self._row, self.seconds))

    def _row(self, cell: str) -> tuple[str, ...]:
        took = [
            found[cell][name].text(duration) for found in (self.seconds, self.loop) for name in ("stock", "shmloader")
        ]
        return cell, *took[:2], self.faster(cell).text(times), *took[2:]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    names = ", ".join(library.name for library in LIBRARIES)
    add("--cells", type=some_of("cell", LIBRARIES), default=LIBRARIES, metavar="A,B", help=f"of {names}; default: all")
    add("--num-workers", type=positive, default=2, metavar="N", help="default: 2")
    add("--rounds", type=positive, default=7, metavar="N", help="default: 7")


def measure(args: argparse.Namespace) -> Libraries:
    """Measures all cells. Blocks for about half a second a loader and round; no process is left."""
    chosen = [library for library in args.cells if _is_installed(library)]
    seconds, loop = {}, {}
    with shown(len(chosen) * len(_LOADERS) * (WARM_UP + args.rounds)) as progress:
        for library in chosen:
            progress.begin(library.name)
            took = run_cell(library.cell, args.num_workers, args.rounds, done=progress.step)
            seconds[library.name] = {name: figure([one.per_batch for one in each]) for name, each in took.items()}
            loop[library.name] = {name: figure([one.cpu_per_batch for one in each]) for name, each in took.items()}
    return Libraries(seconds, loop)


def _is_installed(library: Library) -> bool:
    if importlib.util.find_spec(library.module) is None:
        print(f"{library.name} is left out: {library.module} is not installed", file=sys.stderr)
        return False
    return True


def run_cell(
    cell: Cell, num_workers: int, rounds: int, *, seconds: float = SECONDS, done: Callable[[], None] = lambda: None
) -> dict[str, list[Round]]:
    """Returns the rounds of each loader, by name. Blocks meanwhile; no process is left.

    Args:
        cell: what to load.
        num_workers: of each loader.
        rounds: how many rounds are counted.
        seconds: about how long a loader's turn takes.
        done: called after each turn.
    """
    return contest(cell, _LOADERS, num_workers, rounds, seconds=seconds, done=done)
