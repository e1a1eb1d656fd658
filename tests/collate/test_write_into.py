"""Datasets that write into the slot themselves: batches are stock's, and nothing is copied."""

from __future__ import annotations

import collections
import copy
import mmap
import os
import random
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_sharer
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    Dataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
    get_worker_info,
)
from torch.utils.data._utils.collate import default_collate_fn_map

from shmloader import ArrayDataset, ShmDataLoader
from tests.helpers.datasets import Mapped, nest
from tests.helpers.support import assert_same_stream, checksum

LENGTH = 50


class Pair(NamedTuple):
    image: Any
    label: Any


class Swapped(Pair):
    """A named tuple that is not what it is made of."""

    def __new__(cls, image: Any, label: Any) -> Any:
        return super().__new__(cls, label, image)


class Maker(Pair):
    """One whose ``_make`` is not the generated one."""

    @classmethod
    def _make(cls, parts: Any) -> Any:  # type: ignore[override]
        return cls(*reversed(tuple(parts)))


class Noted(Pair):
    """A named tuple that has more than its parts."""

    def __init__(self, image: Any, label: Any) -> None:
        self.axes = np.ndim(image)


def image(index: int) -> np.ndarray[Any, Any]:
    return np.full((3, 4), index, np.float32) + np.arange(4, dtype=np.float32)


# Samples by index, and the same written into their places.
STRUCTURES: dict[str, tuple[Callable[[int], Any], Callable[[int, Any], None]]] = {}


def structure(name: str, make: Callable[[int], Any]) -> Callable[[Any], Any]:
    def add(write: Callable[[int, Any], None]) -> None:
        STRUCTURES[name] = (make, write)

    return add


@structure("an array", image)
def _(index: int, out: Any) -> None:
    out[:] = image(index)


@structure("a tensor", lambda index: torch.from_numpy(image(index)))
def _(index: int, out: Any) -> None:
    out[:] = image(index)


@structure("bfloat16", lambda index: torch.full((2,), index, dtype=torch.bfloat16))
def _(index: int, out: Any) -> None:
    out.fill_(index)


@structure("a number", lambda index: index)
def _(index: int, out: Any) -> None:
    out[...] = index


@structure("a tuple", lambda index: (image(index), index, float(index), index % 2 == 0))
def _(index: int, out: Any) -> None:
    assert type(out) is tuple
    out[0][:] = image(index)
    out[1][...], out[2][...], out[3][...] = index, index, index % 2 == 0


@structure("a list", lambda index: [image(index), image(index)[0]])
def _(index: int, out: Any) -> None:
    assert type(out) is list
    out[0][:], out[1][:] = image(index), image(index)[0]


@structure("a named tuple", lambda index: Pair(image(index), index))
def _(index: int, out: Any) -> None:
    out.image[:] = image(index)
    out.label[...] = index


@structure("dicts", lambda index: {"image": image(index), "more": {"label": index, "pair": (index, image(index)[0])}})
def _(index: int, out: Any) -> None:
    out["image"][:] = image(index)
    out["more"]["label"][...] = index
    out["more"]["pair"][0][...] = index
    out["more"]["pair"][1][:] = image(index)[0]


class Counted(Dataset[Any]):
    """Counts, over all processes, what is called."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make
        self.counts = np.ndarray((2, 8), np.int64, mmap.mmap(-1, 128))  # (method, worker)

    def __len__(self) -> int:
        return LENGTH

    def count(self, method: int) -> None:
        info = get_worker_info()
        if info is not None:
            self.counts[method, info.id] += 1

    def __getitem__(self, index: int) -> Any:
        self.count(0)
        return self.make(index)


class OneByOne(Counted):
    def __init__(self, make: Callable[[int], Any], write: Callable[[int, Any], None]) -> None:
        super().__init__(make)
        self.write = write

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)

    def __getitem_into__(self, index: int, out: Any) -> None:
        self.count(1)
        self.write(index, out)


class WholeBatches(Counted):
    """Pairs of an image and a label."""

    def __init__(self) -> None:
        super().__init__(lambda index: (image(index), index))

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)

    def __getitems_into__(self, indices: Sequence[int], out: Any) -> None:
        self.count(1)
        out[0][:] = [image(index) for index in indices]
        out[1][:] = indices


LOADERS: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 4},
    "shuffled": {"batch_size": 7, "shuffle": True},
    "one sample": {"batch_size": 1, "num_workers": 1},
    "drop_last": {"batch_size": 8, "drop_last": True, "prefetch_factor": 4},
    "persistent": {"batch_size": 6, "persistent_workers": True, "epochs": 3},
    "out of order": {"batch_size": 50},
    "a tight pool": {"batch_size": 5, "max_pool_bytes": 14 << 16},
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_samples_that_are_written_are_stocks(structure: str, loader: str) -> None:
    arguments = {"num_workers": 2, **LOADERS[loader]}
    assert_same_stream(lambda: OneByOne(*STRUCTURES[structure]), **arguments)


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_that_are_written_are_stocks(loader: str) -> None:
    arguments = {"num_workers": 2, **LOADERS[loader]}
    assert_same_stream(WholeBatches, **arguments)


@pytest.mark.parametrize("kind", [Swapped, Maker, Noted])
def test_named_tuples_whose_class_makes_something_of_their_parts(kind: Any) -> None:
    def write(index: int, out: Any) -> None:
        out.image[...], out.label[...] = image(index), image(index)[0]

    assert_same_stream(
        lambda: OneByOne(lambda index: kind(image(index), image(index)[0]), write), batch_size=4, num_workers=1
    )


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 2, (LENGTH, 3, 5), generator=generator).to(dtype)
    return wide, wide[:, 0, 0].clone(), wide.transpose(1, 2), wide[:, 1:, ::2]


ALL_TENSORS: dict[str, Callable[[], Any]] = {
    "float32": lambda: TensorDataset(*tensors()),
    "bool": lambda: TensorDataset(*tensors(torch.bool)),
    "bfloat16": lambda: TensorDataset(*tensors(torch.bfloat16)),
    "float8": lambda: TensorDataset(*tensors(torch.float8_e4m3fn)[:2]),
    "complex": lambda: TensorDataset(*tensors(torch.complex64)),
    "empty rows": lambda: TensorDataset(torch.zeros(LENGTH, 0, 3), torch.arange(LENGTH)),
    "a gradient": lambda: TensorDataset(torch.ones(LENGTH, 2, requires_grad=True)),
    "no tensors": lambda: Subset(TensorDataset(torch.arange(0)), []),
    "a subset": lambda: Subset(TensorDataset(*tensors()), list(range(LENGTH - 1, -1, -2))),
    "a subset by tensor": lambda: Subset(TensorDataset(*tensors()), torch.arange(0, LENGTH, 3)),  # type: ignore[arg-type]
    "a subset of a subset": lambda: Subset(Subset(ArrayDataset(*tensors()), range(40)), range(3, 40, 2)),
    "arrays": lambda: ArrayDataset(*[tensor.numpy() for tensor in tensors()]),
    "arrays and tensors": lambda: ArrayDataset(tensors()[0].numpy(), tensors(torch.bfloat16)[2]),
    "one array": lambda: ArrayDataset(np.arange(LENGTH, dtype=np.uint16)),
}


@pytest.mark.sampled(12)
@pytest.mark.parametrize("loader", ["plain", "shuffled", "persistent", "a tight pool"])
@pytest.mark.parametrize("make", ALL_TENSORS)
def test_gathered_batches_are_stocks(make: str, loader: str) -> None:
    if make == "no tensors" and loader == "shuffled":
        pytest.skip("torch refuses to shuffle nothing")
    arguments = {"num_workers": 2, **LOADERS[loader]}
    assert_same_stream(ALL_TENSORS[make], **arguments)


# Indices that a batch sampler may give.
INDICES: dict[str, list[Any]] = {
    "negative": [[0, 1], [-1, 3], [-LENGTH], [2]],
    "out of range": [[0, 1], [LENGTH], [3, -LENGTH - 1], [2]],
    "booleans": [[0, 1], [True, False], [2]],
    "numpy's": [[0, 1], [np.int64(3), np.int32(2)], np.array([4, 5]), [2]],
    "huge": [[0, 1], [1 << 70], [2]],
    "slices": [[0, 1], [slice(0, 2)], [slice(0, 1), slice(3, 4)], [2]],
    "slices at first": [[slice(0, 2)], [1, 2], [slice(2, 4), slice(1, 3)], [3]],
    "masks at first": [[None], [1], [np.True_], [torch.tensor(True)], [5, 6]],
    "none": [[0, 1], [None], [], [2]],
    "repeated": [[0, 1], [3, 3, 3], [2]],
    "keys": [[0, 1], ["zero"], [2]],
    "bytes": [[0, 1], b"\1\2", b"\1\0\0\0\0\0\0\0", bytearray(8), "ab", [2]],
    "no batches": [[0, 1], 3, None, np.array(3), torch.tensor(3), [2]],
}

ROWS: dict[str, Callable[[], Any]] = {
    "tensors": lambda: TensorDataset(*tensors()),
    "arrays": lambda: ArrayDataset(tensors()[0].numpy(), *tensors()[1:]),
    "a subset": lambda: Subset(TensorDataset(*tensors()), range(LENGTH)),
    "a subset by array": lambda: Subset(ArrayDataset(*tensors()), np.arange(LENGTH)[::-1]),  # type: ignore[arg-type]
    "a subset by tensor": lambda: Subset(TensorDataset(*tensors()), torch.arange(LENGTH).flip(0)),  # type: ignore[arg-type]
    "a subset by too much": lambda: Subset(ArrayDataset(*tensors()), list(range(-60, 60))),
    "a subset of a subset": lambda: Subset(Subset(TensorDataset(*tensors()), range(-5, 45)), [True, 2, -3, 60, 5] * 10),
}


@pytest.fixture
def _resource_sharer() -> Iterator[None]:
    """The thread that stock starts with the first tensor among indices, to hand its memory over, and keeps."""
    yield
    resource_sharer.stop()


@pytest.mark.sampled(9)
@pytest.mark.usefixtures("_resource_sharer")
@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("make", ["tensors", "arrays", "a subset", "a subset by array"])
def test_any_indices_mean_what_they_mean_to_stock(make: str, indices: str) -> None:
    assert_same_stream(ROWS[make], batch_sampler=lambda: copy.deepcopy(INDICES[indices]), num_workers=1)


def some_number(draw: random.Random) -> int:
    return draw.choice([draw.randrange(LENGTH), draw.randrange(-LENGTH, LENGTH), draw.randrange(-70, 70)])


class Batch(list[int]):
    """A list that says something else when it is iterated over."""

    def __iter__(self) -> Any:
        return map((3).__add__, super().__iter__())


NUMPY_INTS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
TORCH_INTS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool]


AS_NUMBER: list[Any] = [np.int64, torch.tensor, np.array]
AS_BATCH: list[Any] = [iter, collections.deque, dict.fromkeys, Batch, lambda numbers: np.array([numbers])]


def some_index(draw: random.Random) -> Any:
    """One of all the things that torch or numpy index with, or do not."""
    number = some_number(draw)
    makers: list[Callable[[], Any]] = [
        lambda: number,
        lambda: draw.choice(NUMPY_INTS)(abs(number)),
        lambda: torch.tensor(abs(number), dtype=draw.choice(TORCH_INTS)),
        lambda: draw.choice(AS_NUMBER)(number),
        lambda: draw.choice([True, np.True_, None, ..., 1.5, np.float32(2), "a", 1 << 70, np.uint64(-1 % (1 << 64))]),
        lambda: draw.choice([slice(number, number + 2), [number], (number,), [], np.array([number])]),
    ]
    return draw.choice(makers)()


def some_batch(draw: random.Random) -> Any:
    """Several of one kind, or of several, as any kind of batch."""
    count = draw.randrange(1, 5)
    numbers = [some_number(draw) for _ in range(count)]
    makers: list[Callable[[], Any]] = [
        lambda: numbers,
        lambda: tuple(numbers),
        lambda: np.array(numbers, draw.choice(["b", "i", "q", "f"])),
        lambda: np.array(numbers).astype(draw.choice(NUMPY_INTS)),
        lambda: torch.tensor(numbers).to(draw.choice(TORCH_INTS)),
        lambda: list(torch.tensor(numbers)),
        lambda: list(np.array(numbers)),
        lambda: draw.choice(AS_BATCH)(numbers),
        lambda: [some_index(draw)] * count,
        lambda: [some_index(draw) for _ in range(count)],
    ]
    return draw.choice(makers)()


@pytest.mark.sampled(6)
@pytest.mark.usefixtures("_resource_sharer")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("make", ROWS)
def test_whatever_a_sampler_draws_means_what_it_means_to_stock(make: str, seed: int) -> None:
    def batches() -> Any:
        draw = random.Random(f"{make} {seed}")
        return [some_batch(draw) if draw.random() < 0.6 else [draw.randrange(LENGTH)] * 3 for _ in range(80)]

    assert_same_stream(ROWS[make], batch_sampler=batches, num_workers=1)


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("_resource_sharer")
@pytest.mark.parametrize("as_indices", [list, np.array, torch.tensor])
@pytest.mark.parametrize("make", ["tensors", "arrays", "a subset by tensor"])
def test_samplers_over_any_sequence(make: str, as_indices: Any) -> None:
    sampler = lambda: SubsetRandomSampler(as_indices(range(3, 40)))  # noqa: E731
    assert_same_stream(ROWS[make], sampler=sampler, batch_size=4, num_workers=2, epochs=2)


def replace_tensors(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    dataset: Any = info.dataset
    wide, narrow, *_ = dataset.tensors
    dataset.tensors = REPLACEMENTS[dataset.kind](wide, narrow)


REPLACEMENTS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "others": lambda wide, narrow: (narrow + 1, wide * 2),
    "another length": lambda wide, narrow: (wide[:30], narrow[:30]),
    "different lengths": lambda wide, narrow: (wide, narrow[:30]),
    "a list": lambda wide, narrow: [wide, narrow],
    "arrays": lambda wide, narrow: (wide.numpy(), narrow.numpy()),
    "a number": lambda wide, narrow: (wide, narrow[0]),
    "none": lambda wide, narrow: (),
}


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_tensors_that_an_init_function_replaces(kind: str) -> None:
    def make() -> Any:
        dataset = TensorDataset(*tensors()[:2])
        dataset.kind = kind  # type: ignore[attr-defined]
        return dataset

    assert_same_stream(make, batch_size=4, num_workers=1, worker_init_fn=replace_tensors)


class Turns:
    """Indices of a subset that are others each time they are read."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, position: int) -> Any:
        self.reads += 1
        return [self.reads % LENGTH] if self.reads % 7 == 0 else self.reads % LENGTH


def test_indices_of_a_subset_are_read_as_often_as_stock_reads_them() -> None:
    assert_same_stream(lambda: Subset(TensorDataset(*tensors()), Turns()), batch_size=4, num_workers=1)  # type: ignore[arg-type]


class Choosy(WholeBatches):
    """Writes batches of even numbers only, and something into the others before it says so."""

    def __getitems_into__(self, indices: Sequence[int], out: Any) -> Any:
        super().__getitems_into__(indices, out)
        if any(index % 2 for index in indices):
            out[0][:] = out[1][:] = -1
            return NotImplemented
        return None


class ChoosyOneByOne(OneByOne):
    """The same, for samples."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)

    def __getitem_into__(self, index: int, out: Any) -> Any:
        super().__getitem_into__(index, out)
        return NotImplemented if index % 5 == 3 else None


def chosen_batches() -> Any:
    draw = random.Random(5)
    return [
        [2 * draw.randrange(20) + draw.choice([0, 0, 0, 0, 1]) for _ in range(draw.randrange(1, 5))] for _ in range(50)
    ]


@pytest.mark.parametrize(
    "make",
    [
        Choosy,
        lambda: Subset(Choosy(), range(LENGTH)),
        lambda: Subset(Subset(Choosy(), range(1, LENGTH)), range(LENGTH - 2)),
        lambda: ChoosyOneByOne(*STRUCTURES["a named tuple"]),
        lambda: Subset(ChoosyOneByOne(*STRUCTURES["dicts"]), np.arange(LENGTH)),  # type: ignore[arg-type]
    ],
)
def test_a_dataset_may_leave_a_batch_to_be_read_as_always(make: Callable[[], Any]) -> None:
    assert_same_stream(make, batch_sampler=chosen_batches, num_workers=1, num_slots=4)


def test_what_is_left_is_read_once_and_the_rest_is_written() -> None:
    dataset = Choosy()
    batches = [[0, 2], [4, 6], [1, 2, 3], [8, 10], [12, 14, 16]]
    assert [labels.tolist() for _, labels in ShmDataLoader(dataset, batch_sampler=batches, num_workers=1)] == batches
    assert dataset.counts[:, 0].tolist() == [2 + 3, 4]


@pytest.mark.parametrize("make", [WholeBatches, lambda: OneByOne(*STRUCTURES["a tuple"])])
def test_only_the_first_batch_of_a_worker_is_read_sample_by_sample(make: Callable[[], Counted]) -> None:
    dataset = make()
    for _ in ShmDataLoader(dataset, batch_size=5, num_workers=2):
        pass
    is_whole = isinstance(dataset, WholeBatches)
    assert dataset.counts[:, :2].tolist() == [[5, 5], [4, 4] if is_whole else [20, 20]]


class Addresses(Dataset[Any]):
    """Rows that say where they were written."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        return np.zeros(2, np.int64)

    def __getitem_into__(self, index: int, out: Any) -> None:
        out[:] = out.ctypes.data, index


def test_rows_are_written_where_the_loop_reads_them() -> None:
    """Forked workers have the pool where the parent has it."""
    for number, batch in enumerate(ShmDataLoader(Addresses(), batch_size=5, num_workers=2)):
        assert number < 2 or batch[:, 0].tolist() == [batch.data_ptr() + 16 * row for row in range(5)]


class Inheriting(WholeBatches):
    """Means something else by its samples than what it inherits writes."""

    def __getitem__(self, index: int) -> Any:
        pair = super().__getitem__(index)
        return pair[0] + 1, pair[1]


class InheritingInBatches(WholeBatches):
    """The same, in the way in which torch's fetcher reads whole batches."""

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return [(image(index) + 1, index) for index in indices]


class OptingOut(WholeBatches):
    """Says in Python's usual way that it does not have what it inherits."""

    __getitems_into__ = None  # type: ignore[assignment]


class Strings(WholeBatches):
    def __getitem__(self, index: int) -> Any:
        return *super().__getitem__(index), "name"

    def __getitems_into__(self, indices: Sequence[int], out: Any) -> None:
        raise AssertionError("there is no array of strings")


class Forwarding(Counted):
    """A wrapper that has the attributes of what it wraps."""

    def __init__(self) -> None:
        self.wrapped = WholeBatches()
        super().__init__(lambda index: self.wrapped[index][0] * 2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["wrapped"], name)


class Instructed(WholeBatches):
    """Has the method that torch's fetcher calls in the object, and not in the class."""

    def __init__(self) -> None:
        super().__init__()
        self.__getitems__ = lambda indices: [(image(index) + 1, index) for index in indices]


def instructed_rows() -> Any:
    dataset = TensorDataset(*tensors())
    dataset.__getitems__ = lambda indices: [(torch.tensor(index) + 1,) for index in indices]  # type: ignore[attr-defined]
    return dataset


class Rows(TensorDataset):
    """Changes what it inherits."""

    def __getitem__(self, index: Any) -> Any:
        return tuple(tensor[index] * 2 for tensor in self.tensors)


class Shorter(ArrayDataset):
    """Has fewer samples than rows, and the last of them is still row -1."""

    def __len__(self) -> int:
        return 30


class Longer(ArrayDataset):
    def __len__(self) -> int:
        return LENGTH + 7


@pytest.mark.parametrize("make", [Shorter, Longer])
def test_arrays_of_another_length_than_the_dataset(make: Any) -> None:
    sampler = lambda: [*range(20), -1, -20, 35, LENGTH, LENGTH + 3, -LENGTH, -LENGTH - 1]  # noqa: E731
    assert_same_stream(lambda: make(*tensors()), batch_size=2, sampler=sampler, num_workers=1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "make",
    [
        Inheriting,
        InheritingInBatches,
        OptingOut,
        Instructed,
        instructed_rows,
        lambda: Subset(instructed_rows(), range(30)),
        Strings,
        Forwarding,
        lambda: Rows(*tensors()),
    ],
)
def test_datasets_that_are_read_as_always(make: Callable[[], Any]) -> None:
    assert_same_stream(make, batch_size=4, num_workers=2)


def negated(samples: list[Any]) -> Any:
    return [-part if part.is_floating_point() else part for part in default_collate(samples)]


@pytest.mark.parametrize("make", [WholeBatches, lambda: TensorDataset(*tensors())])
def test_a_collate_function_of_the_users_gets_its_samples(make: Callable[[], Any]) -> None:
    assert_same_stream(make, batch_size=4, num_workers=2, collate_fn=negated)


UNBATCHED: dict[str, Callable[[], Any]] = {
    **ROWS,
    "one by one": lambda: OneByOne(*STRUCTURES["a tuple"]),
    "rows one by one": lambda: OneByOne(*STRUCTURES["an array"]),
    "whole batches": WholeBatches,
    "numbers": lambda: Mapped(lambda index: [index, index + 1]),
    "alike": lambda: Mapped(lambda index: (torch.full((3,), index), torch.full((3,), -index))),
    "nested": lambda: Mapped(lambda index: ((index, image(index)), (2, image(2)))),
    "of all lengths": lambda: Mapped(lambda index: [image(index)] * (index % 4)),
    "of all kinds": lambda: Mapped(
        lambda index: [image(index), (index, index), "ab", {"a": 1}, index, [1, 2.5], torch.zeros(2, index)][index % 7]
    ),
    "nests": lambda: Mapped(nest),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("make", UNBATCHED)
def test_without_batches_samples_are_read_as_always(make: str) -> None:
    for collate_fn in (None, default_collate):
        assert_same_stream(UNBATCHED[make], batch_size=None, num_workers=1, collate_fn=collate_fn)


@pytest.mark.parametrize("collate_fn", [None, default_collate])
@pytest.mark.parametrize("make", ["tensors", "arrays", "numbers"])
def test_without_batches_a_sampler_may_draw_lists(make: str, collate_fn: Any) -> None:
    sampler = lambda: BatchSampler(SequentialSampler(range(20)), 3, False)  # noqa: E731
    assert_same_stream(UNBATCHED[make], batch_size=None, sampler=sampler, num_workers=1, collate_fn=collate_fn)


def replaced(worker: int) -> None:
    collate_tensor = default_collate_fn_map[torch.Tensor]
    default_collate_fn_map[torch.Tensor] = lambda batch, **more: collate_tensor(batch, **more) + 1


def test_an_entry_of_the_users_in_the_collate_map_counts() -> None:
    assert_same_stream(lambda: TensorDataset(*tensors()[:2]), batch_size=4, num_workers=1, worker_init_fn=replaced)


def failing(index: int, out: Any) -> None:
    out[0][:] = 1
    if index == 21:
        raise LookupError("sample 21")
    if index == 33:
        out[0][:] = np.zeros(7)
    out[0][:], out[1][...] = image(index), index


def test_an_error_comes_in_its_batches_place() -> None:
    dataset = OneByOne(lambda index: (image(index), index), failing)
    outcome: list[Any] = []
    iterator = iter(ShmDataLoader(dataset, batch_size=5, num_workers=2))
    for _ in range(10):
        try:
            outcome.append(next(iterator)[1].tolist())
        except Exception as error:
            outcome.append(error.with_traceback(None))
    assert isinstance(outcome[4], LookupError)
    assert "sample 21" in str(outcome[4])
    assert isinstance(outcome[6], ValueError)
    assert "could not broadcast" in str(outcome[6])
    assert [outcome[i] for i in (0, 5, 7, 9)] == [[5 * i + k for k in range(5)] for i in (0, 5, 7, 9)]


def test_a_dataset_that_keeps_its_places_finds_them_unchanged() -> None:
    kept: list[Any] = []

    def write(index: int, out: Any) -> None:
        for place, sum_ in kept:
            assert checksum([torch.from_numpy(place)]) == sum_
        out[:] = image(index)
        kept.append((out, checksum([torch.from_numpy(out)])))

    batches = list(ShmDataLoader(OneByOne(image, write), batch_size=5, num_workers=2, num_slots=20))
    assert torch.cat(batches).numpy().tolist() == [image(index).tolist() for index in range(LENGTH)]


class Keeping(WholeBatches):
    """Keeps every batch that it has written."""

    def __len__(self) -> int:
        return 500

    def __getitems_into__(self, indices: Any, out: Any) -> None:
        super().__getitems_into__(indices, out)
        KEPT.append(out)


KEPT: list[Any] = []


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_dataset_that_keeps_all_its_places_does_not_use_up_the_pool(persistent_workers: bool) -> None:
    loader = ShmDataLoader(Keeping(), batch_size=5, num_workers=2, persistent_workers=persistent_workers)
    for _ in range(2):
        pairs = [
            (row.tolist(), int(label)) for images, labels in loader for row, label in zip(images, labels, strict=True)
        ]
        assert pairs == [(image(index).tolist(), index) for index in range(500)]


def test_the_random_streams_are_used_alike() -> None:
    def make(index: int) -> Any:
        return torch.rand(2), random.random()

    def write(index: int, out: Any) -> None:
        out[0][:], out[1][...] = torch.rand(2), random.random()

    assert_same_stream(lambda: OneByOne(make, write), batch_size=3, num_workers=2, epochs=2)


def test_a_worker_that_dies_is_replaced() -> None:
    flag = mmap.mmap(-1, 1)

    def write(index: int, out: Any) -> None:
        if index == 30 and not flag[0]:
            flag[0] = 1
            os._exit(3)
        out[:] = image(index)

    loader = ShmDataLoader(OneByOne(image, write), batch_size=5, num_workers=2, num_slots=20, worker_restarts=1)
    with pytest.warns(match="exit code 3"):
        batches = list(loader)
    assert torch.cat(batches).numpy().tolist() == [image(index).tolist() for index in range(LENGTH)]
