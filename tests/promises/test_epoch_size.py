"""``epoch_size``: passes of so many batches, which are ordinary passes one behind the other, cut anew."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import os
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler

from shmloader import ChunkedDataset, FallbackWarning, PermutationSampler, ShmDataLoader, WorkerDiedError
from tests.helpers import simulated
from tests.helpers.datasets import Images, Mapped, Noise, Shards
from tests.helpers.support import assert_same, children, detached, let_stock_end, random_states, seed_everything, stream

KINDS = ["process", "thread"]


def loader(dataset: Any, epoch_size: int | None = 5, **arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(dataset, **{"batch_size": 4, "num_workers": 2, "epoch_size": epoch_size, **arguments})


def passes(of: ShmDataLoader[Any], count: int) -> list[list[Any]]:
    return [[detached(batch) for batch in of] for _ in range(count)]


def first(of: DataLoader[Any], count: int) -> list[Any]:
    """Returns batches of ordinary passes one behind the other."""
    found: list[Any] = []
    while len(found) < count:
        found += [detached(batch) for batch in of]
    return found[:count]


def made(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in arguments.items()}


# -- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(15)
@pytest.mark.parametrize("num_workers", [0, 2, 3])
@pytest.mark.parametrize("epoch_size", [4, 13])
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (Images, {}),
        (Images, {"shuffle": True}),
        (Images, {"shuffle": True, "persistent_workers": True, "prefetch_factor": 5, "drop_last": True}),
        (Noise, {"shuffle": True, "batch_size": 7}),
        (Images, {"batch_size": None, "sampler": lambda: RandomSampler(range(9))}),
        (
            Images,
            {"batch_size": 1, "batch_sampler": lambda: BatchSampler(RandomSampler(range(30)), 6, drop_last=False)},
        ),
        (Images, {"generator": lambda: torch.Generator().manual_seed(3), "shuffle": True}),
        (Shards, {"persistent_workers": True}),
        (Shards, {"batch_size": 2}),
        (functools.partial(Shards, (0, 5, 0)), {"num_workers": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_passes_are_ordinary_ones_cut_anew(
    make: Any, arguments: dict[str, Any], num_workers: int, epoch_size: int
) -> None:
    arguments = {"num_workers": num_workers, **arguments}
    if not arguments["num_workers"]:
        arguments = {name: value for name, value in arguments.items() if name[:4] not in ("pers", "pref")}
    seed_everything(4)
    expected = first(DataLoader(make(), **{"batch_size": 4, **made(arguments)}), 3 * epoch_size)
    let_stock_end()
    seed_everything(4)
    of = loader(make(), epoch_size, **made(arguments))
    assert len(of) == epoch_size
    found = passes(of, 3)
    assert [len(batches) for batches in found] == [epoch_size] * 3
    assert_same(list(itertools.chain(*found)), expected)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("arguments", [{}, {"batch_size": None}, {"num_workers": 1}, {"persistent_workers": True}])
def test_threads(arguments: dict[str, Any]) -> None:
    for make in (Images, functools.partial(Shards, noisy=False)):
        seed_everything(4)
        expected = first(DataLoader(make(), **{"batch_size": 4, "num_workers": 2, **arguments}), 42)
        let_stock_end()
        seed_everything(4)
        assert_same(list(itertools.chain(*passes(loader(make(), 7, worker_type="thread", **arguments), 6))), expected)


def test_rows_of_chunks() -> None:
    class Chunks:
        def __iter__(self) -> Iterator[Any]:
            return (torch.arange(start, start + 3) for start in range(0, 21, 3))

    expected = first(DataLoader(ChunkedDataset(Chunks()), batch_size=4, num_workers=2), 30)
    let_stock_end()
    assert_same(list(itertools.chain(*passes(loader(ChunkedDataset(Chunks()), 10), 3))), expected)


def test_an_endless_source() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return itertools.count()

    found = passes(loader(Endless(), 10, num_workers=1), 3)
    assert torch.cat(list(itertools.chain(*found))).tolist() == list(range(120))


def test_samples_that_are_seeded_are_those_of_ordinary_passes() -> None:
    seed_everything(2)
    expected = first(loader(Noise(), None, seeding="sample", num_workers=0), 24)
    for num_workers in (0, 2):
        seed_everything(2)
        found = list(itertools.chain(*passes(loader(Noise(), 6, seeding="sample", num_workers=num_workers), 4)))
        assert_same([batch[:3] for batch in found], [batch[:3] for batch in expected])


def test_a_paused_loader() -> None:
    expected = first(DataLoader(Images(), batch_size=4), 15)
    of = loader(Images(), 5)
    of.pause()
    found = passes(of, 2)
    of.resume()
    assert_same(list(itertools.chain(*found, *passes(of, 1))), expected)


def test_samplers_that_want_to_know_the_epoch() -> None:
    makes: list[Any] = [
        lambda: DistributedSampler(range(20), num_replicas=2, rank=1),  # type: ignore[arg-type]
        lambda: PermutationSampler(20, num_replicas=2, rank=1),
    ]
    for make in makes:
        expected, sampler = [], make()
        for epoch in range(4):
            sampler.set_epoch(epoch)
            expected += list(sampler)
        for arguments in ({"sampler": make()}, {"batch_sampler": BatchSampler(make(), 4, False), "batch_size": 1}):
            found = passes(loader(Images(), 4, **arguments), 3)
            labels = [int(label) for _, labels in itertools.chain(*found) for label in labels]
            assert labels == expected


class Forwarding(BatchSampler):
    """Hands the epoch on to the sampler in it."""

    sampler: DistributedSampler[Any]

    @property
    def epoch(self) -> int:
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


def test_an_epoch_that_is_handed_on_is_counted_once() -> None:
    sampler = DistributedSampler[Any](Images(), num_replicas=1, rank=0)
    cut = loader(Images(), 2, batch_size=1, batch_sampler=Forwarding(sampler, len(sampler) // 2, False))
    epochs = []
    for _ in range(3):
        list(cut)
        epochs.append(sampler.epoch)
    assert epochs == [0, 1, 2]


# -- what is kept ----------------------------------------------------------------------------------------------------


class Counted(Dataset[Any]):
    def __init__(self, length: int = 400) -> None:
        self.begun = torch.zeros(length, dtype=torch.int32).share_memory_()

    def __len__(self) -> int:
        return len(self.begun)

    def __getitem__(self, index: int) -> Any:
        self.begun[index] += 1
        info = torch.utils.data.get_worker_info()
        return index, -1 if info is None else os.getpid()


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_workers_and_what_they_have_made_stay(persistent_workers: bool) -> None:
    dataset = Counted()
    of = loader(dataset, persistent_workers=persistent_workers)
    pids = {int(pid) for batches in passes(of, 4) for _, owners in batches for pid in owners}
    assert len(pids) == 2
    assert pids == set(children())
    assert int(dataset.begun.max()) == 1
    assert len(list(itertools.chain(*passes(of, 16)))) == 80  # to the source's end, exactly
    assert dataset.begun.tolist() == [1] * 400


def test_a_pass_that_is_left_and_passes_side_by_side() -> None:
    of = loader(Counted())
    found = [next(iterator)[0].tolist()[0] for iterator in (iter(of), iter(of), iter(of))]
    one, other = iter(of), iter(of)
    found += [next(iterator)[0].tolist()[0] for iterator in (one, other, one, other)]
    found += [batch[0].tolist()[0] for batch in one]
    assert found == list(range(0, 40, 4))
    assert len(list(other)) == 3


def test_it_lives_as_long_as_loader_or_pass() -> None:
    of = loader(Images())
    iterator = iter(of)
    del of
    assert len(list(iterator)) == 5  # two times over, with another pass over the source to begin
    assert children()
    del iterator
    assert not children()
    assert sum(1 for _ in loader(Images(), 20)) == 20


def test_without_it_the_stream_ends() -> None:
    of = loader(Images())
    passes(of, 1)
    of.epoch_size = None
    assert len(of) == 13
    assert_same(passes(of, 1), stream(DataLoader(Images(), batch_size=4))[0])
    assert not children()


def test_a_copy_begins_anew() -> None:
    of = loader(Images())
    expected = passes(of, 2)
    for other in (copy.copy(of), pickle.loads(pickle.dumps(of))):
        assert_same(passes(other, 2), expected)


def test_a_forked_process_begins_anew() -> None:
    of = loader(Images())
    expected = passes(of, 1)
    pid = os.fork()
    if not pid:
        try:
            assert_same(passes(of, 1), expected)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    rest = passes(of, 1)[0]
    assert rest[0][1].tolist() == [20, 21, 22, 23]


def test_a_length_that_torch_asks_for() -> None:
    of = loader(Images(), 7)
    iterator = iter(of)
    assert len(iterator) == 7
    assert isinstance(iterator, type(iter(DataLoader(Images()))).__mro__[1])
    assert random_states()
    gc.collect()


def test_batches_for_a_device(driver: simulated.Driver) -> None:
    of = loader(Images(), 5, device="cuda")
    found: list[list[Any]] = []
    for _ in range(4):
        found.append([])
        for _, labels in of:
            driver.device.finish()
            found[-1].append(labels.tolist())
        del labels
    del of
    expected = [batch[1].tolist() for batch in first(DataLoader(Images(), batch_size=4), 20)]
    assert list(itertools.chain(*found)) == expected


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("make", "arguments"), [(functools.partial(Images, 0), {}), (Images, {"batch_size": 100, "drop_last": True})]
)
def test_a_source_with_nothing_is_an_error(make: Any, arguments: dict[str, Any], num_workers: int) -> None:
    of = loader(make(), num_workers=num_workers, **arguments)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="epoch_size=5 asks for batches, and the source has none"):
            next(iter(of))


def test_a_source_that_had_nothing_left_and_could_not_be_begun_at_first() -> None:
    def make() -> ShmDataLoader[Any]:
        return loader(Images(), 3, batch_size=len(Images()) // 3, num_workers=0, drop_last=True)

    whole = make()
    iterator = iter(whole)
    for _ in range(3):
        next(iterator)
    again = make()
    again.load_state_dict(whole.state_dict())
    again.timeout = 1  # which needs workers
    with pytest.raises(AssertionError):
        iter(again)
    again.timeout = 0
    assert list(again) == []
    assert len(list(again)) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_do_not_count(num_workers: int) -> None:
    def fail(index: int) -> int:
        if index % 8 == 0:
            raise LookupError(index)
        return index

    of = loader(Mapped(fail, 24), 4, num_workers=num_workers)
    for _ in range(3):
        iterator, batches, errors = iter(of), 0, 0
        while True:
            try:
                next(iterator)
                batches += 1
            except LookupError:
                errors += 1
            except StopIteration:
                break
        assert batches == 4
        assert errors in (4, 5)


def test_a_worker_that_dies() -> None:
    of = loader(Images())
    passes(of, 1)
    iterator: Any = iter(of)
    for worker in iterator._workers:  # four batches are made, perhaps
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError):
        list(iterator)
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    assert_same(passes(of, 1), [first(DataLoader(Images(), batch_size=4), 5)])


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("5", TypeError), (True, TypeError)]
)
def test_values_that_are_none(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="epoch_size must be"):
        loader(Images(), value)


def test_a_platform_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    of = loader(Images())
    with pytest.warns(FallbackWarning, match=r"os.memfd_create"):
        found = passes(of, 4)
    del of
    let_stock_end()
    assert_same(list(itertools.chain(*found)), first(DataLoader(Images(), batch_size=4), 20))
