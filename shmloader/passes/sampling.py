"""A sampler's place: how it is found again without reading data.

A sampler that has a state is asked for it. Any other is drawn anew, from the states that the random generators had when
the pass began, and what was given is dropped: indices only.
"""

from __future__ import annotations

import collections
import functools
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from shmloader import callers
from shmloader.data.permutation import PermutationSampler
from shmloader.errors import ResumeWarning
from shmloader.torch_private import InfiniteSampler
from shmloader.workers.states import generators, seeding
from shmloader.workers.states.snapshots import has_state

# What draws nothing from a global generator, and what draws from torch's alone.
_FIXED = (SequentialSampler, DistributedSampler, PermutationSampler, InfiniteSampler)
_TORCHS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
# What a length may raise that is not there, or is wrong. What a signal's handler raises is not to be taken for it.
_NO_LENGTH = ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError
_MOST_SAMPLERS = 8  # within each other


class Draws(Enum):
    """When an iterator drew a base seed as it began a pass: torch's with workers begin to read the sampler twice."""

    BEFORE = "between the two"
    BEHIND = "when it had begun, once"
    NONE = "not at all, in the later passes of persistent workers"


class Sampling:
    """How one iterator reads the sampler.

    Args:
        index_sampler: the loader's sampler, or its batch sampler.
        generator: the loader's.
        ahead: how many batches it may be read ahead of the loop.

    Attributes:
        index_sampler: that.
    """

    def __init__(self, index_sampler: Any, generator: torch.Generator | None, ahead: int) -> None:
        self.index_sampler = index_sampler
        self._generator = generator
        # Within torch's own batch sampler the sampler is as far as the batches are.
        self._is_batched = type(index_sampler) is BatchSampler
        self._sampler = index_sampler.sampler if self._is_batched else index_sampler
        self._is_permutation = type(self._sampler) is PermutationSampler
        self._owner = index_sampler if has_state(index_sampler) else self._sampler
        self._start: dict[str, Any] = {}
        self._first: Any = None
        self._states: collections.deque[tuple[int, bytes]] = collections.deque(maxlen=ahead + 2)
        # Without order a batch may be waited for while any number behind it is given, and its state is dropped there.
        self._begun_with: tuple[int, bytes] | None = None
        self._drawn = 0

    # -- the beginning of a pass ---------------------------------------------------------------------------------

    def note_start(self, for_dataset: bool = False) -> None:
        """Notes the random generators, before anything is drawn for a pass.

        Args:
            for_dataset: whether all of them, of which the dataset draws too.
        """
        self._start = {"generators": self.own_generators()}
        if self._has_epoch():
            self._start["epoch"] = self._sampler.epoch
        if for_dataset:
            self._start["global"] = generators.capture()
        elif type(self._sampler) in _TORCHS:
            if getattr(self._sampler, "generator", None) is None:
                self._start["global"] = generators.capture_torch()
        elif type(self._sampler) not in _FIXED:
            self._start["global"] = generators.capture()

    def length(self) -> int | None:
        """Returns how many batches there are in a pass, as the sampler says; None where it does not."""
        try:
            return len(self.index_sampler)
        except _NO_LENGTH:
            return None

    def own_generators(self) -> dict[str, bytes]:
        """Returns the states of the generators that are the loader's or its samplers' own."""
        return {name: one.get_state().numpy().tobytes() for name, one in self._own().items()}

    def set_own_generators(self, states: dict[str, bytes]) -> None:
        """Sets them."""
        for name, one in self._own().items():
            if name in states:
                one.set_state(torch.frombuffer(bytearray(states[name]), dtype=torch.uint8))

    def _own(self) -> dict[str, torch.Generator]:
        found = {
            "generator": self._generator,
            "batch_sampler": getattr(self.index_sampler, "generator", None),
            "sampler": getattr(self._sampler, "generator", None),
            # Of a batch sampler that is not torch's own: what it has in it.
            "inner": None if self._is_batched else _generator_within(self.index_sampler),
        }
        return {name: one for name, one in found.items() if isinstance(one, torch.Generator)}

    def _has_epoch(self) -> bool:
        """Whether the order follows from an epoch, and the sampler has no state that says which."""
        has_method = callable(getattr(self._sampler, "set_epoch", None)) and not has_state(self._owner)
        return has_method and type(getattr(self._sampler, "epoch", None)) is int

    # -- reading -------------------------------------------------------------------------------------------------

    def follow(self, indices: Iterator[Any]) -> Iterator[Any]:
        """Returns what reads the sampler as ``indices`` does, and notes its state where it has one."""
        self._drawn = 0
        self._first = None
        self._forget()
        if self._is_permutation:
            self._first = self._sampler.state_at_start()
            return indices
        return self._follow(indices) if self._may_have_state(indices) else indices

    def _may_have_state(self, indices: Iterator[Any]) -> bool:
        if has_state(self._owner) or has_state(indices):
            return True
        return self._is_batched and type(self._sampler) not in (*_FIXED, *_TORCHS)  # whose iterator may have one

    def _follow(self, indices: Iterator[Any], load: bytes | None = None) -> Iterator[Any]:
        return _Followed(functools.partial(self._begin_to_follow, indices, load), self._note_behind)

    def _begin_to_follow(self, indices: Iterator[Any], load: bytes | None) -> tuple[Iterator[Any], Any]:
        """Returns what yields the batches of indices, and the iterator that may have a state."""
        within = indices
        if self._is_batched and not has_state(self.index_sampler):
            within = iter(self._sampler)
            indices = _batches(within, self.index_sampler.batch_size, self.index_sampler.drop_last)
        if load is not None and (state := pickle.loads(load)[1]) is not None and has_state(within):
            self._load_begun(within, state)
        self._note(within)
        return indices, within

    def _load_begun(self, within: Any, state: Any) -> None:
        """Gives an iterator its state. One that is the sampler has it already, if ``__iter__`` did not set it back.

        To load it a second time may have the next pass begin there too, where the sampler notes that it was told.
        """
        if within is not self._owner or pickle.dumps(within.state_dict(), 5) != pickle.dumps(state, 5):
            within.load_state_dict(state)

    def _note_behind(self, index: Any, within: Any, is_inner: bool) -> None:
        self._drawn += 1
        # A smaller batch is one at whose making the sampler has ended. Its state may be one of the next pass then.
        if not is_inner or len(index) == self.index_sampler.batch_size:
            self._note(within)

    def _note(self, within: Any) -> None:
        states = self._ask(within)
        if states is not None:
            self._states.append((self._drawn, states))
            self._begun_with = self._begun_with or self._states[0]

    def _forget(self) -> None:
        self._states.clear()
        self._begun_with = None

    def _ask(self, within: Any) -> bytes | None:
        of_sampler = self._owner.state_dict() if has_state(self._owner) else None
        of_iterator = of_sampler  # of one that is its own iterator
        if within is not self._owner:
            of_iterator = within.state_dict() if has_state(within) else None
        return None if of_sampler is None and of_iterator is None else pickle.dumps((of_sampler, of_iterator), 5)

    # -- states --------------------------------------------------------------------------------------------------

    def state(self, batches: int) -> dict[str, Any]:
        """Returns what finds the sampler behind its first so many batches again."""
        found: dict[str, Any] = {"start": dict(self._start), "drawn": 0, "states": None}
        if self._is_permutation or self._has_epoch():
            found["start"]["epoch_since"] = self._sampler.epoch  # with epoch_size, of the source's next pass
        if self._is_permutation and self._first is not None:
            found["drawn"], found["states"] = batches, pickle.dumps((self._permuted(batches), None), 5)
        elif self._begun_with is None and has_state(self._owner):  # nothing is read before the first batch is wanted
            found["drawn"], found["states"] = self._drawn, pickle.dumps((self._owner.state_dict(), None), 5)
        for drawn, states in (*([self._begun_with] if self._begun_with else ()), *self._states):
            if drawn <= batches:
                found["drawn"], found["states"] = drawn, states
        return found

    def _permuted(self, batches: int) -> dict[str, Any]:
        given = self._first["position"] + self._step(batches)
        return {**self._first, "position": min(given, self._first["length"])}

    def _step(self, batches: int) -> int:
        """Returns how far so many batches bring a permutation, counting those of all ranks."""
        size: int = self.index_sampler.batch_size if self._is_batched else 1
        return batches * size * int(self._sampler.num_replicas)

    def between(self) -> dict[str, Any]:
        """Returns what a pass begins with that is not begun."""
        states = None
        if self._is_permutation:
            states = pickle.dumps((self._sampler.state_at_start(), None), 5)
        elif self._states:
            states = self._states[-1][1]
        elif has_state(self._owner):
            states = pickle.dumps((self._owner.state_dict(), None), 5)
        return {"start": {"generators": self.own_generators()}, "drawn": self._drawn, "states": states}

    def set_permutation(self, state: dict[str, Any], is_begun: bool) -> None:
        """Sets a `PermutationSampler` to what `between` or `state` returned, so that a ``set_epoch`` after it counts.

        Args:
            state: that.
            is_begun: whether a pass is begun, which `resume` goes on with; here only the epoch is set then.

        Raises:
            ValueError: the state is of another seed or length.
        """
        if self._is_permutation and state["states"] is not None:
            self._sampler.load_state_dict(pickle.loads(state["states"])[0])
            if is_begun:
                self._sampler.seek(0)
                self._set_epoch_since(state)

    def set_between(self, state: dict[str, Any], was_read: bool) -> None:
        """Sets the sampler to what `between` returned; but for a `PermutationSampler`, which is set already.

        Args:
            state: that.
            was_read: whether a pass had ended. A sampler with a state is then read to its end, indices only: its state
                may be one from the end, and what reads it next would get nothing.
        """
        load = state["states"]
        if load is not None and not self._is_permutation:
            if has_state(self._owner) and (of_sampler := pickle.loads(load)[0]) is not None:
                self._owner.load_state_dict(of_sampler)
            if was_read:
                collections.deque(self._follow(iter(self.index_sampler), load), maxlen=0)
        self.set_own_generators(state["start"]["generators"])

    def resume(
        self, state: dict[str, Any], batches: int, draws: Draws, was_read: bool, begin: Callable[[], Iterator[Any]]
    ) -> Iterator[Any]:
        """Returns an iterator that is behind the first so many batches.

        Args:
            state: what `state` returned.
            batches: how many were given.
            draws: what the iterator that was in the pass had drawn as it began.
            was_read: whether anything had been read. If not, what is drawn with the first index is the loop's to draw.
            begin: has torch's class begin to read.
        """
        self._start = state["start"]
        self.set_own_generators(self._start["generators"])
        if "global" in self._start:
            generators.restore(self._start["global"])
        if "epoch" in self._start and self._has_epoch():
            self._sampler.set_epoch(self._start["epoch"])
        if draws is Draws.BEFORE:
            iter(self.index_sampler)
            seeding.draw_base_seed(self._generator)
        load = state["states"]
        if load is not None and has_state(self._owner) and (of_sampler := pickle.loads(load)[0]) is not None:
            self._owner.load_state_dict(of_sampler)
        indices = begin()
        if draws is Draws.BEHIND:
            seeding.draw_base_seed(self._generator)
        self._drawn = state["drawn"]
        self._forget()
        if self._is_permutation:
            self._first = self._sampler.state_at_start()
            self._first["position"] -= self._step(batches)  # as if this pass had begun with this number of ranks
        elif self._may_have_state(indices):
            indices = self._follow(indices, load)
        indices = self._skip(indices, batches - state["drawn"]) if was_read else indices
        self._set_epoch_since(state)  # last: what is read has its epoch
        return indices

    def _set_epoch_since(self, state: dict[str, Any]) -> None:
        if "epoch_since" in state["start"] and (self._is_permutation or self._has_epoch()):
            self._sampler.set_epoch(state["start"]["epoch_since"])

    def draw_shared_seed(self) -> None:
        """Draws once more, as torch's loader did for what shuffles an IterDataPipe, whose sampler draws nothing."""
        seeding.draw_base_seed(self._generator)

    def _skip(self, indices: Iterator[Any], count: int) -> Iterator[Any]:
        """Returns what yields what follows. The first is drawn here: with it, samplers draw their seeds."""
        if type(self._sampler) is InfiniteSampler:
            return indices
        first = list(itertools.islice(indices, 1))
        if count == 0:
            return itertools.chain(first, indices)
        watch = generators.Watch()
        watch.look()
        next(itertools.islice(indices, count - 1, count - 1), None)
        if watch.look() is not None:
            warnings.warn(
                f"the sampler ({type(self._sampler).__qualname__}) draws from a global random generator as it goes, "
                "as the training loop may too, so that it cannot be drawn anew for certain; give it a torch.Generator, "
                "or state_dict and load_state_dict",
                ResumeWarning,
                stacklevel=callers.stacklevel(),
            )
        return indices


class _Followed(Iterator[Any]):
    """Yields batches of indices, and has the sampler's state noted behind each.

    It is no generator: one ends with the first error, and a sampler's own iterator may go on after it.

    Args:
        begin: returns the batches, and what they are made of. Called for the first one: with it, samplers draw seeds.
        note: called with each batch, what it is made of, and whether that is another iterator.
    """

    def __init__(self, begin: Callable[[], tuple[Iterator[Any], Any]], note: Callable[[Any, Any, bool], None]) -> None:
        self._begin: Callable[[], tuple[Iterator[Any], Any]] | None = begin
        self._note = note
        self._indices: Iterator[Any] = iter(())
        self._within: Any = None

    def __next__(self) -> Any:
        """Returns the next batch."""
        if self._begin is not None:
            begin, self._begin = self._begin, None
            self._indices, self._within = begin()
        index = next(self._indices)
        self._note(index, self._within, self._within is not self._indices)
        return index


def _generator_within(sampler: Any) -> torch.Generator | None:
    """Returns the generator of what a sampler takes its indices from, however many samplers are between the two."""
    seen = {id(sampler)}
    for _ in range(_MOST_SAMPLERS):
        inner = getattr(sampler, "sampler", None)
        sampler = getattr(sampler, "batch_sampler", None) if inner is None else inner
        if sampler is None or id(sampler) in seen:
            return None
        seen.add(id(sampler))
        if isinstance(found := getattr(sampler, "generator", None), torch.Generator):
            return found
    return None


def _batches(indices: Iterator[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    """Yields what torch's batch sampler makes of an iterator, and reads no further than it does."""
    while batch := list(itertools.islice(indices, size)):
        if len(batch) < size and drop_last:
            return  # what is asked again at its end may begin anew
        yield batch
