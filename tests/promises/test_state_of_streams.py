"""A state holds what samples are seeded by, and where a loader is whose passes are cut from a stream.

What follows a state is compared bit for bit with an uninterrupted run, whatever the number of workers was and is.
"""

from __future__ import annotations

import itertools
import json
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler, IterableDataset, default_collate
from torch.utils.data.datapipes.iter import IterableWrapper

from shmloader import ArrayDataset, ChunkedDataset, PermutationSampler, ResumeWarning, ShmDataLoader
from shmloader.workers.states import generators
from tests.helpers import resuming, simulated
from tests.helpers.support import assert_same, detached, random_states, seed_everything

LENGTH = 41

# A state that can be met in full is taken up without a warning. Two processors are enough for these workers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("error::shmloader.ResumeWarning"),
]

Make = Callable[..., ShmDataLoader[Any]]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Several(resuming.Augmented):
    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [self[index] for index in indices]


class Into(resuming.Augmented):
    def __getitem_into__(self, index: int, out: Any) -> None:
        out[...] = [index, *resuming.drawn()]


def collate_with_draws(samples: list[Any]) -> Any:
    return default_collate(samples), resuming.drawn()


def pass_by(loader: ShmDataLoader[Any]) -> list[Any]:
    return [detached(batch) for batch in loader]


MAPS: dict[str, Make] = {
    "shuffled": lambda **how: ShmDataLoader(
        resuming.Augmented(LENGTH), 3, shuffle=True, generator=seeded(), seeding="sample", **how
    ),
    "permutation": lambda **how: ShmDataLoader(
        Several(LENGTH), 4, sampler=PermutationSampler(LENGTH, 3), generator=seeded(), seeding="sample", **how
    ),
    "stateful sampler": lambda **how: ShmDataLoader(
        Into(LENGTH), 3, sampler=resuming.StatefulSampler(LENGTH), generator=seeded(), seeding="sample", **how
    ),
    "collated": lambda **how: ShmDataLoader(
        resuming.Augmented(LENGTH), 3, collate_fn=collate_with_draws, generator=seeded(), seeding="sample", **how
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("source", MAPS)
def test_samples_that_are_seeded_go_on_with_any_number_of_workers(source: str) -> None:
    make = MAPS[source]
    reference = make(num_workers=1)
    passes = [pass_by(reference) for _ in range(4)]
    draw = random.Random(source)
    for first, second in [(0, 3), (3, 0), (4, 1), (2, 4), (1, 0)]:
        loader = make(num_workers=first)
        before, batches = draw.randrange(2), draw.randrange(len(passes[0]) + 1)
        for _ in range(before):
            pass_by(loader)
        iterator = iter(loader)
        for _ in range(batches):
            next(iterator)
        state = json.loads(json.dumps(loader.state_dict()))
        assert all(worker["generators"] is worker["at_begin"] is None for worker in state["workers"])
        del iterator
        again = make(num_workers=second)
        again.load_state_dict(state)
        own = random_states()
        place = f"{first} to {second}, behind {batches} of pass {before}"
        assert_same(pass_by(again), passes[before][batches:], place)
        if second == 0:
            assert_same(random_states(), own)
        state = json.loads(json.dumps(again.state_dict()))  # the end of a pass
        assert_same(pass_by(again), passes[before + 1], place)
        third = make(num_workers=first)
        third.load_state_dict(state)
        assert_same(pass_by(third), passes[before + 1], place)


def test_persistent_workers_go_on_with_seeded_samples() -> None:
    def make(**how: Any) -> ShmDataLoader[Any]:
        sampler = PermutationSampler(LENGTH, 3)
        return ShmDataLoader(resuming.Augmented(LENGTH), 3, sampler=sampler, seeding="sample", **how)

    seed_everything(1)
    loader = make(num_workers=2, persistent_workers=True)
    pass_by(loader)
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    rest = [detached(batch) for batch in iterator]
    following = pass_by(loader)
    for how in ({"num_workers": 3, "persistent_workers": True}, {"num_workers": 0}, {"num_workers": 2}):
        again = make(**how)
        again.load_state_dict(state)
        assert_same(pass_by(again), rest)
        assert_same(pass_by(again), following)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [resuming.StatefulIterators, resuming.StatefulStream, resuming.Stream])
def test_positions_in_a_stream_go_on(kind: Any, workers: int) -> None:
    def make(every: int = 1) -> ShmDataLoader[Any]:
        return ShmDataLoader(
            kind(LENGTH), 3, generator=seeded(), seeding="sample", num_workers=workers, snapshot_every_n_steps=every
        )

    reference = make()
    passes = [pass_by(reference) for _ in range(3)]
    for before, batches, every in [(0, 1, 1), (1, 5, 4), (0, 9, 3), (1, 14, 1)]:
        loader = make(every)
        for _ in range(before):
            pass_by(loader)
        for _ in itertools.islice(loader, batches):
            pass
        again = make()
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        with warnings.catch_warnings():
            if kind is resuming.Stream:
                with pytest.raises(ResumeWarning, match="neither the dataset nor its iterator"):
                    iter(again)  # which loses nothing
                warnings.simplefilter("ignore", ResumeWarning)
            assert_same(pass_by(again), passes[before][batches:], f"behind {batches}")
        assert_same(pass_by(again), passes[before + 1], f"behind {batches}")


# -- passes of a fixed length ------------------------------------------------------------------------------------------

CUT: dict[str, Make] = {
    "shuffled": lambda **how: ShmDataLoader(
        resuming.Augmented(LENGTH), 3, shuffle=True, generator=seeded(), seeding="sample", **how
    ),
    "permutation": lambda **how: ShmDataLoader(
        resuming.Augmented(LENGTH), 3, sampler=PermutationSampler(LENGTH, 3), seeding="sample", **how
    ),
    "distributed": lambda **how: ShmDataLoader(
        resuming.Augmented(LENGTH, draws=False), 3, sampler=DistributedSampler(resuming.Augmented(LENGTH), 2, 1), **how
    ),
    "arrays": lambda **how: ShmDataLoader(
        ArrayDataset(np.arange(LENGTH)), 5, shuffle=True, generator=seeded(), drop_last=True, **how
    ),
    "workers' streams": lambda **how: ShmDataLoader(
        resuming.Augmented(LENGTH), 3, shuffle=True, generator=seeded(), **how
    ),
    "stateful stream": lambda **how: ShmDataLoader(resuming.StatefulStream(LENGTH), 3, generator=seeded(), **how),
}


@pytest.mark.sampled(16)
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("source", CUT)
def test_a_pass_that_is_cut_from_a_stream_goes_on(source: str, persistent: bool) -> None:
    draw = random.Random(f"{source}{persistent}")
    how = {"num_workers": 2, "persistent_workers": persistent}
    for size in (4, 19):
        seed_everything(size)
        loader = CUT[source](epoch_size=size, **how)
        states: list[Any] = []
        passes: list[list[Any]] = []
        for _ in range(2 + 24 // size):
            passes.append([])
            for batch in loader:
                passes[-1].append(detached(batch))
                states.append((len(passes) - 1, len(passes[-1]), json.dumps(loader.state_dict())))
            states.append((len(passes), 0, json.dumps(loader.state_dict())))
        for number, given, state in draw.sample(states[: len(states) - size - 2], 2):
            again = CUT[source](epoch_size=size, **how)
            again.load_state_dict(json.loads(state))
            assert len(again) == size
            assert_same(pass_by(again), passes[number][given:], f"size {size}, {given} of pass {number}")
            if number + 1 < len(passes):
                assert_same(pass_by(again), passes[number + 1], f"size {size}, behind {given} of pass {number}")


def test_a_cut_pass_goes_on_with_another_number_of_workers() -> None:
    def make(**how: Any) -> ShmDataLoader[Any]:
        return CUT["permutation"](generator=seeded(), epoch_size=10, **how)

    whole = make(num_workers=2)
    passes = [pass_by(whole) for _ in range(5)]
    state: Any = {}
    given: list[Any] = []
    for workers, batches in [(0, 13), (3, 8), (1, 0), (4, 12), (0, 17)]:
        loader = make(num_workers=workers)
        loader.load_state_dict(json.loads(json.dumps(state)))
        while batches:
            for batch in loader:
                given.append(detached(batch))
                batches -= 1
                if not batches:
                    break
        state = loader.state_dict()
    assert_same(given, list(itertools.chain.from_iterable(passes))[: len(given)])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [DistributedSampler, PermutationSampler])
def test_an_epoch_that_was_set_since_the_source_began_counts_when_it_starts_over(kind: Any, num_workers: int) -> None:
    def make() -> ShmDataLoader[Any]:
        sampler = kind(range(8), num_replicas=2, rank=0)
        dataset = resuming.Augmented(8, draws=False)
        return ShmDataLoader(dataset, 2, sampler=sampler, num_workers=num_workers, epoch_size=3)

    def passes(loader: ShmDataLoader[Any], first: int) -> Iterator[tuple[int, list[Any]]]:
        for epoch in range(first, 4):
            loader.sampler.set_epoch(10 * epoch)  # type: ignore[attr-defined]
            for batch in loader:
                yield epoch, batch.tolist()

    loader = make()
    found = [(*given, loader.state_dict()) for given in passes(loader, 0)]
    for number, (epoch, _, state) in enumerate(found):
        again = make()
        again.load_state_dict(state)
        assert [batch for _, batch in passes(again, epoch)] == [batch for _, batch, _ in found[number + 1 :]]


def test_a_source_that_had_nothing_left_starts_over() -> None:
    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(resuming.Augmented(6, draws=False), 3, epoch_size=3, num_workers=1)

    loader = make()
    for _ in itertools.islice(loader, 2):  # all of the source, whose end nobody has seen
        pass
    again = make()
    again.load_state_dict(loader.state_dict())
    assert [batch.flatten().tolist() for batch in again] == [[0, 1, 2]]


# -- paused loaders, and what does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"seeding": "sample"}, {"snapshot_every_n_steps": 3}])
def test_a_paused_loader_tells_its_place_and_takes_one_up(how: dict[str, Any]) -> None:
    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(resuming.Counting(LENGTH), 3, shuffle=True, num_workers=2, generator=seeded(), **how)

    loader = make()
    iterator = iter(loader)
    next(iterator)
    loader.pause()
    for _ in range(4):
        next(iterator)
    state = loader.state_dict()
    rest = [detached(batch) for batch in iterator]
    again = make()
    again.pause()
    again.load_state_dict(state)
    iterator = iter(again)
    ours = [detached(next(iterator)) for _ in range(3)]
    again.resume()
    assert_same([*ours, *map(detached, iterator)], rest)


@pytest.mark.parametrize(
    ("how", "name"), [({"seeding": "sample"}, "seeding"), ({"epoch_size": 3}, "epoch_size")], ids=["seeding", "size"]
)
def test_a_state_of_another_kind_of_loader_is_refused_by_name(how: dict[str, Any], name: str) -> None:
    loader = ShmDataLoader(resuming.Augmented(LENGTH), 3)
    other = ShmDataLoader(resuming.Augmented(LENGTH), 3, **how)
    for one, another in ((loader, other), (other, loader)):
        next(iter(one))
        with pytest.raises(ValueError, match=f"its {name} is"):
            another.load_state_dict(one.state_dict())


# -- states of datasets ------------------------------------------------------------------------------------------------


class Heavy(resuming.Counting):
    """Has a state that is large."""

    def __init__(self, length: int, nbytes: int, is_plain: bool = False) -> None:
        super().__init__(length, draws=False)
        self.nbytes = nbytes
        self.is_plain = is_plain

    def state_dict(self) -> dict[str, Any]:
        state = {"count": self.count} if self.is_plain else super().state_dict()
        return {**state, "ballast": "x" * self.nbytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_a_dataset_of_the_loops_process_goes_on_between_passes() -> None:
    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(resuming.Counting(LENGTH, draws=False), 3)

    loader = make()
    pass_by(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    again = make()
    again.load_state_dict(state)
    assert_same(pass_by(again), pass_by(loader))


@pytest.mark.parametrize(("nbytes", "is_lost"), [(100_000, False), (2_000_000, True)])
def test_a_large_state_that_persistent_workers_begin_a_pass_with(nbytes: int, is_lost: bool) -> None:
    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(Heavy(LENGTH, nbytes), 3, num_workers=2, persistent_workers=True)

    loader = make()
    pass_by(loader)
    iterator = iter(loader)
    state = loader.state_dict()
    rest = [detached(batch) for batch in iterator]
    again = make()
    again.load_state_dict(state)
    if is_lost:
        with pytest.raises(ResumeWarning, match="too large to be told before the first batch"):
            iter(again)
    else:
        assert_same(pass_by(again), rest)


class Shy(Heavy):
    """Has a state while it has read less than what one worker reads in a pass."""

    def state_dict(self) -> dict[str, Any]:
        if self.count >= 18:
            raise LookupError("no state now")
        return super().state_dict()


def test_a_state_that_cannot_be_told_between_passes_ends_no_worker() -> None:
    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(Shy(36, 9), 3, num_workers=2, persistent_workers=True)

    loader = make()
    assert len(list(itertools.islice(loader, 10))) == 10
    iterator = iter(loader)
    state = loader.state_dict()
    for _ in range(12):
        with pytest.raises(LookupError, match="no state now"):
            next(iterator)
    assert next(iterator, None) is None
    again = make()
    again.load_state_dict(state)
    with pytest.raises(ResumeWarning, match="at the beginning of a pass was an error"):
        iter(again)


def test_without_order_a_dataset_tells_its_state_with_each_batch() -> None:
    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(
            Heavy(LENGTH, 9, is_plain=True), 3, num_workers=2, in_order=False, snapshot_every_n_steps=5
        )

    for batches in (3, 6, 10):
        loader = make()
        given = [detached(batch) for batch in itertools.islice(loader, batches)]
        state = loader.state_dict()
        assert state["since"] == 0
        again = make()
        again.load_state_dict(state)
        given += pass_by(again)
        assert sorted(index for batch in given for index in batch[:, 0].tolist()) == list(range(LENGTH))
        counts = [worker["data"][0]["count"] for worker in state["workers"] if worker["data"]]
        assert sum(counts) == 3 * batches


def test_a_pipe_is_shuffled_as_it_was() -> None:
    for workers in (0, 1):
        seed_everything(4)
        loader = ShmDataLoader(IterableWrapper(list(range(LENGTH))).shuffle(buffer_size=9), 3, num_workers=workers)
        iterator = iter(loader)
        for _ in range(4):
            next(iterator)
        state = loader.state_dict()
        rest = [detached(batch) for batch in iterator]
        seed_everything(5)
        again = ShmDataLoader(IterableWrapper(list(range(LENGTH))).shuffle(buffer_size=9), 3, num_workers=workers)
        again.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResumeWarning)
            assert_same(pass_by(again), rest)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_on_the_way_to_a_device_what_the_loop_has_counts(driver: simulated.Driver, num_workers: int) -> None:
    def make() -> ShmDataLoader[Any]:
        return ShmDataLoader(resuming.Counting(LENGTH, False), 3, num_workers=num_workers, device="cuda")

    loader = make()
    given = []
    iterator = iter(loader)
    for count in range(1, 6):
        given.append(next(iterator))
        driver.device.finish()
        state = loader.state_dict()
        if num_workers:
            assert state["given"] == count
    assert len(given) == 5
    again = make()
    again.load_state_dict(state)
    iterator = iter(again)
    first = next(iterator)
    driver.device.finish()
    assert first[:, 0].tolist() == [15, 16, 17]
    del given, first, iterator


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("taken", [0, 1, 2])
def test_what_shuffles_a_data_pipe_is_drawn_in_later_passes_too(num_workers: int, taken: int) -> None:
    def make() -> ShmDataLoader[Any]:
        pipe = IterableWrapper(list(range(6))).shuffle()
        return ShmDataLoader(pipe, 3, num_workers=num_workers, generator=torch.Generator().manual_seed(8))

    reference = [[batch.tolist() for batch in whole] for whole in [make()] for _ in range(4)]
    interrupted, resumed = make(), make()
    iterator = iter(interrupted)
    for _ in range(taken):
        next(iterator)
    resumed.load_state_dict(interrupted.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResumeWarning)  # batches of the pipe are made again
        found = [[batch.tolist() for batch in resumed] for _ in range(4)]
    assert found == [reference[0][taken:], *reference[1:]]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("whole", [1, 2])
@pytest.mark.parametrize("taken", [0, 2, None])
def test_what_shuffles_a_data_pipe_is_drawn_once_in_later_passes_of_persistent_workers(
    num_workers: int, whole: int, taken: int | None
) -> None:
    """Also where the state is from between two passes: ``taken`` is None then."""

    def make() -> ShmDataLoader[Any]:
        pipe = IterableWrapper(list(range(6))).shuffle().sharding_filter()
        generator = torch.Generator().manual_seed(8)
        return ShmDataLoader(pipe, 1, num_workers=num_workers, persistent_workers=True, generator=generator)

    reference = [[batch.tolist() for batch in one] for one in [make()] for _ in range(5)]
    interrupted, resumed = make(), make()
    found = [[batch.tolist() for batch in interrupted] for _ in range(whole)]
    begun = [] if taken is None else [batch.tolist() for batch in itertools.islice(interrupted, taken)]
    resumed.load_state_dict(interrupted.state_dict())
    again = make()  # a state of the pass that was taken up
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResumeWarning)  # batches of the pipe are made again
        begun += [batch.tolist() for batch in itertools.islice(resumed, 1)]
        again.load_state_dict(resumed.state_dict())
        found.append(begun + [batch.tolist() for batch in again])
        found += [[batch.tolist() for batch in again] for _ in range(5 - len(found))]
    assert found == reference


def test_no_workers_shuffle_a_data_pipe_anew_in_each_pass_behind_persistent_ones() -> None:
    def make(num_workers: int) -> ShmDataLoader[Any]:
        pipe = IterableWrapper(list(range(6))).shuffle()
        generator = torch.Generator().manual_seed(8)
        return ShmDataLoader(pipe, 1, num_workers=num_workers, persistent_workers=num_workers > 0, generator=generator)

    loader, again = make(1), make(0)
    pass_by(loader)
    again.load_state_dict(loader.state_dict())
    assert_same(pass_by(again), pass_by(loader))
    assert_same(pass_by(again), pass_by(loader))


@pytest.mark.parametrize("worker_type", ["process", "thread"])
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("batch_size", [3, 4])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_stream_that_sets_itself_back_begins_the_next_pass(
    passes: int, batch_size: int, num_workers: int, worker_type: str
) -> None:
    """No batch comes at a stream's end, which could tell what state it is in then."""

    def make() -> ShmDataLoader[Any]:
        how: dict[str, Any] = {"num_workers": num_workers, "worker_type": worker_type, "persistent_workers": True}
        return ShmDataLoader(resuming.SetBack(), batch_size, **how)

    loader, again = make(), make()
    for _ in range(passes):
        whole = pass_by(loader)
    state = loader.state_dict()
    assert [worker["data"][0] for worker in state["workers"]] == [{"position": 0}] * num_workers
    again.load_state_dict(state)
    assert_same(pass_by(again), whole)
    assert_same(pass_by(again), whole)


class Ahead(IterableDataset[list[int]]):
    """Draws an order when it begins, at once or with the first sample, and with every fourth sample some numbers."""

    def __init__(self, is_eager: bool) -> None:
        self.is_eager = is_eager

    def __iter__(self) -> Iterator[list[int]]:
        return self._samples(resuming.drawn()[0] if self.is_eager else None)

    def _samples(self, first: int | None) -> Iterator[list[int]]:
        first = resuming.drawn()[0] if first is None else first
        for sample in torch.randperm(20).tolist():
            numbers = resuming.drawn() if sample % 4 == 0 else [0, 0, 0]
            yield [first, sample, *numbers]


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("name", ["eager", "lazy", "chunks"])
@pytest.mark.parametrize("generator", [seeded, lambda: None])
def test_what_was_drawn_ahead_in_the_loop_s_process_is_drawn_again(
    name: str, taken: int, generator: Callable[[], Any]
) -> None:
    """The loop draws nothing, so that the generators move as they did. They are left where the program has set them."""

    def chunks() -> Iterator[Any]:
        order = torch.randperm(4).tolist()
        for number in order:
            yield np.arange(5) + 10 * number, np.random.rand(5), torch.rand(5)

    def make() -> ShmDataLoader[Any]:
        source = ChunkedDataset(chunks()) if name == "chunks" else Ahead(name == "eager")
        return ShmDataLoader(source, 3, generator=generator())

    seed_everything(3)
    expected = pass_by(make())
    seed_everything(3)
    loader = make()
    iterator = iter(loader)
    found = [detached(batch) for batch in itertools.islice(iterator, taken)]
    state, there = loader.state_dict(), generators.capture()
    rest = [detached(batch) for batch in iterator]
    assert_same(found + rest, expected)
    seed_everything(4)
    again = make()
    again.load_state_dict(state)
    generators.restore(there)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResumeWarning)  # it is read again
        iterator = iter(again)
    assert generators.capture() == there
    last = make()
    last.load_state_dict(again.state_dict())  # of a pass that was taken up
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResumeWarning)
        assert_same([detached(batch) for batch in last], rest)
    generators.restore(there)
    assert_same([detached(batch) for batch in iterator], rest)
