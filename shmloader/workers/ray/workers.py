"""Workers that are Ray actors, on whatever node has processors free: start, tell, wait, replace, stop.

How a batch travels::

    parent's loop          courier (a thread)                    actor i, on some node
    -------------          ------------------                    ---------------------
    token, job in slot ->  job, by value ----- actor call -----> fetch samples
                                                                 collate into a slot of its own
    token <--------------  copied into the slot <-- object store -- the slot's bytes

An actor runs the same loop and the same batch maker as a worker process. Several jobs are under way to each, so that
the network's latency is hidden. What comes back is what a worker process would have left in the slot, byte for byte:
offsets are of the slot, so nothing has to be found anew, and the loop gets tensors over the parent's slots.

What differs: jobs and batches are copied. A batch is written to the parent's slot when its turn comes among those of
its worker, so it is there that room may be short.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from shmloader import callers, interrupts, process_exit
from shmloader.errors import ClusterBusyWarning
from shmloader.slots.writer import Hold
from shmloader.words import Words
from shmloader.workers.brief import Brief
from shmloader.workers.recorder import Record
from shmloader.workers.threads.parent_queue import ParentQueue
from shmloader.workers.wire import Fields, Token

from . import cluster
from .courier import Courier
from .landing import Landing
from .messages import Look, Orders, fields_of, machine
from .proxy import SHUT_DOWN, Proxy, look_at
from .store import SentParts

# Actors begin in some seconds, most of which importing torch takes, and many on one node one after the other. If none
# has begun for so long while a loop waits, it is looked whether there is room for another.
_PATIENCE_SECONDS = 30.0


class RayWorkers:
    """The Ray actors of one iterator.

    Args:
        num_workers: how many.
        options: of the actors, see ``ray_options``.
        sent: what was sent to the workers of earlier passes.
    """

    _words: Words
    method = "ray"
    is_forked = False
    imports_main = False  # what is defined there is sent by value
    forwards_logs = False  # what actors write, Ray prints

    def __init__(self, num_workers: int, options: Mapping[str, Any], sent: SentParts) -> None:
        self.num_workers = num_workers
        self._options = options
        self._sent = sent
        self._up = ParentQueue()
        self._courier = Courier(self._up)
        self._actors: list[Proxy] = []
        self._class: Any = None
        self._session: tuple[str, str] | None = None
        self._began = 0.0
        self._has_warned = False
        self._waiting = 0
        self._looks: list[Look | None] = []
        self._looked = float("-inf")

    @property
    def processes(self) -> list[Any]:
        """There are none on this machine that tools could look at."""
        return []

    def start(self, briefs: list[Brief]) -> None:
        """Has the actors be made, one for each brief, in the order of their numbers. Does not wait until they begin.

        Blocks while this process connects to Ray, where it has not, and while the dataset is sent.

        Raises:
            RuntimeError: the cluster has no room for so many.
            Exception: the dataset, or what else goes to the workers, cannot be pickled; or Ray refuses an option.
        """
        cluster.connect()
        self._session = cluster.session()
        self._class = cluster.actor_class(self._options)
        cluster.check_room(self._options, self.num_workers)
        self._words = briefs[0].source.words
        maker, parcel = self._maker(), self._send(briefs[0])
        self._began = time.monotonic()
        with interrupts.AllDeferred():
            self._courier.start()
            for brief in briefs:
                self._actors.append(self._start_one(maker, brief, parcel))

    def replace(self, brief: Brief) -> None:
        """Has an actor be made in the place of one that has died."""
        maker = self._maker()
        parcel = self._send(brief)
        self._began = time.monotonic()
        with interrupts.AllDeferred():
            self._actors[brief.worker] = self._start_one(maker, brief, parcel)

    def _maker(self) -> Any:
        return cluster.avoiding(self._class, self._options, cluster.silent_nodes())

    def _send(self, brief: Brief) -> Any:
        *_, parts = fields_of(brief)
        return self._sent.send(parts, self._session)

    def _start_one(self, maker: Any, brief: Brief, parcel: Any) -> Proxy:
        own, of_source, _ = fields_of(brief)
        shared_state = brief.arena.shared_state
        record = Record(shared_state.record(brief.worker))
        orders = Orders(
            brief=own,
            source=of_source,
            max_slot_bytes=brief.arena.stride,
            gate=shared_state.gate_words,
            record=record.extract(max(0, record.count - 1)),
            machine=machine(),
            saved=None if brief.takeover is None else shared_state.saved(brief.worker, brief.takeover.tag),
        )
        actor = cluster.new_actor(maker, self._options)
        return self._courier.adopt(brief.worker, actor, Landing(brief, self._up), orders, parcel)

    def send(self, worker: int, token: Fields) -> None:
        """Sends a token to a worker. Does not block. To one that has ended it goes nowhere; `wait` tells of that."""
        self._courier.send(worker, Token._make(token))

    def dismiss(self, worker: int, token: Fields) -> None:
        """Sends a worker that has nothing left to do its last token, once; its end is no news then."""
        if not self._actors[worker].is_leaving:
            with interrupts.AllDeferred():
                self._actors[worker].is_leaving = True
                self.send(worker, token)

    def shut_gate(self, words: tuple[int, int]) -> None:
        """Tells all workers that the gate is shut. Does not block."""
        self._courier.set_gate(words)

    def wait(self, timeout: float | None) -> tuple[list[Token], list[int]]:
        """Waits for workers; see `ParentQueue.wait`.

        Warns:
            ClusterBusyWarning: once; the loop has waited for some time, and a worker has no node yet.
        """
        return self._up.wait(timeout, self._look_around)

    def _look_around(self) -> None:
        """Looks for what nothing tells of: that Ray was shut down, or that it has no room for a worker."""
        if cluster.session() != self._session:
            self._courier.lose_all(SHUT_DOWN)
            return
        waiting = sum(actor.hello is None and not actor.has_ended for actor in self._actors)
        if waiting != self._waiting:
            self._waiting, self._began = waiting, time.monotonic()
        elif waiting and not self._has_warned and time.monotonic() - self._began > _PATIENCE_SECONDS:
            self._warn_if_busy(waiting)

    def _warn_if_busy(self, waiting: int) -> None:
        lacking = cluster.lacking(self._options)
        if lacking:
            self._has_warned = True
            text = (
                f"{waiting} of {self.num_workers} {self._words.owner} workers have not begun: each is a Ray actor that "
                f"takes {lacking}, and no more is free. They begin when others have given that back. Lower "
                "num_workers, or what ray_options ask for"
            )
            warnings.warn(text, ClusterBusyWarning, stacklevel=callers.stacklevel())

    def read(self) -> list[Token]:
        """Returns the tokens that are there. Does not block; `wait` tells of workers that have ended."""
        return self._up.read()

    def wake(self) -> None:
        """Ends a wait: the one that is under way, or else the next. Does not block; safe in signal handlers too."""
        self._up.wake()

    def hear(self) -> None:
        """Does nothing: what actors log is printed by Ray, or not."""

    def name(self, worker: int) -> str:
        """Returns what Ray knows a worker by, and its node."""
        return self._actors[worker].name

    def ending(self, worker: int) -> str:
        """Says how a worker has ended."""
        actor = self._actors[worker]
        return f"{self._words.owner} worker ({actor.name}) has died: {actor.ending.rstrip('.')}. "

    def state(self, worker: int) -> str:
        """Says whether a worker waits for a node, or what its node's kernel knows of it."""
        if self._actors[worker].hello is None:
            return "waiting for a node, or about to begin"
        look = self._look(worker)
        return "not answering" if look is None else look.state

    def traceback(self, worker: int) -> list[str]:
        """Returns the Python frames that a worker is in, the innermost first; none where it does not answer."""
        look = self._look(worker) if self._actors[worker].hello is not None else None
        return [] if look is None else look.frames

    def _look(self, worker: int) -> Look | None:
        # All are asked at once, since one that does not answer takes a second.
        if time.monotonic() - self._looked > 2 * _LOOK_SECONDS and cluster.session() == self._session:
            self._looks = look_at(self._actors)
            self._looked = time.monotonic()
        return self._looks[worker] if worker < len(self._looks) else None

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self, token: Fields, grace: float) -> None:
        """Ends all actors. Blocks until they have finished the sample that they are at, ``grace`` seconds at most.

        What has not ended then is killed. Called by a garbage collection in a thread that this takes, it does not wait.
        """
        for actor in self._actors:
            actor.is_leaving = True
        self._up.close()  # for whoever waits in another thread
        self._courier.stop(0.0 if process_exit.is_exiting() else grace)

    def left_behind(self, act: Callable[[], object]) -> bool:
        """Whether `stop` has left the thread that writes to slots; then it calls ``act`` as it ends."""
        return self._courier.when_ended(act)

    def holds(self) -> list[Hold]:
        """Returns what code in this process holds of slots through a worker: nothing."""
        return []

    def kill(self) -> None:
        """Has `stop` wait no longer for what actors are at."""
        self._courier.hurry()


_LOOK_SECONDS = 1.0
