"""Measures what a cache of decoded pictures gives: CachedDataset beside other ways to keep samples, and none.

JPEG files in memory are decoded to 224 x 224 pixels of three bytes, and loaded in batches by two workers that stay.
Each way has a process of its own. What is measured: samples a second in the first pass, in which all are decoded, and
in later ones; what getting one sample takes in one process, when it is kept; and what all processes together have more
than before there was the dataset, when all is kept. Pages of files are not in that: the kernel drops them at need.

- "no cache" decodes each time. "arrays in memory" has all pictures decoded before the workers are forked, as MONAI's
  CacheDataset does, with threads; the time for that belongs to the first pass.
- "a dict in each worker" is what a dataset does with a dict of its own. "Manager().dict()" is shared by a server.
- "joblib.Memory" and "LMDB" keep pickles in files.

Libraries that are not installed have a row that says so. joblib and LMDB are in the extra [bench], MONAI is in
[frameworks].
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from shmloader import CachedDataset, ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, size
from shmloader.cli.bench.measure import interleave
from shmloader.cli.bench.memory import now
from shmloader.cli.console import UsageError, positive, shown

from . import apart
from .cells import Pictures, jpegs
from .output import Found, as_dicts, markdown

_BATCH_SIZE = 32
_NUM_WORKERS = 2
_LATER_PASSES = 4

_CONTEXT = multiprocessing.get_context("fork")


class Repeated(Pictures):
    """The same pictures again and again, up to a length."""

    def __init__(self, files: list[Any], length: int) -> None:
        super().__init__(files)
        self._length = length

    def __len__(self) -> int:
        return self._length


class Kept(Dataset[Any]):
    """Keeps samples in what has the methods of a dict.

    Args:
        dataset: where they come from.
        kept: where they go.
    """

    def __init__(self, dataset: Dataset[Any], kept: Any) -> None:
        self._dataset = dataset
        self._kept = kept

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        sample = self._kept.get(index)
        if sample is None:
            sample = self._kept[index] = self._dataset[index]
        return sample


class Lmdb:
    """As much of a dict as `Kept` needs, in a database that is opened by each process."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._opened: Any = None

    def _environment(self) -> Any:
        if self._opened is None:
            import lmdb

            self._opened = lmdb.open(self._folder, map_size=1 << 36, metasync=False, sync=False)
        return self._opened

    def get(self, index: int) -> Any:
        """Returns what is kept, or None."""
        with self._environment().begin(buffers=True) as transaction:
            data = transaction.get(index.to_bytes(8, "big"))
            return None if data is None else pickle.loads(data)

    def __setitem__(self, index: int, sample: Any) -> None:
        with self._environment().begin(write=True) as transaction:
            transaction.put(index.to_bytes(8, "big"), pickle.dumps(sample, 5))


class Memorized(Dataset[Any]):
    """What joblib remembers."""

    def __init__(self, dataset: Dataset[Any], folder: str) -> None:
        import joblib

        self._dataset = dataset
        self._read = joblib.Memory(folder, verbose=0).cache(_read, ignore=["dataset"])

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self._read(self._dataset, index)


def _read(dataset: Any, index: int) -> Any:
    return dataset[index]


def _monai(dataset: Any, stack: contextlib.ExitStack) -> Dataset[Any]:
    from monai.data.dataset import CacheDataset
    from monai.transforms.transform import Transform

    class Read(Transform):  # of other callables the results are not kept: they may be random
        def __call__(self, index: int) -> Any:
            return dataset[index]

    made: Dataset[Any] = CacheDataset(range(len(dataset)), Read(), num_workers=_NUM_WORKERS, progress=False)
    return made


def _managed(dataset: Any, stack: contextlib.ExitStack) -> Dataset[Any]:
    return Kept(dataset, stack.enter_context(_CONTEXT.Manager()).dict())


def _folder(stack: contextlib.ExitStack) -> str:
    return stack.enter_context(tempfile.TemporaryDirectory())


# Each makes a dataset of one; what has to be ended goes to the stack.
WAYS: dict[str, Callable[[Any, contextlib.ExitStack], Any]] = {
    "no cache": lambda dataset, stack: dataset,
    "arrays in memory": lambda dataset, stack: [dataset[index] for index in range(len(dataset))],
    "MONAI's CacheDataset": _monai,
    "CachedDataset": lambda dataset, stack: CachedDataset(dataset),
    "CachedDataset, a file": lambda dataset, stack: CachedDataset(dataset, path=f"{_folder(stack)}/cache"),
    "a dict in each worker": lambda dataset, stack: Kept(dataset, {}),
    "Manager().dict()": _managed,
    "joblib.Memory": lambda dataset, stack: Memorized(dataset, _folder(stack)),
    "LMDB": lambda dataset, stack: Kept(dataset, Lmdb(_folder(stack))),
}
_NEEDED = {"MONAI's CacheDataset": "monai.data", "joblib.Memory": "joblib", "LMDB": "lmdb"}


@dataclass(frozen=True)
class Round:
    """What one round of one way took.

    Attributes:
        first: samples a second in the first pass.
        later: samples a second in those after it.
        sample: seconds that getting one takes in one process, when it is kept.
        memory: bytes.
    """

    first: float
    later: float
    sample: float
    memory: int


@dataclass(frozen=True)
class Caches(Found):
    """What was measured.

    Attributes:
        length: how many pictures there were.
        rounds: by the name of the way; none where a library is not installed.
    """

    length: int
    rounds: dict[str, list[Round]]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        ways = {name: as_dicts(_figures(took)) for name, took in self.rounds.items() if took}
        return {"length": self.length, "ways": ways}

    def lines(self) -> list[str]:
        """Returns a table."""
        head = (f"{self.length:,} pictures", "first pass", "later passes", "one sample", "memory")
        return markdown(head, [(name, *_cells(took)) for name, took in self.rounds.items()])


def _cells(took: list[Round]) -> list[str]:
    if not took:
        return ["not installed", "", "", ""]
    found = _figures(took)
    rates = [found[name].text(lambda rate: f"{rate:,.0f}/s") for name in ("first", "later")]
    return [*rates, found["sample"].text(duration), found["memory"].text(size)]


def _figures(rounds: list[Round]) -> dict[str, Figure]:
    return {name: figure([getattr(one, name) for one in rounds]) for name in ("first", "later", "sample", "memory")}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--length", type=positive, default=1024, metavar="N", help="pictures; default: 1024")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: 3")


def measure(args: argparse.Namespace) -> Caches:
    """Measures all ways. Blocks for a minute or two; no process is left.

    Raises:
        UsageError: the kernel does not say what processes take.
    """
    if now() is None:
        raise UsageError("the memory of processes is not known here")
    dataset = Repeated(jpegs(), args.length)
    there = [name for name in WAYS if _is_there(name)]
    with shown(args.rounds * len(there)) as progress:
        progress.begin("caches")
        turns = [functools.partial(in_a_process, name, dataset) for name in there]
        took = dict(zip(there, interleave(turns, args.rounds, progress.step), strict=True))
    return Caches(args.length, {name: took.get(name, []) for name in WAYS})


def _is_there(name: str) -> bool:
    package = _NEEDED.get(name, "shmloader").partition(".")[0]
    return importlib.util.find_spec(package) is not None


def in_a_process(name: str, dataset: Any) -> Round:
    """Takes one round in a process of its own. Blocks until that has ended.

    Raises:
        EOFError: the process died.
    """
    return apart.call(one_round, name, dataset, daemon=False)


def one_round(name: str, dataset: Any) -> Round:
    """Takes one round in this process."""
    importlib.import_module(_NEEDED.get(name, "shmloader"))  # whose time and memory are not the way's
    with contextlib.ExitStack() as stack:
        before = _memory()
        start = time.perf_counter()
        made = WAYS[name](dataset, stack)
        filled = time.perf_counter() - start
        loader = ShmDataLoader(made, _BATCH_SIZE, shuffle=True, num_workers=_NUM_WORKERS, persistent_workers=True)
        first = filled + _seconds(loader)
        later = [_seconds(loader) for _ in range(_LATER_PASSES)]
        memory = _memory() - before
        indices = range(0, len(dataset), 7)
        for index in indices:  # where each process has a cache of its own
            made[index]
        start = time.perf_counter()
        for index in indices:
            made[index]
        sample = (time.perf_counter() - start) / len(indices)
        del loader
    return Round(len(dataset) / first, len(dataset) * len(later) / sum(later), sample, memory)


def _memory() -> int:
    memory = now()
    return 0 if memory is None else memory.total


def _seconds(loader: Any) -> float:
    start = time.perf_counter()
    for _batch in loader:
        pass
    return time.perf_counter() - start
