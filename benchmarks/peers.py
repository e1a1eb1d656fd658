"""Other libraries that load batches, each set up as its own documentation recommends for the job.

All get the same samples, the same batch size and as many workers as the loaders have, and load in order. One that is
not installed, or that has no way to load a cell, is left out by name.

Each runs in a process of its own, which stands still while others have their turn, see `stopped`.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import default_collate

from shmloader.cli.bench.measure import Round, Track, calibrate

from .cells import CELLS, PREFETCH_FACTOR, WAITING, Cell, Stream, chunks
from .stopped import StoppedProcess


def _is_any(cell: Cell) -> bool:
    return True


def _is_read_by_index(cell: Cell) -> bool:
    return cell.arrange not in (Stream, chunks)


def _is_of_arrays(cell: Cell) -> bool:
    """Whether samples are tuples of arrays, which DALI collates itself."""
    first = cell.source()[0]
    parts = first if isinstance(first, tuple) else (first,)
    return (
        _is_read_by_index(cell) and cell.collate is None and all(isinstance(part, np.ndarray | int) for part in parts)
    )


@dataclass(frozen=True)
class Peer:
    """A library.

    Attributes:
        name: what the command line and the table call it.
        module: what has to be importable.
        load: returns an endless iterator over the batches of a cell, made by so many workers.
        suits: whether it has a way to load a cell.
    """

    name: str
    module: str
    load: Callable[[Cell, int], Iterator[Any]]
    suits: Callable[[Cell], bool] = _is_read_by_index

    @property
    def is_installed(self) -> bool:
        """Whether its module can be found."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:
            return False


class PeerLoader:
    """A peer and a cell, with as much of a loader's interface as timing needs; an endless one has no length."""

    prefetch_factor = PREFETCH_FACTOR

    def __init__(self, peer: Peer, cell: Cell, num_workers: int) -> None:
        self.num_workers = num_workers
        self._make = peer.load
        self._cell = cell

    def __iter__(self) -> Iterator[Any]:
        return self._make(self._cell, self.num_workers)


class PeerProcess(StoppedProcess[Round]):
    """A process that runs a peer when told to. It starts here, loads for a while to find its pace, and is stopped.

    Args:
        peer: the library.
        cell: one of the suite's.
        num_workers: how many workers it gets.
        seconds: about how long its turns take.

    Raises:
        EOFError: it has ended; it has printed why.
    """

    def __init__(self, peer: Peer, cell: Cell, num_workers: int, seconds: float) -> None:
        super().__init__(_prepare, peer, cell.name, num_workers, seconds)


def _prepare(peer: Peer, cell: str, num_workers: int, seconds: float) -> Callable[[], Round]:
    (chosen,) = (one for one in (*CELLS, WAITING) if one.name == cell)  # what cells are made of cannot be sent
    track = Track(PeerLoader(peer, chosen, num_workers))
    return functools.partial(track.run, calibrate(track, seconds))


def _stateful(cell: Cell, num_workers: int) -> Iterator[Any]:
    """StatefulDataLoader of torchdata: torch's loader, whose state can be saved. The same arguments."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    return iter(
        StatefulDataLoader(
            cell.dataset(), cell.batch_size, sampler=cell.sampler(), num_workers=num_workers, collate_fn=cell.collate
        )
    )


def _spdl_threads(cell: Cell, num_workers: int) -> Iterator[Any]:
    """SPDL's pipeline with threads: batches of indices in, one stage that reads and collates a batch, a buffer."""
    from spdl.pipeline import PipelineBuilder

    source, collate = cell.source(), cell.collate or default_collate

    def load(indices: range) -> Any:
        return collate([source[index] for index in indices])

    pipeline = (
        PipelineBuilder()
        .add_source(range(start, start + cell.batch_size) for start in itertools.count(0, cell.batch_size))
        .pipe(load, concurrency=num_workers, output_order="input")
        .add_sink(PREFETCH_FACTOR * num_workers)
        .build(num_threads=num_workers)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


def _spdl_processes(cell: Cell, num_workers: int) -> Iterator[Any]:
    """SPDL's process-backed loader for map-style datasets, which takes torch's arguments."""
    from spdl.dataloader import get_pytorch_dataloader

    return iter(
        get_pytorch_dataloader(
            cell.source(),
            cell.batch_size,
            num_workers=num_workers,
            collate_fn=cell.collate,
            multiprocessing_context="fork",
            in_order=True,
        )
    )


def _grain(cell: Cell, num_workers: int) -> Iterator[Any]:
    """Grain: a MapDataset over the source, batched, and prefetched by processes. Batches are arrays."""
    import grain

    batches = grain.MapDataset.source(cell.source()).batch(cell.batch_size, batch_fn=cell.collate)
    return iter(batches.to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers)))


def _dali(cell: Cell, num_workers: int) -> Iterator[Any]:
    """DALI's parallel external source, which reads samples in processes, in a pipeline for the CPU."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    source = cell.source()
    first = source[0]
    parts = first if isinstance(first, tuple) else (first,)

    def read(info: Any) -> Any:
        sample = source[info.idx_in_epoch]
        return tuple(map(np.asarray, sample)) if isinstance(sample, tuple) else (np.asarray(sample),)

    kinds = [getattr(types, str(np.asarray(part).dtype).upper().replace("FLOAT32", "FLOAT")) for part in parts]

    @pipeline_def(  # type: ignore[untyped-decorator, unused-ignore]
        batch_size=cell.batch_size,
        num_threads=num_workers,
        device_id=None,
        py_num_workers=num_workers,
        py_start_method="fork",
    )
    def pipeline() -> Any:
        return tuple(fn.external_source(source=read, num_outputs=len(parts), parallel=True, batch=False, dtype=kinds))

    built = pipeline()
    built.build()
    return iter(DALIGenericIterator([built], [f"part{number}" for number in range(len(parts))]))


PEERS = (
    Peer("stateful", "torchdata.stateful_dataloader", _stateful, _is_any),
    Peer("spdl-threads", "spdl.pipeline", _spdl_threads),
    Peer("spdl-processes", "spdl.dataloader", _spdl_processes),
    Peer("grain", "grain", _grain),
    Peer("dali", "nvidia.dali", _dali, _is_of_arrays),
)
