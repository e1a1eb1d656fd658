"""What a loader knows of the pass that its last iterator is in, also when that is gone; and how a pass is taken up."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from shmloader import callers
from shmloader.errors import ResumeWarning
from shmloader.torch_private import index_sampler_of
from shmloader.workers import jobs
from shmloader.workers.brief import Resume, Snapshots
from shmloader.workers.states.snapshots import has_state, of_dataset

from .epochs import Epochs
from .progress import Place, Progress, WorkerPlace
from .sampling import Draws, Sampling
from .state import State


class Tracking:
    """The place of a loader's last iterator. It holds neither the iterator nor its workers.

    Args:
        loader: whose iterator it is; it is not held.
        state: what the iterator takes up; None: nothing.
        every: after how many batches workers tell the states of a dataset that has any; None: never.
        ahead: how many batches the sampler may be read ahead of the loop.
        epochs: of the loader.

    Attributes:
        sampling: reads the sampler.
        progress: counts what the loop was given.
        ask: returns the states of a dataset that is read in this process, told whether its pass is over; None where it
            has none, or is read elsewhere.
        base_seed, shared_seed: see `State`.
        has_begun: whether a pass has begun.
    """

    def __init__(
        self, loader: DataLoader[Any], state: State | None, every: int | None, ahead: int, epochs: Epochs
    ) -> None:
        self.sampling = Sampling(index_sampler_of(loader), loader.generator, ahead)
        self.ask: Callable[[bool], bytes | None] | None = None
        self.base_seed: int | None = None
        self.shared_seed: int | None = None
        self.has_begun = False
        self._epochs = epochs
        self._epoch = epochs.next
        self._seeds_samples = getattr(loader, "seeding", "worker") == "sample"
        self._num_workers = loader.num_workers
        self._worker_type = getattr(loader, "worker_type", "process")
        self._persistent = loader.persistent_workers
        self._is_stream = is_stream(loader)
        self._has_states = has_state(loader.dataset) and self._num_workers > 0
        self._in_order = loader.in_order or self._num_workers == 0
        # Which batches came since a state is not known without order, so that they cannot be made again.
        self._every = every if self._in_order or every is None else 1
        self._is_first = True
        self.progress = self._new_progress(Place())
        self._state = state

    @property
    def resumed(self) -> State | None:
        """The state that is to be taken up, if it is from within a pass."""
        return self._state if self._state is not None and self._state.phase == "within" else None

    @property
    def state_of_workers(self) -> State | None:
        """The state that is to be taken up, if workers go on as those that it is of."""
        state = self._state
        return state if state is not None and (state.phase == "within" or state.place.workers) else None

    @property
    def draws_before_workers(self) -> bool:
        """Whether workers start with what is drawn as the pass begins: an IterDataPipe's shuffling in a later pass."""
        state = self._state
        return (
            state is not None and state.phase == "after" and bool(state.place.workers) and state.shared_seed is not None
        )

    @property
    def data(self) -> bytes | None:
        """The states that a dataset takes up which is read in this process."""
        return None if self._state is None or self._num_workers else self._state.data

    def snapshots(self) -> Snapshots:
        """Returns what workers tell, and where they take up the pass. Called once, before they start.

        Warns:
            ResumeWarning: what they make will differ, or takes long.
        """
        state = self._state
        resumes: tuple[Resume, ...] = ()
        if state is not None and state.phase != "before":
            self._warn_of_differences(state)
            if len(state.place.workers) == self._num_workers:
                resumes = tuple(self._resume(state, worker) for worker in state.place.workers)
        length = self.sampling.length() if self._persistent and self._every not in (None, 1) else None
        given = 0 if self.resumed is None else self.resumed.place.batches
        return Snapshots(self._every, resumes, not self._seeds_samples, length, given)

    def _resume(self, state: State, worker: WorkerPlace) -> Resume:
        if state.phase == "after":
            return Resume(worker.generators or worker.at_begin, data=worker.data and of_dataset(worker.data))
        skips = worker.batches if self._is_stream and worker.data is None else 0
        job = jobs.pickled(next(iter(self.sampling.index_sampler))) if skips else b""
        return Resume(worker.at_begin, worker.generators, worker.data, skips, job, worker.is_over)

    def _warn_of_differences(self, state: State) -> None:
        theirs, ours = (
            0 if kind == "thread" else count
            for count, kind in ((state.num_workers, state.worker_type), (self._num_workers, self._worker_type))
        )
        if state.phase == "within" and theirs != ours and not self._seeds_samples:
            self._warn(
                f"the state was taken with {_workers(state.num_workers, state.worker_type)}, and is taken up with "
                f"{_workers(self._num_workers, self._worker_type)}: samples and their order are the same, and what the "
                "dataset draws from random generators differs"
            )
        if any(worker.has_lost for worker in state.place.workers):
            self._warn(
                "what the dataset's state_dict returned at the beginning of a pass was an error, or too large to be "
                "told before the first batch of a persistent worker, and is not in the state. The dataset begins with "
                "the one that it has. Take the state when each worker has given a batch"
            )
        has_data = any(worker.data is not None for worker in state.place.workers)
        if state.num_workers != self._num_workers and (has_data or state.data is not None):
            self._warn(
                f"the state holds what the dataset's state_dict returned with num_workers={state.num_workers}, which "
                f"cannot be given to num_workers={self._num_workers}; the dataset begins with the state that it has"
            )
        given = state.place.given
        if self._is_stream and given and not has_data and state.data is None and state.phase == "within":
            self._warn(
                f"neither the dataset nor its iterator has state_dict and load_state_dict, so that {given} batches are "
                "made once more, and dropped; with these methods it would go on at once"
            )

    def _warn(self, text: str) -> None:
        warnings.warn(text, ResumeWarning, stacklevel=callers.stacklevel())

    # -- the beginning of a pass ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Does what comes before the first draw for an iterator."""
        if self._state is not None and self._state.phase != "within" and self._state.sampler is not None:
            self.sampling.set_between(self._state.sampler, was_read=self._state.phase == "after")
        self.sampling.note_start(for_dataset=self._is_stream and not self._num_workers)

    def begin(self, begin: Callable[[], Iterator[Any]], is_first: bool) -> Iterator[Any]:
        """Returns what reads the sampler in a pass that begins, or is taken up.

        Args:
            begin: has torch's class begin to read the sampler, and returns what reads it.
            is_first: whether it is the iterator's first pass.
        """
        state, self._state = self._state, None
        self.has_begun = True
        self._is_first = is_first
        self._epoch = self._epochs.next
        if state is not None and state.phase == "within" and state.sampler is not None:
            self._is_first = state.is_first
            place = self._placed(state.place)
            was_read = state.num_workers > 0 or state.place.given > 0  # workers' sampler is read ahead at once
            indices = self.sampling.resume(state.sampler, place.batches, _draws_of(state), was_read, begin)
            # torch's iterator draws one when it is made, and with workers one in each pass, the first one too.
            if state.shared_seed is not None and self._is_first:
                self.sampling.draw_shared_seed()
            if place.beyond:
                indices = _without(indices, place.batches, frozenset(place.beyond))
        else:
            if state is not None and state.place.workers:  # of persistent workers, which have their seeds
                self._is_first = is_first = False
                assert state.sampler is not None
                self.sampling.set_own_generators(state.sampler["start"]["generators"])
                if state.shared_seed is not None and not self._num_workers:  # which torch's iterator has drawn
                    self.sampling.draw_shared_seed()
            if not is_first:
                self.sampling.note_start()
            indices = self.sampling.follow(begin())
            place = Place(workers=self._fresh())
            for worker, before in zip(place.workers, self._before(state), strict=False):
                worker.at_begin = before.generators or before.at_begin
                worker.data = before.data and of_dataset(before.data)
        self.progress = self._new_progress(place)
        return indices

    def _before(self, state: State | None) -> list[WorkerPlace]:
        """Returns where workers were at the end of the pass before."""
        if state is not None:
            return state.place.workers
        return [] if self._is_first else self.progress.state()[0].workers

    def note_begins(self, begins: dict[int, bytes | None]) -> None:
        """Notes what persistent workers have told that they begin with."""
        for number, note in begins.items():
            if note is not None:
                self.progress.begin_worker(number, *pickle.loads(note))

    def end(self, notes: dict[int, bytes], states: dict[int, bytes]) -> None:
        """Notes that the pass is over, and what workers have noted at its end."""
        self.progress.end(notes, {number: pickle.loads(note)[1:] for number, note in states.items()})

    def _placed(self, place: Place) -> Place:
        place = place.copy()
        if len(place.workers) != self._num_workers:
            place.workers, place.turn = self._fresh(), 0
        return place

    def _fresh(self) -> list[WorkerPlace]:
        return [WorkerPlace() for _ in range(self._num_workers)]

    def _new_progress(self, place: Place) -> Progress:
        has_states = self._has_states or any(worker.data is not None for worker in place.workers)
        progress = Progress(place, has_states, self._in_order and not place.beyond, self._in_order)
        if hasattr(self, "progress"):
            progress.is_ahead = self.progress.is_ahead
        return progress

    # -- the state -----------------------------------------------------------------------------------------------

    def state(self, fits: dict[str, Any]) -> State:
        """Returns where the loop is. Does not block.

        Args:
            fits: what the loader has to be that takes it up.
        """
        if self._state is not None:  # the iterator has not come to take it up
            return self._state
        place, since = self.progress.state()
        state = State(fits, self._num_workers, self._worker_type, base_seed=self.base_seed, place=place, since=since)
        state.shared_seed, state.is_first = self.shared_seed, self._is_first
        state.epoch = self._epochs.next if self.progress.has_ended else self._epoch
        state.sample_seed = self._epochs.base_seed
        if self.progress.has_ended:
            state.phase, state.since = "after", 0
            state.sampler = self.sampling.between()
            if not self._persistent:
                state.place = Place()
        else:
            state.phase = "within"
            state.sampler = self.sampling.state(place.batches)
        state.data = None if self.ask is None else self.ask(self.progress.has_ended)
        if self._is_stream and state.data is not None:
            state.sampler["start"].pop("global", None)  # for what is read again, which this is not
        return state


def state_before(loader: DataLoader[Any], fits: dict[str, Any], epochs: Epochs) -> State:
    """Returns the state of a loader that has begun no pass, or none since it was told so."""
    sampling = Sampling(index_sampler_of(loader), loader.generator, 0)
    kind = getattr(loader, "worker_type", "process")
    state = State(fits, loader.num_workers, kind, place=Place(), sampler=sampling.between())
    state.epoch, state.sample_seed = epochs.next, epochs.base_seed
    return state


def set_permutation(loader: DataLoader[Any], state: dict[str, Any], is_begun: bool) -> None:
    """Sets a loader's `PermutationSampler`, if it has one, to a pass, or to its epoch; see `Sampling`."""
    Sampling(index_sampler_of(loader), loader.generator, 0).set_permutation(state, is_begun)


def is_stream(loader: DataLoader[Any]) -> bool:
    """Whether a loader's dataset is iterable."""
    return isinstance(loader.dataset, IterableDataset)


def _draws_of(state: State) -> Draws:
    """Returns what an iterator drew at the beginning of the pass beside the order of the samples."""
    if not state.is_first:
        return Draws.NONE
    return Draws.BEFORE if state.num_workers else Draws.BEHIND


def _workers(count: int, kind: str) -> str:
    return f"num_workers={count}" + (f" of type {kind!r}" if count else "")


def _without(indices: Iterator[Any], first: int, given: frozenset[int]) -> Iterator[Any]:
    """Yields what follows the first batches, but for those that were given."""
    for number, index in enumerate(indices, first):
        if number not in given:
            yield index
