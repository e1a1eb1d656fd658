"""Times torch's DataLoader, ShmDataLoader, other libraries, and what fills memory without a loader, cell by cell."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from shmloader import ShmDataLoader
from shmloader.cli.bench.compare import nbytes
from shmloader.cli.bench.figures import Figure, figure, ratio, size
from shmloader.cli.bench.measure import Round
from shmloader.cli.console import natural, positive, shown

from . import apart
from .cells import CELLS, Cell
from .contest import SECONDS, WARM_UP, add_options_of_contests, contest, installed
from .limit import limit_of
from .output import Found, Labels, as_dicts, dots, markdown, micros
from .peers import Peer

_NAMES = {"ours": "shmloader", "stock": "torch's DataLoader", "limit": "limit, without a loader"}
_HEAD = (
    "cell",
    "batch",
    "stock us/batch",
    "ours us/batch",
    "stock / ours",
    "limit us/batch",
    "share of limit",
    "stock CPU us/batch",
    "ours CPU us/batch",
)


@dataclass(frozen=True)
class CellResult:
    """What was measured of one cell.

    Attributes:
        cell: its name.
        batch_bytes: bytes of a batch.
        stock: the rounds of torch's loader.
        ours: the rounds of ours.
        limit: the rounds of the processes without a loader.
        peers: the rounds of other libraries, by name.
    """

    cell: str
    batch_bytes: int
    stock: list[Round]
    ours: list[Round]
    limit: list[Round]
    peers: dict[str, list[Round]] = field(default_factory=dict)

    @property
    def ratio(self) -> Figure:
        """Stock's time a batch over ours."""
        return ratio(_times(self.stock), _times(self.ours))

    @property
    def share_of_limit(self) -> Figure:
        """The limit's time a batch over ours: 1 is as fast as can be."""
        return ratio(_times(self.limit), _times(self.ours))

    @property
    def times(self) -> dict[str, Figure]:
        """Seconds a batch, by contestant."""
        rounds = {"ours": self.ours, "stock": self.stock, "limit": self.limit, **self.peers}
        return {name: figure(_times(each)) for name, each in rounds.items()}

    @property
    def peer_ratios(self) -> dict[str, Figure]:
        """Each peer's time a batch over ours."""
        return {name: ratio(_times(rounds), _times(self.ours)) for name, rounds in self.peers.items()}

    @property
    def consumer_cpu(self) -> dict[str, Figure]:
        """Seconds of the main process's processor time a batch, by loader."""
        rounds = {"ours": self.ours, "stock": self.stock}
        return {name: figure([took.cpu_per_batch for took in each]) for name, each in rounds.items()}

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "cell": self.cell,
            "batch_bytes": self.batch_bytes,
            "seconds_per_batch": as_dicts(self.times),
            "consumer_cpu_seconds_per_batch": as_dicts(self.consumer_cpu),
            "ratio": self.ratio.as_dict(),
            "share_of_limit": self.share_of_limit.as_dict(),
            "peer_ratios": as_dicts(self.peer_ratios),
        }


def _times(rounds: Sequence[Round]) -> list[float]:
    return [took.per_batch for took in rounds]


@dataclass(frozen=True)
class SuiteResult(Found):
    """What was measured of all cells, beside so many processes that are busy with something else."""

    cells: list[CellResult]
    peers: list[str]
    num_workers: int
    busy: int

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        cells = [result.as_dict() for result in self.cells]
        return {"num_workers": self.num_workers, "busy": self.busy, "cells": cells}

    def lines(self) -> list[str]:
        """Returns a table of the loaders and the limit, and one of the peers."""
        lines = markdown(_HEAD, map(_row, self.cells))
        if self.peers:
            lines += ["", *markdown(("cell", "ours us/batch", *self.peers), map(self._peer_row, self.cells))]
        return lines

    def _peer_row(self, result: CellResult) -> tuple[str, ...]:
        times, ratios = result.times, result.peer_ratios
        found = [
            f"{times[peer].median * 1e6:.0f} us, {ratios[peer].text(lambda value: f'{value:.1f}')}x"
            if peer in ratios
            else "no way to load it"
            for peer in self.peers
        ]
        return result.cell, micros(times["ours"]), *found

    def draw(self, folder: Path, notes: Sequence[str]) -> None:
        """Draws how many times as fast as stock ours is, and the time a batch by contestant, each by cell."""
        labels = Labels(f"How many times as fast as {_NAMES['stock']}", notes, "torch's time a batch / shmloader's")
        dots(folder / "ratio.png", labels, {"ratio": {result.cell: result.ratio for result in self.cells}})
        series: dict[str, dict[str, Figure]] = {}
        for result in self.cells:
            for name, found in result.times.items():
                series.setdefault(_NAMES.get(name, name), {})[result.cell] = found.scaled(1e6)
        dots(folder / "time.png", Labels("Time a batch", notes, "microseconds"), series)


def _row(result: CellResult) -> tuple[str, ...]:
    times, cpu = result.times, result.consumer_cpu
    return (
        result.cell,
        size(result.batch_bytes),
        micros(times["stock"]),
        micros(times["ours"]),
        result.ratio.text(lambda value: f"{value:.1f}"),
        micros(times["limit"]),
        result.share_of_limit.text(lambda value: f"{value:.2f}"),
        micros(cpu["stock"]),
        micros(cpu["ours"]),
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the suite."""
    add_options_of_contests(parser, CELLS)
    add = parser.add_argument
    add("--num-workers", type=positive, default=2, metavar="N", help="default: 2")
    add("--busy", type=natural, default=0, metavar="N", help="processes that use the processors meanwhile; default: 0")


def measure(args: argparse.Namespace) -> SuiteResult:
    """Measures all cells. Blocks for about 1.5 s a cell and round; no process is left."""
    peers = installed(args.peers)
    results = []
    busy = apart.beside(_calculate, args.busy, own_sessions=True)
    with busy, shown(len(args.cells) * turns(args.rounds, len(peers))) as progress:
        for cell in args.cells:
            progress.begin(cell.name)
            results.append(run_cell(cell, args.num_workers, args.rounds, peers=peers, done=progress.step))
    return SuiteResult(results, [peer.name for peer in peers], args.num_workers, args.busy)


def _calculate() -> None:
    sum(range(100_000))


def run_cell(
    cell: Cell,
    num_workers: int,
    rounds: int,
    *,
    seconds: float = SECONDS,
    peers: Sequence[Peer] = (),
    done: Callable[[], None] = lambda: None,
) -> CellResult:
    """Measures one cell. Blocks for about ``rounds`` times ``seconds`` for each contestant; no process is left.

    Args:
        cell: what to load.
        num_workers: worker processes of either loader, and processes of the limit.
        rounds: how many rounds are counted.
        seconds: about how long a contestant's turn takes.
        peers: other libraries; those that have no way to load the cell are left out.
        done: called after each turn.
    """
    with contextlib.closing(limit_of(cell, num_workers)) as limit:
        others = {"limit": functools.partial(limit.run, seconds)}
        found = contest(cell, _LOADERS, num_workers, rounds, seconds=seconds, others=others, peers=peers, done=done)
    stock, ours, alone = (found.pop(name) for name in ("stock", "ours", "limit"))
    return CellResult(cell.name, nbytes(cell.batch()), stock, ours, alone, found)


def turns(rounds: int, peers: int = 0) -> int:
    """Returns how often `run_cell` calls ``done``, at most."""
    return (3 + peers) * (WARM_UP + rounds)


_LOADERS: Mapping[str, Callable[..., DataLoader[Any]]] = {"ours": ShmDataLoader, "stock": DataLoader}
