"""What runs now: loaders, producers and job queues that have workers.

Whoever starts workers adds itself. Nothing is held: an owner that is dropped is gone at once, and so are its workers.
There is no lock, which a finalizer or a signal's handler might wait for: each change of the table is one step of
Python's. Numbers are not used again, so that who tidies up never takes away what another thread has just added.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from shmloader import process_exit


class Run(Protocol):
    """Workers of an owner. An owner may have several: a loader has as many as it has iterators."""

    @property
    def is_running(self) -> bool:
        """Whether there are workers, and they are this process's. Safe from any thread."""

    def close(self) -> None:
        """Ends them. From any thread; safe to call again."""


# Without callbacks: one would run in a finalizer, and swallow a Ctrl-C that comes meanwhile.
_entries: dict[int, tuple[weakref.ref[Any], weakref.ref[Run]]] = {}
_numbers = itertools.count()


def add(owner: Any, run: Run) -> None:
    """Notes that ``run`` has workers, or may have some later, until it is dropped. Neither is held."""
    for number, (_, one) in list(_entries.items()):
        if one() is None:
            _entries.pop(number, None)
    _entries[next(_numbers)] = weakref.ref(owner), weakref.ref(run)


def label_of(owner: Any) -> str:
    """Returns what a loader, producer or job queue is called: its name, or that of what it takes its data from.

    That is the class of a dataset, or a target's or a function's own name.
    """
    if (name := getattr(owner, "name", None)) is not None:
        return str(name)
    source = next((vars(owner)[one] for one in ("dataset", "_function") if one in vars(owner)), owner)
    try:
        own = source.__qualname__
    except Exception:  # code of the user's: a dataset may have any idea of what attributes it has
        own = None
    return own if isinstance(own, str) else type(source).__qualname__


def labels_of(owners: Sequence[Any]) -> list[str]:
    """Returns what each of several is called; of those that are called the same, the second is "train (2)"."""
    labels: list[str] = []
    counts: Counter[str] = Counter()
    for label in map(label_of, owners):
        counts[label] += 1
        labels.append(f"{label} ({counts[label]})" if counts[label] > 1 else label)
    return labels


def live_loaders() -> tuple[Any, ...]:
    """Returns the loaders, producers and job queues of this process that have workers running now.

    In the order in which they were made, and loaders in that of their passes. Each comes once, however many iterators
    of it are alive. Loaders with ``num_workers=0`` have no workers. A forked process sees none of its parent's.

    Does not block; safe from any thread.
    """
    found = [owner() for owner, run in list(_entries.values()) if (one := run()) is not None and one.is_running]
    return tuple({id(owner): owner for owner in found if owner is not None}.values())


def close_all() -> None:
    """Ends the workers of all loaders, producers and job queues of this process.

    Batches that were handed out stay valid. Whoever takes from one of them afterwards has a RuntimeError that says that
    it is closed, or the end in the case of a `Producer`; a loader may be iterated anew. In a forked process nothing of
    the parent's is touched.

    It may be called from any thread, at exit, in a signal's handler, and again. Blocks until workers have ended, for
    each owner as long as dropping it does: 6 seconds at most. A thread that is in ``next`` of a loader is waited for,
    and held up no more than a second by its wait for workers.

    Raises:
        RuntimeError: some could not be closed; the text has what each of them raised, and the first is its cause. All
            others are closed.
    """
    errors: list[Exception] = []
    try:
        for _, run in list(_entries.values()):
            _close(run(), errors)
    except BaseException:  # a signal's handler has raised: the others are closed all the same
        close_all()
        raise
    if errors:
        texts = "; ".join(f"{type(error).__name__}: {error}" for error in errors)
        raise RuntimeError(f"{len(errors)} could not be closed: {texts}") from errors[0]


def _close(run: Run | None, errors: list[Exception]) -> None:
    try:
        if run is not None and run.is_running:
            run.close()
    except Exception as error:
        errors.append(error)


process_exit.in_child(process_exit.InChild.DISOWN_PASSES, _entries.clear)
