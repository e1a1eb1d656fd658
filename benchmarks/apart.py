"""A peer in a process of its own, which stands still while others have their turn.

Some libraries have threads and processes that go on loading, or look for something to do all the time. Beside ours that
would be measured with it, and in our process even be counted as its processor time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

from shmloader.cli.bench.measure import Round, Track, calibrate

from .cells import CELLS, Cell
from .peers import Peer, PeerLoader


class PeerProcess:
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
        context = multiprocessing.get_context("spawn")  # which leaves it nothing of ours, threads least of all
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, peer, cell.name, num_workers, seconds))
        self._process.start()
        theirs.close()
        try:
            self._pipe.recv()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def run(self) -> Round:
        """Lets it load for a turn, and returns what that took. Blocks meanwhile.

        Raises:
            EOFError: it has ended; it has printed why.
        """
        self._signal(signal.SIGCONT)
        self._pipe.send(True)
        took: Round = self._pipe.recv()
        self._signal(signal.SIGSTOP)
        return took

    def close(self) -> None:
        """Ends it and all that it has started, and blocks until it has ended."""
        self._signal(signal.SIGKILL)
        self._process.join()
        self._process.close()
        self._pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # it has no group yet, or has ended
            self._process.kill()


def _serve(pipe: Connection, peer: Peer, cell: str, num_workers: int, seconds: float) -> None:
    os.setsid()  # what it starts gets its signals
    (chosen,) = (one for one in CELLS if one.name == cell)  # what cells are made of cannot be sent
    track = Track(PeerLoader(peer, chosen, num_workers))
    batches = calibrate(track, seconds)
    pipe.send(batches)
    while pipe.recv():
        pipe.send(track.run(batches))
