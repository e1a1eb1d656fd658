"""Running cells: three contestants, side by side."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from shmloader import ShmDataLoader
from shmloader.cli.bench.compare import nbytes, tensors
from shmloader.cli.bench.figures import Figure, figure, ratio
from shmloader.cli.bench.measure import Round, Track, calibrate, interleave

from .apart import PeerProcess
from .cells import Cell
from .limit import Limit
from .peers import PREFETCH_FACTOR, Peer

# What a contestant gets in a round: long enough for a steady state, short enough that a pair sees the same machine.
SECONDS = 0.5

# Rounds that are not counted: caches, page tables and the processor's clock come to rest.
_WARM_UP = 1


@dataclass(frozen=True)
class CellResult:
    """What was measured of one cell.

    Attributes:
        cell: its name.
        batch_bytes: bytes of a batch.
        batch_tensors: tensors of a batch.
        stock: the rounds of torch's loader.
        ours: the rounds of ours.
        limit: the rounds of the processes without a loader.
        peers: the rounds of other libraries, by name.
    """

    cell: str
    batch_bytes: int
    batch_tensors: int
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
        found = {name: figure(_times(getattr(self, name))) for name in ("stock", "ours", "limit")}
        return found | {name: figure(_times(rounds)) for name, rounds in self.peers.items()}

    @property
    def peer_ratios(self) -> dict[str, Figure]:
        """Each peer's time a batch over ours."""
        return {name: ratio(_times(rounds), _times(self.ours)) for name, rounds in self.peers.items()}

    @property
    def consumer_cpu(self) -> dict[str, Figure]:
        """Seconds of the main process's processor time a batch, by loader."""
        return {
            name: figure([took.cpu_per_batch for took in rounds])
            for name, rounds in (("stock", self.stock), ("ours", self.ours))
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "cell": self.cell,
            "batch_bytes": self.batch_bytes,
            "batch_tensors": self.batch_tensors,
            "seconds_per_batch": {name: found.as_dict() for name, found in self.times.items()},
            "consumer_cpu_seconds_per_batch": {name: found.as_dict() for name, found in self.consumer_cpu.items()},
            "batches": {name: [took.batches for took in getattr(self, name)] for name in ("stock", "ours", "limit")},
            "ratio": self.ratio.as_dict(),
            "share_of_limit": self.share_of_limit.as_dict(),
            "peer_ratios": {name: found.as_dict() for name, found in self.peer_ratios.items()},
        }


def _times(rounds: list[Round]) -> list[float]:
    return [took.per_batch for took in rounds]


def run_cell(
    cell: Cell,
    num_workers: int,
    rounds: int,
    *,
    seconds: float = SECONDS,
    limit_buffers: int = PREFETCH_FACTOR + 1,
    peers: Sequence[Peer] = (),
    done: Callable[[], None] = lambda: None,
) -> CellResult:
    """Measures one cell. Blocks for about ``rounds`` times ``seconds`` for each contestant; no process is left.

    Args:
        cell: what to load.
        num_workers: worker processes of either loader, and processes of the limit.
        rounds: how many rounds are counted.
        seconds: about how long a contestant's turn takes.
        limit_buffers: see `Limit`.
        peers: other libraries; those that have no way to load the cell are left out.
        done: called after each turn.
    """
    with contextlib.ExitStack() as stack:
        fit = [peer for peer in peers if peer.suits(cell)]
        beside = [
            stack.enter_context(contextlib.closing(PeerProcess(peer, cell, num_workers, seconds))) for peer in fit
        ]
        limit = stack.enter_context(contextlib.closing(Limit(cell, num_workers, limit_buffers)))
        # Workers start in this order, stock's last: it starts threads, beside which forking is not safe.
        tracks = [_track(kind, cell, num_workers) for kind in (ShmDataLoader, DataLoader)]
        for track in tracks:
            stack.callback(track.stop)
        loaders = [functools.partial(track.run, calibrate(track, seconds)) for track in tracks]
        contestants: list[Callable[[], Round]] = [functools.partial(limit.run, seconds), *loaders]
        contestants += [peer.run for peer in beside]
        took = interleave(contestants, _WARM_UP + rounds, done)
    in_limit, in_ours, in_stock, *in_peers = (rounds_of_one[_WARM_UP:] for rounds_of_one in took)
    in_peer = dict(zip((peer.name for peer in fit), in_peers, strict=True))
    batch = cell.batch()
    return CellResult(cell.name, nbytes(batch), tensors(batch), in_stock, in_ours, in_limit, in_peer)


def turns(rounds: int, peers: int = 0) -> int:
    """Returns how often `run_cell` calls ``done``, at most."""
    return (3 + peers) * (_WARM_UP + rounds)


def _track(kind: Callable[..., DataLoader[Any]], cell: Cell, num_workers: int) -> Track:
    return Track(
        kind(cell.dataset(), cell.batch_size, sampler=cell.sampler(), num_workers=num_workers, collate_fn=cell.collate)
    )
