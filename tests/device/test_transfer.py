"""`device=`: batches arrive on the device as they were made, ahead of the loop, and nobody waits for the device."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import random
import select
import warnings
import weakref
from collections import OrderedDict, UserDict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from shmloader import HeldBatchesWarning, ShmDataLoader
from shmloader.device.transfer import DeviceIterator
from tests.helpers import simulated
from tests.helpers.datasets import Images, Mapped, Point
from tests.helpers.support import assert_same, children, detached

LENGTH = 120


def loader(**arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(Images(LENGTH, (50, 70)), **{"batch_size": 4, "num_workers": 2, "device": "cuda", **arguments})


def expected(batch: int) -> list[torch.Tensor]:
    images = Images(LENGTH, (50, 70)).images
    return [torch.from_numpy(images[4 * batch : 4 * batch + 4]), torch.arange(4 * batch, 4 * batch + 4)]


class Reader:
    """What the training loop's kernels read of a batch: on the stream ``main``, when it comes to that."""

    def __init__(self, driver: simulated.Driver) -> None:
        self.device = driver.device
        self.seen: list[Any] = []

    def read(self, batch: Any) -> None:
        def work() -> bool:
            self.seen.append(detached(batch))
            return True

        self.device.submit("main", work)


@pytest.mark.sampled(6)
@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_batches_arrive_in_order_and_as_they_were(
    driver: simulated.Driver, depth: int, persistent_workers: bool
) -> None:
    """However far the device is behind; what the loop's kernels read waits for the copies, and the loop for nothing."""
    source = loader(device_prefetch=depth, persistent_workers=persistent_workers)
    draw = random.Random(depth)
    assert len(source) == len(iter(source)) == 30
    for _ in range(3):
        reader = Reader(driver)
        for batch in source:
            reader.read(batch)
            for stream in ("side", "main"):
                driver.device.advance(stream, draw.randrange(4))
        driver.device.finish()
        assert_same(reader.seen, [expected(number) for number in range(30)])
        del batch, reader


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
def test_the_host_never_waits_for_the_device(driver: simulated.Driver) -> None:
    reader = Reader(driver)
    for batch in loader():
        reader.read(batch)  # nothing is done on the device before the pass is over
        del batch
    driver.device.finish()
    assert_same(reader.seen, [expected(number) for number in range(30)])


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
def test_a_slot_is_free_when_its_copy_is_done_whatever_the_loop_computes(driver: simulated.Driver) -> None:
    source = loader()
    is_computing = True
    driver.device.submit("main", lambda: not is_computing)
    for batch in source:
        driver.device.advance("side", 100)
        del batch
    is_computing = False
    statistics = source.statistics()
    assert statistics is not None
    assert (statistics.batches, statistics.copies) == (30, 0)


def test_what_the_loop_keeps_of_the_host_is_safe(driver: simulated.Driver) -> None:
    """An object without ``to`` keeps its tensors, and what the loop does with them on streams of its own counts."""
    source = loader(collate_fn=as_box)
    copies = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeldBatchesWarning)
        for batch in source:
            assert not isinstance(batch["box"].tensor, simulated.Lane)
            copies.append(driver.copy("other", batch["box"].tensor))
            driver.device.advance("side", 100)
            del batch
    driver.device.finish()
    assert_same(copies, [expected(number)[0] for number in range(30)])


class Box:
    """Something with a tensor in it that nothing is known of."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def as_box(samples: list[Any]) -> Any:
    images, labels = torch.utils.data.default_collate(samples)
    return {"box": Box(images), "labels": labels}


def test_every_tensor_is_made_safe_for_the_loops_stream_behind_its_copy(
    driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterator = iter(loader())
    assert isinstance(iterator, DeviceIterator)
    lane: Any = iterator._lane
    for number, batch in enumerate(iterator, 1):
        mine = lane.received[-2:]
        assert [address for address, _ in mine] == [tensor.data_ptr() for tensor in batch]
        assert all(mark["side"] >= 2 * number for _, mark in mine)
        driver.device.finish()


def test_how_many_are_under_way(driver: simulated.Driver) -> None:
    """Two beside the one that is handed out, and only those that are made; so far is the sampler read ahead."""
    asked: list[int] = []

    def sampler() -> Iterator[int]:
        for index in range(LENGTH):
            asked.append(index)
            yield index

    class Sampler(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return sampler()

        def __len__(self) -> int:
            return LENGTH

    iterator = iter(loader(sampler=Sampler(), batch_size=1))
    assert isinstance(iterator, DeviceIterator)
    assert len(asked) == 4
    for number in range(1, 60):
        next(iterator)
        driver.device.finish()
        assert len(iterator._ahead) <= 2
        assert len(asked) == 4 + number + len(iterator._ahead)
    driver.device.finish()


class Fails(Images):
    """Images, of which some cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index in BROKEN:
            raise ValueError(f"sample {index} is broken")
        return super().__getitem__(index)


BROKEN = {8, 9, 40}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_come_in_their_turn_and_the_loader_goes_on(driver: simulated.Driver, num_workers: int) -> None:
    iterator = iter(ShmDataLoader(Fails(60), 1, num_workers=num_workers, device="cuda"))
    found: list[Any] = []
    while True:
        driver.device.finish()
        try:
            image, label = next(iterator)
        except StopIteration:
            break
        except ValueError as error:
            found.append(str(error).rstrip().split("\n")[-1].split(": ")[-1])
        else:
            driver.device.finish()
            assert torch.equal(image[0], torch.from_numpy(Images(60).images[int(label)]))
            found.append(int(label))
    want = [f"sample {index} is broken" if index in BROKEN else index for index in range(60)]
    assert found == want
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_an_iterator_ends_with_its_last_reference(driver: simulated.Driver, persistent_workers: bool) -> None:
    """Also with an error in its queue, whose traceback must not hold it."""
    gc.disable()
    try:
        source = ShmDataLoader(
            Fails(60), 1, sampler=range(7, 60), num_workers=1, device="cuda", persistent_workers=persistent_workers
        )
        iterator = iter(source)
        assert isinstance(iterator, DeviceIterator)
        next(iterator)
        dispatcher: Any = iterator._dispatcher
        while not iterator._ahead:
            select.select([dispatcher._workers._up.fd], [], [])
            iterator._look_ahead()
        assert isinstance(iterator._ahead[0], ValueError)
        host = weakref.ref(iterator.host)
        del iterator, dispatcher, source
        assert host() is None
        assert not children()
    finally:
        gc.enable()


@pytest.mark.long
def test_early_breaks_and_new_passes(driver: simulated.Driver) -> None:
    """What was under way in the pass before is dropped while it is copied, and its slots are not used too soon."""
    for persistent_workers in (False, True):
        source = loader(persistent_workers=persistent_workers)
        for length in (1, 3, 7, 30):
            reader = Reader(driver)
            for number, batch in enumerate(source, 1):
                reader.read(batch)
                driver.device.advance("main", 2)
                if number % 3 == 0:
                    driver.device.finish()
                if number == length:
                    break
            del batch
            driver.device.finish()
            assert_same(reader.seen, [expected(number) for number in range(length)])


def test_persistent_workers_have_one_iterator_as_in_stock(driver: simulated.Driver) -> None:
    source = loader(persistent_workers=True)
    iterator = iter(source)
    next(iterator)
    assert iter(source) is iterator
    assert int(next(iterator)[1].numel()) == 4
    driver.device.finish()
    assert_same(detached(next(iter(source)))[1].shape, expected(0)[1].shape)
    source.device_prefetch = 1
    assert iter(source) is not iterator
    del iterator
    source.device = None
    assert not isinstance(iter(source), DeviceIterator)


class Mover(UserDict[str, Any]):
    """A mapping that moves itself, as batches of token encodings do; it knows nothing of non_blocking."""

    def to(self, device: torch.device) -> Mover:
        self.device = device
        return Mover({key: value.clone() for key, value in self.data.items()})


class Tagged(dict[str, Any]):
    """A mapping with something beside its items."""

    tag = "none"


@dataclasses.dataclass
class Record:
    """An object of the user's own."""

    tensor: torch.Tensor
    name: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    """One that cannot be changed."""

    tensor: torch.Tensor


def many_things(samples: list[int]) -> Any:
    numbers = torch.tensor(samples)
    tagged = Tagged(a=numbers * 2)
    tagged.tag = "mine"
    return {
        "tuple": (numbers, "text", None, 3.5),
        "point": Point(numbers + 1, [numbers + 2, b"bytes"]),
        "tagged": tagged,
        "ordered": OrderedDict(x=numbers + 3),
        "deque": deque([numbers + 4, 1], maxlen=5),
        "record": Record(numbers + 5, "name"),
        "frozen": Frozen(numbers + 6),
        "array": np.array(samples),
        "strings": ["a", "b"],
        "empty": torch.empty(0, 3),
        "strided": torch.arange(12).reshape(3, 4).t() + numbers[0],
        "nothing": [],
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_structures_keep_their_types(driver: simulated.Driver, num_workers: int) -> None:
    arguments: dict[str, Any] = {"batch_size": 2, "num_workers": num_workers, "collate_fn": many_things}
    dataset = Mapped(lambda index: index)
    ours = [detached_later(batch, driver) for batch in ShmDataLoader(dataset, device="cuda", **arguments)]
    assert_same(ours, [many_things([index, index + 1]) for index in range(0, 20, 2)])
    assert ours[3]["tagged"].tag == "mine"


def detached_later(batch: Any, driver: simulated.Driver) -> Any:
    driver.device.finish()
    return detached(batch)


def with_movers(samples: list[int]) -> Any:
    numbers = torch.tensor(samples)
    return [Mover(a=numbers), torch.ones(2).to_sparse(), numbers]


def test_what_moves_itself_does_so_when_it_is_handed_out(
    driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    to = torch.Tensor.to

    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        moved.append((tensor.layout, args, kwargs))
        return tensor if args and args[0] == torch.device("cuda") else to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    source = ShmDataLoader(
        Mapped(lambda index: index), batch_size=2, num_workers=1, collate_fn=with_movers, device="cuda"
    )
    for step, (mover, sparse, numbers) in enumerate(source):
        driver.device.finish()
        assert type(mover) is Mover
        assert mover["a"].tolist() == numbers.tolist() == [2 * step, 2 * step + 1]
        assert moved[-1] == (torch.sparse_coo, (torch.device("cuda"),), {"non_blocking": True})
        assert sparse.layout is torch.sparse_coo


def test_in_the_loops_own_process_nothing_is_loaded_ahead(driver: simulated.Driver) -> None:
    loaded: list[int] = []

    def sample(index: int) -> int:
        loaded.append(index)
        return index

    iterator = iter(ShmDataLoader(Mapped(sample), batch_size=1, device="cuda"))
    for number in range(20):
        batch = next(iterator)
        driver.device.finish()
        assert batch.tolist() == [number]
        assert len(loaded) == number + 1
    assert driver.pinned_by_torch == 20


def test_a_batch_is_not_taken_within_a_capture(driver: simulated.Driver) -> None:
    iterator = iter(loader())
    next(iterator)
    driver.capturing = True
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
        next(iterator)
    driver.capturing = False
    driver.device.finish()
    assert_same(detached_later(next(iterator), driver), expected(1))


class Endless(IterableDataset[Any]):
    """A stream that says it is shorter than it is."""

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(8))


def test_a_length_that_lies_is_warned_of_as_in_stock(driver: simulated.Driver) -> None:
    def lengths(kind: Any, **arguments: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            source = kind(Endless(), batch_size=None, num_workers=1, **arguments)
            found = len(source), sum(1 for _ in source)
        return found, [str(warning.message).split("was reported")[1] for warning in caught]

    assert lengths(ShmDataLoader, device="cuda") == lengths(DataLoader)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"device": 3}, TypeError, "device must be a torch.device or the name of one, got 3"),
        ({"device": "gpu"}, ValueError, "device='gpu' is not a valid device"),
        ({"device": "meta"}, ValueError, "device must be a CUDA device or the CPU, got 'meta'"),
        ({"device_prefetch": -1}, ValueError, "device_prefetch must be 0 or more, got -1"),
        ({"device_prefetch": 1.5}, TypeError, "device_prefetch must be an int, got 1.5"),
    ],
)
def test_wrong_values_are_named(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ShmDataLoader(Images(), **arguments)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_the_device_no_pass_begins(num_workers: int) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    source = ShmDataLoader(Images(), num_workers=num_workers, device=f"cuda:{count}")
    with pytest.raises(RuntimeError, match=f"device='cuda:{count}' cannot be had"):
        iter(source)
    assert not children()


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_on_the_cpu_it_is_the_ordinary_loader(device: Any) -> None:
    source = loader(device=device)
    iterator = iter(source)
    assert not isinstance(iterator, DeviceIterator)
    for number, batch in enumerate(iterator):
        assert_same(batch, expected(number))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 1)])
def test_copies_of_a_loader_have_its_device(driver: simulated.Driver, device: Any) -> None:
    source = loader(device=device, device_prefetch=3, persistent_workers=True)
    next(iter(source))
    for other in (copy.copy(source), pickle.loads(pickle.dumps(source))):
        assert (other.device, other.device_prefetch, other.pin_memory) == (device, 3, False)
        assert_same(detached_later(next(iter(other)), driver), expected(0))
    driver.device.finish()
