"""``seeding="sample"``: what is drawn for a sample follows from base seed, pass and index, and from nothing else."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate, get_worker_info

from shmloader import ArrayDataset, ChunkedDataset, ShmDataLoader, WorkerRestartWarning, torch_private
from tests.helpers.datasets import Images
from tests.helpers.support import assert_same, detached, random_states, seed_everything

LENGTH = 26

# Two processors are enough for workers that do nothing.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def drawn() -> np.ndarray[Any, Any]:
    """Returns numbers of each generator, an odd number of normal ones among them: the next one is kept ready."""
    of_torch = torch.rand(2).tolist() + torch.randn(1).tolist()
    of_numpy = [*np.random.rand(2), np.random.randn()]
    return np.array([*of_torch, *of_numpy, random.random(), random.gauss(0, 1)])


class Drawing(Dataset[Any]):
    """Samples that are an index and what was drawn for it."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        return index, drawn()


class Several(Drawing):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(index, drawn()) for index in indices]


class Into(Drawing):
    def __getitem_into__(self, index: int, out: Any) -> Any:
        if index % 7 == 5:
            drawn()
            return NotImplemented  # after drawing, which does no harm here
        out[0][...], out[1][...] = index, drawn()
        return None


class AllInto(Drawing):
    def __getitems_into__(self, indices: list[int], out: Any) -> Any:
        for row, index in enumerate(indices):
            out[0][row], out[1][row] = index, drawn()


class Stream(IterableDataset[Any]):
    """Draws when it is begun, too, and between samples."""

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(LENGTH).tolist()
        return map(self.sample, order)

    def sample(self, number: int) -> Any:
        return number, drawn()


def loader(make: Callable[[], Any] = Drawing, seed: int = 3, **arguments: Any) -> ShmDataLoader[Any]:
    seed_everything(seed)
    return ShmDataLoader(make(), **{"batch_size": 4, "num_workers": 2, "seeding": "sample", **arguments})


def epochs(of: ShmDataLoader[Any], count: int = 3) -> list[Any]:
    return [[detached(batch) for batch in of] for _ in range(count)]


def by_index(batches: list[Any]) -> dict[int, bytes]:
    """Returns what was drawn for each index."""
    return {int(i): row.numpy().tobytes() for indices, rows in batches for i, row in zip(indices, rows, strict=True)}


# -- the same samples ------------------------------------------------------------------------------------------------


@pytest.mark.sampled(12)
@pytest.mark.parametrize("make", [Drawing, Several, Into, AllInto, lambda: Subset(Into(), range(3, 20))])
@pytest.mark.parametrize("shuffle", [False, True])
def test_any_number_of_workers_makes_the_same_batches(make: Any, shuffle: bool) -> None:
    expected, states = None, set()
    for num_workers in (0, 1, 3, 4):
        found = epochs(loader(make, num_workers=num_workers, shuffle=shuffle))
        states.add(pickle.dumps(random_states()))
        if expected is None:
            expected = found
        assert_same(found, expected)
    assert len(states) == 1, "the loop's own random streams depend on the number of workers"


@pytest.mark.sampled(16)
@pytest.mark.parametrize("make", [Drawing, Several, Into, AllInto])
@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 7},
        {"batch_size": 1, "drop_last": True},
        {"sampler": list(reversed(range(LENGTH)))},
        {"batch_sampler": [[5], [3, 1, 2], [0]]},
        {"persistent_workers": True, "prefetch_factor": 5},
        {"in_order": False},
        {"num_workers": 0, "batch_size": LENGTH},
        {"collate_fn": lambda samples: (drawn(), default_collate(samples))[1]},
    ],
    ids=repr,
)
def test_batch_size_and_order_do_not_matter(make: Any, arguments: dict[str, Any]) -> None:
    plain = [by_index(batches) for batches in epochs(loader())]
    if "batch_sampler" in arguments:
        arguments = {**arguments, "batch_size": 1}
    other = [by_index(batches) for batches in epochs(loader(make, **arguments))]
    for one, theirs in zip(plain, other, strict=True):
        assert {index: one[index] for index in theirs} == theirs


def test_every_sample_and_every_pass_has_its_own() -> None:
    found = [row for batches in epochs(loader(), 4) for row in by_index(batches).values()]
    numbers = np.frombuffer(b"".join(found)).reshape(4 * LENGTH, -1)
    for column in numbers.T:
        assert len(set(column)) == len(column)


def test_a_sample_drawn_twice_in_a_pass_is_the_same() -> None:
    [batches] = epochs(loader(sampler=[4, 1, 4, 4]), 1)
    [[indices, rows]] = batches
    assert indices.tolist() == [4, 1, 4, 4]
    assert [torch.equal(rows[0], row) for row in rows] == [True, False, True, True]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_that_are_not_made_into_batches(num_workers: int) -> None:
    plain = by_index(epochs(loader(), 1)[0])
    for index, row in loader(batch_size=None, num_workers=num_workers):
        assert plain[index] == row.numpy().tobytes()


@pytest.mark.parametrize("shapes", [None, ((), (8,))])
def test_shapes_that_are_declared(shapes: Any) -> None:
    dtypes = None if shapes is None else (torch.int64, torch.float64)
    arguments = {"sample_shapes": shapes, "sample_dtypes": dtypes}
    assert_same(epochs(loader(num_workers=0, **arguments)), epochs(loader(**arguments)))


@pytest.mark.slow
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(method: str) -> None:
    assert_same(epochs(loader(multiprocessing_context=method), 2), epochs(loader(num_workers=0), 2))


class Deadly(Drawing):
    """Kills its worker at one sample of each pass, once."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        if index == 9 and not (self.folder / "done").exists():
            (self.folder / "done").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sample


def test_a_worker_that_is_replaced_makes_the_same(tmp_path: Any) -> None:
    of = loader(lambda: Deadly(tmp_path), worker_restarts=1, persistent_workers=True)
    with pytest.warns(WorkerRestartWarning):
        assert_same(epochs(of), epochs(loader(num_workers=0)))


def test_a_loader_that_goes_on_where_another_was() -> None:
    """As one that is resumed does, with another number of workers."""
    first = loader(num_workers=3)
    expected = epochs(first, 4)
    other = loader(num_workers=1, batch_size=4, seed=99)
    other._lifetime.epochs.base_seed, other._lifetime.epochs.next = first._lifetime.epochs.base_seed, 2
    assert_same(epochs(other, 2), expected[2:])


def test_a_copy_goes_on_by_itself() -> None:
    first = loader()
    expected = epochs(first, 3)
    again = loader()
    epochs(again, 1)
    for other in (copy.copy(again), pickle.loads(pickle.dumps(again))):
        assert_same(epochs(other, 2), expected[1:])
    assert_same(epochs(again, 2), expected[1:])


def test_passes_that_are_left_early_count() -> None:
    expected = epochs(loader(), 3)
    of = loader()
    for _ in range(2):
        iterator = iter(of)
        next(iterator)
        del iterator
    assert_same(epochs(of, 1), expected[2:])


def test_the_base_seed_is_drawn_from_the_generator() -> None:
    one, same, other = (epochs(loader(generator=torch.Generator().manual_seed(seed)), 2) for seed in (1, 1, 2))
    assert_same(one, same)
    assert by_index(one[0]) != by_index(other[0])


def test_workers_are_seeded_as_ever_unless_it_is_asked_for() -> None:
    of = loader(seeding="worker", num_workers=1)
    assert by_index(epochs(of, 1)[0]) != by_index(epochs(loader(num_workers=1), 1)[0])


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"batch_size": None}, {"persistent_workers": True}, {"drop_last": True}])
def test_a_stream_that_one_reads(arguments: dict[str, Any]) -> None:
    without = {name: value for name, value in arguments.items() if name != "persistent_workers"}
    assert_same(epochs(loader(Stream, num_workers=1, **arguments)), epochs(loader(Stream, num_workers=0, **without)))


def test_rows_of_chunks() -> None:
    def chunks() -> Iterator[Any]:
        for length in (3, 0, 9, 1):
            yield np.random.rand(length, 2), torch.rand(length)

    class Chunks:
        def __iter__(self) -> Iterator[Any]:
            return chunks()

    first, second = (epochs(loader(lambda: ChunkedDataset(Chunks()), num_workers=number)) for number in (0, 1))
    assert_same(first, second)


def test_an_error_of_a_stream_comes_in_its_place() -> None:
    class Failing(Stream):
        def sample(self, number: int) -> Any:
            if number % 5 == 0:
                raise LookupError(number)
            return super().sample(number)

    found = []
    for number in (0, 1):
        iterator, batches = iter(loader(Failing, num_workers=number)), []
        while True:
            try:
                batches.append(detached(next(iterator)))
            except LookupError:
                batches.append("error")
            except StopIteration:
                break
        found.append(batches)
    assert_same(found[0], found[1])


def test_streams_of_several_workers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeding='sample'.*iterable.*num_workers=2"):
        loader(Stream)
    of = loader(Stream, num_workers=1)
    of.num_workers = 2
    with pytest.raises(ValueError, match=r"seeding='sample'.*iterable.*num_workers=2"):
        iter(of)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_threads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeding='sample'.*worker threads share"):
        loader(worker_type="thread")
    of = loader()
    of.worker_type = "thread"
    with pytest.raises(ValueError, match=r"seeding='sample'.*worker threads share"):
        iter(of)
    assert_same(epochs(loader(worker_type="thread", num_workers=0)), epochs(loader()))


@pytest.mark.parametrize("seeding", ["", "samples", None, 1, [], torch.ones(2)])
def test_values_that_are_none(seeding: Any) -> None:
    with pytest.raises(ValueError, match=r"seeding must be 'worker' or 'sample'"):
        ShmDataLoader(Images(), seeding=seeding)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_index_without_a_seed_is_an_error_in_its_place(num_workers: int) -> None:
    class Keyed(Drawing):
        def __getitem__(self, index: Any) -> Any:
            return 0

    iterator = iter(loader(Keyed, num_workers=num_workers, batch_sampler=[["a", 1], [{}], [2.5]], batch_size=1))
    assert next(iterator).tolist() == [0, 0]
    with pytest.raises(TypeError, match=r"seeding='sample'"):
        next(iterator)
    assert next(iterator).tolist() == [0]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("returned", [{"a": [1]}, [1, 2], [], 5, "a"])
def test_several_samples_in_another_form_are_an_error(returned: Any, num_workers: int) -> None:
    class Odd(Drawing):
        def __getitems__(self, indices: Any) -> Any:
            return returned

    with pytest.raises(TypeError, match=r"seeding='sample'.*__getitems__.*Odd.*one sample"):
        next(iter(loader(Odd, num_workers=num_workers)))


def test_a_torch_that_lacks_something_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "difference", lambda: "torch lacks it")
    with pytest.raises(RuntimeError, match=r"torch lacks it.*seeding='sample'"):
        iter(loader())


# -- what stays as it is ---------------------------------------------------------------------------------------------


def test_the_loops_own_streams_with_no_workers() -> None:
    of = loader(num_workers=0)
    iterator = iter(of)
    for _ in range(3):
        before = random_states()
        next(iterator)
        assert random_states() == before
        drawn()


def test_what_draws_nothing_is_written_as_a_whole() -> None:
    calls: list[int] = []

    class Told(ArrayDataset):
        def __getitems_into__(self, indices: Any, out: Any) -> Any:
            calls.append(len(indices))
            return super().__getitems_into__(indices, out)

    tensors = TensorDataset(torch.arange(40).reshape(20, 2), torch.arange(20))
    arrays = ArrayDataset(np.arange(40).reshape(20, 2), np.arange(20))
    for make in (lambda: tensors, lambda: arrays, lambda: Subset(arrays, range(3, 17)), lambda: Told(np.arange(20))):
        assert_same(epochs(loader(make), 1), epochs(loader(make, seeding="worker"), 1))


def test_the_info_of_workers_is_as_ever() -> None:
    class Told(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            info = get_worker_info()
            assert info is not None
            return info.id, info.num_workers, info.seed, type(info.dataset) is Told

    plain, seeded = (epochs(loader(Told, seeding=seeding), 2) for seeding in ("worker", "sample"))
    assert_same(seeded, plain)
    assert all(flags.all() for *_, flags in itertools.chain(*seeded))
