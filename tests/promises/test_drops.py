"""Nothing that is dropped runs Python code in which a Ctrl-C would be printed and forgotten, and the loop go on.

Such code is that of destructors and of weak references' callbacks. A generator that is closed is the exception: its
handler is entered without a look for signals, and holds them (`shmloader.interrupts`).
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from shmloader import CachedDataset, JobQueue, Producer, ShmDataLoader, TensorSpec, share


class Squares(Dataset[int]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> int:
        return index**2


def loader_of(**arguments: Any) -> Any:
    return ShmDataLoader(Squares(), 2, **arguments)


def begun(**arguments: Any) -> Any:
    iterator = iter(loader_of(**arguments))
    next(iterator)
    return iterator


def ended(**arguments: Any) -> Any:
    iterator = iter(loader_of(**arguments))
    assert len(list(iterator)) == 12
    return iterator


def with_begun(**arguments: Any) -> Any:
    loader = loader_of(**arguments)
    for _ in loader:
        break
    return loader


def called(**arguments: Any) -> Any:
    queue = JobQueue(abs, num_workers=2, **arguments)
    queue.put(-3)
    assert queue.get() == 3
    return queue


def fill(slots: Any) -> None:
    for slot in slots:
        with slot:
            pass


def produced(**arguments: Any) -> Any:
    producer = Producer(fill, {"a": TensorSpec((3,))}, num_workers=2, **arguments)
    next(iter(producer))
    return producer


MADE: dict[str, Callable[[], Any]] = {
    "an iterator": lambda: begun(num_workers=2),
    "an iterator that is exhausted": lambda: ended(num_workers=2),
    "an iterator of threads": lambda: begun(num_workers=2, worker_type="thread"),
    "an iterator without workers": begun,
    "a batch": lambda: next(iter(loader_of(num_workers=2))),
    "a loader": lambda: with_begun(num_workers=2),
    "a loader with persistent workers": lambda: with_begun(num_workers=2, persistent_workers=True),
    "a queue": called,
    "a queue of threads": lambda: called(worker_type="thread"),
    "a producer": produced,
    "a producer with threads": lambda: produced(worker_type="thread"),
    "a shared array": lambda: share(np.arange(10)),
    "a shared list": lambda: share(["a", "b"]),
    "a cached dataset": lambda: CachedDataset(Squares(), max_bytes=1 << 20),
}


@pytest.mark.filterwarnings("ignore::shmloader.IdleWorkersWarning")
@pytest.mark.parametrize("made", MADE)
def test_a_drop_runs_no_python_code(made: str) -> None:
    dropped = [MADE[made]()]
    entered: list[CodeType] = []
    here = sys._getframe()

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_back is here:
            entered.append(frame.f_code)

    gc.collect()
    gc.disable()
    sys.setprofile(look)
    try:
        dropped.clear()
    finally:
        sys.setprofile(None)
        gc.enable()
    assert [code for code in entered if not code.co_flags & inspect.CO_GENERATOR] == []
