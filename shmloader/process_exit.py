"""What has to be done when this process exits or forks, in one order.

Python calls exit functions and fork hooks by the order of their registration, which would be the order of imports. So
this module alone registers itself, and others say what they have to do at which step.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.util  # noqa: F401 - its exit function terminates daemons; ours is registered later, so called before
import os
import threading
from collections.abc import Callable
from enum import IntEnum

_Act = Callable[[], object]


class AtExit(IntEnum):
    """The steps of an exit."""

    CLOSE_TRACES = -2  # while all is there that is traced
    TELL = -1  # what loaders have done is told while they are there
    CLOSE_DELIVERIES = 1  # threads that wait for workers leave them, and these end
    CLOSE_PASSES = 2  # all other workers end
    UNPIN = 3  # no worker is left whose batches could be page-locked


class InChild(IntEnum):
    """The steps in a process that was forked from this one."""

    TAKE_COPIES = 1  # batches that are held become the child's own, before anything here may let go of one
    DISOWN_PASSES = 2  # workers, slots and tokens are the parent's
    DISOWN_PROCESSES = 3  # so are the processes, which multiprocessing takes for the child's
    STOP_WRITING = 4  # of a worker: its slot is the worker's
    RESTORE_HANDLERS = 5  # of signals, which may be called from then on


_at_exit: list[tuple[AtExit, _Act]] = []
_in_child: list[tuple[InChild, _Act]] = []
_before_fork: list[_Act] = []
_in_parent: list[_Act] = []
_has_begun = False


def at_exit(step: AtExit, act: _Act) -> None:
    """Has ``act`` called once, when the interpreter ends, after the acts of earlier steps."""
    _at_exit.append((step, act))


def at_fork(before: _Act, in_parent: _Act) -> None:
    """Has ``before`` called by the thread that is about to fork, and ``in_parent`` when it has."""
    _before_fork.append(before)
    _in_parent.append(in_parent)


def in_child(step: InChild, act: _Act) -> None:
    """Has ``act`` called in each process that is forked from this one, after the acts of earlier steps."""
    _in_child.append((step, act))


def is_exiting() -> bool:
    """Whether the interpreter has begun to end: the first exit step is reached."""
    return _has_begun


def wait_if_abandoned() -> None:
    """Blocks for ever in a daemon thread of an interpreter that ends, and returns at once elsewhere.

    For threads whose workers were closed under them by the main thread, on its way out: they end with the process, and
    an error would only be printed.
    """
    if is_exiting() and threading.current_thread().daemon:
        threading.Event().wait()


def _run(acts: list[_Act]) -> None:
    """Calls all, also where some raise; the last exception is raised then."""
    with contextlib.ExitStack() as stack:
        for act in reversed(acts):
            stack.callback(act)


def _by_step(acts: list[tuple[AtExit, _Act]] | list[tuple[InChild, _Act]]) -> list[_Act]:
    return [act for _, act in sorted(acts, key=lambda entry: entry[0])]


@atexit.register
def _exit() -> None:
    global _has_begun
    _has_begun = True
    _run(_by_step(_at_exit))


if hasattr(os, "register_at_fork"):  # else this module is imported, and not used
    os.register_at_fork(
        before=lambda: _run(_before_fork),
        after_in_parent=lambda: _run(_in_parent),
        after_in_child=lambda: _run(_by_step(_in_child)),
    )
