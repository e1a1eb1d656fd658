"""What a worker tells of itself, so that a loader's state can be taken, and how it takes up a pass from there.

Beside a batch lies the state of the random generators, where that has moved since the worker's batch before. With a
batch go the states of a dataset, or of its iterator, that have ``state_dict`` and ``load_state_dict``.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

from shmloader.collate.seeded import Positions
from shmloader.slots.shared_state import BEGIN_NOTE_BYTES, SharedState
from shmloader.torch_private import end_fetcher, stream_of
from shmloader.workers.brief import Brief, Resume, Snapshots

from . import generators

# What a dataset's state may take that is told at the beginning of a pass: beside generators, and what pickling adds.
MOST_AT_BEGIN = BEGIN_NOTE_BYTES - (1 << 15)


class Stated(NamedTuple):
    """A batch on its way to the loop, with the states of what it was made of.

    Attributes:
        batch: the batch.
        data: the states, pickled.
    """

    batch: Any
    data: bytes


class _States(NamedTuple):
    dataset: Any
    iterator: Any
    has_ended: bool = False  # whether the iterator was found to have ended, by a batch that is smaller
    position: int = 0  # how many samples were read, where that is what they are seeded by


def has_state(part: object) -> bool:
    """Whether an object has ``state_dict`` and ``load_state_dict``."""
    return callable(getattr(part, "state_dict", None)) and callable(getattr(part, "load_state_dict", None))


def of_dataset(data: bytes) -> bytes:
    """Returns the states without that of the iterator, which ends with its pass."""
    return pickle.dumps(_States(pickle.loads(data)[0], None)[:], 5)


def has_any_state(dataset: Any, fetcher: Any) -> bool:
    """Whether a dataset, or the iterator that is read of it, has a state."""
    iterator, _ = stream_of(fetcher)
    return has_state(dataset) or has_state(iterator.samples if isinstance(iterator, Positions) else iterator)


def state_of_dataset(dataset: Any) -> bytes | None:
    """Returns the state of a dataset between passes, pickled; None where it has none."""
    return pickle.dumps(_States(dataset.state_dict(), None)[:], 5) if has_state(dataset) else None


def states_of(dataset: Any, fetcher: Any) -> bytes | None:
    """Returns the states of a dataset and of the iterator that is read of it, pickled; None where they have none."""
    iterator: Any
    iterator, has_ended = stream_of(fetcher)
    position = 0
    if isinstance(iterator, Positions):
        iterator, position = iterator.samples, iterator.position
    if not (has_state(iterator) or has_state(dataset)):
        return None
    of_iterator = iterator.state_dict() if has_state(iterator) else None
    of_dataset = dataset.state_dict() if iterator is not dataset and has_state(dataset) else None
    return pickle.dumps(_States(of_dataset, of_iterator, has_ended, position)[:], 5)


def load_dataset(dataset: Any, data: bytes | None) -> None:
    """Gives a dataset its state back, before its iterator is made."""
    if data is not None and (state := pickle.loads(data)[0]) is not None and has_state(dataset):
        dataset.load_state_dict(state)


def load_iterator(fetcher: Any, data: bytes | None) -> None:
    """Gives an iterator its state back."""
    if data is None:
        return
    states = _States(*pickle.loads(data))
    iterator, _ = stream_of(fetcher)
    if isinstance(iterator, Positions):
        iterator.position = states.position
        iterator = iterator.samples
    if states.iterator is not None and has_state(iterator):
        iterator.load_state_dict(states.iterator)
    if states.has_ended:
        end_fetcher(fetcher)


class WorkerSnapshots:
    """The snapshots of one worker. Used by the thread that makes its batches.

    It is made when the generators are seeded and nothing is drawn: what has not moved since then need not be told.

    Args:
        brief: what the worker makes.
        orders: what it tells.
    """

    def __init__(self, brief: Brief, orders: Snapshots) -> None:
        self._shared_state: SharedState = brief.arena.shared_state
        self._note_lengths = self._shared_state.note_lengths
        self._worker = brief.worker
        self._num_workers = brief.num_workers
        self._every = orders.every
        # A thread's generators are the process's, and the loop's too.
        self._watch = generators.Watch() if orders.of_generators and brief.kind == "process" else None
        if self._watch is not None:
            self._watch.look()
        self._length = orders.length
        self._given = orders.given
        self._count: int | None = None
        self.resume: Resume | None = orders.resumes[brief.worker] if orders.resumes else None

    def begin(self, dataset: Any, fetcher: Any) -> bool:
        """Begins a pass, and returns whether the states of what batches are made of are told."""
        self.resume = None
        self._count = None if self._length is None else self._length - self._given
        self._given = 0
        return self._every is not None and has_any_state(dataset, fetcher)

    def end_pass(self, dataset: Any) -> None:
        """Notes what the next pass begins with. Before the parent knows that it begins."""
        if self._watch is not None:
            self._watch.look()
            now = generators.capture()
        else:
            now = None
        self._note_at_begin(now, dataset)

    def end_stream(self, dataset: Any) -> None:
        """Notes what a dataset says of itself that has no more in this pass: its last batch came before its end.

        What the generators are is noted beside the slot.
        """
        if self._every is not None and has_state(dataset):
            self._note_at_begin(None, dataset)

    def _note_at_begin(self, now: bytes | None, dataset: Any) -> None:
        data, has_lost = None, False
        try:
            data = None if self._every is None else state_of_dataset(dataset)
        except Exception:  # the user's, which has no batch's place to come in here
            has_lost = True
        has_lost = has_lost or (data is not None and len(data) > MOST_AT_BEGIN)
        note = now, None if has_lost else data, has_lost
        self._shared_state.note_at_begin(self._worker, pickle.dumps(note, 5))

    def with_states(self, batch: Any, seq: int, dataset: Any, fetcher: Any) -> Any:
        """Returns a batch together with the states of what it was made of, where they are to be told with it.

        Each worker's last batch before every ``every``-th of all has to have them, and its last one of a pass: the next
        pass of persistent workers begins with these.
        """
        assert self._every is not None
        is_last = self._count is not None and seq + self._num_workers >= self._count
        if seq % self._every + self._num_workers < self._every and not is_last:
            return batch
        data = states_of(dataset, fetcher)
        return batch if data is None else Stated(batch, data)

    def note(self, slot: int) -> None:
        """Notes the state of the generators beside a slot that is about to be given back."""
        watch = self._watch
        data = None if watch is None or watch.is_still() else watch.look()
        if data is not None or self._note_lengths[slot]:  # mostly it stays 0, and other processes have it cached
            self._shared_state.note(slot, data)
