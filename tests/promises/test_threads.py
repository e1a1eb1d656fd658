"""Workers that are threads: the same batches in the same slots, with no process."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, default_collate, get_worker_info
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

from shmloader import FallbackWarning, HeldBatchesWarning, PoolMemoryError, ShmDataLoader, torch_private
from tests.helpers import simulated
from tests.helpers.datasets import Images, Mapped, Shards, nest
from tests.helpers.keeping import KEEPERS, expect_to_stay, expect_views_of_few_slots, lies_in_a_slot
from tests.helpers.support import PATIENCE, assert_same, assert_same_stream, checksum, children, mappings, stream
from tests.promises.test_identity import COLLATES, DTYPES, OBJECTS, TENSORS, Unalike, mine

LENGTH = 400


def loader(**arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(
        Images(LENGTH, (5, 7)), **{"batch_size": 4, "num_workers": 2, "worker_type": "thread", **arguments}
    )


def expected(batch: int) -> list[torch.Tensor]:
    images = Images(LENGTH, (5, 7)).images
    return [torch.from_numpy(images[4 * batch : 4 * batch + 4]), torch.arange(4 * batch, 4 * batch + 4)]


# -- the same stream -----------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 7, "drop_last": True},
        {"batch_size": 8, "shuffle": True, "persistent_workers": True, "prefetch_factor": 5},
        {"batch_size": None, "shuffle": True},
        {"batch_size": 100},
        {"batch_sampler": lambda: BatchSampler(RandomSampler(range(50)), 6, drop_last=False)},
        {"batch_sampler": lambda: [[1, 2], [3], [4, 5, 6], [], [7]]},
        {"batch_size": 4, "generator": lambda: torch.Generator().manual_seed(3), "shuffle": True},
    ],
)
def test_map_style(arguments: dict[str, Any], num_workers: int) -> None:
    if not num_workers:
        arguments = {name: value for name, value in arguments.items() if name[:4] not in ("pers", "pref")}
    assert_same_stream(Images, num_workers=num_workers, epochs=2, worker_type="thread", **arguments)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("stop_after", [0, 1, 4, None])
def test_passes_that_are_left_early(persistent_workers: bool, stop_after: int | None) -> None:
    for make in (Images, lambda: Shards(noisy=False)):
        assert_same_stream(
            make,
            batch_size=2,
            num_workers=3,
            persistent_workers=persistent_workers,
            epochs=3,
            stop_after=stop_after,
            worker_type="thread",
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_as_they_are(kind: str) -> None:
    def make() -> Mapped:
        return Mapped(lambda index: torch.ones(2) if kind == "channels last" else TENSORS[kind](index), 12)

    assert_same_stream(make, batch_size=None, num_workers=2, worker_type="thread")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    values = torch.arange(60).reshape(10, 6) % 7
    for batch_size in (None, 4):
        assert_same_stream(
            lambda: Mapped(lambda index: values[index].to(dtype), 10),
            batch_size=batch_size,
            num_workers=2,
            worker_type="thread",
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", [name for name in vars(Unalike) if not name.startswith("_")])
def test_samples_that_are_not_alike(kind: str) -> None:
    assert_same_stream(lambda: Mapped(getattr(Unalike, kind), 8), batch_size=4, num_workers=2, worker_type="thread")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_from_a_collate_function(kind: str) -> None:
    assert_same_stream(
        lambda: Mapped(lambda index: index),
        batch_size=2,
        num_workers=2,
        collate_fn=lambda samples: OBJECTS[kind](samples[0]),
        worker_type="thread",
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", COLLATES)
def test_collate_functions(kind: str) -> None:
    assert_same_stream(Images, batch_size=4, num_workers=2, collate_fn=COLLATES[kind], worker_type="thread")


def test_nested_structures() -> None:
    assert_same_stream(lambda: Mapped(nest), batch_size=3, num_workers=2, worker_type="thread")


@pytest.mark.parametrize("key", [torch.Tensor, int])
def test_a_users_entry_in_the_map_of_collate_functions(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(default_collate_fn_map, key, mine)
    assert_same_stream(lambda: Mapped(nest, 6), batch_size=2, num_workers=1, worker_type="thread")


def test_without_order_every_batch_comes_once() -> None:
    seen = sorted(int(label) for _, labels in loader(in_order=False, num_workers=3) for label in labels)
    assert seen == list(range(LENGTH))


def test_all_kinds_of_workers_one_after_the_other_and_side_by_side() -> None:
    """What threads have put into torch's map is in forked workers too, of either loader."""
    kinds: list[dict[str, Any]] = [{"worker_type": "thread"}, {}, {"num_workers": 0}, {"worker_type": "thread"}]
    batches = [expected(number) for number in range(100)]
    for arguments in kinds:
        assert_same([[*batch] for batch in map(copy.deepcopy, loader(**arguments))], batches)
    assert_same(stream(DataLoader(Images(LENGTH, (5, 7)), batch_size=4, num_workers=2))[0][0], batches)
    for number, together in enumerate(zip(*(loader(**arguments) for arguments in kinds), strict=True)):
        for one in together:
            assert_same(one, batches[number])


def test_the_length_and_the_arguments() -> None:
    source = loader(batch_size=7)
    assert source.worker_type == "thread"
    assert len(source) == len(iter(source)) == 58
    assert ShmDataLoader(Images()).worker_type == "process"


@pytest.mark.parametrize("worker_type", ["fiber", None, 3, "Thread"])
def test_another_worker_type_is_refused(worker_type: Any) -> None:
    with pytest.raises(ValueError, match=f"worker_type must be 'process', 'thread' or 'ray', got {worker_type!r}"):
        ShmDataLoader(Images(), worker_type=worker_type)
    source = ShmDataLoader(Images(), num_workers=1)
    source.worker_type = worker_type
    with pytest.raises(ValueError, match="worker_type must be"):
        iter(source)


def test_a_start_method_and_threads_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="multiprocessing_context is for worker processes"):
        loader(multiprocessing_context="fork")


# -- no process ----------------------------------------------------------------------------------------------------


def refuse(*_: object) -> int:
    raise AssertionError("no process is to be started")


def test_the_first_batch_and_all_others_come_with_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    before = children()
    iterator: Any = iter(loader())
    assert_same(next(iterator), expected(0))
    assert children() == before
    assert iterator._workers == []
    assert len([None for _ in iterator]) == 99


def test_nothing_of_the_process_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> Any:
        return torch.get_num_threads(), os.sched_getscheduler(0), signal.getsignal(signal.SIGINT)

    monkeypatch.setattr(gc, "freeze", refuse)

    before = state()
    seen: list[Any] = []
    assert len(list(loader(collate_fn=lambda samples: seen.append(state())))) == 100
    assert [*seen, state()] == [before] * 101


def test_what_the_loops_thread_has_set_counts_in_workers() -> None:
    """As it does in a process that is forked from it."""

    def sample(index: int) -> Any:
        return torch.is_grad_enabled(), np.geterr()["divide"]

    for kind in ("process", "thread"):
        with torch.no_grad(), np.errstate(divide="raise"):
            source = ShmDataLoader(Mapped(sample), batch_size=None, num_workers=1, worker_type=kind)
            assert next(iter(source)) == [False, "raise"]
        assert next(iter(ShmDataLoader(Mapped(sample), batch_size=None, num_workers=1, worker_type=kind)))[0]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_torchs_modes_of_the_loops_thread_count_in_workers(kind: str) -> None:
    def sample(index: int) -> Any:
        product = torch.mm(torch.ones(2, 2), torch.ones(2, 2))
        return str(product.dtype), product.is_inference(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    source = ShmDataLoader(Mapped(sample), batch_size=None, num_workers=2, worker_type=kind)
    assert next(iter(source)) == ["torch.float32", False, True, False]
    with torch.inference_mode():
        assert next(iter(source)) == ["torch.float32", True, False, False]
        with torch.autocast("cpu", torch.float16), torch.inference_mode(False), torch.no_grad():
            assert next(iter(source)) == ["torch.float16", False, False, True]
    with torch.autocast("cpu"):
        iterator = iter(source)
    assert [next(iterator), next(iterator)] == [["torch.bfloat16", False, True, True]] * 2


def told(index: int) -> Any:
    info = get_worker_info()
    assert info is not None
    return info.id, info.num_workers, info.seed, type(info.dataset).__name__, threading.get_ident()


def test_worker_info_is_a_threads_own() -> None:
    for epoch in range(2):
        torch.manual_seed(epoch)
        base_seed = torch.empty((), dtype=torch.int64).random_().item()
        torch.manual_seed(epoch)
        idents = set()
        source = ShmDataLoader(Mapped(told), batch_size=None, num_workers=2, worker_type="thread")
        for number, (*info, ident) in enumerate(source):
            worker = number % 2
            assert info == [worker, 2, base_seed + worker, "Mapped"]
            assert get_worker_info() is None
            assert torch.utils.data.get_worker_info() is None
            idents.add(ident)
        assert len(idents) == 2
        assert threading.get_ident() not in idents


def test_a_loader_within_a_worker_thread() -> None:
    """Of worker processes, which are forked from the thread, and of threads."""

    def inner(index: int) -> Any:
        before = get_worker_info()
        kinds = ("process", "thread")
        seen = [
            [info[:2] for info in ShmDataLoader(Mapped(told, 4), batch_size=None, num_workers=2, worker_type=kind)]
            for kind in kinds
        ]
        assert get_worker_info() is before
        return seen

    source = ShmDataLoader(Mapped(inner, 3), batch_size=None, num_workers=1, worker_type="thread")
    assert list(source) == [[[[0, 2], [1, 2], [0, 2], [1, 2]]] * 2] * 3


def test_another_get_worker_info_means_torchs_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "_get_worker_info", lambda: None)
    source = loader(num_workers=1)
    with pytest.warns(FallbackWarning, match="another get_worker_info"):
        iterator = iter(source)
    assert type(iterator).__module__.startswith("torch.")
    assert_same(next(iterator), expected(0))


class Counting(IterableDataset[Any]):
    """A stream that keeps something in itself."""

    def __init__(self) -> None:
        self.passes = 0
        self.first = -1

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        info = get_worker_info()
        assert info is not None
        assert info.dataset is self
        for step in range(5):
            yield info.id, self.passes, self.first, step


def begin_at_ten(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.first = 10 * worker  # type: ignore[attr-defined]


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_each_worker_has_an_iterable_dataset_of_its_own(persistent_workers: bool) -> None:
    ours = assert_same_stream(
        Counting,
        batch_size=None,
        num_workers=2,
        epochs=3,
        worker_init_fn=begin_at_ten,
        persistent_workers=persistent_workers,
        worker_type="thread",
    )
    assert ours[0][2][-1] == [1, 3 if persistent_workers else 1, 10, 4]


def test_the_loops_dataset_stays_as_it_was() -> None:
    dataset = Counting()
    list(ShmDataLoader(dataset, batch_size=None, num_workers=2, worker_init_fn=begin_at_ten, worker_type="thread"))
    assert (dataset.passes, dataset.first) == (0, -1)


class Shift:
    """A part of a dataset that each worker sets for itself."""

    def __init__(self) -> None:
        self.by = 0

    def set(self, factor: int, worker: int) -> None:
        self.by = factor * worker


class Sharded(IterableDataset[Any]):
    """A stream whose own methods say what a worker reads, and make its batches."""

    def __init__(self) -> None:
        self.first, self.step = 0, 1
        self.shift = Shift()

    def begin(self, worker: int) -> None:
        self.first, self.step = worker, 2

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, 20, self.step))

    def collate(self, samples: list[int]) -> torch.Tensor:
        return torch.tensor([self.first, self.shift.by, *samples])


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    "init_fn_of",
    [
        lambda dataset: dataset.begin,
        lambda dataset: functools.partial(dataset.begin),
        lambda dataset: functools.partial(dataset.shift.set, 100),
        lambda dataset: functools.partial(Shift.set, dataset.shift, 100),
    ],
    ids=["a method", "in a partial", "a part's method", "a part as an argument"],
)
def test_methods_of_an_iterable_dataset_are_those_of_the_workers_own(init_fn_of: Any, num_workers: int) -> None:
    def read(kind: Callable[..., DataLoader[Any]]) -> list[Any]:
        dataset = Sharded()
        init_fn, collate_fn = init_fn_of(dataset), dataset.collate
        source = kind(dataset, 4, num_workers=num_workers, collate_fn=collate_fn, worker_init_fn=init_fn)
        batches = [batch.tolist() for batch in source]
        assert (dataset.first, dataset.step, dataset.shift.by) == (0, 1, 0)
        return batches

    assert read(functools.partial(ShmDataLoader, worker_type="thread")) == read(DataLoader)


class Locked(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_an_iterable_dataset_that_cannot_be_copied_is_named() -> None:
    source = ShmDataLoader(Locked(), batch_size=None, num_workers=2, worker_type="thread")
    with pytest.raises(TypeError, match=r"dataset \(a Locked\) cannot be copied, and every worker thread needs"):
        iter(source)


def test_a_map_style_dataset_is_shared() -> None:
    dataset = Mapped(lambda index: (id(get_worker_info().dataset), index))  # type: ignore[union-attr]
    source = ShmDataLoader(dataset, batch_size=None, num_workers=2, worker_type="thread")
    assert list(source) == [[id(dataset), index] for index in range(20)]


def test_errors_name_a_thread() -> None:
    def fail(index: int) -> int:
        if index == 5:
            raise KeyError("nothing there")
        return index

    iterator = iter(ShmDataLoader(Mapped(fail), num_workers=2, worker_type="thread"))
    seen = [int(next(iterator)) for _ in range(5)]
    with pytest.raises(KeyError, match=r"Caught KeyError in DataLoader worker thread 1.") as caught:
        next(iterator)
    assert "in fail" in str(caught.value)
    assert [*seen, *map(int, iterator)] == [0, 1, 2, 3, 4, *range(6, 20)]


# -- the same slots ------------------------------------------------------------------------------------------------


def with_addresses(samples: list[Any]) -> Any:
    batch = default_collate(samples)
    return batch, [tensor.data_ptr() for tensor in batch]


def test_default_collation_writes_where_the_loop_reads() -> None:
    for batch, addresses in loader(collate_fn=with_addresses):
        assert [tensor.data_ptr() for tensor in batch] == addresses


def test_a_plain_loop_gets_views_of_few_slots() -> None:
    expect_views_of_few_slots(loader())


def test_other_threads_collate_as_ever_meanwhile() -> None:
    """The loop's own, and those that a dataset starts."""
    iterator = iter(loader(collate_fn=collating_elsewhere))
    for number, (batch, others) in enumerate(iterator):
        assert_same(batch, expected(number))
        assert_same(others, expected(number))
        mine = default_collate([torch.ones(3), torch.zeros(3)])
        assert not lies_in_a_slot(mine, iterator)
        assert not mine.is_shared()
        assert mine.untyped_storage().resizable()
    with pytest.raises(RuntimeError, match="equal size"):
        default_collate([torch.ones(3), torch.zeros(2)])
    assert default_collate_fn_map[torch.Tensor] is not collate_tensor_fn


def collating_elsewhere(samples: list[Any]) -> Any:
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(default_collate(samples)))
    thread.start()
    thread.join()
    return default_collate(samples), box.pop()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KEEPERS)
def test_what_is_kept_stays_as_it_was(kind: str) -> None:
    expect_to_stay(KEEPERS[kind], lambda: loader(num_slots=120))


@pytest.mark.parametrize("num_slots", [6, None, 200])
def test_a_list_of_all_batches(num_slots: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeldBatchesWarning)
        batches = list(loader(num_slots=num_slots))
    assert_same(batches, [expected(number) for number in range(100)])


class Keeper:
    """A collate function that holds on to what it has returned, which the loop's process then holds."""

    def __init__(self, every: int = 1) -> None:
        self.kept: list[tuple[Any, int]] = []
        self._every = every

    def __call__(self, samples: list[Any]) -> Any:
        batch = default_collate(samples)
        if samples[0][1] // 4 % self._every == 0:
            self.kept.append((batch, checksum(batch)))
        return batch

    def check(self) -> None:
        assert all(checksum(batch) == before for batch, before in self.kept)


@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("every", [1, 30])
def test_what_code_in_a_worker_thread_keeps_outlives_the_worker(every: int, persistent_workers: bool) -> None:
    keeper = Keeper(every)
    source = loader(collate_fn=keeper, persistent_workers=persistent_workers)
    for stop in (100, 7, 100, 0, 100):
        for number, batch in zip(range(stop), source, strict=False):
            assert_same(batch, expected(number))
            del batch
        keeper.check()
    del source
    gc.collect()
    other = loader()  # which gets memory of its own
    assert_same([*map(copy.deepcopy, other)], [expected(number) for number in range(100)])
    keeper.check()
    assert len(keeper.kept) >= 300 // every
    keeper.kept.clear()
    del other
    gc.collect()
    assert mappings() == 0


def test_without_anything_kept_the_pool_is_used_again() -> None:
    source = loader(collate_fn=default_collate)
    pools = set()
    for _ in range(3):
        iterator: Any = iter(source)
        next(iterator)
        pools.add(id(iterator._pool))
        del iterator
    assert len(pools) == 1


class Writing(Images):
    """Keeps an array that it was given to write to."""

    kept: list[Any]

    def __getitem_into__(self, index: int, out: Any) -> None:
        image, label = out
        image[:] = self.images[index]
        label[...] = index
        self.kept.append(image)


@pytest.mark.parametrize("keeps", [False, True])
def test_direct_writing(keeps: bool) -> None:
    dataset = Writing(40, (5, 7))
    dataset.kept = [] if keeps else deque(maxlen=0)  # type: ignore[assignment]
    source = ShmDataLoader(dataset, batch_size=4, num_workers=2, worker_type="thread")
    for _ in range(3):
        for number, batch in enumerate(source):
            assert_same(batch[0], torch.from_numpy(dataset.images[4 * number : 4 * number + 4]))
            assert batch[1].tolist() == list(range(4 * number, 4 * number + 4))
    images = {bytes(image.tobytes()) for image in dataset.images}
    assert all(array.tobytes() in images for array in dataset.kept)
    assert bool(dataset.kept) == keeps
    dataset.kept.clear()


def test_batches_that_grow_and_one_that_does_not_fit() -> None:
    def sample(index: int) -> torch.Tensor:
        return torch.full(((3 << 20) if index == 9 else 1 << index % 19,), index, dtype=torch.uint8)

    source = ShmDataLoader(Mapped(sample), batch_size=None, num_workers=3, worker_type="thread", max_pool_bytes=2 << 20)
    iterator, seen = iter(source), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeldBatchesWarning)
        while True:
            try:
                batch = next(iterator)
                assert (batch == batch[0]).all()
                seen.append(int(batch[0]))
            except PoolMemoryError:
                seen.append(-1)
            except StopIteration:
                break
    assert seen == [*range(9), -1, *range(10, 20)]


@pytest.mark.parametrize("arguments", [{"pin_memory": True}, {"device": "cuda"}, {"device": "cuda", "in_order": False}])
def test_page_locked_slots(driver: simulated.Driver, arguments: dict[str, Any]) -> None:
    keeper = Keeper(50)
    source = loader(collate_fn=keeper, **arguments)
    for _ in range(2):
        seen = []
        for batch in source:
            driver.device.finish()
            if "pin_memory" in arguments and int(batch[1][0]) % 200:  # else it is kept, and the loop has a copy
                assert all(map(driver.covers, batch))
            assert_same([part.cpu() for part in batch], expected(int(batch[1][0]) // 4))
            seen.append(int(batch[1][0]))
        assert sorted(seen) == list(range(0, LENGTH, 4))
    keeper.check()
    keeper.kept.clear()


# -- forks ---------------------------------------------------------------------------------------------------------


def test_a_fork_while_workers_write_sees_what_is_held() -> None:
    """Also what code in a worker thread holds."""
    keeper = Keeper(7)
    iterator = iter(loader(collate_fn=keeper))
    held = [next(iterator) for _ in range(3)]
    before = checksum([tensor for batch in held for tensor in batch])
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(reader, 1)  # by then the slots have been used again
            keeper.check()
            code = int(checksum([tensor for batch in held for tensor in batch]) != before)
        finally:
            os._exit(code)
    del held
    assert len([None for _ in iterator]) == 97
    os.write(writer, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(reader)
    os.close(writer)
    keeper.check()
    keeper.kept.clear()


def test_processes_are_started_while_threads_work() -> None:
    for _ in range(3):
        threads = iter(loader())
        for number, batch in enumerate(loader()):
            assert_same(batch, expected(number))
            if number % 10 == 0:
                assert_same(copy.deepcopy(next(threads)), expected(number // 10))
            if number % 40 == 0:
                for other, one in enumerate(ShmDataLoader(Images(8, (5, 7)), num_workers=1, batch_size=4)):
                    assert one[1].tolist() == list(range(4 * other, 4 * other + 4))


def test_a_process_that_a_dataset_forks_and_lets_come_back_ends() -> None:
    def sample(index: int) -> int:
        if index == 3:
            pid = os.fork()
            if pid:
                return os.waitpid(pid, 0)[1] * 1000
        return index

    source = ShmDataLoader(Mapped(sample, 6), batch_size=None, num_workers=2, worker_type="thread")
    assert list(source) == [0, 1, 2, 256 * 1000, 4, 5]


# -- ends ----------------------------------------------------------------------------------------------------------


def test_an_iterator_ends_with_its_last_reference() -> None:
    gc.disable()
    try:
        iterator = iter(loader())
        next(iterator)
        assert sum(thread.name.startswith("shmloader-worker") for thread in threading.enumerate()) == 2
        del iterator
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("shmloader-worker")]
    finally:
        gc.enable()


@pytest.mark.parametrize("stop_after", [2, None])
@pytest.mark.parametrize("arguments", [{}, {"persistent_workers": True}, {"epoch_size": 5}, {"sample_shapes": ()}])
def test_dataset_and_pool_end_with_the_loader(arguments: dict[str, Any], stop_after: int | None) -> None:
    """And do not wait for the garbage collector, which looks seldom at what few objects have much memory."""

    def drop_one() -> weakref.ref[Any]:
        dataset = Mapped(float)
        source = ShmDataLoader(dataset, batch_size=4, num_workers=2, worker_type="thread", **arguments)
        for _ in itertools.islice(source, stop_after):
            pass
        return weakref.ref(dataset)

    drop_one()  # what is made once
    gc.collect()
    before = mappings()
    gc.disable()
    try:
        assert drop_one()() is None
        assert mappings() == before
    finally:
        gc.enable()


def test_two_iterators_in_two_threads() -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(3):
                for number, batch in enumerate(loader()):
                    assert_same(batch, expected(number))
        except BaseException as error:
            failed.append(error)

    loops = [threading.Thread(target=run) for _ in range(3)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join(PATIENCE)
    assert not failed


@pytest.mark.parametrize("is_garbage", [False, True])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_loader_that_is_dropped_in_one_of_its_own_workers(is_garbage: bool, persistent_workers: bool) -> None:
    """Which cannot wait for itself."""
    box: list[Any] = []
    is_there, is_dropped = threading.Event(), threading.Event()

    def sample(index: int) -> int:
        if index == 4:
            is_there.wait(PATIENCE)
            if is_garbage:
                box.append([])
                box[-1].append(box[:])
                box[-1].append(box[-1])
            box.clear()
            gc.collect()
            is_dropped.set()
        return index

    source = ShmDataLoader(
        Mapped(sample), batch_size=None, num_workers=2, worker_type="thread", persistent_workers=persistent_workers
    )
    iterator = iter(source)
    assert next(iterator) == 0
    box += [source, iterator]
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("shmloader-worker")]
    del source, iterator
    is_there.set()
    assert is_dropped.wait(PATIENCE)
    for worker in workers:
        worker.join(PATIENCE)
        assert not worker.is_alive()
    gc.collect()
    assert mappings() == 0


def test_more_threads_than_processors_are_no_reason_to_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = loader(num_workers=(os.cpu_count() or 1) + 1)
        for _ in range(2):
            assert sum(1 for _ in made) == LENGTH // 4
    with pytest.warns(UserWarning, match="This DataLoader will create"):
        loader(num_workers=(os.cpu_count() or 1) + 1, worker_type="process")
    made.num_workers, made.worker_type = (os.cpu_count() or 1) + 1, "process"
    with pytest.warns(UserWarning, match="This DataLoader will create"):
        next(iter(made))
    made.worker_type = "thread"
    monkeypatch.setattr(made, "_fell_back", True)  # to torch's processes
    with pytest.warns(UserWarning, match="This DataLoader will create"):
        next(iter(made))
