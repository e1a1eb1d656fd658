"""A cell in a process of its own: some libraries leave threads and processes behind, which work on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection

from .cells import CELLS, Cell
from .peers import PEERS, Peer
from .suite import CellResult, run_cell


def run_apart(cell: Cell, num_workers: int, rounds: int, limit_buffers: int, peers: Sequence[Peer]) -> CellResult:
    """Runs one of the suite's cells, and peers of the suite's, in a new process; see `suite.run_cell`.

    Raises:
        EOFError: the process has ended without a result; it has printed why.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    names = [peer.name for peer in peers]
    process = context.Process(target=_report, args=(sender, cell.name, num_workers, rounds, limit_buffers, names))
    process.start()
    sender.close()
    found: CellResult = receiver.recv()
    process.join()
    return found


def _report(sender: Connection, cell: str, num_workers: int, rounds: int, limit_buffers: int, peers: list[str]) -> None:
    # By name: what cells and peers are made of cannot be sent.
    (chosen,) = (one for one in CELLS if one.name == cell)
    found = [peer for peer in PEERS if peer.name in peers]
    sender.send(run_cell(chosen, num_workers, rounds, limit_buffers=limit_buffers, peers=found))
