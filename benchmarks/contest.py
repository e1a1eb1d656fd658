"""A contest: loaders of one cell, and whatever else makes its batches, take turns."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from shmloader.cli.bench.measure import Round, Track, calibrate, interleave
from shmloader.cli.console import positive

from .cells import Cell
from .output import some_of
from .peers import PEERS, Peer, PeerProcess

# What a contestant gets in a round: long enough for a steady state, short enough that a pair sees the same machine.
SECONDS = 0.5

# Rounds that are not counted: caches, page tables and the processor's clock come to rest.
WARM_UP = 1


def add_options_of_contests(parser: argparse.ArgumentParser, cells: Sequence[Cell]) -> None:
    """Adds the options that say which of the cells are loaded, beside which peers, and how often."""
    add = parser.add_argument
    names = ", ".join(cell.name for cell in cells)
    add("--cells", type=some_of("cell", cells), default=cells, metavar="A,B", help=f"of {names}; default: all")
    names = ", ".join(peer.name for peer in PEERS)
    add("--peers", type=some_of("peer", PEERS), default=(), metavar="A,B", help=f"of {names}; or all. Default: none")
    add("--rounds", type=positive, default=7, metavar="N", help="default: 7")


def installed(peers: Sequence[Peer]) -> list[Peer]:
    """Returns the peers that are installed; says which are not."""
    return [peer for peer in peers if _is_installed(peer)]


def _is_installed(peer: Peer) -> bool:
    """Whether a peer is installed; says so where it is not."""
    if not peer.is_installed:
        print(f"{peer.name} is left out: {peer.module} is not installed", file=sys.stderr)
    return peer.is_installed


def contest(
    cell: Cell,
    loaders: Mapping[str, Callable[..., DataLoader[Any]]],
    num_workers: int,
    rounds: int,
    *,
    seconds: float = SECONDS,
    others: Mapping[str, Callable[[], Round]] | None = None,
    peers: Sequence[Peer] = (),
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[Round]]:
    """Returns the rounds of all contestants, by name. Blocks while they run; no process is left.

    Args:
        cell: what to load.
        loaders: make the loaders, whose workers start in this order. torch's has to be the last: it starts threads,
            beside which forking is not safe.
        num_workers: of each loader and peer.
        rounds: how many rounds are counted.
        seconds: about how long a contestant's turn takes.
        others: what else takes turns, ready to run one.
        peers: other libraries; those that have no way to load the cell are left out.
        done: called after each turn.
    """
    with contextlib.ExitStack() as stack:
        beside = {
            peer.name: stack.enter_context(contextlib.closing(PeerProcess(peer, cell, num_workers, seconds)))
            for peer in peers
            if peer.suits(cell)
        }
        tracks = {name: _track(make, cell, num_workers) for name, make in loaders.items()}
        for track in tracks.values():
            stack.callback(track.stop)
        contestants = dict(others or {})
        contestants |= {name: functools.partial(track.run, calibrate(track, seconds)) for name, track in tracks.items()}
        contestants |= {name: peer.run for name, peer in beside.items()}
        took = interleave(list(contestants.values()), WARM_UP + rounds, done)
    return {name: each[WARM_UP:] for name, each in zip(contestants, took, strict=True)}


def _track(make: Callable[..., DataLoader[Any]], cell: Cell, num_workers: int) -> Track:
    return Track(
        make(cell.dataset(), cell.batch_size, sampler=cell.sampler(), num_workers=num_workers, collate_fn=cell.collate)
    )
