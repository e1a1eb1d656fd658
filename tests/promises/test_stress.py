"""A consumer that does with batches whatever one can do, at random, while workers write.

All that it holds is compared again and again with copies of its own. What it does to a batch, it does to the copy too.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import multiprocessing
import os
import pickle
import queue
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_sharer
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.dlpack

from shmloader import HeldBatchesWarning, LoaderStatistics, ShmDataLoader
from tests.helpers.datasets import Mapped
from tests.helpers.support import assert_same, children, detached, let_stock_end, mappings

pytestmark = pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")

Array = np.ndarray[Any, Any]
FIELDS = ("picture", "vector", "label")


def sample(index: int) -> dict[str, Any]:
    """Returns a sample whose size and bytes depend on its number alone."""
    generator = np.random.default_rng(index)
    return {
        "picture": generator.integers(0, 256, (3, 17, 1 + index // 8 % 90), np.uint8),
        "vector": generator.random(1 + index // 8 % 50, np.float32),
        "label": index,
    }


def expected(batch: dict[str, torch.Tensor]) -> dict[str, Array]:
    """Returns what the batch with these labels should be."""
    samples = [sample(int(index)) for index in batch["label"].tolist()]
    return {field: np.stack([np.asarray(one[field]) for one in samples]) for field in FIELDS}


@dataclass
class Held:
    """Something that lies in a batch's memory, and what it should be."""

    thing: Any
    should_be: Array

    def array(self) -> Array:
        thing = self.thing[0] if isinstance(self.thing, list) else self.thing
        return thing.detach().numpy() if isinstance(thing, torch.Tensor) else np.asarray(thing)

    def check(self) -> None:
        array = self.array()
        assert array.dtype == self.should_be.dtype
        assert np.array_equal(array, self.should_be)


class Graph(Held):
    """A loss of a batch that its gradient is still to be computed of."""

    def check(self) -> None:
        loss, weight = self.thing
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert np.array_equal(gradient.numpy(), self.should_be)


def in_a_cycle(thing: Any) -> list[Any]:
    box = [thing]
    box.append(box)
    return box


FORMS: list[Callable[[torch.Tensor], Any]] = [
    lambda tensor: tensor,
    lambda tensor: tensor.reshape(-1).view(tensor.shape),
    lambda tensor: tensor.detach(),
    lambda tensor: tensor.numpy(),
    lambda tensor: tensor.numpy().data,
    lambda tensor: torch.utils.dlpack.from_dlpack(tensor),
    lambda tensor: np.from_dlpack(tensor),
    lambda tensor: torch.as_strided(tensor, tensor.shape, tensor.stride()),
    lambda tensor: tensor.unsqueeze(0)[0],
    in_a_cycle,
    lambda tensor: in_a_cycle(tensor.numpy()),
]


class Consumer:
    """Holds parts of batches, and does things to them."""

    def __init__(self, seed: int, most: int) -> None:
        self.random = random.Random(seed)
        self.most = most
        self.held: list[Held] = []
        self.elsewhere = Elsewhere()

    def take(self, batch: dict[str, torch.Tensor]) -> None:
        """Checks a batch, and keeps some fields of it, each in some form."""
        for field, should_be in expected(batch).items():
            tensor = batch[field]
            Held(tensor, should_be).check()
            if self.random.random() < 0.6:
                self.held.append(self.keep(tensor, should_be))

    def keep(self, tensor: torch.Tensor, should_be: Array) -> Held:
        if tensor.dtype == torch.float32 and self.random.random() < 0.5:
            weight = torch.ones_like(tensor, requires_grad=True)
            return Graph(((tensor * weight).sum(), weight), should_be)
        if self.random.random() < 0.5:
            cut = slice(self.random.randrange(len(tensor)), None)
            tensor, should_be = tensor[cut], should_be[cut].copy()
        return Held(self.random.choice(FORMS)(tensor), should_be)

    def act(self) -> None:
        """Does one thing, and lets go of what is too much."""
        self.random.choice(
            [self.look, self.look, self.mutate, self.mutate, self.drop, self.send, self.to_a_thread, self.fork]
            if self.random.random() < 0.3
            else [self.look, self.mutate, self.drop]
        )()
        while len(self.held) > self.most:
            self.drop()

    def one(self) -> Held | None:
        return self.random.choice(self.held) if self.held else None

    def look(self) -> None:
        if held := self.one():
            held.check()

    def look_at_all(self) -> None:
        for held in self.held:
            held.check()

    def mutate(self) -> None:
        held = self.one()
        if held is None or isinstance(held, Graph) or not (array := held.array()).flags.writeable:
            return
        held.check()
        value = self.random.randrange(200)
        array[...] = value
        held.should_be[...] = value

    def drop(self) -> None:
        if self.held:
            self.held.pop(self.random.randrange(len(self.held)))

    def send(self) -> None:
        """Sends a tensor to another process, which says what it holds; it may be sent again."""
        held = self.one()
        if held is not None and isinstance(held.thing, torch.Tensor):
            assert self.elsewhere.read(held.thing) == held.should_be.tobytes()
            held.check()

    def to_a_thread(self) -> None:
        if self.held:
            self.elsewhere.pass_on(self.held.pop(self.random.randrange(len(self.held))))

    def fork(self) -> None:
        """What a forked process finds is right while its parent holds it."""
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                self.look_at_all()
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Elsewhere:
    """Another process that reads tensors, and a thread that looks at things for a while and drops them."""

    def __init__(self) -> None:
        context = torch.multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_read_tensors, args=(there,))
        self._process.start()
        there.close()
        self._things: queue.Queue[Held | None] = queue.Queue()
        self._wrong: list[BaseException] = []
        self._thread = threading.Thread(target=self._look_and_drop)
        self._thread.start()

    def read(self, tensor: torch.Tensor) -> Any:
        self._here.send(tensor)
        return self._here.recv()

    def pass_on(self, held: Held) -> None:
        self._things.put(held)

    def _look_and_drop(self) -> None:
        window: list[Held] = []
        while (held := self._things.get()) is not None:
            window.append(held)
            del held
            try:
                window[0].check()
            except BaseException as error:
                self._wrong.append(error)
            if len(window) > 3:
                window.pop(0)

    def close(self) -> None:
        self._things.put(None)
        self._thread.join()
        self._here.send(None)
        self._process.join()
        self._process.close()
        self._here.close()
        resource_sharer.stop()  # the thread that passes descriptors on
        assert self._wrong == []


def _read_tensors(pipe: Any) -> None:
    while (tensor := pipe.recv()) is not None:
        pipe.send(tensor.numpy().tobytes())


def configuration(seed: int) -> dict[str, Any]:
    """Returns arguments of a loader, drawn at random."""
    draw = random.Random(seed)
    num_workers, prefetch_factor = draw.choice([1, 2, 3]), draw.choice([1, 2, 3])
    least = num_workers * prefetch_factor + 2
    return {
        "num_workers": num_workers,
        "prefetch_factor": prefetch_factor,
        "num_slots": draw.choice([None, least, least + 1, 60]),
        "max_pool_bytes": draw.choice([None, None, 6 << 20]),
        "in_order": draw.random() < 0.8,
        "persistent_workers": draw.random() < 0.5,
        "collate_fn": draw.choice([None, own_collate]),
    }


def own_collate(samples: list[Any]) -> Any:
    """A collate function that does not write to the slot."""
    return {field: torch.from_numpy(np.stack([np.asarray(one[field]) for one in samples])) for field in FIELDS}


@pytest.fixture
def frequent_collections() -> Iterator[None]:
    """Looks for cycles at nearly every allocation, and switches threads as often as it can."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(1, 1, 10)
    sys.setswitchinterval(1e-5)
    yield
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def stress(seed: int, batches: int) -> None:
    consumer = Consumer(seed, most=random.Random(seed).choice([2, 8, 30]))
    source: Any = ShmDataLoader(Mapped(sample, 8 * batches), batch_size=8, **configuration(seed))
    batch: Any = None
    try:
        for number in range(3):
            seen = 0
            for step, batch in enumerate(source):
                consumer.take(batch)
                seen += len(batch["label"])
                if consumer.random.random() < 0.5:
                    batch = None
                consumer.act()
                if step % 10 == 0:
                    consumer.look_at_all()
                if number == 1 and step == batches // 3:  # a pass that is left
                    break
            assert seen == 8 * batches or number == 1
        source = batch = None
        consumer.look_at_all()
    finally:
        consumer.held.clear()
        consumer.elsewhere.close()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_with_batches(seed: int) -> None:
    stress(seed, 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_whatever_is_done_with_many_batches(seed: int) -> None:
    stress(seed, 600)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(50, 53))
def test_whatever_is_done_with_batches_amid_collections(seed: int, frequent_collections: None) -> None:
    stress(seed, 25)


# -- finalizers ------------------------------------------------------------------------------------------------------


def test_threads_drop_batches_in_cycles_while_the_loop_goes_on(frequent_collections: None) -> None:
    source = ShmDataLoader(Mapped(sample, 1200), batch_size=8, num_workers=2, num_slots=40)
    things: queue.Queue[Any] = queue.Queue(8)
    wrong: list[Any] = []

    def drop() -> None:
        while (thing := things.get()) is not None:
            batch, should_be = thing
            if not all(np.array_equal(batch[field].numpy(), should_be[field]) for field in FIELDS):
                wrong.append(should_be["label"])
            in_a_cycle(batch)
            del batch, thing

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for batch in source:
        things.put((batch, expected(batch)))
        del batch
    for _ in threads:
        things.put(None)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert things.empty()


def test_an_iterator_in_a_cycle_is_ended_by_a_collection(frequent_collections: None) -> None:
    for _ in range(5):
        source = ShmDataLoader(Mapped(sample, 80), batch_size=8, num_workers=2)
        iterator = iter(source)
        box: list[Any] = [source, iterator, next(iterator)]
        box.append(box)
        del source, iterator, box
    gc.collect()
    assert mappings() == 0


class Owner:
    """Owns a loader that calls it back, from where the loop's process keeps what workers are made of."""

    def __init__(self, persistent_workers: bool) -> None:
        self.loader = ShmDataLoader(
            Mapped(sample, 80),
            batch_size=8,
            num_workers=2,
            collate_fn=self.collate,
            persistent_workers=persistent_workers,
        )
        self.iterator = iter(self.loader)
        next(self.iterator)

    def collate(self, samples: list[Any]) -> Any:
        return torch.utils.data.default_collate(samples)


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_an_owner_that_its_loader_calls_back_is_collected(persistent_workers: bool) -> None:
    owner = Owner(persistent_workers)
    is_there = weakref.ref(owner)
    del owner
    gc.collect()
    assert is_there() is None
    assert mappings() == 0
    assert children() == set()


def test_an_iterator_that_has_met_an_error_ends_with_its_last_reference() -> None:
    def fail(index: int) -> int:
        raise ValueError(index)

    gc.disable()
    try:
        iterator = iter(ShmDataLoader(Mapped(fail, 80), num_workers=1))
        with contextlib.suppress(ValueError):
            next(iterator)
        reference = weakref.ref(iterator)
        del iterator
        is_gone = reference() is None
    finally:
        gc.enable()
        gc.collect()
    assert is_gone


def test_finalizers_of_the_users_that_use_the_loader(frequent_collections: None) -> None:
    """They run where the last reference goes: in the middle of a step, in a collection, in another thread."""
    source = ShmDataLoader(Mapped(sample, 800), batch_size=8, num_workers=2, num_slots=30)
    seen: list[LoaderStatistics | None] = []
    for batch in source:
        for tensor in batch.values():
            weakref.finalize(tensor, lambda: seen.append(source.statistics()))
        in_a_cycle(batch)
        del batch, tensor
    gc.collect()
    assert len(seen) == 300


def test_statistics_asked_by_another_thread_while_the_loop_goes_on() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    source = ShmDataLoader(Mapped(lambda index: np.full(10, index), 20_000), batch_size=None, num_workers=2)
    iterator = iter(source)
    done = threading.Event()
    wrong: list[BaseException] = []

    def watch() -> None:
        while not done.is_set() and not wrong:
            try:
                source.statistics()
            except BaseException as error:
                wrong.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert [int(batch[0]) for batch in iterator] == list(range(20_000))
    finally:
        done.set()
        watcher.join()
        sys.setswitchinterval(interval)
    assert wrong == []
    gc.collect()
    found = source.statistics()
    assert found is not None
    assert (found.leased, found.copies) == (0, 0)


# -- copies ----------------------------------------------------------------------------------------------------------


def saved(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def loaded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data))


COPIES: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "torch.save": (saved, loaded),
    "pickle": (pickle.dumps, pickle.loads),
    "pickle 5": (lambda thing: pickle.dumps(thing, 5), pickle.loads),
}


@pytest.mark.parametrize("number_of_slots", [None, 6])
@pytest.mark.parametrize("kind", COPIES)
def test_serialized_batches_are_of_their_own_size(kind: str, number_of_slots: int | None) -> None:
    dump, load = COPIES[kind]
    with contextlib.suppress(HeldBatchesWarning):
        batches = list(ShmDataLoader(Mapped(sample, 400), batch_size=8, num_workers=2, num_slots=number_of_slots))
    for batch in batches[20:]:
        nbytes = sum(tensor.nbytes for tensor in batch.values())
        data = dump(batch)
        assert nbytes < len(data) < nbytes + 4000
        assert_same(load(data), batch)
        row = dump(batch["picture"][3])
        assert len(row) < batch["picture"].nbytes + 4000  # torch writes a view's whole storage
        assert_same(load(row), batch["picture"][3])
        assert len(dump(batch["picture"][3].clone())) < batch["picture"][3].nbytes + 4000


def test_deep_copies_of_batches_and_slices() -> None:
    for batch in ShmDataLoader(Mapped(sample, 200), batch_size=8, num_workers=2):
        copied, before = copy.deepcopy(batch), detached(batch)
        part = copy.deepcopy(batch["picture"][2:5, :, 3])
        assert_same(part, before["picture"][2:5, :, 3])
        assert part.untyped_storage().nbytes() <= batch["picture"].nbytes
        for tensor in batch.values():
            tensor.zero_()
        assert_same(copied, before)
        assert_same(part, before["picture"][2:5, :, 3])


def test_dlpack_shares_memory_and_ends_where_the_tensor_ends() -> None:
    kept = []
    for batch in ShmDataLoader(Mapped(sample, 400), batch_size=8, num_workers=2, num_slots=200):
        before = detached(batch)
        for field in FIELDS:
            there, array = torch.utils.dlpack.from_dlpack(batch[field][1:]), np.from_dlpack(batch[field])
            assert there.data_ptr() == batch[field][1:].data_ptr()
            assert array.ctypes.data == batch[field].data_ptr()
            assert there.untyped_storage().nbytes() <= batch[field].nbytes
            kept.append((there, array, before[field]))
        del batch
    for there, array, tensor in kept:
        assert_same(there, tensor[1:])
        assert_same(torch.from_numpy(array.copy()), tensor)


def test_queues_of_torch_carry_batches_to_other_processes() -> None:
    context = multiprocessing.get_context("fork")
    torch_context = torch.multiprocessing.get_context("fork")
    there, answers = torch_context.Queue(), context.SimpleQueue()
    process = torch_context.Process(target=_sum_up, args=(there, answers))
    process.start()
    sums = []
    for batch in ShmDataLoader(Mapped(sample, 240), batch_size=8, num_workers=2):
        sums.append({field: tensor.double().sum().item() for field, tensor in batch.items()})
        there.put(batch)
        del batch
    there.put(None)
    assert [answers.get() for _ in sums] == sums
    process.join()
    process.close()
    there.close()
    there.join_thread()
    answers.close()
    resource_sharer.stop()
    let_stock_end()


def _sum_up(batches: Any, answers: Any) -> None:
    while (batch := batches.get()) is not None:
        answers.put({field: tensor.double().sum().item() for field, tensor in batch.items()})
