"""CachedDataset: each sample is read once, by whoever comes first; it is the caller's own, and whole or absent."""

from __future__ import annotations

import copy
import errno
import functools
import gc
import itertools
import os
import pickle
import random
import resource
import signal
import sys
import threading
import time
import warnings
import weakref
import zlib
from collections import Counter, UserString, deque, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, StackDataset, Subset, TensorDataset

from shmloader import CachedDataset, CacheFullWarning, CacheStatistics, ShmDataLoader, share
from shmloader.data import cache_file, cache_layout
from shmloader.data.plain_forms import PlainForm
from shmloader.data.sample_forms import _known, form_of, take
from tests.helpers import samples
from tests.helpers.datasets import Images, Mapped, Point, nest
from tests.helpers.signals import SignalAt
from tests.helpers.support import (
    assert_same,
    assert_same_stream,
    descriptors,
    let_stock_end,
    mappings,
    run_file,
    stream,
)

LENGTH = 40


class Logged(Dataset[Any]):
    """Appends the index of each sample that is read to a file: 4 bytes, which is atomic."""

    def __init__(self, log: Path, make: Callable[[int], Any] = lambda index: index, length: int = LENGTH) -> None:
        self.log, self.make, self.length = log, make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        with self.log.open("ab", buffering=0) as log:
            log.write(index.to_bytes(4, "little"))
        return self.make(index)


def reads(log: Path) -> Counter[int]:
    """Returns how often each sample was read."""
    return Counter(np.frombuffer(log.read_bytes(), np.uint32).tolist()) if log.exists() else Counter()


def picture(index: int) -> Any:
    return np.full((3, 8, 8), index, np.uint8), torch.full((2, 5), index, dtype=torch.bfloat16), index, index / 3


def mixed(index: int) -> Any:
    return picture(index) if index % 3 else {"text": f"sample {index}", "array": np.arange(index)}


def same(loader: DataLoader[Any]) -> Any:
    return loader


ONCE = dict.fromkeys(range(LENGTH), 1)


@pytest.fixture(params=[False, True], ids=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments that say where the cache is."""
    return {"path": tmp_path / "cache"} if request.param else {}


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_samples_are_read_once_and_come_back_as_they_were(place: dict[str, Any], tmp_path: Path) -> None:
    dataset = Logged(tmp_path / "log", nest)
    cached = CachedDataset(dataset, **place)
    assert len(cached) == LENGTH
    for _ in range(3):
        for index in range(LENGTH):
            assert_same(cached[index], nest(index))
    assert reads(dataset.log) == ONCE
    found = cached.statistics()
    assert (found.length, found.samples, found.hits, found.misses) == (LENGTH, LENGTH, 2 * LENGTH, LENGTH)
    assert (found.did_not_fit, found.max_bytes) == (0, cached.max_bytes)


@pytest.fixture(scope="module")
def _warned() -> None:
    samples.warn_once()


@pytest.mark.sampled(10)
@pytest.mark.usefixtures("_warned")
@pytest.mark.parametrize("seed", range(400))
def test_whatever_a_sample_is_made_of(seed: int) -> None:
    draw = samples.Draw(seed)
    make = samples.schema(draw, wild=True)
    made = {index: make(draw) for index in range(4)}
    cached = CachedDataset(Mapped(made.__getitem__, len(made)))
    for index in [*made, *made]:
        assert_same(cached[index], made[index])


ODD: dict[str, Any] = {
    "none": None,
    "text": "text",
    "bytes": b"\0\1",
    "a number": 3,
    "a huge number": 1 << 80,
    "not a number": float("nan"),
    "a bool": True,
    "a scalar": np.float16(1.5),
    "a complex number": 1j,
    "no parts": [],
    "no elements": np.zeros((0, 3), np.float32),
    "an array without an axis": np.array(3, np.uint16),
    "a bool array": np.array([True, False]),
    "the other byte order": np.arange(3, dtype=">i2"),
    "that and text": ("x", np.arange(6, dtype=">f8").reshape(2, 3).T),
    "text in an array": np.array(["a", "bc"]),
    "objects": np.array([None, "x"], object),
    "in Fortran's order": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "a named tuple": Point(torch.zeros(2), 3),
    "bfloat16": torch.arange(4, dtype=torch.bfloat16),
    "complex": torch.tensor([1j, 2]),
    "channels last": torch.arange(24).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "one channel": torch.zeros(1, 4, 4),
    "sparse": torch.eye(3).to_sparse(),
    "nested": torch.nested.nested_tensor([torch.zeros(2), torch.ones(3)], layout=torch.jagged),
    "a parameter": torch.nn.Parameter(torch.ones(2)),
    "many parts": [torch.tensor(float(n)) for n in range(1500)],
    "deep": (lambda: [deep := [], [deep := [deep] for _ in range(60)]][1][-1])(),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ODD)
def test_odd_samples(name: str, place: dict[str, Any]) -> None:
    cached = CachedDataset([ODD[name]], **place)
    for _ in range(3):
        assert_same(cached[0], ODD[name])
    assert cached.statistics().hits == 2


class Halved(Point):
    """A named tuple that is made of other parts than it has."""

    def __new__(cls, value: Any, label: Any = None) -> Any:
        return super().__new__(cls, value / 2, label)


class Single(Point):
    """A named tuple that is made of fewer parts than it has."""

    def __new__(cls, value: Any) -> Any:
        return super().__new__(cls, value, value)


class Quoted(str):
    __slots__ = ()

    def __new__(cls, text: str) -> Any:
        return super().__new__(cls, f"<{text}>")


class Next(int):
    def __new__(cls, value: int) -> Any:
        return super().__new__(cls, value + 1)


class Both(complex):
    """Says itself what it is made of."""

    def __new__(cls, one: float) -> Any:
        return super().__new__(cls, one, one)

    def __getnewargs__(self) -> Any:
        return (self.real,)


class Names(list[Any]):
    """A list that has more than its items."""


def with_attributes(whole: Any, **attributes: Any) -> Any:
    vars(whole).update(attributes)
    return whole


MADE_ONCE: dict[str, Callable[[], Any]] = {
    "a named tuple": lambda: Halved(np.arange(3.0), "a"),
    "in a list": lambda: [Halved(torch.ones(3)), {"x": Single(np.arange(3))}],
    "of fewer parts": lambda: Single(3),
    "text": lambda: Quoted("text"),
    "a number": lambda: with_attributes(Next(3), unit="mm"),
    "a class that is pickled right": lambda: Both(3),
    "a list": lambda: with_attributes(Names([1, "a"]), unit="mm"),
    "a tensor": lambda: with_attributes(torch.arange(3), affine=np.eye(3), source="file"),
    "a sparse one": lambda: [with_attributes(torch.eye(3).to_sparse(), source="file"), torch.ones(2)],
    "no elements": lambda: torch.zeros(2, 0, 3),
}


@pytest.mark.parametrize("name", MADE_ONCE)
def test_what_is_kept_is_not_made_of_itself_once_more(name: str, place: dict[str, Any]) -> None:
    expected = MADE_ONCE[name]()
    cached = CachedDataset([MADE_ONCE[name]()], **place)
    for _ in range(3):
        sample = cached[0]
        assert_same(sample, expected)
        assert getattr(sample, "unit", None) == getattr(expected, "unit", None)


def test_a_tensor_that_refers_to_itself() -> None:
    tensor: Any = torch.ones(3)
    tensor.whole = [tensor]
    cached = CachedDataset([tensor])
    for _ in range(2):
        sample = cached[0]
        assert sample.whole[0] is sample
    del tensor.whole, sample.whole


def test_a_tensor_keeps_its_attributes_wherever_it_is() -> None:
    tensor: Any = torch.ones(3)
    tensor.unit = "metres"
    cached = CachedDataset([SimpleNamespace(length=tensor, lengths=deque([tensor]))])
    for _ in range(2):
        sample = cached[0]
        assert sample.length.unit == "metres"
        assert sample.lengths[0] is sample.length


def _in_itself(container: Any, add: Callable[[Any, Any], object]) -> Any:
    add(container, container)
    return container


ENDLESS: dict[str, Any] = {
    "a list in itself": (_in_itself([torch.ones(2)], list.append), lambda sample: sample[1] is sample),
    "a dict in itself": (
        _in_itself({"x": "y"}, lambda whole, part: whole.update(whole=part)),
        lambda sample: sample["whole"] is sample,
    ),
    "text, whose items are text": (UserString("abc"), lambda sample: sample == UserString("abc")),
    "more ways than can be walked": (
        functools.reduce(lambda part, _: (part, part), range(60), cast(Any, "x")),
        lambda sample: sample[0] is sample[1] and sample[0][0] is sample[1][1],
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_samples_that_have_no_end(name: str, place: dict[str, Any]) -> None:
    sample, is_right = ENDLESS[name]
    cached = CachedDataset([sample], **place)
    for _ in range(2):
        assert is_right(cached[0])


class OneWay:
    """Can be pickled, and not be made of that again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_what_cannot_be_unpickled_is_named_and_not_kept(place: dict[str, Any]) -> None:
    cached = CachedDataset([1, OneWay()], **place)
    for read in (lambda: cached[1], lambda: cached.__getitems__([0, 1])):
        with pytest.raises(TypeError, match=r"cannot keep sample 1: it was pickled, and to unpickle it raises ValueE"):
            read()
    assert cached.__getitems__([0, 0]) == [1, 1]
    assert cached.statistics().samples == 1


def test_one_object_in_two_places_stays_one() -> None:
    array = np.zeros(3)
    cached = CachedDataset([(array, array)])
    for _ in range(2):
        one, other = cached[0]
        assert one is other


def test_arrays_that_lie_otherwise_are_made_contiguous() -> None:
    array = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)
    cached = CachedDataset([array, array[:, ::-1]])
    for index in (0, 1, 0, 1):
        assert cached[index].flags.c_contiguous
        assert (cached[index] == [array, array[:, ::-1]][index]).all()


@pytest.mark.parametrize("max_bytes", [None, 1])
@pytest.mark.filterwarnings("ignore::shmloader.CacheFullWarning")
def test_what_is_returned_is_the_callers_own(max_bytes: int | None, place: dict[str, Any]) -> None:
    images = np.ones((4, 3), np.uint8)
    texts = [{"a": [1], "t": "x", "m": torch.ones(3)} for _ in range(4)]
    for dataset, check in ((images, np.sum), (texts, lambda one: one["m"].sum() + len(one["a"]) - 1)):
        arguments: dict[str, Any] = {name: f"{path}{type(dataset).__name__}" for name, path in place.items()}
        cached = CachedDataset(dataset, max_bytes, **arguments)
        for _ in range(3):
            for one in [cached[2], cached[2], *cached.__getitems__([2, 2, 3])]:
                assert check(one) == 3
                if isinstance(one, dict):
                    one["m"][:] = 9
                    one["a"].append(2)
                else:
                    one[:] = 9


def test_a_part_that_is_kept_does_not_hold_the_others() -> None:
    cached = CachedDataset([(np.zeros(1 << 20, np.uint8), torch.zeros(2))])
    for _ in range(2):
        _, label = cached[0]
        assert label.untyped_storage().nbytes() == 8


@pytest.mark.parametrize("sample", [np.zeros(3), ("text", np.zeros(3)), {"bytes": b"x"}, [Point(1, 2), "t"]])
def test_reading_leaves_nothing_for_the_garbage_collector(sample: Any, place: dict[str, Any]) -> None:
    """What waits for it would be dozens of samples, and each may be large."""
    cached = CachedDataset([sample] * 3, **place)
    cached[0], cached[0]  # what is made once
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            cached[1]
            cached.__getitems__([2, 1])
            assert gc.collect() == 0
    finally:
        gc.enable()


def test_what_was_read_only_may_be_written_to() -> None:
    array = np.arange(4)
    array.flags.writeable = False
    cached = CachedDataset([array, ("text", array)])
    for _ in range(2):
        assert cached[0].flags.writeable
        assert cached[1][1].flags.writeable


def test_shared_arrays_go_by_value(tmp_path: Path) -> None:
    images = share(np.arange(12).reshape(6, 2))
    threads = threading.active_count()
    cached = CachedDataset(Mapped(lambda i: (images[i : i + 1], "text"), 4), path=tmp_path / "cache")
    again = CachedDataset(Mapped(lambda i: (images[i : i + 1], "text"), 4), path=tmp_path / "cache")
    for one in (cached[2], again[2], CachedDataset(Mapped(lambda i: images[i : i + 2], 4))[2]):
        assert type(one[0]) is np.ndarray
    assert threading.active_count() == threads  # nothing was started to send descriptors


def test_errors_are_not_kept() -> None:
    broken = {3}

    def make(index: int) -> int:
        if index in broken:
            raise KeyError(index)
        return index

    cached = CachedDataset(Mapped(make))
    for _ in range(2):
        with pytest.raises(KeyError):
            cached[3]
        with pytest.raises(KeyError):
            cached.__getitems__([1, 2, 3, 4])
    broken.clear()
    assert cached.__getitems__([1, 2, 3, 4]) == [1, 2, 3, 4]
    assert cached.statistics().samples == 4


class Batched(Dataset[Any]):
    """Is asked for batches, and notes which."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> int:
        raise AssertionError

    def __getitems__(self, indices: list[int]) -> list[int]:
        self.asked.append(indices)
        return [index * 10 for index in indices if index != 13]


def test_a_batch_is_asked_for_what_is_missing_once() -> None:
    dataset = Batched()
    cached = CachedDataset(dataset)
    assert cached.__getitems__([1, 2, 1]) == [10, 20, 10]
    assert cached.__getitems__([2, -1, 3, 3, 1]) == [20, 390, 30, 30, 10]
    assert cached.__getitems__([3, 2]) == [30, 20]
    assert dataset.asked == [[1, 2], [39, 3]]
    with pytest.raises(ValueError, match="returned 1 samples for 2 indices"):
        cached.__getitems__([13, 14])
    found = cached.statistics()
    assert (found.hits, found.misses) == (6, 6)


# -- in loaders --------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "fork": {"num_workers": 2, "multiprocessing_context": "fork"},
    "persistent": {"num_workers": 2, "persistent_workers": True},
    "threads": {"num_workers": 2, "worker_type": "thread"},
    "none": {"num_workers": 0},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", [picture, mixed])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_of_any_kind_fill_it_together(kind: str, make: Any, place: dict[str, Any], tmp_path: Path) -> None:
    dataset = Logged(tmp_path / "log", make)
    cached = CachedDataset(dataset, **place)
    loader = ShmDataLoader(cached, 4, shuffle=True, collate_fn=list if make is mixed else None, **KINDS[kind])
    for _ in range(3):
        seen = [sample for batch in loader for sample in _samples(batch)]
        assert len(seen) == LENGTH
        for sample in seen:
            expected = make(len(sample["array"]) if isinstance(sample, dict) else int(sample[2]))
            if make is mixed:
                assert_same(sample, expected)
            else:
                for one, other in zip(sample, expected, strict=True):
                    assert torch.equal(one, torch.as_tensor(other, dtype=one.dtype))
    assert reads(dataset.log) == ONCE
    found = cached.statistics()
    assert (found.samples, found.hits, found.misses) == (LENGTH, 2 * LENGTH, LENGTH)


def _samples(batch: Any) -> list[Any]:
    if isinstance(batch[0], (dict, tuple)):
        return list(batch)
    return list(zip(*batch, strict=True))


SPAWNED = """
    import sys
    import numpy as np
    import torch
    from pathlib import Path
    from shmloader import CachedDataset, ShmDataLoader

    class Logged:
        def __init__(self, log):
            self.log = log
        def __len__(self):
            return 12
        def __getitem__(self, index):
            with open(self.log, "ab", buffering=0) as log:
                log.write(bytes([index]))
            return np.full(5, index), f"text" if index % 2 else index

    if __name__ == "__main__":
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            for path, context, loader in (
                (None, "spawn", ShmDataLoader),
                (folder + "/cache", "forkserver", torch.utils.data.DataLoader),
            ):
                log = f"{folder}/log{path is None}"
                cached = CachedDataset(Logged(log), path=path)
                for _ in range(2):
                    batches = list(loader(cached, 3, num_workers=1, collate_fn=list, multiprocessing_context=context))
                    assert [int(one[0][0]) for batch in batches for one in batch] == list(range(12)), batches
                assert sorted(Path(log).read_bytes()) == list(range(12)), Path(log).read_bytes()
                found = cached.statistics()
                assert (found.samples, found.hits, found.misses) == (12, 12, 12), found
        print("done")
"""


@pytest.mark.long
def test_workers_that_are_spawned() -> None:
    found = run_file(SPAWNED)
    assert (found.stdout, found.stderr) == ("done\n", "")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("make", [picture, nest, mixed, lambda i: torch.zeros(2, 3).t() + i], ids=range(4))
@pytest.mark.parametrize("arguments", [{}, {"batch_size": None}, {"drop_last": True, "shuffle": True}], ids=str)
def test_batches_are_stocks(make: Any, arguments: dict[str, Any], place: dict[str, Any]) -> None:
    arguments = {"batch_size": 4, "num_workers": 2, **arguments}
    if make is mixed:
        arguments["collate_fn"] = same
    places = itertools.count()

    def dataset() -> Any:
        path: Any = f"{place['path']}{next(places)}" if place else None
        return CachedDataset(Mapped(make), path=path)

    assert_same_stream(dataset, epochs=3, **arguments)


def test_in_a_subset_and_with_odd_indices() -> None:
    cached = CachedDataset(Mapped(picture))
    subset = Subset(cached, [3, 1, -1, 3])
    for _ in range(3):
        for _, _, numbers, _ in ShmDataLoader(subset, 4, num_workers=1):
            assert numbers.tolist() == [3, 1, 19, 3]
        for _, _, numbers, _ in ShmDataLoader(cached, sampler=np.array([5, 6]), batch_size=2, num_workers=1):
            assert numbers.tolist() == [5, 6]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["alike", "another shape", "another dtype", "another structure", "text"])
def test_samples_that_differ_are_torchs_business(kind: str, place: dict[str, Any]) -> None:
    odd: dict[str, Any] = {
        "alike": (np.zeros(3, np.float32), 1),
        "another shape": (np.zeros(4, np.float32), 1),
        "another dtype": (np.zeros(3, np.float64), 1),
        "another structure": [np.zeros(3, np.float32), 1.5],
        "text": (np.zeros(3, np.float32), "x"),
    }
    plain = Mapped(lambda index: odd[kind] if index == 17 else (np.full(3, index, np.float32), index), 20)
    cached = CachedDataset(plain, **place)
    for _ in range(3):
        ours = stream(ShmDataLoader(cached, 4, num_workers=1), 1)
        stock = stream(DataLoader(plain, 4, num_workers=1), 1)
        let_stock_end()
        assert_same(ours[0], stock[0])
        assert [type(error) for error in ours[1]] == [type(error) for error in stock[1]]


# -- written straight into batches -------------------------------------------------------------------------------------


def out_of(count: int) -> Any:
    arrays = np.full((count, 3, 8, 8), 99, np.uint8), torch.zeros((count, 2, 5), dtype=torch.bfloat16)
    return [*arrays, np.zeros(count, np.int64), np.zeros(count)]


def test_kept_samples_are_read_into_place(place: dict[str, Any]) -> None:
    cached = CachedDataset(Mapped(picture), **place)
    out = tuple(out_of(3))
    assert cached.__getitems_into__([1, 2, 3], out) is NotImplemented
    assert cached.statistics().misses == 0
    cached.__getitems__(range(10))
    chosen: list[Any] = [[1, 2, 3], [9, -14, 9], np.array([4, 0, 2])]
    for indices in chosen:
        addresses = [one.ctypes.data if isinstance(one, np.ndarray) else one.data_ptr() for one in out]
        assert cached.__getitems_into__(indices, out) is None
        expected = torch.utils.data.default_collate([picture(int(i) % 20) for i in indices])
        assert_same([torch.as_tensor(one) for one in out], list(expected))
        assert addresses == [one.ctypes.data if isinstance(one, np.ndarray) else one.data_ptr() for one in out]
    assert cached.statistics().hits == 9
    for bad in ([1, 2, 15], [1, 2, 20], [], [True, 1, 2]):
        assert cached.__getitems_into__(bad, out) is NotImplemented


def test_a_batch_of_another_kind_is_not_written() -> None:
    cached = CachedDataset(Mapped(picture))
    cached.__getitems__(range(10))
    for change in (
        lambda out: out,  # a list
        lambda out: tuple(out[:3]),
        lambda out: (*out[:3], out[3].astype(np.float32)),
        lambda out: (out[0].astype(np.int8), *out[1:]),
        lambda out: (out[0].transpose(0, 1, 3, 2), *out[1:]),
        lambda out: (out[0][:2], *out[1:]),
        lambda out: (out[0], out[1].half(), *out[2:]),
        lambda out: dict(enumerate(out)),
    ):
        assert cached.__getitems_into__([1, 2, 3], change(out_of(3))) is NotImplemented


def test_alike_samples_have_one_form() -> None:
    forms = {take({"x": np.full(3, i), "y": [torch.tensor(i), i], "z": np.float32(i)}).form for i in range(5)}
    assert len(forms) == 1
    assert isinstance(form_of(forms.pop()), PlainForm)


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::shmloader.CacheFullWarning")
@pytest.mark.parametrize("num_workers", [0, 3])
def test_it_takes_no_more_than_it_may(num_workers: int, place: dict[str, Any], tmp_path: Path) -> None:
    dataset = Logged(tmp_path / "log", lambda index: np.full(1000, index, np.uint8))
    cached = CachedDataset(dataset, 20_000, **place)
    for _ in range(3):
        for batch in ShmDataLoader(cached, 4, shuffle=True, num_workers=num_workers):
            assert (batch == batch[:, :1]).all()
    found = cached.statistics()
    assert found.bytes <= found.max_bytes == 20_000
    assert 15 <= found.samples < 20
    assert found.did_not_fit == LENGTH - found.samples
    counts = reads(dataset.log)
    assert sorted(counts.values()) == [1] * found.samples + [3] * (LENGTH - found.samples)
    if cached.path is not None:
        assert Path(cached.path).stat().st_size < 20_000 + cache_layout.HEADER_BYTES + 8 * LENGTH


def test_records_that_land_past_the_limit_at_once_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = CachedDataset(Mapped(lambda index: np.full(1000, index, np.uint8)), 5000)
    monkeypatch.setattr(cache_file.CacheFile, "_has_room", lambda self, nbytes: True)  # as all saw it before any wrote
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cached.__getitems__(range(20))
    found = cached.statistics()
    assert (found.samples, found.did_not_fit) == (4, 16)
    assert found.bytes <= 5000


def test_it_says_once_that_most_do_not_fit() -> None:
    cached = CachedDataset(Mapped(lambda index: np.zeros(1000)), 20_000)
    with pytest.warns(CacheFullWarning, match=r"about 1\d% of the 20 samples .* max_bytes=20000") as seen:
        cached.__getitems__([*range(20), *range(20)])
    cached.__getitems__(range(20))
    assert len(seen) == 1
    half = CachedDataset(Mapped(lambda index: np.zeros(1000)), 100_000)
    half.__getitems__(range(20))
    assert half.statistics().did_not_fit > 0


def test_only_one_process_says_so() -> None:
    cached = CachedDataset(Mapped(lambda index: np.zeros(1000)), 20_000)
    assert [_in_a_child(lambda: int(cached._tally.is_first_to_claim())) for _ in range(3)] == [1, 0, 0]
    assert not cached._tally.is_first_to_claim()


def test_the_limit_has_a_default(tmp_path: Path) -> None:
    assert 0 < CachedDataset([1]).max_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert CachedDataset([1], path=tmp_path / "cache").max_bytes > 0
    assert CachedDataset([1], 77).max_bytes == 77


def test_memory_that_is_not_there_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_file, "_STEP", 1000)
    monkeypatch.setattr(cache_file, "available_memory", lambda: 1 << 20)
    cached = CachedDataset(Mapped(lambda index: np.zeros(1000)))
    for _ in range(2):
        assert len(cached[3]) == 1000
    assert cached.statistics().samples == 0


def test_a_window_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_file, "address_space_left", lambda: 1 << 40)
    cached = CachedDataset(Mapped(picture))
    for _ in range(2):
        for (image, *_), index in zip(map(cached.__getitem__, range(5)), range(5), strict=True):
            assert (image == index).all()
    assert cached.__getitems_into__([1, 2, 3], tuple(out_of(3))) is None


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_later_run_reads_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        dataset = Logged(tmp_path / "log", mixed)
        cached = CachedDataset(dataset, path=str(tmp_path / "cache"))
        for index in range(LENGTH):
            assert_same(cached[index], mixed(index))
    assert reads(tmp_path / "log") == ONCE
    assert (cached.statistics().hits, cached.statistics().misses) == (LENGTH, 0)
    assert [file.name for file in tmp_path.iterdir() if file.name != "log"] == ["cache"]


def test_two_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one, other = (CachedDataset(Logged(log, picture), path=tmp_path / "cache") for _ in range(2))
    for index in range(LENGTH):
        assert_same((one, other)[index % 2][index], picture(index))
    for cached in (one, other):
        for index in range(LENGTH):
            assert_same(cached[index], picture(index))
    assert reads(log) == ONCE


def test_an_empty_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    assert CachedDataset([5], path=tmp_path / "cache")[0] == 5
    assert CachedDataset([6], path=tmp_path / "cache")[0] == 5


def test_a_link_that_leads_nowhere_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    assert CachedDataset([5], path=tmp_path / "link")[0] == 5
    assert CachedDataset([6], path=tmp_path / "cache")[0] == 5


def test_a_class_that_is_gone_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples_of = [Point(1, "text"), Point(1, 2)], [3, 4]
    CachedDataset(samples_of[0], path=tmp_path / "cache").__getitems__([0, 1])
    _known.cache_clear()
    monkeypatch.delattr("tests.helpers.datasets.Point")
    cached = CachedDataset(samples_of[1], path=tmp_path / "cache")
    for _ in range(2):  # and what is read is kept in its place
        assert cached.__getitems__([0, 1]) == [3, 4]
    assert (cached.statistics().hits, cached.statistics().misses) == (2, 2)
    _known.cache_clear()


@pytest.mark.parametrize("fields", [["a", "b"], ["left", "right"]])
def test_a_class_that_is_defined_anew_is_the_new_one(
    fields: list[str], place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Any = namedtuple  # noqa: PYI024
    for names in (["a", "b"], fields):  # as the cell of a notebook is run again
        kind = make("Renewed", names, module=__name__)
        monkeypatch.setattr(sys.modules[__name__], "Renewed", kind, raising=False)
        cached = CachedDataset([kind(1, torch.ones(2))], **place)
        for _ in range(2):
            assert type(cached[0]) is kind
        if place:
            Path(place["path"]).unlink()


def _other_version(data: bytearray) -> None:
    data[8] = 0


def _other_dtypes(data: bytearray) -> None:
    data[12] ^= 1
    fields = bytes(data[: cache_layout._HEADER.size])
    data[len(fields) : len(fields) + 4] = zlib.crc32(fields).to_bytes(4, "little")


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "length": (lambda path: CachedDataset([1, 2, 3], path=path), "of 5 samples, and this one has 3"),
    "class": (lambda path: CachedDataset(tuple(range(5)), path=path), "of other classes, or with another fingerprint"),
    "subset": (lambda path: CachedDataset(Subset(Images(), range(5)), path=path), "of other classes"),
    "fingerprint": (lambda path: CachedDataset([0] * 5, path=path, fingerprint="v2"), "with another fingerprint"),
    "no cache": (lambda path: _changed(path, lambda data: data.__setitem__(0, 0)), "is not a CachedDataset's file"),
    "short": (lambda path: _changed(path, lambda data: data.__delitem__(slice(500, None))), "cut short in its header"),
    "format": (lambda path: _changed(path, _other_version), "has format 0 .* reads format 2"),
    "dtypes": (lambda path: _changed(path, _other_dtypes), "a torch that has other dtypes"),
    "damage": (lambda path: _changed(path, lambda data: data.__setitem__(40, data[40] ^ 1)), "a damaged header"),
}


def _changed(path: Path, change: Callable[[bytearray], Any]) -> Any:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return CachedDataset([0] * 5, path=path)


@pytest.mark.parametrize("name", OTHERS)
def test_the_file_of_another_dataset_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    CachedDataset([0, 1, 2, 3, 4], path=path)[3]
    make, text = OTHERS[name]
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path} .*{text}.*; delete it, or give another path"):
        make(path)
    assert len(path.read_bytes()) in (len(before), 500)


class Unread(list[int]):
    def __iter__(self) -> Iterator[int]:
        raise AssertionError("there may be very many")


def test_what_a_subset_chooses_is_read_for_a_file_only(tmp_path: Path) -> None:
    subset: Subset[int] = Subset(range(9), Unread([1, 2]))  # type: ignore[arg-type]
    assert CachedDataset(subset)[1] == 2
    with pytest.raises(AssertionError, match="very many"):
        CachedDataset(subset, path=tmp_path / "cache")


def test_subsets_of_one_dataset_have_files_of_their_own(tmp_path: Path) -> None:
    CachedDataset(Subset(range(9), [1, 2]), path=tmp_path / "cache")  # type: ignore[arg-type]
    CachedDataset(Subset(range(9), [1, 2]), path=tmp_path / "cache")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another dataset"):
        CachedDataset(Subset(range(9), [1, 3]), path=tmp_path / "cache")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_costs_samples_and_no_right_answers(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    path = tmp_path / "cache"
    dataset = Mapped(mixed, LENGTH)
    for _ in range(12):
        cached = CachedDataset(dataset, path=path)
        alive = CachedDataset(dataset, path=path) if draw.random() < 0.5 else None
        for index in draw.choices(range(LENGTH), k=30):
            assert_same(cached[index], mixed(index))
            assert_same((alive or cached).__getitems__([index])[0], mixed(index))
        data = bytearray(path.read_bytes())
        for _ in range(draw.randrange(6)):
            data[draw.randrange(cache_layout.HEADER_BYTES, len(data))] ^= draw.randrange(256)
        if draw.random() < 0.4:
            del data[draw.randrange(cache_layout.HEADER_BYTES, len(data)) :]
            data += bytes(draw.choice((0, 100)))
        path.write_bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_a_file_that_is_cut_while_it_is_used(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    path = tmp_path / "cache"
    caches = [CachedDataset(Mapped(mixed, LENGTH), path=path) for _ in range(2)]
    out = tuple(out_of(2))
    for _ in range(150):
        cached, index = draw.choice(caches), draw.randrange(LENGTH)
        assert_same(cached[index], mixed(index))
        pair = [one for one in draw.choices(range(LENGTH), k=2) if one % 3] or [1]
        if len(pair) == 2 and cached.__getitems_into__(pair, out) is None:
            assert out[2].tolist() == pair
            assert (out[0].reshape(2, -1) == np.array(pair)[:, None]).all()
        if draw.random() < 0.1:
            os.truncate(path, draw.choice([0, draw.randrange(path.stat().st_size + 1)]))
    for index in [*range(LENGTH), *range(LENGTH)]:
        assert_same(caches[0][index], mixed(index))
    later = CachedDataset(Mapped(mixed, LENGTH), path=path)
    assert later.statistics().samples == LENGTH
    assert_same(later[1], mixed(1))


# -- what cannot be ----------------------------------------------------------------------------------------------------


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter([1])

    def __len__(self) -> int:
        return 1


BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no length": (lambda _: CachedDataset(Unsized()), TypeError, "with a length, and Unsized has none"),
    "a stream": (lambda _: CachedDataset(Stream()), TypeError, "map-style dataset, and Stream is none"),
    "no dataset": (lambda _: CachedDataset(3), TypeError, "map-style dataset, and int is none"),
    "max_bytes 0": (lambda _: CachedDataset([1], 0), ValueError, "max_bytes must be positive"),
    "max_bytes a float": (lambda _: CachedDataset([1], 1.5), TypeError, "max_bytes must be an int"),  # type: ignore[arg-type]
    "path a number": (lambda _: CachedDataset([1], path=3), TypeError, "path must be a str"),  # type: ignore[arg-type]
    "path bytes": (lambda _: CachedDataset([1], path=b"x"), TypeError, "path must be a str"),  # type: ignore[arg-type]
    "fingerprint": (lambda _: CachedDataset([1], fingerprint=3), TypeError, "fingerprint must be a str"),  # type: ignore[arg-type]
    "a null": (lambda _: CachedDataset([1], path="a\0b"), ValueError, "path must not have a null character"),
    "a folder": (lambda folder: CachedDataset([1], path=folder), IsADirectoryError, "cannot use this path.*director"),
    "no folder": (lambda folder: CachedDataset([1], path=folder / "a/b"), FileNotFoundError, "cannot use this path"),
    "in a file": (lambda _: CachedDataset([1], path=f"{__file__}/x"), NotADirectoryError, "cannot use this path"),
    "not writable": (lambda _: CachedDataset([1], path="/proc/version"), OSError, "use this path.*version"),
    "nowhere to write": (lambda _: CachedDataset([1], path="/proc/x"), OSError, "cannot use this path.*/proc/x"),
    "a device": (lambda _: CachedDataset([1], path="/dev/null"), ValueError, "/dev/null is not a CachedDataset's file"),
    "too long": (lambda folder: CachedDataset([1], path=folder / ("x" * 300)), OSError, "cannot use this path"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str, tmp_path: Path) -> None:
    make, error, text = BAD[name]
    with pytest.raises(error, match=text):
        make(tmp_path)
    assert not list(tmp_path.iterdir())


def test_indices() -> None:
    cached = CachedDataset([10, 11, 12])
    assert [cached[index] for index in (0, -1, np.int64(1), torch.tensor(2))] == [10, 12, 11, 12]
    assert list(iter(cached)) == [10, 11, 12]
    for index in (3, -4, 1 << 70):
        with pytest.raises(IndexError, match=f"index {index} is out of range: the dataset has 3 samples"):
            cached[index]
        with pytest.raises(IndexError):
            cached.__getitems__([0, index])
    for odd in ("a", 1.0, slice(2), None):
        with pytest.raises(TypeError, match="takes ints as indices, and got"):
            cached[odd]
    assert len(CachedDataset([])) == 0
    with pytest.raises(IndexError):
        CachedDataset([])[0]


def test_what_cannot_be_pickled_is_named() -> None:
    cached = CachedDataset([{"x": 1}, {"x": [1, threading.Lock()]}, {"x": 2}])
    for _ in range(2):
        with pytest.raises(TypeError, match=r"cannot keep sample 1: the .*lock at \['x'\]\[1\] cannot be pickled"):
            cached[1]
    assert [cached[0], cached[2]] == [{"x": 1}, {"x": 2}]


@contextmanager
def limited(what: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def test_a_file_that_may_not_grow(place: dict[str, Any], tmp_path: Path) -> None:
    dataset = Logged(tmp_path / "log", lambda index: np.full(1000, index))
    cached = CachedDataset(dataset, 1 << 20, **place)
    with limited(resource.RLIMIT_FSIZE, 40_000):
        where = place.get("path", "its shared memory")
        with pytest.warns(CacheFullWarning, match=f"cannot write to {where}") as seen:
            batch = cached.__getitems__(range(LENGTH))
        assert len(seen) == 1
        for index in range(LENGTH):
            assert (cached[index] == batch[index]).all()
            assert (cached[index] == index).all()
        with pytest.raises(OSError, match="cannot") as error:
            CachedDataset(range(10_000), path=None if cached.path is None else f"{cached.path}2")
    assert error.value.errno == errno.EFBIG
    found = cached.statistics()
    assert 0 < found.samples < LENGTH
    assert found.did_not_fit == LENGTH - found.samples
    again = cached if not place else CachedDataset(dataset, **place)
    for index in range(LENGTH):
        assert (again[index] == index).all()
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_no_descriptor_is_left() -> None:
    cached = CachedDataset(Mapped(picture))
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    spare = []
    with limited(resource.RLIMIT_NOFILE, highest + 2):
        try:
            while True:
                spare.append(os.dup(0))
        except OSError:
            pass
        try:
            with pytest.raises(OSError, match="Too many"):
                CachedDataset([1])
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                found = [cached[index][2] for index in (1, 2, 1)]
        finally:
            for fd in spare:
                os.close(fd)
    assert found == [1, 2, 1]
    assert [one.category for one in seen] == [CacheFullWarning]
    assert cached[1][2] == cached[1][2] == 1
    found_now = cached.statistics()
    assert (found_now.misses, found_now.hits, found_now.samples) == (4, 1, 1)


# -- other processes ---------------------------------------------------------------------------------------------------


def _in_a_child(act: Callable[[], int]) -> int:
    """Returns what ``act`` returns in a forked process, 0 to 254; 255 where it raises."""
    child = os.fork()
    if not child:
        code = 255
        try:
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_copies_share_it_and_pickles_do_not(place: dict[str, Any]) -> None:
    cached = CachedDataset([5, 6], **place)
    cached[0]
    for twin in (copy.copy(cached), copy.deepcopy(cached)):
        twin.dataset = None
        assert twin[0] == 5
    other = pickle.loads(pickle.dumps(cached))
    other.dataset = [7, 8]
    assert other[0] == (5 if place else 7)
    assert (other.max_bytes, other.path) == (cached.max_bytes, cached.path)


class Wrapped(Dataset[Any]):
    def __init__(self, pictures: Any) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Any:
        return self._pictures[index]


def wrapper(dataset: Any) -> Any:
    """A wrapper that is no Dataset."""

    class Wrapper:
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, index: int) -> Any:
            return dataset[index]

    made = Wrapper()
    made.dataset = dataset  # type: ignore[attr-defined]
    made.itself = made  # type: ignore[attr-defined]
    return made


def cache_of(loader: ShmDataLoader[Any]) -> CacheStatistics | None:
    found = loader.statistics()
    assert found is not None
    return found.cache


WRAPPINGS: dict[str, Callable[[CachedDataset], Any]] = {
    "itself": lambda cached: cached,
    "a subset": lambda cached: Subset(Subset(cached, range(LENGTH)), range(LENGTH)),
    "in an attribute": Wrapped,
    "in a wrapper": lambda cached: wrapper(wrapper(cached)),
    "a stack": lambda cached: StackDataset(cached),
    "parts of it, in a row": lambda cached: ConcatDataset([Subset(cached, range(9)), Subset(cached, range(9, LENGTH))]),
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_loader_counts_what_its_cache_has_done(name: str) -> None:
    cached = CachedDataset(Mapped(lambda index: np.full(10, index), LENGTH))
    loader: ShmDataLoader[Any] = ShmDataLoader(WRAPPINGS[name](cached), 4, num_workers=2)
    for _ in range(3):
        assert len(list(loader)) == LENGTH // 4
    found = cache_of(loader)
    assert found == cached.statistics()
    assert found is not None
    assert (found.hits, found.misses, found.samples, found.did_not_fit) == (2 * LENGTH, LENGTH, LENGTH, 0)


@pytest.mark.filterwarnings("ignore::shmloader.CacheFullWarning")
def test_a_loader_sums_its_caches() -> None:
    caches = [CachedDataset([np.zeros(1000)] * 5, max_bytes) for max_bytes in (None, 9000)]
    loader: ShmDataLoader[Any] = ShmDataLoader(ConcatDataset(caches), num_workers=1)
    list(loader)
    found = cache_of(loader)
    assert found is not None
    each = [cached.statistics() for cached in caches]
    assert (found.length, found.samples, found.misses, found.did_not_fit) == (10, 6, 10, 4)
    assert found.bytes == sum(one.bytes for one in each)
    loader = ShmDataLoader(Images(3), num_workers=1)
    list(loader)
    assert cache_of(loader) is None


class Lazy:
    """A stand-in that makes what it stands for when somebody asks of which class that is."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise FileNotFoundError


def test_stand_ins_are_not_asked_for_their_class() -> None:
    """One was not made yet, and what the other stood for is gone."""
    dataset = Mapped(int, 3)
    gone = weakref.proxy(Lazy())
    for name, value in (("lazy", Lazy()), ("owner", gone), ("dataset", gone), ("datasets", [gone, Lazy()])):
        setattr(dataset, name, value)
    dataset.cached = CachedDataset([1, 2])  # type: ignore[attr-defined]
    loader: ShmDataLoader[Any] = ShmDataLoader(dataset, num_workers=0)
    list(loader)
    found = cache_of(loader)
    assert found is not None
    assert found.length == 2


def test_threads_count_apart() -> None:
    cached = CachedDataset(Mapped(picture))

    def read() -> None:
        for index in range(20):
            cached[index]

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = cached.statistics()
    assert found.hits + found.misses == 80
    assert (found.samples, found.did_not_fit) == (20, 0)


def _killed(seed: int, times: int, place: dict[str, Any], max_bytes: int | None) -> None:
    """Kills processes that read and keep samples, at random moments, and reads all that they left."""
    draw = random.Random(seed)
    cached = CachedDataset(Mapped(_checked_sample, 300), max_bytes, **place)
    for _ in range(times):
        ready, begun = os.pipe()
        child = os.fork()
        if not child:
            try:
                order = random.Random(draw.random())
                warnings.simplefilter("ignore")
                os.write(begun, b"x")
                while True:
                    _check(cached[order.randrange(300)])
            finally:
                os._exit(9)
        os.read(ready, 1)
        os.close(ready)
        os.close(begun)
        until = time.perf_counter() + draw.random() * 0.003  # when it is killed, and nothing depends on it
        while time.perf_counter() < until:
            pass
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if draw.random() < 0.05:
            if place and draw.random() < 0.5:
                cached = CachedDataset(Mapped(_checked_sample, 300), max_bytes, **place)
            for index in draw.choices(range(300), k=20):
                _check(cached[index])
    for index in range(300):
        _check(cached[index])
    assert cached.statistics().bytes <= cached.max_bytes


def _checked_sample(index: int) -> Any:
    draw = np.random.default_rng(index)
    array = draw.integers(0, 256, draw.integers(1, 60_000), np.uint8)
    crc = zlib.crc32(array.data)
    return (array, crc) if index % 2 else {"array": array, "crc": crc, "name": str(index)}


def _check(sample: Any) -> None:
    array, crc = (sample["array"], sample["crc"]) if isinstance(sample, dict) else sample
    assert zlib.crc32(array) == crc


@pytest.mark.sampled(2)
@pytest.mark.parametrize("max_bytes", [None, 2_000_000])
@pytest.mark.filterwarnings("ignore::shmloader.CacheFullWarning")
def test_a_process_that_is_killed_leaves_samples_whole_or_absent(max_bytes: int | None, place: dict[str, Any]) -> None:
    _killed(0, 30, place, max_bytes)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("max_bytes", [None, 2_000_000])
@pytest.mark.filterwarnings("ignore::shmloader.CacheFullWarning")
def test_thousands_of_processes_that_are_killed(max_bytes: int | None, place: dict[str, Any]) -> None:
    for seed in range(10):
        _killed(seed, 200, {name: f"{path}{seed}" for name, path in place.items()}, max_bytes)


RANKS = """
    import os, sys, tempfile
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch.utils.data.distributed import DistributedSampler
    from shmloader import CachedDataset, ShmDataLoader

    class Squares:
        def __len__(self):
            return 40
        def __getitem__(self, index):
            return np.full((3, 32, 32), index, np.uint8), index * index

    def run(rank, folder, inherited):
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
        cached = inherited or CachedDataset(Squares(), path=f"{folder}/cache")
        sampler = DistributedSampler(cached, 2, rank)
        loader = ShmDataLoader(cached, 4, sampler=sampler, num_workers=1)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            seen = torch.zeros(40)
            for pictures, squares in loader:
                assert (pictures[:, 0, 0, 0] ** 2 == squares.to(torch.uint8)).all()
                seen[pictures[:, 0, 0, 0].long()] += 1
            dist.all_reduce(seen)  # which waits for the other rank, too
            assert (seen == 1).all()
        found = cached.statistics()
        counts = torch.tensor([found.hits, found.misses])
        dist.all_reduce(counts)
        shares = 2 if inherited else 1  # an inherited one counts for both ranks
        assert counts.tolist() == [120 * shares, 40 * shares], counts
        assert found.samples == 40
        dist.destroy_process_group()

    if __name__ == "__main__":
        for is_inherited in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                inherited = CachedDataset(Squares()) if is_inherited else None
                ranks = []
                for rank in range(2):
                    ranks.append(os.fork())
                    if not ranks[-1]:
                        code = 1
                        try:
                            run(rank, folder, inherited)
                            code = 0
                        finally:
                            sys.stdout.flush(); sys.stderr.flush()
                            os._exit(code)
                assert [os.waitpid(rank, 0)[1] for rank in ranks] == [0, 0]
        print("done")
"""


@pytest.mark.long
def test_two_ranks_read_each_sample_once() -> None:
    found = run_file(RANKS)
    assert found.stdout == "done\n", found.stderr


def test_stock_reads_it_too(place: dict[str, Any], tmp_path: Path) -> None:
    dataset = Logged(tmp_path / "log", picture)
    loader = DataLoader(CachedDataset(dataset, **place), 4, num_workers=2)
    for _ in range(2):
        assert [int(n) for _, _, numbers, _ in loader for n in numbers] == list(range(LENGTH))
        let_stock_end()
    assert reads(dataset.log) == ONCE


def test_datasets_of_torch(place: dict[str, Any]) -> None:
    plain = TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10))
    cached = CachedDataset(plain, **place)
    for _ in range(2):
        for index in range(10):
            assert_same(cached[index], tuple(one.clone() for one in plain[index]))
    images = Images(10)
    assert_same_stream(lambda: CachedDataset(images), batch_size=3, num_workers=1, epochs=2)


# -- signals -----------------------------------------------------------------------------------------------------------


class Interruption(Exception):
    """What a signal's handler raises."""


class LateError(Interruption, TimeoutError):
    """As of a socket that waits too long, which is an OSError."""


class DiskError(Interruption, OSError):
    """As of a disk that is broken."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO))


class ClassError(Interruption, AttributeError):
    """As of a class that is not there."""


class FieldsError(Interruption, ValueError):
    """As of a class that takes other arguments."""


@pytest.fixture(params=[LateError, DiskError, ClassError, FieldsError])
def _interrupting(request: pytest.FixtureRequest) -> Iterator[None]:
    def interrupt(number: int, frame: Any) -> None:
        raise request.param

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield
    signal.signal(signal.SIGUSR1, before)


def ends_under(trace: SignalAt, act: Callable[[], Any]) -> bool:
    """Returns whether a call was not interrupted."""
    before = sys.gettrace()
    try:
        sys.settrace(trace)
        act()
    except Interruption:
        return False
    finally:
        sys.settrace(before)
    assert trace.left > 0, "what the handler raised was lost"
    return True


@pytest.mark.sampled(8)
@pytest.mark.usefixtures("_interrupting")
@pytest.mark.parametrize("sample", [(np.arange(9), 3), {"text": "x", "array": np.arange(9)}], ids=["plain", "packed"])
def test_a_signal_whose_handler_raises_costs_nothing_but_the_call(place: dict[str, Any], sample: Any) -> None:
    cached = CachedDataset([sample] * 500, **place)
    assert_same(cached[499], sample)  # what is made once is there
    before = descriptors(), mappings()
    moments = 0
    while not ends_under(SignalAt(moments + 1), functools.partial(cached.__getitem__, moments)):
        assert (descriptors(), mappings()) == before, f"at moment {moments}"
        assert_same(cached[moments], sample)  # whether it was kept or not
        moments += 1
    assert moments > 20
    again = 0
    while not ends_under(SignalAt(again + 1), lambda: cached[0]):
        again += 1
        assert_same(cached[0], sample)
    assert (descriptors(), mappings()) == before


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.usefixtures("_interrupting")
def test_a_signal_whose_handler_raises_leaves_no_cache(place: dict[str, Any]) -> None:
    made: list[CachedDataset] = []

    def make() -> None:
        made.append(CachedDataset([1, 2], **place))

    make()
    made.clear()
    before = descriptors(), mappings()
    moments = 0
    while not ends_under(SignalAt(moments + 1), make):
        moments += 1
        made.clear()
        assert (descriptors(), mappings()) == before, f"at moment {moments}"
    assert moments > 10
