"""A pass that is interrupted anywhere goes on in another loader as if nothing had happened.

The rest of an interrupted pass, or the pass behind it, is compared bit for bit with what a fresh loader gives that was
told the state.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler

from shmloader import PermutationSampler, ResumeWarning, ShmDataLoader, WorkerRestartWarning
from tests.helpers import resuming
from tests.helpers.support import assert_same, detached, seed_everything

LENGTH = 41

Make = Callable[[], ShmDataLoader[Any]]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _map(**how: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(resuming.Augmented(LENGTH), 3, **how)


SOURCES: dict[str, Callable[..., ShmDataLoader[Any]]] = {
    "in turn": _map,
    "shuffled": lambda **how: _map(shuffle=True, **how),
    "generator": lambda **how: _map(shuffle=True, generator=seeded(), **how),
    "sampler's generator": lambda **how: _map(
        sampler=RandomSampler(range(LENGTH), replacement=True, generator=seeded()), **how
    ),
    "long": lambda **how: _map(sampler=RandomSampler(range(LENGTH), num_samples=2 * LENGTH + 1), **how),
    "permutation": lambda **how: _map(sampler=PermutationSampler(LENGTH, seed=3), **how),
    "own sampler": lambda **how: _map(sampler=resuming.Shuffled(LENGTH), drop_last=True, **how),
    "stateful sampler": lambda **how: _map(sampler=resuming.StatefulSampler(LENGTH), **how),
    "stateful order": lambda **how: _map(sampler=resuming.StatefulOrder(LENGTH), drop_last=True, **how),
    "batch sampler": lambda **how: ShmDataLoader(
        resuming.Augmented(LENGTH), batch_sampler=resuming.Buckets(LENGTH), **how
    ),
    "no batches": lambda **how: ShmDataLoader(resuming.Augmented(LENGTH), None, shuffle=True, **how),
    "counting": lambda **how: ShmDataLoader(resuming.Counting(LENGTH), 3, shuffle=True, **how),
    "stream": lambda **how: ShmDataLoader(resuming.Stream(LENGTH), 3, **how),
    "stream, no batches": lambda **how: ShmDataLoader(resuming.Stream(LENGTH), None, **how),
    "stateful iterators": lambda **how: ShmDataLoader(resuming.StatefulIterators(LENGTH), 3, drop_last=True, **how),
    "stateful stream": lambda **how: ShmDataLoader(resuming.StatefulStream(LENGTH), 3, **how),
}
WORKERS: dict[str, dict[str, Any]] = {
    "0": {"num_workers": 0},
    "1": {"num_workers": 1},
    "2": {"num_workers": 2},
    "3 persistent": {"num_workers": 3, "persistent_workers": True, "prefetch_factor": 3},
    "2 threads": {"num_workers": 2, "worker_type": "thread"},
    "every 4": {"num_workers": 2, "snapshot_every_n_steps": 4},
    "never": {"num_workers": 2, "snapshot_every_n_steps": None},
    "restarts": {"num_workers": 2, "worker_restarts": 1},
}


def states_of_generators() -> Any:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_generators(states: Any) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def without_draws(batches: list[Any]) -> list[Any]:
    return [batch[..., :1] for batch in batches]


def rest_of(iterator: Iterator[Any]) -> list[Any]:
    return [detached(batch) for batch in iterator]


def interrupted(make: Make, passes: int, batches: int) -> tuple[Any, Any, list[Any], list[Any], int]:
    """Returns the state in the middle of a pass, what the generators were then, and what follows in two passes."""
    loader = make()
    for _ in range(passes):
        rest_of(iter(loader))
    iterator = iter(loader)
    taken = 0
    while taken < batches and next(iterator, None) is not None:
        taken += 1
    state, generators = loader.state_dict(), states_of_generators()
    kept = copy.deepcopy(state)
    rest = rest_of(iterator)
    if taken < batches:
        rest = []  # the state is of the end, and what follows is another pass
    following = rest_of(iter(loader))
    assert state == kept
    return state, generators, rest if taken == batches else following, following, taken


@pytest.mark.sampled(28)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_pass_goes_on(source: str, workers: str) -> None:
    draw = random.Random(f"{source} {workers}")
    how = WORKERS[workers]
    is_shared = how.get("worker_type") == "thread" or not how["num_workers"]  # the generators are the loop's

    def make() -> ShmDataLoader[Any]:
        return SOURCES[source](**how)

    for batches in [0, draw.randrange(1, 6), draw.randrange(1, 14), 100]:
        seed_everything(batches)
        state, generators, rest, following, taken = interrupted(make, draw.randrange(2), batches)
        state = json.loads(json.dumps(state)) if draw.randrange(2) else saved(state)
        set_generators(generators)
        loader = make()
        loader.load_state_dict(state)
        assert loader.state_dict()["batches"] == state["batches"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResumeWarning)
            iterator = iter(loader)
        if not is_shared and taken == batches:
            assert_same(detached(torch.get_rng_state()), detached(generators[0]))
        again = rest_of(iterator)
        assert len(again) == len(rest), batches
        place = f"behind {taken} of {batches}"
        # The pass behind it is an ordinary one, but for threads, which share the generators.
        if taken == batches and how.get("worker_type") != "thread":
            assert_same(rest_of(iter(loader)), following, f"pass {place}")
        if is_shared:
            again, rest = without_draws(again), without_draws(rest)
        for number, (ours, theirs) in enumerate(zip(again, rest, strict=True)):
            assert_same(ours, theirs, f"batch {number} {place}")


def saved(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- without order, with other workers, elsewhere ----------------------------------------------------------------------


def test_without_order_nothing_is_lost_and_nothing_comes_twice() -> None:
    draw = random.Random(3)
    for passes in range(4):
        loader = _map(shuffle=True, generator=seeded(), num_workers=2, in_order=False, prefetch_factor=3)
        given: list[int] = []
        for _ in range(20):  # interrupted, again and again
            iterator = iter(loader)
            for batch in iterator:
                given += batch[:, 0].tolist()
                if draw.randrange(4) == 0:
                    break
            state = json.loads(json.dumps(loader.state_dict()))
            if state["phase"] == "after":
                break
            loader = _map(shuffle=True, generator=seeded(), num_workers=2, in_order=False, prefetch_factor=3)
            loader.load_state_dict(state)
        assert sorted(given) == list(range(LENGTH)), passes


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sampler_with_a_state_goes_on_before_its_first_index(num_workers: int) -> None:
    def make() -> ShmDataLoader[Any]:
        sampler = resuming.StatefulSampler(LENGTH)
        return ShmDataLoader(resuming.Augmented(LENGTH, draws=False), 3, sampler=sampler, num_workers=num_workers)

    loader = make()
    rest_of(iter(loader))
    iterator = iter(loader)
    state = loader.state_dict()
    for _ in range(2):
        again = make()
        again.load_state_dict(state)
        resumed = iter(again)
        state = again.state_dict()
    assert_same(rest_of(resumed), rest_of(iterator))
    assert_same(rest_of(iter(again)), rest_of(iter(loader)))


class Endless(resuming.Shuffled):
    """Counts from a number on that is its state."""

    def __init__(self, start: int = 0) -> None:
        super().__init__(LENGTH)
        self.at = start

    def __iter__(self) -> Iterator[int]:
        while True:
            self.at += 1
            yield self.at - 1

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Gap(resuming.Augmented):
    """One sample is not made as long as a file is there."""

    def __init__(self, slow: int, path: Any) -> None:
        super().__init__(LENGTH, draws=False)
        self.slow, self.path = slow, path

    def __getitem__(self, index: int) -> torch.Tensor:
        while index == self.slow and self.path.exists():
            time.sleep(0.01)
        return super().__getitem__(index)


def test_a_sampler_with_a_state_is_found_again_far_behind_a_gap(tmp_path: Any) -> None:
    path = tmp_path / "held up"

    def make(start: int) -> ShmDataLoader[Any]:
        return ShmDataLoader(Gap(106, path), 2, sampler=Endless(start), num_workers=2, in_order=False)

    path.touch()
    loader = make(100)
    iterator = iter(loader)
    given = [int(index) for _ in range(30) for index in next(iterator)[:, 0]]
    state = loader.state_dict()
    path.unlink()
    del iterator
    again = make(0)
    again.load_state_dict(state)
    for batch in again:  # without order they come when they come
        given += map(int, batch[:, 0])
        if set(given) >= set(range(100, 162)):
            break
    assert set(given) >= set(range(100, 162))
    assert len(set(given)) == len(given)


class OwnIterator(resuming.Shuffled):
    """Is its own iterator, and begins anew at its end."""

    at = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.at == self.length:
            self.at = 0
            raise StopIteration
        self.at += 1
        return self.at - 1

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sampler_that_begins_anew_at_its_end_is_not_asked_behind_it(num_workers: int) -> None:
    found = []
    for kind in (DataLoader, ShmDataLoader):
        loader = kind(
            resuming.Augmented(LENGTH, draws=False),
            3,
            sampler=OwnIterator(LENGTH),
            num_workers=num_workers,
            drop_last=True,
        )
        found.append([detached(batch) for _ in range(2) for batch in itertools.islice(loader, LENGTH)])
    assert_same(found[1], found[0])


@pytest.mark.parametrize("batches", [2, 20])
def test_the_epoch_of_a_permutation_is_known_before_the_pass(batches: int) -> None:
    def train(loader: ShmDataLoader[Any], sampler: PermutationSampler) -> Iterator[Any]:
        for epoch in range(sampler.epoch, 4):
            sampler.set_epoch(epoch)
            yield from map(detached, loader)

    def make() -> tuple[ShmDataLoader[Any], PermutationSampler]:
        sampler = PermutationSampler(LENGTH, 7)
        return ShmDataLoader(resuming.Augmented(LENGTH, draws=False), 3, sampler=sampler, num_workers=1), sampler

    loader, sampler = make()
    training = train(loader, sampler)
    list(itertools.islice(training, batches))
    state = loader.state_dict()
    again, sampler = make()
    again.load_state_dict(state)
    assert sampler.epoch == batches // 14
    assert_same(list(train(again, sampler)), list(training))
    again, sampler = make()
    again.load_state_dict(state)
    again.load_state_dict({})
    assert len(rest_of(iter(again))) == 14


@pytest.mark.parametrize(("first", "second"), [(2, 0), (0, 2), (2, 1)])
def test_with_another_number_of_workers_samples_and_order_are_the_same(first: int, second: int) -> None:
    seed_everything(1)
    state, generators, rest, _, _ = interrupted(lambda: _map(shuffle=True, num_workers=first), 0, 5)
    set_generators(generators)
    loader = _map(shuffle=True, num_workers=second)
    loader.load_state_dict(state)
    with pytest.warns(ResumeWarning, match="draws from random generators differs"):
        iterator = iter(loader)
    assert_same(without_draws(rest_of(iterator)), without_draws(rest))


@pytest.mark.parametrize("generator", [seeded, lambda: None])
@pytest.mark.parametrize("taken", [0, 4, 14])
@pytest.mark.parametrize(("second", "third"), [(0, 0), (0, 1), (1, 0)])
def test_a_later_pass_of_persistent_workers_goes_on_twice(
    second: int, third: int, taken: int, generator: Callable[[], Any]
) -> None:
    """For such a pass no base seed is drawn, whoever takes it up."""

    def make(num_workers: int) -> ShmDataLoader[Any]:
        return ShmDataLoader(
            resuming.Augmented(LENGTH, draws=False),
            3,
            shuffle=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            generator=generator(),
        )

    def handed_on(loader: ShmDataLoader[Any], num_workers: int) -> ShmDataLoader[Any]:
        again = make(num_workers)
        again.load_state_dict(loader.state_dict())
        return again

    seed_everything(1)
    loader = make(1)
    first, expected = rest_of(iter(loader)), rest_of(iter(loader))
    seed_everything(1)
    loader = make(1)
    assert_same(rest_of(iter(loader)), first)
    loader = handed_on(loader, second)
    iterator = iter(loader)
    found = [detached(batch) for batch in itertools.islice(iterator, taken)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResumeWarning)  # the number of workers is another
        assert_same(found + rest_of(iter(handed_on(loader, third))), expected)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("length", [4, 22])
@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("kind", [resuming.Counting, resuming.StatefulStream])
def test_rare_states_are_told_at_the_end_of_a_pass_too(
    kind: Callable[[int], Any], taken: int, length: int, num_workers: int
) -> None:
    """The next pass of persistent workers begins with them: nothing of the one before is made again."""

    def make() -> ShmDataLoader[Any]:
        how: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": True, "snapshot_every_n_steps": 5}
        return ShmDataLoader(kind(length), 3, **how)

    seed_everything(1)
    expected = [rest_of(iter(loader)) for loader in [make()] for _ in range(4)]
    seed_everything(1)
    loader = make()
    found: list[list[Any]] = []
    for number in range(4):
        iterator = iter(loader)
        begun = [detached(batch) for batch in itertools.islice(iterator, taken if number == 1 else 0)]
        if begun:
            again = make()
            again.load_state_dict(loader.state_dict())
            loader, iterator = again, iter(again)
        found.append(begun + rest_of(iterator))
        again = make()
        again.load_state_dict(loader.state_dict())
        loader = again
    assert_same(found, expected)


def test_what_a_dataset_says_of_itself_is_of_one_number_of_workers() -> None:
    def make(num_workers: int) -> ShmDataLoader[Any]:
        return ShmDataLoader(resuming.Counting(LENGTH, draws=False), 3, num_workers=num_workers)

    state, _, _, _, _ = interrupted(lambda: make(2), 0, 4)
    loader = make(1)
    loader.load_state_dict(state)
    with pytest.warns(ResumeWarning) as warned:
        iter(loader)
    assert any("state_dict returned with num_workers=2" in str(one.message) for one in warned)


def test_a_permutation_goes_on_with_another_number_of_ranks() -> None:
    def make(ranks: int, rank: int) -> ShmDataLoader[Any]:
        sampler = PermutationSampler(48, 7, ranks, rank)
        return ShmDataLoader(resuming.Augmented(48, draws=False), 2, sampler=sampler, num_workers=1)

    whole = [int(index) for index in PermutationSampler(48, 7)]
    state: dict[str, Any] = {}
    for ranks, batches in ((2, 3), (3, 2), (1, 100)):
        states, given = [], set()
        for rank in range(ranks):
            loader = make(ranks, rank)
            loader.load_state_dict(state)
            iterator = iter(loader)
            for _, batch in zip(range(batches), iterator, strict=False):
                given |= set(batch[:, 0].tolist())
            states.append(loader.state_dict())
        expected, whole = whole[: len(given)], whole[len(given) :]
        assert given == set(expected)
        assert all(one["sampler"]["states"] == states[0]["sampler"]["states"] for one in states)
        state = states[0]


@pytest.mark.long
def test_a_fresh_process_goes_on() -> None:
    seed_everything(2)
    state, _, rest, _, _ = interrupted(lambda: _map(shuffle=True, num_workers=2), 0, 4)
    code = """
import json, sys
from shmloader import ShmDataLoader
from tests.helpers import resuming
loader = ShmDataLoader(resuming.Augmented(41), 3, shuffle=True, num_workers=2)
loader.load_state_dict(json.load(sys.stdin))
print(json.dumps([batch.tolist() for batch in loader]))
"""
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(state), capture_output=True, text=True)
    assert json.loads(done.stdout) == [batch.tolist() for batch in rest], done.stderr


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_no_sample_that_was_given_is_read_again() -> None:
    dataset = resuming.Augmented(LENGTH)
    state, _, rest, _, _ = interrupted(lambda: ShmDataLoader(dataset, 3, shuffle=True), 0, 9)
    dataset.reads.clear()
    loader = ShmDataLoader(dataset, 3, shuffle=True)
    loader.load_state_dict(state)
    rest_of(iter(loader))
    assert dataset.reads == [int(index) for batch in rest for index in batch[:, 0]]


def test_a_state_is_small() -> None:
    state, *_ = interrupted(lambda: _map(shuffle=True, num_workers=2), 0, 6)
    assert len(json.dumps(state)) < 60_000
    quiet, *_ = interrupted(lambda: ShmDataLoader(resuming.Augmented(LENGTH, draws=False), 3, num_workers=2), 0, 6)
    assert len(json.dumps(quiet)) < 1_500


# -- what is said ------------------------------------------------------------------------------------------------------


def test_a_stream_without_a_state_is_made_again_with_one_warning() -> None:
    state, _, rest, _, _ = interrupted(lambda: ShmDataLoader(resuming.Stream(LENGTH), 3, num_workers=2), 0, 5)
    loader = ShmDataLoader(resuming.Stream(LENGTH), 3, num_workers=2)
    loader.load_state_dict(state)
    with pytest.warns(ResumeWarning, match="5 batches are made once more") as warned:
        assert_same(rest_of(iter(loader)), rest)
    assert len(warned) == 1


def test_a_sampler_that_draws_as_it_goes_is_said_to_be_uncertain() -> None:
    class Going(resuming.Shuffled):
        def __iter__(self) -> Iterator[int]:
            for _ in range(self.length):
                yield random.randrange(self.length)

    state, *_ = interrupted(lambda: _map(sampler=Going(LENGTH)), 0, 5)
    loader = _map(sampler=Going(LENGTH))
    loader.load_state_dict(state)
    with pytest.warns(ResumeWarning, match="draws from a global random generator as it goes"):
        iter(loader)


def test_the_state_is_of_the_last_batch_whatever_becomes_of_the_iterator() -> None:
    loader = _map(num_workers=2)
    for number, _ in enumerate(loader):
        if number == 3:
            break
    assert loader.state_dict()["batches"] == 4
    again = _map(num_workers=2)
    again.load_state_dict(loader.state_dict())
    assert [int(batch[0, 0]) for batch in again] == list(range(12, LENGTH, 3))
    assert again.state_dict()["phase"] == "after"


def test_an_exception_in_the_place_of_a_batch_was_given_too() -> None:
    class Failing(resuming.Counting):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 7:
                raise KeyError(index)
            return super().__getitem__(index)

    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(Failing(LENGTH), 3, num_workers=2)

    loader = make()
    iterator = iter(loader)
    next(iterator), next(iterator)
    with pytest.raises(KeyError):
        next(iterator)
    state = loader.state_dict()
    rest = rest_of(iterator)
    again = make()
    again.load_state_dict(state)
    assert_same(rest_of(iter(again)), rest)


def test_a_copy_has_no_place() -> None:
    loader = _map()
    next(iter(loader))
    assert copy.copy(loader).state_dict()["phase"] == "before"
    assert pickle.loads(pickle.dumps(loader)).state_dict()["phase"] == "before"


def test_an_empty_state_is_the_beginning() -> None:
    loader = _map()
    next(iter(loader))
    loader.load_state_dict({})
    assert loader.state_dict()["phase"] == "before"
    assert len(rest_of(iter(loader))) == len(loader)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"_snapshot": {}, "_steps_since_snapshot": 0}, "of no ShmDataLoader"),
        ({"shmloader": 99}, "version 99"),
        ({"shmloader": 1}, "has no 'workers'"),
    ],
)
def test_a_foreign_state_is_refused(state: dict[str, Any], text: str) -> None:
    loader = _map()
    with pytest.raises(ValueError, match=text):
        loader.load_state_dict(state)
    with pytest.raises(TypeError, match="must be a dict"):
        loader.load_state_dict([1])  # type: ignore[arg-type]
    assert len(rest_of(iter(loader))) == len(loader)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (lambda: ShmDataLoader(resuming.Augmented(LENGTH), 4), "batch_size"),
        (lambda: ShmDataLoader(resuming.Augmented(LENGTH + 1), 3), "number of samples"),
        (lambda: _map(drop_last=True), "drop_last"),
        (lambda: _map(shuffle=True), "sampler"),
        (lambda: ShmDataLoader(resuming.Stream(LENGTH), 3), "kind of dataset"),
    ],
)
def test_a_state_of_another_loader_is_refused_by_name(other: Make, name: str) -> None:
    loader = _map()
    next(iter(loader))
    with pytest.raises(ValueError, match=f"its {name} is"):
        other().load_state_dict(loader.state_dict())


class OwnBatches(BatchSampler):
    """Batches as torch's class makes them, and none of the lists is shared with anybody."""

    def __iter__(self) -> Iterator[list[int]]:
        return (list(batch) for batch in super().__iter__())


@pytest.mark.parametrize("batches", [None, BatchSampler, OwnBatches])
def test_with_torchs_sampler_there_are_as_many_ranks_as_before(batches: type[BatchSampler] | None) -> None:
    def make(ranks: int, rank: int) -> ShmDataLoader[Any]:
        sampler = DistributedSampler[Any](resuming.Augmented(LENGTH), ranks, rank)
        if batches is None:
            return _map(sampler=sampler)
        return ShmDataLoader(resuming.Augmented(LENGTH), batch_sampler=batches(sampler, 3, False))

    loader = make(2, 0)
    next(iter(loader))
    make(2, 1).load_state_dict(loader.state_dict())
    for ranks in (1, 4):
        with pytest.raises(ValueError, match=f"its number of ranks is 2, and this loader's is {ranks}"):
            make(ranks, 0).load_state_dict(loader.state_dict())


class Around:
    """Batches of another batch sampler, as frameworks share them among ranks."""

    def __init__(self, batch_sampler: Any) -> None:
        self.batch_sampler = batch_sampler

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batch_sampler)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("around", [lambda batches: batches, Around, lambda batches: Around(Around(batches))])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_generator_within_a_batch_sampler_of_ones_own_goes_on(num_workers: int, around: Any) -> None:
    def make() -> ShmDataLoader[Any]:
        batches: Any = around(OwnBatches(RandomSampler(range(LENGTH), generator=seeded()), 3, False))
        return ShmDataLoader(resuming.Augmented(LENGTH, draws=False), batch_sampler=batches, num_workers=num_workers)

    state, _, rest, following, _ = interrupted(make, 1, 4)
    loader = make()
    loader.load_state_dict(state)
    assert_same(rest_of(iter(loader)), rest)
    assert_same(rest_of(iter(loader)), following)


class SelfIterating(Sampler[list[int]]):
    """A batch sampler that is its own iterator, and that ``__iter__`` sets back to its beginning."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[list[int]]:
        self.at = 0
        return self

    def __next__(self) -> list[int]:
        if self.at >= LENGTH:
            raise StopIteration
        self.at += 3
        return list(range(self.at - 3, min(self.at, LENGTH)))

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class ToldToGoOn(SelfIterating):
    """The same, but for a position that was loaded: ``__iter__`` leaves that, once."""

    is_told = False

    def __iter__(self) -> Iterator[list[int]]:
        if not self.is_told:
            self.at = 0
        self.is_told = False
        return self

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self.is_told = True


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [SelfIterating, ToldToGoOn])
def test_a_sampler_that_is_its_own_iterator(kind: type[SelfIterating], num_workers: int) -> None:
    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(resuming.Augmented(LENGTH, draws=False), batch_sampler=kind(), num_workers=num_workers)

    whole = rest_of(iter(make()))
    found, loader = [], make()
    for _ in range(4):
        found.append(detached(next(iter(loader))))
        state = json.loads(json.dumps(loader.state_dict()))
        loader = make()
        loader.load_state_dict(state)
    assert_same(found + rest_of(iter(loader)), whole)
    assert_same(rest_of(iter(loader)), whole)


class _Hiccup(Iterator[list[int]]):
    """Fails once, and goes on."""

    def __init__(self) -> None:
        self.at = 0

    def __next__(self) -> list[int]:
        self.at += 1
        if self.at == 4:
            raise LookupError
        if self.at > 8:
            raise StopIteration
        return [self.at]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class HiccupBatches(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        return _Hiccup()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sampler_with_a_state_goes_on_behind_its_error(num_workers: int) -> None:
    found: list[list[Any]] = []
    for kind in (DataLoader, ShmDataLoader):
        dataset = resuming.Augmented(LENGTH, draws=False)
        iterator = iter(kind(dataset, batch_sampler=HiccupBatches(), num_workers=num_workers))
        found.append([])
        for _ in range(9):
            try:
                found[-1].append(next(iterator).tolist())
            except (LookupError, StopIteration) as error:
                found[-1].append(type(error))
    assert found[0] == found[1]


@pytest.mark.skipif(not hasattr(np.random, "set_bit_generator"), reason="numpy has one kind of global generator")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_another_kind_of_global_generator_in_the_loop(num_workers: int) -> None:
    numpys: Any = np.random
    before = numpys.get_bit_generator()
    numpys.set_bit_generator(np.random.PCG64(3))
    try:
        state, generator, rest = interrupted_with_numpy(num_workers)
        np.random.set_state(generator)
        loader = _map(num_workers=num_workers)
        loader.load_state_dict(state)
        iterator = iter(loader)
        assert np.random.get_state(legacy=False) == generator
        if num_workers:
            assert_same(rest_of(iterator), rest)
    finally:
        numpys.set_bit_generator(before)


def interrupted_with_numpy(num_workers: int) -> tuple[Any, Any, list[Any]]:
    loader = _map(num_workers=num_workers)
    iterator = iter(loader)
    next(iterator)
    return loader.state_dict(), np.random.get_state(legacy=False), rest_of(iterator)


def test_a_worker_that_dies_before_it_has_made_anything_since_it_was_resumed() -> None:
    def make() -> ShmDataLoader[Any]:
        return _map(num_workers=2, persistent_workers=True, worker_restarts=1)

    loader = make()
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    state = loader.state_dict()
    assert next(iterator, None) is None
    again = make()
    again.load_state_dict(state)
    resumed: Any = iter(again)
    assert next(resumed, None) is None
    resumed._workers[0].kill()
    resumed._workers[0].join()
    with pytest.warns(WorkerRestartWarning):
        found = rest_of(iter(again))
    assert_same(found, rest_of(iter(loader)))


def test_a_stream_needs_as_many_workers() -> None:
    state, *_ = interrupted(lambda: ShmDataLoader(resuming.Stream(LENGTH), 3, num_workers=2), 0, 3)
    with pytest.raises(ValueError, match="its num_workers is 2, and this loader's is 1"):
        ShmDataLoader(resuming.Stream(LENGTH), 3, num_workers=1).load_state_dict(state)


@pytest.mark.parametrize(("name", "value"), [("base_seed", 1 << 70), ("shared_seed", -1), ("sampler", None)])
def test_what_would_end_workers_is_a_value_error(name: str, value: Any) -> None:
    loader = _map(num_workers=2)
    next(iter(loader))
    with pytest.raises(ValueError, match="the state"):
        loader.load_state_dict({**loader.state_dict(), name: value})


def ring() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


class Telling(resuming.Counting):
    """Has any object in its state."""

    def __init__(self, told: Any) -> None:
        super().__init__(LENGTH, draws=False)
        self.told = told

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.told = state["count"], state["told"]


@pytest.mark.parametrize(
    ("told", "length"), [(ring(), 1), (1 << 20_000, 20_001), ([1 << 100], 1)], ids=["ring", "int", "ints"]
)
def test_what_json_cannot_have_is_in_a_state_all_the_same(told: Any, length: int) -> None:
    loader = ShmDataLoader(Telling(told), 3)
    iterator = iter(loader)
    next(iterator)
    again = ShmDataLoader(Telling(None), 3)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert_same(rest_of(iter(again)), rest_of(iterator))
    found = again.dataset.told  # type: ignore[attr-defined]
    assert (found.bit_length() if isinstance(found, int) else len(found)) == length


def test_any_damage_is_a_value_error() -> None:
    state, *_ = interrupted(lambda: ShmDataLoader(resuming.Counting(LENGTH), 3, num_workers=2), 0, 3)
    draw = random.Random(0)
    for _ in range(300):
        damaged = json.loads(json.dumps(state))
        part = damaged
        while True:
            key = draw.choice(list(part) if isinstance(part, dict) else range(len(part)))
            if not isinstance(part[key], (dict, list)) or not part[key] or draw.randrange(4) == 0:
                break
            part = part[key]
        part[key] = draw.choice([None, -1, "x", [], {}, "AAAA"])
        loader = ShmDataLoader(resuming.Counting(LENGTH), 3, num_workers=2)
        try:
            loader.load_state_dict(damaged)
        except ValueError:
            assert loader.state_dict()["phase"] == "before"


def test_a_pickle_without_bytes_is_a_value_error() -> None:
    loader = ShmDataLoader(resuming.Counting(LENGTH), 3)
    with pytest.raises(ValueError, match="damaged"):
        loader.load_state_dict({**loader.state_dict(), "data": [{"pickled": ""}, None]})


@pytest.mark.sampled(2)
@pytest.mark.parametrize("size", [np.int64(3), (2, 4), torch.tensor([2, 4])], ids=repr)
def test_numbers_of_any_kind_are_jsons_in_a_state(size: Any) -> None:
    def make() -> ShmDataLoader[Any]:
        batches: Any = resuming.Buckets(LENGTH)
        batches.batch_size = size
        return ShmDataLoader(
            resuming.Augmented(LENGTH),
            batch_sampler=batches,
            num_workers=np.int64(2),  # type: ignore[arg-type]
            prefetch_factor=np.int64(2),  # type: ignore[arg-type]
        )

    state, _, rest, *_ = interrupted(make, 0, 3)
    loader = make()
    loader.load_state_dict(json.loads(json.dumps(state)))
    assert_same(rest_of(iter(loader)), rest)


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_a_number_of_steps_that_is_none(every: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="snapshot_every_n_steps"):
        _map(snapshot_every_n_steps=every)
