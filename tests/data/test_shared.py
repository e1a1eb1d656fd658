"""share(): what it gives back, who sees it without a copy, who gets a copy, and that nothing is left."""

from __future__ import annotations

import copy
import errno
import fcntl
import io
import mmap
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from multiprocessing import get_context, resource_sharer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from shmloader import ArrayDataset, ShmDataLoader, share, torch_private
from shmloader.data import shared_memory
from shmloader.data.shared_arrays import SharedArray
from shmloader.data.shared_memory import segment_of
from shmloader.data.shared_sequence import SharedSequence
from tests.helpers.signals import SignalAt
from tests.helpers.support import (
    PATIENCE,
    assert_same,
    assert_same_stream,
    descriptors,
    detached,
    let_stock_end,
    mappings,
    run_file,
)

# Each process of these imports torch anew.
SPAWN, FORKSERVER = (pytest.param(method, marks=pytest.mark.slow) for method in ("spawn", "forkserver"))
METHODS = ["fork", "spawn", "forkserver"]
Record = namedtuple("Record", "images names")  # noqa: PYI024 - as users have them


@pytest.fixture
def _sharer() -> Iterator[None]:
    """The thread by which multiprocessing sends descriptors through queues."""
    yield
    resource_sharer.stop()


def is_in_shared_memory(address: int) -> bool:
    """Whether an address is that of a mapping of ours, and writes to it reach others."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        begin, end = (int(number, 16) for number in span.split("-"))
        if begin <= address < end:
            return "memfd:shmloader-shared" in line and rights.endswith("s")
    return False


# -- arrays ----------------------------------------------------------------------------------------------------------

ARRAYS: dict[str, Callable[[], Any]] = {
    **{code: lambda code=code: np.arange(24).reshape(4, 6).astype(code) for code in "?bBhHiIlLqQefdgFDG"},  # type: ignore[misc]
    "another byte order": lambda: np.arange(5, dtype=">i4"),
    "columns first": lambda: np.asfortranarray(np.arange(24.0).reshape(4, 6)),
    "backwards": lambda: np.arange(24.0).reshape(4, 6)[::-2, ::-1],
    "repeated": lambda: np.broadcast_to(np.arange(3), (5, 3)),
    "read-only": lambda: np.frombuffer(b"twelve bytes", np.uint8),
    "no axis": lambda: np.array(3.5),
    "empty": lambda: np.zeros((3, 0, 2), np.int16),
    "text": lambda: np.array(["a", "bcd", "\u20ac"]),
    "bytes": lambda: np.array([b"a", b"bcd"]),
    "dates": lambda: np.array(["2020-01-01", "NaT"], "datetime64[D]"),
    "fields": lambda: np.array([(1, 2.5, "x"), (3, 4.5, "yz")], [("a", "i1"), ("b", "f8"), ("c", "U3")]),
    "aligned fields": lambda: np.zeros(3, np.dtype([("a", "i1"), ("b", "f8", (2,))], align=True)),
    "nothing in an element": lambda: np.zeros(3, "V0"),
    "shared": lambda: share(np.arange(10))[2:],
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("frozen", [False, True])
def test_an_array_is_the_same_in_shared_memory(kind: str, frozen: bool) -> None:
    source = ARRAYS[kind]()
    array = share(source, frozen=frozen)
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.shape) == (source.dtype, source.shape)
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.flags.writeable is not frozen
    assert array.tobytes() == source.tobytes() or array.dtype == np.longdouble or kind == "aligned fields"
    assert repr(array.tolist()) == repr(source.tolist())
    assert is_in_shared_memory(array.ctypes.data)
    assert not np.shares_memory(array, source)


def test_a_memory_map_is_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(12))
    array = share(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    assert array.tolist() == list(range(12))
    assert is_in_shared_memory(array.ctypes.data)
    array[0] = 5


INDICES: dict[str, tuple[Any, bool]] = {  # and whether what is found there is sent without a copy
    "a slice": (slice(2, 8, 3), True),
    "slices": ((slice(None, None, -1), slice(2)), True),
    "all": (..., True),
    "a new axis": ((None, ...), True),
    "no index": ((), True),
    "an int": (3, False),
    "ints": ((3, 2), False),
    "an int and a slice": ((slice(2), -1), False),
    "a mask": (np.arange(10) % 2 == 0, False),
    "numbers": ([3, 1], False),
}


@pytest.mark.parametrize("kind", INDICES)
def test_slices_are_shared_and_rows_are_plain(kind: str) -> None:
    index, is_shared = INDICES[kind]
    source = np.arange(40).reshape(10, 4)
    found, expected = share(source)[index], source[index]
    assert type(found) is (SharedArray if is_shared else type(expected))
    assert np.array_equal(found, expected)


def test_what_is_computed_is_plain() -> None:
    array = share(np.arange(6.0))
    assert [type(array + 1), type(array.copy()), type(array.sum()), type(np.sin(array)), type(array[2])] == [
        *(np.ndarray, np.ndarray, np.float64, np.ndarray, np.float64)
    ]
    assert [type(row) for row in share(np.zeros((2, 3)))] == [np.ndarray, np.ndarray]
    same = array
    same += 1
    assert same is array
    assert np.multiply(array, 2, out=array) is array
    assert array.tolist() == [2, 4, 6, 8, 10, 12]


# -- tensors ---------------------------------------------------------------------------------------------------------

DTYPES = [
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith(("torch.q", "torch.bits"))
]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", sorted(set(DTYPES), key=str), ids=str)
def test_a_tensor_is_the_same_in_shared_memory(dtype: torch.dtype) -> None:
    source = torch.randint(0, 2, (6 * dtype.itemsize,), dtype=torch.uint8).view(dtype).view(2, 3)
    tensor = share(source)
    assert_same(tensor, source)
    assert tensor.is_shared()
    assert is_in_shared_memory(tensor.data_ptr())


TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "no axis": lambda: torch.tensor(3),
    "empty": lambda: torch.zeros(3, 0, 2),
    "steps": lambda: torch.arange(24.0).view(4, 6)[::2, 1::3],
    "channels last": lambda: torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.arange(3).expand(4, 3),
    "conjugate": lambda: torch.tensor([1 + 2j]).conj(),
    "negative": lambda: torch.tensor([1 + 2j]).conj().imag,
    "inference": lambda: torch.inference_mode()(torch.ones)(3),
    "shared": lambda: share(torch.arange(10))[3:],
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_is_contiguous_in_shared_memory(kind: str) -> None:
    source = TENSORS[kind]()
    tensor = share(source)
    assert tensor.is_contiguous()
    assert torch.equal(tensor, source)
    assert is_in_shared_memory(tensor.data_ptr()) or not tensor.numel()
    tensor += 1
    assert torch.equal(tensor, source + 1)


# -- structures ------------------------------------------------------------------------------------------------------


def test_a_structure_is_shared_part_by_part() -> None:
    rows, labels = np.arange(6).reshape(3, 2), torch.arange(3)
    source: dict[str, Any] = OrderedDict(
        record=Record(rows, ["a", "b"]),
        nested=[rows, (labels, {"again": labels}), []],
        objects=[{"a": 1}, {"a": 2}],
        more=defaultdict(dict, deep={"rows": rows}),
    )
    shared = share(source)
    assert type(shared) is OrderedDict
    assert list(shared) == list(source)
    assert type(shared["record"]) is Record
    assert type(shared["more"]) is defaultdict
    assert shared["record"].names == ["a", "b"]
    assert shared["objects"] == source["objects"]
    assert shared["nested"][2] == []
    assert type(shared["nested"][1]) is tuple
    assert shared["nested"][0] is shared["record"].images is shared["more"]["deep"]["rows"]
    assert shared["nested"][1][0] is shared["nested"][1][1]["again"]
    assert source["record"].images is rows
    shared["nested"][0][:] = 0
    assert rows.sum() == 15


class Doubled(Record):
    """A named tuple that makes something of what it is called with."""

    def __new__(cls, images: Any, names: Any) -> Any:
        return super().__new__(cls, 2 * images, names)


def test_a_container_is_what_it_is_and_not_made_once_more() -> None:
    source: list[Any] = [Counter(), Doubled(np.arange(3), torch.ones(2))]
    source[0]["a"] = np.arange(3)
    counts, doubled = share(source)
    assert (type(counts), type(doubled)) == (Counter, Doubled)
    assert counts["a"].tolist() == [0, 1, 2]
    assert doubled.images.tolist() == [0, 2, 4]
    assert segment_of(counts["a"]) is segment_of(doubled.images) is not None


def parts_of(whole: Any) -> dict[int, Any]:
    """Returns all that is in a structure, each object once."""
    found: dict[int, Any] = {}
    left = [whole]
    while left:
        part = left.pop()
        if id(part) not in found and isinstance(part, (dict, list, tuple, np.ndarray)):
            found[id(part)] = part
            left += [] if isinstance(part, np.ndarray) else part.values() if isinstance(part, dict) else part
    return found


WRAPPERS: list[Callable[[Any], Any]] = [
    lambda one: [one, one],
    lambda one: {"a": one, "b": (one, one)},
    lambda one: [one, {1: one}],
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_what_occurs_often_is_looked_at_once(wrap: Callable[[Any], Any]) -> None:
    """Each part occurs twice in the next one, so that the innermost is reached in 2**20 ways, or more."""
    wrapped: Any = [np.arange(3)]
    for _ in range(20):
        wrapped = wrap(wrapped)
    parts, expected = parts_of(share(wrapped)), parts_of(wrapped)
    assert len(parts) == len(expected)
    (array,) = (part for part in parts.values() if isinstance(part, np.ndarray))
    assert array.tolist() == [0, 1, 2]


def test_a_list_in_itself_is_an_object_like_any_other() -> None:
    data: list[Any] = ["a"]
    data.append(data)
    shared = share(data)
    assert shared[0] == "a"
    item = shared[1]
    assert item[0] == "a"
    assert item[1] is item


def test_thousands_of_arrays_take_one_descriptor() -> None:
    before = descriptors().total(), mappings()
    shared = share([np.full(number % 7, number) for number in range(5000)])
    assert (descriptors().total(), mappings()) == (before[0] + 1, before[1] + 1)
    assert all(array.tolist() == [number] * (number % 7) for number, array in enumerate(shared))
    kept = shared[3]
    del shared
    assert kept.tolist() == [3, 3, 3]
    many = share({number: [number] for number in range(500)})
    assert descriptors().total() == before[0] + 2
    assert all(items == [number] for number, items in many.items())


LISTS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "numbers": ([1, 2], {}, SharedSequence),
    "a tuple": ((1, "a"), {}, SharedSequence),
    "nothing": ([], {}, SharedSequence),
    "lists of nothing": ([[], {}], {}, SharedSequence),
    "dicts with arrays": ([{"a": np.zeros(2), "b": 1}], {}, SharedSequence),
    "pairs": ([(np.zeros(2), 1)] * 2, {}, SharedSequence),
    "arrays": ([np.zeros(2)], {}, list),
    "arrays in tuples": (([np.zeros(2)], torch.zeros(1)), {}, tuple),
    "dicts of arrays": ([{"a": np.zeros(2)}], {}, list),
    "arrays as objects": ([np.zeros(2)], {"as_objects": True}, SharedSequence),
    "a mixture as objects": ([np.zeros(2), None], {"as_objects": True}, SharedSequence),
}


@pytest.mark.parametrize("kind", LISTS)
def test_what_a_list_is(kind: str) -> None:
    source, options, expected = LISTS[kind]
    shared: Any = share(share(source, **options) if expected is SharedSequence else source, **options)
    assert type(shared) is expected
    assert len(shared) == len(source)
    assert repr(shared if expected is not SharedSequence else list(shared)).replace("SharedArray", "array") == repr(
        list(source) if expected is SharedSequence else source
    )


# -- sequences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_sequence_reads_as_a_list_does(seed: int) -> None:
    draw = random.Random(seed)
    plain: list[Any] = [
        draw.choice([number, "x" * number, None, {"a": [number]}]) for number in range(draw.randrange(40))
    ]
    shared: Any = share(plain)
    for _ in range(200):
        assert len(shared) == len(plain)
        assert shared == plain
        assert list(reversed(shared)) == plain[::-1]
        index = draw.randrange(-len(plain) - 3, len(plain) + 3)
        try:
            expected = plain[index]
        except IndexError:
            with pytest.raises(IndexError):
                shared[index]
        else:
            assert shared[index] == shared[np.int64(index)] == shared[torch.tensor(index)] == expected
            assert shared.index(expected) == plain.index(expected)
            assert expected in shared
        ends = [draw.choice([None, draw.randrange(-45, 45)]) for _ in range(2)]
        part = slice(ends[0], ends[1], draw.choice([None, 1, 2, -1, -3]))
        assert shared[part] == plain[part]
        if draw.random() < 0.1:
            shared, plain = shared[part], plain[part]


def test_a_sequence_is_read_only_and_its_items_are_new() -> None:
    shared = share([{"a": 1}, [2]])
    shared[0]["a"] = 5
    assert shared == [{"a": 1}, [2]]
    assert shared == ({"a": 1}, [2])
    assert shared == share(({"a": 1}, [2]))
    assert shared != [{"a": 1}]
    assert shared != "ab"
    with pytest.raises(TypeError, match="item assignment"):
        shared[0] = 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(shared)
    with pytest.raises(IndexError, match="index 2 is out of range: the sequence has 2 items"):
        shared[2]
    with pytest.raises(TypeError, match="indices must be integers or slices, not str"):
        shared["a"]
    assert repr(shared) == "<SharedSequence of 2 items>"


def test_large_and_empty_items(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [b"", os.urandom(5_000_000), b"x", "", os.urandom(1_500_000)]
    assert share(items) == items
    monkeypatch.setattr("shmloader.data.shared_sequence._MOST_READ", 1000)
    assert share(items) == items


def test_items_that_refer_to_themselves() -> None:
    items: list[Any] = [1]
    items.append(items)
    shared = share(items)
    assert shared[1][1][1][0] == 1


# -- other processes -------------------------------------------------------------------------------------------------


def everything() -> dict[str, Any]:
    return {
        "array": np.arange(12.0).reshape(4, 3),
        "tensor": torch.arange(5, dtype=torch.bfloat16),
        "objects": [{"number": number} for number in range(10)],
        "record": Record(np.arange(4, dtype=np.int16), ["x", "y"]),
        "pair": [torch.zeros(2), np.array(["text"])],
    }


def views(data: dict[str, Any]) -> dict[str, Any]:
    return {
        **data,
        "rows": data["array"][::-2, 1:],
        "items": data["objects"][7:2:-2],
        "part": data["tensor"][1:3],
        "plain": np.asarray(data["array"])[1],
    }


def answer(data: dict[str, Any], sender: Any) -> None:
    """Writes to all that can be written to, and says what it was."""
    found = {"copy": pickle.dumps(data), "descriptors": descriptors()["/memfd"], "mappings": mappings()}
    data["array"][:] += 1
    data["rows"][...] *= 2
    data["tensor"] += 1
    data["part"] *= 4
    data["record"].images[0] = 77
    data["plain"][:] = -1
    sender.send(found)
    sender.recv()
    del data
    sender.send({"descriptors": descriptors()["/memfd"], "mappings": mappings()})


def asked(process: Any, receiver: Any, sender: Any) -> tuple[Any, Any]:
    process.start()
    sender.close()
    found = receiver.recv()
    receiver.send(None)
    left = receiver.recv()
    receiver.close()
    process.join()
    assert process.exitcode == 0
    process.close()
    return found, left


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", METHODS)
def test_a_process_has_the_same_memory(method: str) -> None:
    data = views(share(everything()))
    context = get_context(method)
    receiver, sender = context.Pipe()
    process = context.Process(target=answer, args=(data, sender))  # type: ignore[attr-defined]
    expected = views(everything())
    addresses = [data["tensor"].data_ptr(), data["array"].ctypes.data]
    found, left = asked(process, receiver, sender)
    del process
    assert_same(pickle.loads(found["copy"])["array"], expected["array"])
    assert repr(pickle.loads(found["copy"])) == repr(expected)
    if method != "fork":  # a forked child has what else the test has
        assert (found["descriptors"], found["mappings"]) == (4, 4)
        assert left == {"descriptors": 0, "mappings": 0} or left == {"descriptors": 4, "mappings": 4}
    expected["array"][:] += 1
    expected["rows"][...] *= 2
    expected["tensor"] += 1
    expected["part"] *= 4
    expected["record"].images[0] = 77
    if method == "fork":  # rows are plain: pickled, they are copies
        expected["plain"][:] = -1
    for name in ("array", "tensor", "record", "rows", "part", "items"):
        assert repr(pickle.loads(pickle.dumps(data[name]))) == repr(expected[name])
    assert [data["tensor"].data_ptr(), data["array"].ctypes.data] == addresses


def forward(queue: Any, back: Any) -> None:
    """Sends on what comes, and something of its own."""
    while (data := queue.get()) is not None:
        back.put(data)
    back.put(share({"array": np.arange(5), "tensor": torch.arange(5), "objects": ["own"]}))
    queue.get()  # that it has come


@pytest.mark.usefixtures("_resource_tracker", "_sharer")
@pytest.mark.parametrize("method", ["fork", SPAWN])
def test_through_queues_and_back(method: str) -> None:
    data = share(everything())
    context: Any = get_context(method)
    queue, back = context.Queue(), context.Queue()
    process = context.Process(target=forward, args=(queue, back))
    process.start()
    before = descriptors()["/memfd"]
    queue.put(views(data))
    again = back.get(timeout=PATIENCE)
    again["array"][0, 0] = 55
    again["rows"][0, 0] = 66
    again["tensor"][0] = 77
    assert [data["array"][0, 0], data["array"][3, 1], data["tensor"][0]] == [55, 66, 77]
    assert again["items"] == data["objects"][7:2:-2]
    assert descriptors()["/memfd"] == before  # a process has each segment once
    queue.put(None)
    own = back.get(timeout=PATIENCE)
    queue.put(None)
    process.join()
    # Its maker has ended.
    assert [own["array"].tolist(), own["tensor"].tolist(), list(own["objects"])] == [[*range(5)], [*range(5)], ["own"]]
    own["array"][0] = own["tensor"][0] = 9
    process.close()
    for one in (queue, back):
        one.close()
        one.join_thread()


def hold(data: Any, sender: Any) -> None:
    sender.send(int(data["array"][0]))
    signal.pause()


@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", ["fork", SPAWN, FORKSERVER])
def test_a_process_that_is_killed_leaves_it_to_the_others(method: str) -> None:
    data = share({"array": np.arange(4), "objects": [1, 2]})
    context: Any = get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=hold, args=(data, sender)) for _ in range(2)]
    for process in processes:
        process.start()
        assert receiver.recv() == 0
    for process in processes:
        process.kill()
        process.join()
        process.close()
    receiver.close()
    sender.close()
    assert data["array"].tolist() == [0, 1, 2, 3]
    assert data["objects"] == [1, 2]


@pytest.mark.long
def test_no_message_is_printed_whoever_ends_first() -> None:
    ended = run_file(
        """
        import multiprocessing, time
        import numpy as np, torch
        from shmloader import share

        def child(data, gate):
            gate.recv()  # raises when the parent is gone

        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            data = share({"a": np.arange(5), "t": torch.arange(5), "o": [1, 2]})
            receiver, sender = multiprocessing.Pipe()
            sender.send(None)
            process = multiprocessing.Process(target=child, args=(data, receiver))
            process.start()
            process.join()
            process = multiprocessing.Process(target=child, args=(data, receiver), daemon=True)
            process.start()
            print(process.exitcode)
        """
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("None\n", "", 0)


# -- by value --------------------------------------------------------------------------------------------------------


def saved(data: Any) -> Any:
    file = io.BytesIO()
    torch.save(data, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [lambda data: pickle.loads(pickle.dumps(data)), lambda data: pickle.loads(pickle.dumps(data, 2)), saved]
)
def test_what_is_pickled_for_no_process_is_a_copy(copied: Callable[[Any], Any]) -> None:
    data = views(share(everything()))
    again = copied(data)
    assert [type(again[name]) for name in ("array", "rows", "objects", "items")] == [np.ndarray, np.ndarray, list, list]
    assert repr(again) == repr(views(everything()))
    assert not is_in_shared_memory(again["tensor"].data_ptr())
    again["array"][:] = -1
    again["tensor"][:] = -1
    assert data["array"].sum() > 0
    assert data["tensor"].sum() > 0


def test_copies_are_copies() -> None:
    data = share(everything())
    again = copy.deepcopy(data)
    assert type(again["array"]) is type(copy.copy(data["array"])) is np.ndarray
    again["array"][:] = -1
    again["tensor"][:] = -1
    assert data["array"].sum() > 0
    assert data["tensor"].sum() > 0
    assert again["objects"] is data["objects"]  # nothing can be written to it
    assert copy.copy(data["objects"]) is data["objects"]


# -- frozen ----------------------------------------------------------------------------------------------------------


def try_to_write(data: Any, sender: Any) -> None:
    try:
        data[0] = 1
    except ValueError as error:
        sender.send(str(error))


def expect_to_be_refused(array: Any, method: str) -> None:
    """Makes sure that a process that is sent an array cannot write to it."""
    context: Any = get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=try_to_write, args=(array, sender))
    process.start()
    sender.close()
    assert "read-only" in receiver.recv()
    process.join()
    process.close()
    receiver.close()


@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", ["fork", SPAWN, FORKSERVER])
def test_frozen_arrays_cannot_be_written_to(method: str) -> None:
    array = share(np.arange(4), frozen=True)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    expect_to_be_refused(array[:2], method)


@pytest.mark.parametrize("kind", ["frozen", "objects"])
def test_nobody_can_write_to_the_file_either(kind: str) -> None:
    shared = share(np.arange(4), frozen=True) if kind == "frozen" else share([1, 2])
    segment = segment_of(shared) if isinstance(shared, np.ndarray) else shared._segment
    assert segment is not None
    if not fcntl.fcntl(segment.fd, fcntl.F_GET_SEALS) & shared_memory._SEAL_FUTURE_WRITE:
        pytest.skip("a kernel before 5.1")
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(segment.fd, b"x", 0)
    with pytest.raises(OSError, match="not permitted"):
        mmap.mmap(segment.fd, 1)


def test_no_file_can_be_cut() -> None:
    array = share(np.arange(4))
    segment = segment_of(array)
    assert segment is not None
    for nbytes in (0, 1 << 20):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(segment.fd, nbytes)


def test_a_view_that_was_made_read_only_stays_so() -> None:
    array = share(np.arange(4))[1:]
    array.flags.writeable = False
    expect_to_be_refused(array, "fork")


# -- datasets --------------------------------------------------------------------------------------------------------


class Pictures(Dataset[Any]):
    def __init__(self, images: Any, labels: Any, names: Any) -> None:
        self.data = {"images": images, "labels": labels, "names": names}

    def __len__(self) -> int:
        return len(self.data["names"])

    def __getitem__(self, index: int) -> Any:
        data = self.data
        return data["images"][index], data["labels"][index], data["names"][index]["name"]


def pictures(wrap: Callable[[Any], Any] = share) -> Pictures:
    images = np.arange(20 * 6, dtype=np.uint8).reshape(20, 2, 3)
    names = [{"name": f"picture {number}"} for number in range(20)]
    return Pictures(wrap(images), wrap(torch.arange(20)), wrap(names))


@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", ["fork", SPAWN, FORKSERVER])
def test_batches_are_those_of_the_data_itself(method: str) -> None:
    arguments: dict[str, Any] = {"batch_size": 3, "num_workers": 2, "shuffle": True}
    shared = assert_same_stream(pictures, epochs=2, multiprocessing_context=method, **arguments)
    plain = assert_same_stream(lambda: pictures(lambda data: data), epochs=2, **arguments)
    assert_same(shared[0], plain[0])


class Windows(Dataset[Any]):
    """Slices, which are whole batches."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return {"rows": self.rows[index : index + 4], "sorted": self.rows[index : index + 4].take([1, 0])}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("make", [DataLoader, ShmDataLoader])
@pytest.mark.parametrize("rows", [np.arange(9), np.array(list("abcdefghi"))], ids=["numbers", "text"])
def test_slices_that_are_batches_are_converted_as_any_array(
    rows: Any, make: Any, num_workers: int, frozen: bool
) -> None:
    shared = make(Windows(share(rows, frozen=frozen)), batch_size=None, num_workers=num_workers)
    for batch, expected in zip(shared, DataLoader(Windows(rows), batch_size=None), strict=True):
        for name in expected:
            assert isinstance(batch[name], type(expected[name]))
            assert batch[name].tolist() == expected[name].tolist()
    let_stock_end()


class Seen(Dataset[Any]):
    """What workers see of two arrays, whoever writes to them."""

    def __init__(self, array: Any, tensor: Any) -> None:
        self.array, self.tensor = array, tensor

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        self.array[2 + index] = 7
        return int(self.array[0]), int(self.tensor[0])


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (DataLoader, "fork"),
        *((ShmDataLoader, method) for method in METHODS),
        *(pytest.param(DataLoader, method, marks=pytest.mark.slow) for method in ("spawn", "forkserver")),
    ],
)
def test_workers_see_what_is_written_and_are_seen(method: str, kind: Any) -> None:
    dataset = Seen(share(np.zeros(4)), share(torch.zeros(4)))
    loader = kind(dataset, None, num_workers=1, multiprocessing_context=method, persistent_workers=True)
    assert [list(seen) for seen in loader] == [[0, 0]] * 2
    assert dataset.array.tolist() == [0, 0, 7, 7]
    dataset.array[0] = dataset.tensor[0] = 5
    assert [list(seen) for seen in loader] == [[5, 5]] * 2
    del loader
    let_stock_end()


@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", ["fork", "spawn", FORKSERVER])
def test_an_array_dataset_keeps_them_shared(method: str) -> None:
    array, tensor = share(np.arange(12.0)), share(torch.arange(12, dtype=torch.bfloat16))
    dataset = ArrayDataset(array, tensor, array[::-1], tensor.view(12, 1))
    loader = ShmDataLoader(dataset, 4, num_workers=1, multiprocessing_context=method, persistent_workers=True)
    before = [detached(batch) for batch in loader]
    array += 1
    tensor += 1
    assert_same([[part + 1 for part in batch] for batch in before], list(loader))
    assert_same(pickle.loads(pickle.dumps(dataset))[3], dataset[3])
    del loader


def test_a_tensor_dataset_keeps_them_shared() -> None:
    assert_same_stream(lambda: TensorDataset(share(torch.arange(30).view(10, 3))), batch_size=4, num_workers=2)


@pytest.mark.parametrize("kind", [DataLoader, ShmDataLoader])
def test_a_batch_is_the_loops_own_memory(kind: Any) -> None:
    array, items = share(np.arange(12).reshape(6, 2)), share([[1], [2]])
    loader = kind(range(0, 6, 2), 1, num_workers=1, collate_fn=lambda batch: (array[batch[0] :], items[:1]))
    batches = list(loader)
    let_stock_end()
    for number, (rows, part) in enumerate(batches):
        assert type(rows) is np.ndarray
        assert rows.tolist() == array[2 * number :].tolist()
        assert part == [[1]]
        assert type(part) is list
        rows[:] = -1
    assert array.min() == 0


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_frozen_rows_are_collated() -> None:
    assert_same_stream(lambda: list(share(np.arange(12).reshape(6, 2), frozen=True)), batch_size=4, num_workers=1)


# -- bad input -------------------------------------------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


def nested() -> dict[str, Any]:
    data: dict[str, Any] = {}
    data["data"] = data
    return data


def looped() -> list[Any]:
    data: list[Any] = [np.zeros(1)]
    data.append(data)
    return data


def deep() -> dict[str, Any]:
    data: dict[str, Any] = {"data": np.zeros(1)}
    for _ in range(100):
        data = {"data": data}
    return data


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "text": (lambda: share("abc"), "and obj is of type str"),
    "bytes": (lambda: share(b"abc"), "and obj is of type bytes"),
    "None": (lambda: share(None), "and obj is of type NoneType"),
    "a bool": (lambda: share(True), "and obj is of type bool"),
    "a scalar": (lambda: share(np.float32(3)), "and obj is of type float32"),
    "a range": (lambda: share(range(3)), "and obj is of type range"),
    "a deque": (lambda: share(deque([1])), "and obj is of type deque"),
    "a generator": (lambda: share(iter([1])), "and obj is of type list_iterator"),
    "a number in a dict": (lambda: share({"a": {"b": 1}}), r"and obj\['a'\]\['b'\] is of type int"),
    "a text in a record": (lambda: share(Record(np.zeros(1), "x")), r"and obj\[1\] is of type str"),
    "a dict in itself": (lambda: share(nested()), r"cannot take obj: it contains itself, as obj\['data'\]$"),
    "a list of arrays in itself": (
        lambda: share({"a": looped()}),
        r"cannot take obj\['a'\]: it contains .* obj\['a'\]\[1\]$",
    ),
    "a dict that is nested deep": (lambda: share(deep()), r"obj\['data'\].* nested too deep"),
    "an array beside others": (lambda: share([np.zeros(1), "x"]), r"obj\[0\] is an array .*as_objects=True"),
    "a tensor beside others": (lambda: share(["x", torch.zeros(1)]), r"obj\[1\] is an array or tensor"),
    "an array of objects": (lambda: share(np.array([{}])), r"array of Python objects \(dtype object\)"),
    "a field of objects": (lambda: share([np.zeros(1, [("a", "O")])]), r"obj\[0\] is an array of Python objects"),
    "a masked array": (lambda: share(np.ma.zeros(3)), "obj is of type MaskedArray"),
    "sparse": (lambda: share(torch.eye(2).to_sparse()), r"obj is Tensor, torch.sparse_coo, torch.float32, on cpu"),
    "meta": (lambda: share({"a": torch.ones(2, device="meta")}), r"obj\['a'\] is Tensor.*on meta"),
    "quantized": (
        lambda: share(torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint8)),
        r"obj is Tensor, torch.strided, torch.quint8",
    ),
    "gradient": (lambda: share(torch.ones(2, requires_grad=True)), "and requires grad"),
    "a parameter": (lambda: share(torch.nn.Parameter(torch.ones(2), False)), "obj is Parameter"),
    "a frozen tensor": (
        lambda: share([torch.ones(2)], frozen=True),
        r"obj\[0\] is a tensor, and torch has no read-only",
    ),
    "frozen, text": (lambda: share([1], frozen="no"), "frozen must be a bool, and is of type str"),  # type: ignore[call-overload]
    "as_objects, None": (lambda: share([1], as_objects=None), "as_objects must be a bool, and is of type NoneType"),  # type: ignore[call-overload]
    "a function": (lambda: share([1, lambda: 0]), r"obj\[1\] has to be pickled, and the function .*lambda.* cannot"),
    "a lock": (
        lambda: share({"a": [{"lock": threading.Lock()}]}),
        r"obj\['a'\]\[0\] has to be pickled, and the _thread.lock at \['lock'\]",
    ),
    "what raises": (lambda: share([1, 2, Unpicklable()]), r"obj\[2\] has to be pickled, and the .*Unpicklable cannot"),
}


@pytest.mark.filterwarnings("ignore:.*quantize", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_shared_is_named(kind: str) -> None:
    make, text = BAD[kind]
    with pytest.raises(TypeError, match=text):
        make()


class Interrupting:
    """Is pickled without fault, except that a signal comes the first time."""

    came = False

    def __reduce__(self) -> Any:
        if not Interrupting.came:
            Interrupting.came = True
            signal.raise_signal(signal.SIGUSR1)
        return int, ()


def test_what_a_signals_handler_raises_is_not_taken_for_a_fault_of_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> None:
        raise TimeoutError("too late")

    monkeypatch.setattr(Interrupting, "came", False)
    before = signal.signal(signal.SIGUSR1, late)
    try:
        with pytest.raises(TimeoutError, match="too late"):
            share([1, Interrupting()])
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [np.zeros(1 << 20), torch.zeros(1 << 20), ["x" * (1 << 20)] * 9], ids=type)
def test_memory_that_is_not_there(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "available_memory", lambda: shared_memory._RESERVE + (1 << 20))
    with pytest.raises(MemoryError, match=r"takes \d{7} more bytes of shared memory, and 1048576 bytes are av"):
        share(data)


def in_a_child(act: Callable[[], Any]) -> Any:
    """Returns what ``act`` returns in a forked process, or the text of what it raises there."""
    receiver, sender = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=lambda: sender.send(act()))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    process.close()
    receiver.close()
    return found


def what_fails(*data: Any) -> list[str]:
    texts = []
    for one in data:
        try:
            share(one)
        except (MemoryError, OSError, RuntimeError) as error:
            texts.append(str(error))
    return texts


def test_a_limit_on_file_sizes() -> None:
    def act() -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        texts = what_fails(np.zeros(1 << 20), torch.zeros(1 << 20), ["x" * (1 << 20)] * 9)
        return texts, share(np.arange(3)).tolist(), descriptors()["/memfd"], mappings()

    (array, tensor, objects), rest, *left = in_a_child(act)
    assert array == "share() takes 8388608 bytes in one file, and the limit (ulimit -f) is 1048576 bytes"
    assert tensor.startswith("share() takes 4194304 bytes")
    assert objects.startswith("share() got no more than 1048576 bytes of shared memory: ")
    assert (rest, left) == ([0, 1, 2], [0, 0])


def test_a_limit_on_addresses() -> None:
    data = np.zeros(100_000_000, np.uint8)

    def act() -> Any:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 50_000_000, resource.RLIM_INFINITY))
        return what_fails(data), descriptors()["/memfd"], mappings()

    (text,), *left = in_a_child(act)
    assert "100000000 bytes" in text
    assert left == [0, 0]


def test_a_limit_on_descriptors() -> None:
    def act() -> Any:
        texts = []
        for free in range(4):
            lowest = os.open("/", os.O_RDONLY)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, 1000))
            texts.append(what_fails(np.zeros(3), torch.zeros(3), [1]))
            resource.setrlimit(resource.RLIMIT_NOFILE, (500, 1000))
        return texts, descriptors()["/memfd"], mappings()

    texts, *left = in_a_child(act)
    assert [len(each) for each in texts] == sorted((len(each) for each in texts), reverse=True)
    assert len(texts[0]) == 3
    assert texts[3] == []
    assert all("Too many open files" in text for each in texts for text in each)
    assert left == [0, 0]


def test_a_platform_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="needs memfd_create") as caught:
        share([1])
    assert caught.value.errno == errno.ENOSYS


def test_a_kernel_that_cannot_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert share(np.arange(3), frozen=True).tolist() == [0, 1, 2]


# -- torch's other ways ----------------------------------------------------------------------------------------------


def test_torch_does_not_move_it_to_a_file_with_a_name() -> None:
    tensor = share(torch.arange(3))
    address = tensor.data_ptr()
    tensor.share_memory_()
    strategy = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        with pytest.raises(RuntimeError, match=r"has no name.*set_sharing_strategy"):
            multiprocessing.reduction.ForkingPickler.dumps(tensor[1:])
    finally:
        torch.multiprocessing.set_sharing_strategy(strategy)
    assert tensor.data_ptr() == address


def test_a_torch_that_makes_no_storage_of_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "_storage_of_descriptor", None)
    shared = share([torch.arange(3), torch.ones(2, 2)])
    assert shared[0].is_shared()
    assert_same(shared, [torch.arange(3), torch.ones(2, 2)])


# -- signals -----------------------------------------------------------------------------------------------------------


class Interruption(TimeoutError):
    """What a signal's handler raises, which is an OSError."""


def shared_under(trace: SignalAt, data: Any) -> bool:
    """Returns whether data were shared and not interrupted."""
    before = sys.gettrace()
    shared = None
    try:
        sys.settrace(trace)
        shared = share(data)
    except Interruption:
        pass
    finally:
        sys.settrace(before)
    assert shared is None or trace.left > 0, "what the handler raised was lost"
    return shared is not None


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize("data", [np.arange(3), torch.arange(3), ["a", 1]], ids=["an array", "a tensor", "objects"])
def test_a_signal_whose_handler_raises_leaves_nothing(data: Any) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise Interruption

    handler = signal.signal(signal.SIGUSR1, interrupt)
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    try:
        share(data)  # what is made once is there
        before = descriptors(), mappings()
        moments = 0
        while not shared_under(SignalAt(moments + 1), data):
            moments += 1
            assert (descriptors(), mappings()) == before, f"at moment {moments}"
        assert moments > 50
        assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    finally:
        signal.signal(signal.SIGUSR1, handler)
