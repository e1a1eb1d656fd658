"""A worker process: what is set up in it before its loop runs, and how it ends.

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

from shmloader import torch_private
from shmloader.errors import PoolMemoryError
from shmloader.slots import moved_storages
from shmloader.workers import tracebacks, worker_loop
from shmloader.workers.brief import Brief
from shmloader.workers.logs.handler import LogOutlet
from shmloader.workers.states import seeding
from shmloader.workers.wire import Inbox, Link

from . import parent_watch
from .cpu_policy import PolicyTrial


def run(orders: tuple[Brief, Link], logs: LogOutlet | None = None) -> None:
    """Works until told to stop or the parent has ended. The target of the worker process.

    Args:
        orders: what it does, and how it and the parent reach each other.
        logs: where its log records go, if that is not settled already; None: nowhere.
    """
    brief, link = orders
    if logs is not None:
        logs.install()
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
        loop = worker_loop.make(brief, Inbox(link.inbox.read), link.outbox, PolicyTrial().count)
        _make_slots_ready(brief)
        seed = brief.source.base_seed + brief.worker
        torch_private.set_worker_info(brief.worker, brief.num_workers, seed, loop.dataset)
        loop.install()
        loop.begin()
        if by_kernel:  # an init function may have given up rights
            parent_watch.end_with_parent(parent, by_kernel)
        loop.serve()
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked since before the fork, see `start`
    torch_private.set_signal_handlers()
    torch_private.set_thread_name("pt_data_worker")
    torch.set_num_threads(1)
    # Where memory is short, the kernel ends the process that uses most, and that may be the training loop, which maps
    # the whole pool. A worker that is ended is an error that says so, or is replaced.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _make_slots_ready(brief: Brief) -> None:
    """Keeps user code in this process from what would harm the slots, and maps these."""
    moved_storages.install()
    # The parent has made the memory resident; this enters it into this process's page table, which would otherwise
    # cost a fault a page in the first batches. Failing, it costs just that.
    with contextlib.suppress(PoolMemoryError):
        for slot in range(brief.slots_to_map):
            brief.arena.populate(slot, brief.bytes_to_map)
