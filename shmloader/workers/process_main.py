"""A worker process: tokens in, batches made, tokens out.

What user code can observe here is torch's worker loop: seeds, `get_worker_info`, thread count, and process name
(torch/utils/data/_utils/worker.py says what they are).
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import torch

from shmloader import process_exit, torch_private
from shmloader.errors import PoolMemoryError
from shmloader.slots import fork_copies, moved_storages

from . import parent_watch, seeding, tracebacks, wire
from .batch_maker import BatchMaker, Shortage
from .brief import Brief
from .cpu_policy import PolicyTrial
from .wire import Inbox, Link, Token

_KINDS = (wire.BATCH, wire.FAULT, wire.ENDED)  # by `batch_maker.Contents`


def run(orders: tuple[Brief, Link]) -> None:
    """Serves jobs until told to stop or the parent has ended. The target of the worker process."""
    brief, link = orders
    # What was inherited is left out of garbage collections: looking at an object writes to it, which would copy every
    # page that the parent has objects on.
    gc.freeze()
    for fd in link.close_first:
        os.close(fd)
    try:
        parent = os.pidfd_open(link.parent_pid)
    except ProcessLookupError:
        return
    brief.arena.own()
    by_kernel = parent_watch.end_with_parent(parent, link.dies_by_kernel)
    tracebacks.answer(link.traceback_outlet)
    _prepare_process()
    seeding.seed(brief.source.base_seed, brief.worker)
    try:
        worker = _Worker(brief, link)
        worker.prepare()
        if by_kernel:  # an init function may have given up rights
            parent_watch.end_with_parent(parent, by_kernel)
        worker.serve()
    except BaseException as error:
        _leave(error)


def _leave(error: BaseException) -> NoReturn:
    """Ends this process as an exception ends Python, but at once: a thread of the dataset's might never let it end."""
    code = 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif error.code is None or isinstance(error.code, int):
        code = error.code or 0
    else:
        print(error.code, file=sys.stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _prepare_process() -> None:
    # Ctrl-C reaches every process of the terminal; the parent decides what becomes of it. A handler that does nothing,
    # and not SIG_IGN, since programs that the dataset starts would inherit that. Nor must an event loop of the parent's
    # hear of it from here, through a descriptor that it has Python write the signals to.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked since before the fork, see `process_start`
    torch_private.set_signal_handlers()
    torch_private.set_thread_name("pt_data_worker")
    torch.set_num_threads(1)
    # Where memory is short, the kernel ends the process that uses most, and that may be the training loop, which maps
    # the whole pool. A worker that is ended is an error that says so, or is replaced.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


class _Worker:
    """Serves the tokens of this process."""

    def __init__(self, brief: Brief, link: Link) -> None:
        self._brief = brief
        self._inbox = Inbox(link.inbox)
        self._outbox = link.outbox
        self._number = brief.worker
        self._maker = BatchMaker(brief)
        self._shared_state = brief.arena.shared_state
        self._policy = PolicyTrial()
        self._curbed: dict[int, int] = {}  # jobs whose slots may use less by now than their tokens say

    def prepare(self) -> None:
        """Calls the init function, and does what else comes before the first job."""
        brief, maker = self._brief, self._maker
        moved_storages.install()
        fork_copies.watch(maker.writer)
        process_exit.in_child(process_exit.InChild.STOP_WRITING, maker.writer.leave_to_parent)
        self._map_slots()
        maker.shuffle(brief.source.shared_seed)
        seed = brief.source.base_seed + brief.worker
        torch_private.set_worker_info(brief.worker, brief.num_workers, seed, maker.dataset)
        maker.collation.install()
        maker.begin_first_pass()

    def _map_slots(self) -> None:
        # The parent has made the memory resident; this enters it into this process's page table, which would
        # otherwise cost a fault a page in the first batches. Failing, it costs just that.
        with contextlib.suppress(PoolMemoryError):
            for slot in range(self._brief.slots_to_map):
                self._brief.arena.populate(slot, self._brief.bytes_to_map)

    def serve(self) -> None:
        """Does one job after the other, until told to stop."""
        while (token := self._inbox.get()) is not None and token.kind != wire.STOP:
            if token.kind == wire.RESUME:
                self._resume(token.generation)
            elif not self._maker.has_ended and not self._shared_state.stopped:
                self._serve(token)

    def _resume(self, generation: int) -> None:
        self._curbed.clear()
        self._maker.end_pass(generation)
        self._outbox.write((wire.RESUMED, 0, self._number, generation, 0, 0, 0, 0, 0))
        self._maker.begin_pass(self._shared_state.shared_seed)

    def _serve(self, job: Token) -> None:
        room = self._curbed.pop(job.seq, job.room)
        done = self._maker.make(job.slot, job.seq, room, job.nbytes)
        while isinstance(done, Shortage):
            done = self._maker.go_on(self._ask(job, done))
        self._policy.count()
        kind = _KINDS[done.contents]
        head = kind, done.is_retained, self._number, job.generation
        self._outbox.write((*head, job.slot, job.seq, 0, done.offset, done.nbytes))

    def _ask(self, job: Token, shortage: Shortage) -> int:
        """Asks the parent for room, and returns how much there is. Blocks until it has answered."""
        head = wire.ASK, 0, self._number, job.generation
        self._outbox.write((*head, job.slot, job.seq, shortage.need, 0, shortage.to_stay))
        grant = self._inbox.get_grant(self._curbed)
        return grant.room if grant is not None else 0
