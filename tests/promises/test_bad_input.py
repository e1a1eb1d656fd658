"""Wrong arguments and datasets that misbehave: torch's own errors, or ours with the name of the knob."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, default_collate

from shmloader import PoolMemoryError, ShmDataLoader, SpecMismatchError
from tests.helpers.datasets import Images, Mapped, Shards
from tests.helpers.support import TORCH, assert_same_stream, first_line

WRONG: list[dict[str, Any]] = [
    {"num_workers": -1},
    {"timeout": -1},
    {"prefetch_factor": 2},
    {"num_workers": 1, "prefetch_factor": -1},
    {"num_workers": 1, "prefetch_factor": 0},
    {"persistent_workers": True},
    {"batch_size": 0},
    {"batch_size": -3},
    {"batch_size": 1.5},
    {"batch_size": None, "drop_last": True},
    {"shuffle": True, "sampler": [1]},
    {"batch_sampler": [[1]], "batch_size": 3},
    {"batch_sampler": [[1]], "drop_last": True},
    {"multiprocessing_context": "fork"},
    {"num_workers": 1, "multiprocessing_context": "teleport"},
    {"num_workers": 1, "multiprocessing_context": 5},
    {"drop_last": "yes"},
    {"unknown": 1},
    {"num_workers": 2, "timeout": "soon"},
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # stock's, at prefetch_factor=0
@pytest.mark.parametrize("arguments", WRONG, ids=str)
def test_wrong_arguments_give_torchs_own_errors(arguments: dict[str, Any]) -> None:
    def outcome(kind: Any) -> tuple[type, str]:
        try:
            iter(kind(Images(), **arguments))
        except Exception as error:
            return type(error), first_line(error).replace("ShmDataLoader", "DataLoader")
        return type(None), ""

    ours, stock = outcome(ShmDataLoader), outcome(DataLoader)
    assert ours[0] is stock[0]
    assert stock[0] is not type(None)
    assert ours[1] == stock[1] or (stock[1] == "" and TORCH < (2, 13))  # bare assertions, where torch has words now


@pytest.mark.parametrize(
    "arguments", [{"sampler": [1]}, {"batch_sampler": [[1]]}, {"shuffle": True}], ids=lambda value: next(iter(value))
)
def test_wrong_arguments_for_iterable_datasets(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="DataLoader with IterableDataset: expected unspecified"):
        ShmDataLoader(Shards(), **arguments)


OWN: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_pool_bytes": 0}, ValueError, "max_pool_bytes must be positive"),
    ({"max_pool_bytes": -5}, ValueError, "max_pool_bytes must be positive"),
    ({"max_pool_bytes": 1.5}, TypeError, "max_pool_bytes must be an int"),
    ({"max_pool_bytes": "1 GB"}, TypeError, "max_pool_bytes must be an int"),
    ({"num_slots": 0}, ValueError, "num_slots must be positive"),
    ({"num_slots": True}, TypeError, "num_slots must be an int"),
    ({"num_slots": 5, "num_workers": 2}, ValueError, r"num_slots=5 is too small: .* takes 6 at least"),
    ({"max_pool_bytes": 1000, "num_workers": 2}, ValueError, "max_pool_bytes=1000 is too small"),
    ({"num_workers": 1, "prefetch_factor": 10**8}, ValueError, r"max_pool_bytes=.* is too small.*prefetch_factor"),
    ({"sample_dtypes": torch.uint8}, ValueError, "sample_dtypes needs sample_shapes"),
    ({"sample_shapes": ((3, -4), ())}, ValueError, r"sample_shapes\[0\].*negative"),
    ({"sample_shapes": 3}, TypeError, "sample_shapes must be"),
    ({"sample_shapes": (3, 4), "sample_dtypes": "nonsense"}, TypeError, "no torch dtype"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), OWN)
def test_our_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        iter(ShmDataLoader(Images(), **arguments))


def test_more_jobs_than_a_pipe_holds() -> None:
    loader = ShmDataLoader(Images(), num_workers=1, prefetch_factor=10**8, max_pool_bytes=1 << 50)
    with pytest.raises(PoolMemoryError, match="prefetch_factor"):
        iter(loader)


def test_the_signature_is_stocks_and_more() -> None:
    stock = inspect.signature(DataLoader.__init__).parameters
    ours = inspect.signature(ShmDataLoader.__init__).parameters
    assert [name for name in ours if name in stock] == list(stock)
    for name, parameter in stock.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name
    loader = ShmDataLoader(Images())
    assert all(hasattr(loader, name) for name in ours if name not in ("self", "shuffle"))


class Empty(Dataset[Any]):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


class Boastful(Images):
    """Says that it is longer than it is."""

    def __len__(self) -> int:
        return self.length + 5


class Unreadable(IterableDataset[Any]):
    def __init__(self, where: str) -> None:
        self.where = where

    def __iter__(self) -> Iterator[Any]:
        if self.where == "iter":
            raise OSError("no such shard")
        return self.generate()

    def generate(self) -> Iterator[Any]:
        yield 1
        yield 2
        raise OSError("broken shard")


def fail_at(*indices: int) -> Any:
    def sample(index: int) -> Any:
        if index in indices:
            raise KeyError(f"sample {index} is missing")
        return index

    return sample


class Awkward(Exception):
    """An exception that cannot be made of a message."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(code, reason)


def raise_awkward(index: int) -> Any:
    raise Awkward(index, reason="none")


def raise_local(index: int) -> Any:
    class Local(Exception):
        pass

    raise Local(f"at {index}")


def raise_huge(index: int) -> Any:
    raise ValueError("x" * 5_000_000)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda: Mapped(fail_at(3)), {}),
        (lambda: Mapped(fail_at(0, 1, 2, 3)), {"batch_size": 2}),
        (lambda: Mapped(fail_at(7, 13)), {"batch_size": 3, "shuffle": True}),
        (lambda: Mapped(lambda index: None), {}),
        (lambda: Mapped(lambda index: np.ones(index)), {"batch_size": 2}),
        (lambda: Mapped(lambda index: np.ones(2, [int, float][index % 2])), {"batch_size": 2}),
        (lambda: Mapped(lambda index: 1 / index), {}),
        (lambda: Mapped(raise_awkward, 3), {}),
        (Empty, {}),
        (lambda: Boastful(10), {"batch_size": 4}),
        (lambda: Unreadable("middle"), {"batch_size": 2}),
        (lambda: Images(10), {"collate_fn": lambda samples: samples.missing}),
        (lambda: Images(10), {"sampler": lambda: [1, 99, 2]}),
        (lambda: Images(10), {"batch_sampler": lambda: [[1, 2], [99], "ab", [3]]}),
    ],
)
def test_datasets_that_misbehave(make: Any, arguments: dict[str, Any], num_workers: int) -> None:
    assert_same_stream(make, num_workers=num_workers, **arguments)


def test_an_iterable_dataset_that_cannot_start_says_so_every_time() -> None:
    iterator = iter(ShmDataLoader(Unreadable("iter"), num_workers=1))
    for _ in range(3):
        with pytest.raises(OSError, match="no such shard"):
            next(iterator)


def test_a_dataset_without_a_length() -> None:
    class Lengthless(Dataset[Any]):
        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(TypeError, match="has no len"):
        len(ShmDataLoader(Lengthless(), num_workers=1))
    with pytest.raises(TypeError, match="has no len"):
        ShmDataLoader(Lengthless(), shuffle=True)
    assert list(ShmDataLoader(Lengthless(), sampler=[4, 2], num_workers=1)) == [torch.tensor([4]), torch.tensor([2])]
    assert len(RandomSampler([1])) == 1


@pytest.mark.parametrize(
    ("sample", "error", "text"),
    [
        (raise_local, RuntimeError, r"at \d"),
        (raise_huge, RuntimeError, "ValueError"),
        (lambda index: (_ for _ in ()), TypeError, "generator"),
    ],
)
def test_what_cannot_travel_arrives_as_an_error(sample: Any, error: type[Exception], text: str) -> None:
    loader = ShmDataLoader(
        Mapped(sample, 4), num_workers=1, collate_fn=lambda samples: samples[0], max_pool_bytes=1 << 20
    )
    iterator = iter(loader)
    for _ in range(4):
        with pytest.raises(error, match=text):
            next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


class Unloadable:
    """An index that the worker cannot read."""

    def __reduce__(self) -> Any:
        return fail_to_load, ()


def fail_to_load() -> Any:
    raise LookupError("not here")


def test_indices_that_cannot_be_unpickled() -> None:
    iterator = iter(ShmDataLoader(Mapped(lambda index: 0), sampler=[0, Unloadable(), 2], num_workers=1))
    assert int(next(iterator)) == 0
    with pytest.raises(LookupError, match="not here"):
        next(iterator)
    assert [int(value) for value in iterator] == [0]


def test_batches_that_cannot_be_unpickled_cost_no_slot() -> None:
    loader = ShmDataLoader(Mapped(lambda index: index, 100), num_workers=1, collate_fn=lambda samples: Unloadable())
    iterator = iter(loader)
    for _ in range(100):
        with pytest.raises(LookupError, match="not here"):
            next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def raise_local_in_init(worker: int) -> None:
    raise_local(worker)


def test_an_init_error_that_cannot_be_pickled() -> None:
    with pytest.raises(RuntimeError, match="at 0"):
        next(iter(ShmDataLoader(Images(), num_workers=1, worker_init_fn=raise_local_in_init)))


def test_indices_that_cannot_be_pickled() -> None:
    """Each is an error in its batch's place, and nothing else is lost."""
    indices = [(lambda: 0) if index % 3 == 1 else index for index in range(20)]
    iterator = iter(ShmDataLoader(Mapped(lambda index: index), batch_size=None, sampler=indices, num_workers=2))
    for index in range(20):
        if index % 3 == 1:
            with pytest.raises(Exception, match="pickle"):
                next(iterator)
        else:
            assert next(iterator) == index
    with pytest.raises(StopIteration):
        next(iterator)


SPEC: dict[str, Any] = {"sample_shapes": ((3, 4), ()), "sample_dtypes": (torch.uint8, torch.int64)}


def one_wrong(index: int) -> Any:
    image = np.zeros((3, 5) if index == 13 else (3, 4), np.uint8)
    return image, index


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_sample_that_is_not_as_declared(num_workers: int, batch_size: int | None, shuffle: bool) -> None:
    loader = ShmDataLoader(
        Mapped(one_wrong),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        **SPEC,
    )
    iterator = iter(loader)
    errors: list[SpecMismatchError] = []
    labels: list[int] = []
    while True:
        try:
            labels += next(iterator)[1].reshape(-1).tolist() if batch_size else [next(iterator)[1]]
        except SpecMismatchError as caught:
            errors.append(caught)
        except StopIteration:
            break
    (error,) = errors
    assert (error.index, error.path) == (13, "[0]")
    assert (error.expected, error.got) == ("shape (3, 4), torch.uint8", "shape (3, 5), torch.uint8")
    assert "sample 13, field [0]" in str(error)
    if num_workers:
        assert "Caught SpecMismatchError in DataLoader worker process" in str(error)
    assert 13 not in labels
    assert len(labels) == (20 - (batch_size or 1))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_of_an_iterable_dataset_is_named_by_its_ordinal(num_workers: int) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for step in range(10):
                yield np.zeros(3 if step != 7 else 4)

    loader = ShmDataLoader(Stream(), batch_size=2, num_workers=num_workers, sample_shapes=(3,))
    with pytest.raises(SpecMismatchError, match="sample 7: expected shape"):
        list(loader)


@pytest.mark.parametrize("shapes", [(3, 4), {"image": (3, 4)}, ((3, 4),), ((3, 4), (), ())])
def test_a_declaration_of_another_structure(shapes: Any) -> None:
    with pytest.raises(SpecMismatchError, match="sample 0"):
        list(ShmDataLoader(Mapped(one_wrong), num_workers=1, sample_shapes=shapes))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_as_declared_arrive_as_they_do_undeclared(num_workers: int) -> None:
    assert_same_stream(Images, batch_size=4, shuffle=True, num_workers=num_workers, epochs=2, **SPEC)


def test_a_declared_batch_sampler() -> None:
    loader = ShmDataLoader(Images(), batch_sampler=[[1, 2], [3]], num_workers=1, **SPEC)
    assert [labels.tolist() for _, labels in loader] == [[1, 2], [3]]


class BySlice(Images):
    """Reads whole slices."""

    def __getitems__(self, indices: Any) -> list[Any]:
        return [self[index] for index in range(len(self))[indices]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_declared_dataset_that_reads_slices(num_workers: int) -> None:
    slices: Any = [slice(0, 4), slice(4, 6)]
    assert_same_stream(BySlice, batch_sampler=lambda: slices, num_workers=num_workers, **SPEC)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_that_has_a_shape_and_no_dtype(num_workers: int) -> None:
    class Odd:
        shape = (3,)

    loader = ShmDataLoader(
        Mapped(lambda index: Odd(), 2), num_workers=num_workers, sample_shapes=(3,), sample_dtypes=torch.uint8
    )
    with pytest.raises(SpecMismatchError, match=r"sample 0: expected .* got a Odd"):
        next(iter(loader))


def collated_or_none(samples: list[Any]) -> Any:
    return default_collate(samples) if samples else "none"


def empty_batches() -> list[Any]:
    return [[1, 2], [], (3,), [], [4]]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("collate_fn", [None, collated_or_none])
@pytest.mark.parametrize("batches", [empty_batches, lambda: [[]] * 3, lambda: [iter([]), iter([1, 2]), []]])
@pytest.mark.parametrize("make", [Images, lambda: TensorDataset(torch.zeros(9, 3, 4).byte(), torch.arange(9))])
def test_a_declared_batch_of_no_samples(make: Any, batches: Any, collate_fn: Any, num_workers: int) -> None:
    assert_same_stream(make, batch_sampler=batches, collate_fn=collate_fn, num_workers=num_workers, **SPEC)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_behind_a_batch_of_none(num_workers: int) -> None:
    batches = [[], [1], [], [12, 13]]
    iterator = iter(ShmDataLoader(Mapped(one_wrong), batch_sampler=batches, num_workers=num_workers, **SPEC))
    outcome: list[Any] = []
    for _ in batches:
        try:
            outcome.append(next(iterator)[1].tolist())
        except SpecMismatchError as error:
            outcome.append(error.index)
        except IndexError:
            outcome.append("no samples")
    assert outcome == ["no samples", [1], "no samples", 13]
