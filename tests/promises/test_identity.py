"""The same inputs through both loaders: batches, order, errors, look-ahead and random states are equal."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from shmloader import ShmDataLoader
from tests.helpers.datasets import Images, Mapped, Noise, Shards, nest
from tests.helpers.support import assert_same, assert_same_stream, random_states, seed_everything, stream

WORKERS = [0, 1, 2, 3]


@pytest.mark.sampled(15)
@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"batch_size": 7},
        {"batch_size": 7, "drop_last": True},
        {"batch_size": 8, "shuffle": True},
        {"batch_size": None},
        {"batch_size": None, "shuffle": True},
        {"batch_size": 100},
        {"batch_size": 5, "sampler": lambda: WeightedRandomSampler([1.0] * 10 + [2.0] * 40, 33)},
        {"batch_sampler": lambda: BatchSampler(RandomSampler(range(50)), 6, drop_last=False)},
        {"batch_sampler": lambda: [[1, 2], [3], [4, 5, 6], [], [7]][:3]},
        {"batch_size": 4, "generator": lambda: torch.Generator().manual_seed(3), "shuffle": True},
    ],
)
def test_map_style(arguments: dict[str, Any], num_workers: int) -> None:
    assert_same_stream(Images, num_workers=num_workers, epochs=2, **arguments)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("prefetch_factor", [1, 2, 5])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_prefetch_and_persistence(num_workers: int, prefetch_factor: int, persistent_workers: bool) -> None:
    assert_same_stream(
        Noise,
        batch_size=4,
        shuffle=True,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor,
        persistent_workers=persistent_workers,
        epochs=3,
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("stop_after", [0, 1, 4])
def test_epochs_that_are_left_early(persistent_workers: bool, stop_after: int) -> None:
    # Without workers that persist, what a worker's random stream has given depends on nothing but its seed. With
    # them it depends on how many batches the pass before had asked for, which is the look-ahead.
    assert_same_stream(
        Noise,
        batch_size=2,
        shuffle=True,
        num_workers=2,
        persistent_workers=persistent_workers,
        epochs=3,
        stop_after=stop_after,
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", WORKERS)
def test_nested_structures(num_workers: int) -> None:
    assert_same_stream(lambda: Mapped(nest), batch_size=3, num_workers=num_workers)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", WORKERS)
def test_nested_structures_without_batching(num_workers: int) -> None:
    assert_same_stream(lambda: Mapped(nest), batch_size=None, num_workers=num_workers)


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.sampled(12)
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, batch_size: int | None) -> None:
    values = torch.arange(60).reshape(10, 6) % 7
    assert_same_stream(lambda: Mapped(lambda index: values[index].to(dtype), 10), batch_size=batch_size, num_workers=2)


TENSORS: dict[str, Callable[[int], Any]] = {
    "scalar": lambda index: torch.tensor(index),
    "empty": lambda index: torch.zeros(0, 3),
    "empty inside": lambda index: torch.zeros(2, 0, 3),
    "transposed": lambda index: (torch.arange(12.0) + index).reshape(3, 4).t(),
    "strided": lambda index: (torch.arange(24.0) + index)[::2],
    "one column": lambda index: torch.arange(4000.0).reshape(40, 100)[:, :60],
    "expanded": lambda index: torch.tensor([float(index)]).expand(5),
    "channels last": lambda index: torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "one row of a part": lambda index: torch.arange(100.0).reshape(10, 10)[:1, :3],
    "view of a larger one": lambda index: torch.arange(1000)[index : index + 3],
    "conjugate": lambda index: torch.tensor([1 + 2j, index]).conj().resolve_conj(),
    "leaf with gradient": lambda index: torch.nn.Parameter(torch.ones(2)).data.requires_grad_(),
    "parameter": lambda index: torch.nn.Parameter(torch.ones(2) * index),
    "sparse": lambda index: torch.eye(3).mul(index + 1).to_sparse(),
    "sparse rows": lambda index: torch.eye(3).mul(index + 1).to_sparse_csr(),
    "sparse columns": lambda index: torch.eye(3).mul(index + 1).to_sparse_csc(),
    "sparse blocks": lambda index: torch.eye(4).mul(index + 1).to_sparse_bsr((2, 2)),
    "nested": lambda index: torch.nested.nested_tensor([torch.ones(2), torch.ones(index % 3 + 1)]),
    "quantized": lambda index: torch.quantize_per_tensor(torch.ones(3) * index, 0.5, 0, torch.qint8).dequantize(),
}


@pytest.mark.sampled(6)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about sparse and nested tensors
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_as_they_are(kind: str) -> None:
    assert_same_stream(lambda: Mapped(TENSORS[kind], 12), batch_size=None, num_workers=2)


def mine(batch: Any, *, collate_fn_map: Any = None) -> Any:
    return "mine", list(batch)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("key", [torch.Tensor, np.ndarray, int, Mapping, Sequence, Hashable, tuple, dict, object])
@pytest.mark.parametrize("when", ["before", "in the worker", "in the call"])
def test_collate_functions_of_the_users_own(key: Any, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def samples(index: int) -> Any:
        return {"array": np.ones(2) * index, "tensor": torch.ones(2), "pair": (index, 0.5), "list": [index]}

    arguments: dict[str, Any] = {}
    if when == "before":
        monkeypatch.setitem(default_collate_fn_map, key, mine)
    elif when == "in the worker":
        arguments["worker_init_fn"] = lambda worker: default_collate_fn_map.update({key: mine})
    else:
        arguments["collate_fn"] = lambda batch: collate(batch, collate_fn_map={**default_collate_fn_map, key: mine})
    assert_same_stream(lambda: Mapped(samples, 6), batch_size=2, num_workers=1, **arguments)


def test_a_tensor_with_wide_gaps_arrives_contiguous() -> None:
    loader = ShmDataLoader(
        Mapped(lambda index: torch.arange(4000).reshape(40, 100)[:, 0]), batch_size=None, num_workers=1
    )
    for batch in loader:
        assert batch.is_contiguous()
        assert batch.tolist() == list(range(0, 4000, 100))


OBJECTS: dict[str, Callable[[int], Any]] = {
    "none": lambda index: None,
    "text": lambda index: "x" * index,
    "big text": lambda index: "y" * 100_000,
    "set": lambda index: {index, "a"},
    "array": lambda index: np.arange(index),
    "array of objects": lambda index: np.array([index, "a", None], dtype=object),
    "array of text": lambda index: np.array(["a", "bc"]),
    "record": lambda index: np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
    "big-endian array": lambda index: np.arange(index, dtype=">i4"),
    "dates": lambda index: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "read-only array": lambda index: np.frombuffer(b"12345678", dtype=np.int32),
    "fortran array": lambda index: np.asfortranarray(np.arange(6).reshape(2, 3)),
    "same in two lists": lambda index: (lambda tensor: {"a": [tensor], "b": [tensor]})(torch.ones(2)),
    "same twice": lambda index: [torch.ones(2)] * 2,
    "empty containers": lambda index: ((), [], {}, ""),
    "keys of all kinds": lambda index: {1: torch.ones(1), "a": 2, (1, 2): 3, None: 4},
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_from_a_collate_function(kind: str, num_workers: int) -> None:
    assert_same_stream(
        lambda: Mapped(lambda index: index),
        batch_size=2,
        num_workers=num_workers,
        collate_fn=lambda samples: OBJECTS[kind](samples[0]),
    )


def test_an_object_that_is_twice_in_a_batch_is_one_object() -> None:
    for batch in ShmDataLoader(Mapped(OBJECTS["same twice"], 4), batch_size=None, num_workers=1):
        assert batch[0] is batch[1]


COLLATES: dict[str, Callable[[list[Any]], Any]] = {
    "default inside": lambda samples: {"inner": default_collate(samples), "count": len(samples)},
    "default twice": lambda samples: (default_collate(samples), default_collate(samples[:1])),
    "slices of the default": lambda samples: [default_collate(samples)[0][:, 1:], default_collate(samples)[0][0]],
    "changed in place": lambda samples: default_collate(samples)[0].add_(1),
    "numpy of the default": lambda samples: default_collate(samples)[0].numpy(),
    "computed": lambda samples: default_collate(samples)[0].float().mean(0),
    "padded": lambda samples: torch.nn.utils.rnn.pad_sequence(
        [torch.arange(label + 1) for _, label in samples], batch_first=True
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", COLLATES)
def test_collate_functions(kind: str, num_workers: int) -> None:
    assert_same_stream(Images, batch_size=4, num_workers=num_workers, collate_fn=COLLATES[kind])


class Unalike:
    """Arrays that stock's default collate function treats in ways of its own."""

    mixed_dtypes = staticmethod(lambda index: np.ones(3, [np.float32, np.int64][index % 2]))
    mixed_shapes = staticmethod(lambda index: np.ones(3 + index % 2))
    same_total = staticmethod(lambda index: np.ones((2 + index % 2 * 2, 3)) if index < 2 else np.ones((3, 3)))
    big_endian = staticmethod(lambda index: np.arange(3, dtype=">i4"))
    negative_strides = staticmethod(lambda index: np.arange(5)[::-1])
    strided = staticmethod(lambda index: np.arange(10)[::2])
    fortran = staticmethod(lambda index: np.asfortranarray(np.arange(6).reshape(2, 3)))
    zero_dimensional = staticmethod(lambda index: np.array(index))
    empty = staticmethod(lambda index: np.zeros((0, 2)))
    scalars = staticmethod(lambda index: np.float32(index))
    subclass = staticmethod(lambda index: np.ma.masked_array([1, 2, index], mask=[False, True, False]))
    matrix_then_tensor = staticmethod(lambda index: torch.ones(2) if index % 2 else np.ones(2, np.float32))
    long_double = staticmethod(lambda index: np.ones(2, np.longdouble))
    texts = staticmethod(lambda index: np.array(["a"]))
    tensors_of_mixed_dtypes = staticmethod(lambda index: torch.ones(2, dtype=[torch.float64, torch.float32][index % 2]))
    tensors_of_mixed_shapes = staticmethod(lambda index: torch.ones(3 + index % 2))
    growing_tensors = staticmethod(lambda index: torch.ones(4 - index % 2))
    tensor_then_number = staticmethod(lambda index: torch.ones(2) if index % 2 == 0 else 1)
    gradients = staticmethod(lambda index: torch.ones(2, requires_grad=True))
    sparse = staticmethod(lambda index: torch.eye(2).to_sparse())
    subclassed_tensor = staticmethod(lambda index: torch.nn.Parameter(torch.ones(2), requires_grad=False))
    transposed_tensor = staticmethod(lambda index: torch.arange(6.0).reshape(2, 3).t() + index)
    nothing = staticmethod(lambda index: None)
    unequal_lists = staticmethod(lambda index: [1] * (index + 1))


@pytest.mark.sampled(12)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [name for name in vars(Unalike) if not name.startswith("_")])
def test_default_collation_of_unalike_samples(kind: str) -> None:
    make = getattr(Unalike, kind)
    assert_same_stream(lambda: Mapped(make, 8), batch_size=4, num_workers=2)


@pytest.mark.parametrize("sample", [b"12", b"ab", bytearray(b"12"), range(3), (1, 2)])
def test_default_collation_of_one_sample_that_is_a_sequence_of_numbers(sample: Any) -> None:
    assert_same_stream(lambda: [sample], batch_size=None, num_workers=1, collate_fn=default_collate)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("arguments", [{"batch_size": None}, {"batch_size": 3}, {"batch_size": 3, "drop_last": True}])
def test_iterable(arguments: dict[str, Any], persistent_workers: bool, num_workers: int) -> None:
    assert_same_stream(
        Shards,
        num_workers=num_workers,
        persistent_workers=persistent_workers and num_workers > 0,
        epochs=3,
        **arguments,
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_iterable_passes_that_are_left_early(stop_after: int) -> None:
    """Some workers have ended by then and some have not.

    How many batches those have made ahead depends on when the others' ends were seen, in stock too, so there must be
    no random numbers in them.
    """
    assert_same_stream(
        lambda: Shards(noisy=False),
        batch_size=2,
        num_workers=3,
        prefetch_factor=3,
        persistent_workers=True,
        epochs=6,
        stop_after=stop_after,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterable_length_that_lies(num_workers: int) -> None:
    def run(kind: Any) -> tuple[int, list[str]]:
        loader = kind(Shards((6, 6), declared=4), batch_size=None, num_workers=num_workers)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            count = len(loader)
            list(loader)
        texts = [str(warning.message) for warning in caught if "IterableDataset" in str(warning.message)]
        return count, [text[text.index("was reported") :] for text in texts]

    assert run(ShmDataLoader) == run(DataLoader)


def test_without_order_every_batch_comes_once() -> None:
    loader = ShmDataLoader(Images(), batch_size=3, num_workers=3, in_order=False)
    seen = sorted(int(label) for _, labels in loader for label in labels)
    assert seen == list(range(50))


class Watched(Sampler[int]):
    """A sampler that counts what was drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[int]:
        for index in range(50):
            self.drawn += 1
            yield index

    def __len__(self) -> int:
        return 50


@pytest.mark.parametrize("kind", [DataLoader, ShmDataLoader])
@pytest.mark.parametrize("prefetch_factor", [1, 3])
def test_the_sampler_is_read_no_further_than_stock_reads_it(kind: Any, prefetch_factor: int) -> None:
    sampler = Watched()
    iterator = iter(kind(Images(), sampler=sampler, num_workers=2, prefetch_factor=prefetch_factor))
    assert sampler.drawn == 2 * prefetch_factor
    for step in range(1, 20):
        next(iterator)
        assert sampler.drawn == 2 * prefetch_factor + step
    del iterator


def test_batches_hold_what_the_sampler_had_given_at_the_time() -> None:
    """A sampler may change the list that it has yielded."""

    class Reusing(Sampler[list[int]]):
        def __iter__(self) -> Iterator[list[int]]:
            indices = [0, 1]
            for step in range(10):
                indices[:] = [step, step + 1]
                yield indices

    loader = ShmDataLoader(Images(), batch_sampler=Reusing(), num_workers=2)
    assert [labels.tolist() for _, labels in loader] == [[step, step + 1] for step in range(10)]


def test_torch_datasets() -> None:
    tensors = TensorDataset(torch.arange(40.0).reshape(20, 2), torch.arange(20))
    assert_same_stream(lambda: tensors, batch_size=3, num_workers=2)
    assert_same_stream(lambda: Subset(tensors, [3, 1, 2, 9]), batch_size=3, num_workers=2)
    assert_same_stream(lambda: ConcatDataset([tensors, tensors]), batch_size=7, shuffle=True, num_workers=2)


def test_an_object_that_is_in_two_lists_is_one_object() -> None:
    for batch in ShmDataLoader(Mapped(OBJECTS["same in two lists"], 4), batch_size=None, num_workers=1):
        assert batch["a"][0] is batch["b"][0]


def test_worker_init_fn_and_its_errors() -> None:
    def seed_numpy(worker: int) -> None:
        np.random.seed(worker)
        random.seed(worker)
        torch.manual_seed(worker)

    def fail(worker: int) -> None:
        if worker == 1:
            raise ValueError(f"no worker {worker}")

    assert_same_stream(lambda: Mapped(lambda index: np.random.rand(2)), num_workers=2, worker_init_fn=seed_numpy)
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker process 1"):
        list(ShmDataLoader(Images(), num_workers=2, worker_init_fn=fail))


def test_two_iterators_of_one_loader_side_by_side() -> None:
    def run(kind: Any) -> Any:
        seed_everything(3)
        loader = kind(Noise(), batch_size=4, shuffle=True, num_workers=2)
        return list(zip(loader, loader, strict=True)), random_states()

    assert_same(run(ShmDataLoader), run(DataLoader))


def test_reiterating_persistent_workers_in_the_middle() -> None:
    def run(kind: Any) -> Any:
        seed_everything(3)
        loader = kind(Noise(), batch_size=6, shuffle=True, num_workers=2, persistent_workers=True)
        first = iter(loader)
        head = copy.deepcopy([next(first), next(first)])
        again = iter(loader)
        assert again is first
        return head, copy.deepcopy(list(again)), copy.deepcopy(list(loader)), random_states()

    assert_same(run(ShmDataLoader), run(DataLoader))


def test_length_and_attributes() -> None:
    loader = ShmDataLoader(Images(), batch_size=7, num_workers=2)
    assert len(loader) == len(iter(loader)) == 8
    assert isinstance(loader, DataLoader)
    assert isinstance(loader.sampler, SequentialSampler)
    assert loader.prefetch_factor == 2


@pytest.mark.sampled(2)
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_start_methods(context: str) -> None:
    stock = stream(DataLoader(Images(10), batch_size=4, num_workers=1))[0]
    ours = stream(ShmDataLoader(Images(10), batch_size=4, num_workers=1, multiprocessing_context=context))[0]
    assert_same(ours, stock)
    if context == "forkserver":
        from multiprocessing import forkserver, resource_tracker

        forkserver._forkserver._stop()  # type: ignore[attr-defined]
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
    elif context == "spawn":
        from multiprocessing import resource_tracker

        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.mark.sampled(5)
@pytest.mark.usefixtures("_resource_sharer")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_indices_that_are_tensors(dtype: torch.dtype) -> None:
    """Some, by themselves, make pickles that torch cannot read."""
    one = torch.ones(2, dtype=torch.uint8).to(dtype)
    dataset = Mapped(lambda index: (index, [index, str(index)]), 1)
    for sampler in ([one[0], one[1], one], [[one, 3], [one[:1]]]):
        assert_same_stream(lambda: dataset, sampler=lambda: sampler, batch_size=None, num_workers=1)  # noqa: B023
