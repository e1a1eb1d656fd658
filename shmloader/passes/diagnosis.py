"""What is said of workers that have died, that the loop waits for, or that could not be started.

Used in the parent. Facts come from the workers, the schedule and the shared state; here they become sentences that name
the worker, the batch and what can be done.
"""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

from shmloader.errors import same_kind
from shmloader.slots.shared_state import SharedState
from shmloader.words import Words
from shmloader.workers.interface import Workers

from .schedule import Schedule, Task

_INDICES_LENGTH = 200
_STACKS = 8  # each may take a tenth of a second, if its worker does not answer


def current(worker: int, schedule: Schedule[Any], shared_state: SharedState) -> tuple[Task[Any], float] | None:
    """Returns the batch that a worker is making, or was making when it died, and for how many seconds."""
    begun = shared_state.begun(worker)
    owed = schedule.outstanding(worker)
    if begun is None or not owed or owed[0].seq != begun[0]:
        return None
    return owed[0], begun[1]


def death(worker: int, workers: Workers, schedule: Schedule[Any], shared_state: SharedState, words: Words) -> str:
    """Says which worker has died, how, and what it was at."""
    text = f"{workers.ending(worker)}It was worker {worker} of {workers.num_workers}, "
    at, owed = current(worker, schedule, shared_state), schedule.outstanding(worker)
    if at is not None:
        text += f"and at {_name(at[0], words)}, for {at[1]:.3g} s. "
    elif owed:
        text += f"and owed {_name(owed[0], words)}, which it had not begun. "
    else:
        text += "and owed nothing. "
    if shared_state.begun(worker) is None and workers.imports_main:
        text += (
            f"If it printed an error while it was being started: the start method {workers.method!r} imports the main "
            "module anew, where all that workers are given must be found; multiprocessing_context='fork' does not. "
        )
    return text


def timeout(seconds: float, workers: Workers, schedule: Schedule[Any], shared_state: SharedState, words: Words) -> str:
    """Says what every worker does while the loop waits: its state, its batch, for how long, and its Python stack."""
    text = f"{words.owner} timed out after {seconds} seconds"
    if (awaited := schedule.awaited) is not None:
        text += f", waiting for {_name(awaited, words)}, of worker {awaited.worker}"
    lines = [text]
    asked = 0
    for worker in range(workers.num_workers):
        occupation = _occupation(worker, schedule, shared_state, words)
        lines.append(f"  worker {worker} ({workers.name(worker)}) is {workers.state(worker)}{occupation}")
        if schedule.outstanding(worker) and asked < _STACKS:
            asked += 1
            lines += [f"    {frame}" for frame in workers.traceback(worker)]
    return "\n".join(lines)


def _occupation(worker: int, schedule: Schedule[Any], shared_state: SharedState, words: Words) -> str:
    if (at := current(worker, schedule, shared_state)) is not None:
        return f", and at {_name(at[0], words)}, for {at[1]:.3g} s"
    if owed := schedule.outstanding(worker):
        return f", and has not begun {_name(owed[0], words)}"
    return ", and owes nothing"


def failed_start(error: Exception, workers: Workers, parts: dict[str, Any]) -> Exception | None:
    """Says which of the things that a worker needs cannot be pickled, where that is why it could not be started.

    Args:
        error: what `Workers.start` raised.
        workers: whose.
        parts: what of the user's goes to the worker, by the argument's name.

    Returns:
        An error of the same type where that type takes a message, else a RuntimeError; None if it is something else.
    """
    culprit = _find_unpicklable(error, parts) if workers.imports_main else None
    if culprit is None:
        return None
    text = (
        f"{culprit} (a {type(parts[culprit]).__qualname__}) cannot be pickled, which the start method "
        f"{workers.method!r} needs: {error}. Define what it is made of at the top level of a module, open what belongs "
        "to one process in worker_init_fn, or use multiprocessing_context='fork', which pickles nothing"
    )
    return same_kind(error, text)


def _find_unpicklable(error: Exception, parts: dict[str, Any]) -> str | None:
    def fails_alike(part: Any) -> bool:
        try:
            ForkingPickler.dumps(part)
        except Exception as again:
            # Another error is of something that can be pickled, but only for a process that is being started: a lock.
            return (type(again), str(again)) == (type(error), str(error))
        return False

    return next((name for name, part in parts.items() if fails_alike(part)), None)


def _name(task: Task[Any], words: Words) -> str:
    """Names a batch by its number, and its indices where the dataset is not a stream."""
    name = f"{words.made} {task.seq}"
    try:
        indices = pickle.loads(task.job)
        text = repr(indices)
    except Exception:  # their own code fails; the number will have to do
        return name
    if indices is None or (type(indices) is list and not any(index is not None for index in indices)):
        return name
    shortened = text if len(text) <= _INDICES_LENGTH else f"{text[:_INDICES_LENGTH]}..."
    return f"{name}: {words.job} {shortened}"
