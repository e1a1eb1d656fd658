"""What is said of workers that have died, and of workers that the loop waits for in vain. Used in the parent."""

from __future__ import annotations

import pickle
from typing import Any

from .control import Control
from .schedule import Schedule, Task
from .workers import Crew

_INDICES_LENGTH = 200
_STACKS = 8  # each may take a tenth of a second, if its worker does not answer


def name(task: Task[Any]) -> str:
    """Names a batch by its number and its indices."""
    try:
        text = repr(pickle.loads(task.job))
    except Exception:  # their own code fails; the number will have to do
        return f"batch {task.seq}"
    shortened = text if len(text) <= _INDICES_LENGTH else f"{text[:_INDICES_LENGTH]}..."
    return f"batch {task.seq}: indices {shortened}"


def current(worker: int, schedule: Schedule[Any], control: Control) -> tuple[Task[Any], float] | None:
    """Returns the batch that a worker is making, or was making when it died, and for how many seconds."""
    begun = control.begun(worker)
    owed = schedule.outstanding(worker)
    if begun is None or not owed or owed[0].seq != begun[0]:
        return None
    return owed[0], begun[1]


def death(worker: int, workers: int, crew: Crew, schedule: Schedule[Any], control: Control) -> str:
    """Says which worker has died, how, and what it was at."""
    text = crew.obituary(worker)
    at, owed = current(worker, schedule, control), schedule.outstanding(worker)
    if at is not None:
        text += f"It was worker {worker} of {workers}, and at {name(at[0])}, for {at[1]:.3g} s. "
    elif owed:
        text += f"It was worker {worker} of {workers}, and owed {name(owed[0])}, which it had not begun. "
    else:
        text += f"It was worker {worker} of {workers}, and owed nothing. "
    if control.begun(worker) is None:
        text += crew.hint_at_unpickling()
    return text


def timeout(seconds: float, workers: int, crew: Crew, schedule: Schedule[Any], control: Control) -> str:
    """Says what every worker does while the loop waits: its state, its batch, for how long, and its Python stack."""
    text = f"DataLoader timed out after {seconds} seconds"
    if (awaited := schedule.awaited) is not None:
        text += f", waiting for {name(awaited)}, of worker {awaited.worker}"
    lines = [text]
    asked = 0
    for worker in range(workers):
        pid = crew.processes[worker].pid
        lines.append(f"  worker {worker} (pid {pid}) is {crew.state(worker)}{_occupation(worker, schedule, control)}")
        if schedule.outstanding(worker) and asked < _STACKS:
            asked += 1
            lines += [f"    {frame}" for frame in crew.stack(worker)]
    return "\n".join(lines)


def _occupation(worker: int, schedule: Schedule[Any], control: Control) -> str:
    if (at := current(worker, schedule, control)) is not None:
        return f", and at {name(at[0])}, for {at[1]:.3g} s"
    if owed := schedule.outstanding(worker):
        return f", and has not begun {name(owed[0])}"
    return ", and owes nothing"
