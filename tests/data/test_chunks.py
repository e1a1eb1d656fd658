"""ChunkedDataset: rows of chunks, whose batches are those that torch's loader makes of the rows one by one."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import mmap
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map
from torch.utils.data.datapipes.iter import IterableWrapper

from shmloader import ChunkedDataset, ShmDataLoader, SpecMismatchError, WorkerRestartWarning
from shmloader.batches.packing import Packer
from shmloader.data.chunk import Chunk
from tests.helpers.support import assert_same, assert_same_stream, detached, let_stock_end

if TYPE_CHECKING:
    from typing_extensions import Self

# Of torch, about arrays that cannot be written, and about datapipes.
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array", "ignore:Datapipes are deprecated")


class Shards:
    """Chunks as an iterable that shards itself; an exception among them is raised."""

    def __init__(self, chunks: list[Any]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        for chunk in self.chunks if info is None else self.chunks[info.id :: info.num_workers]:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


class Lasting(Shards):
    """Chunks whose iterator goes on after an exception."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        mine = iter(self.chunks if info is None else self.chunks[info.id :: info.num_workers])
        return map(_raised, mine)


def _raised(chunk: Any) -> Any:
    if isinstance(chunk, Exception):
        raise chunk
    return chunk


# -- any chunks, cut in any way ----------------------------------------------------------------------------------------


class Pair(NamedTuple):
    picture: Any
    label: Any


class Swapped(Pair):
    """A named tuple that is not what it is made of."""

    def __new__(cls, picture: Any, label: Any) -> Self:
        return super().__new__(cls, label, picture)


class Noted(Pair):
    """A named tuple that has more than its parts."""

    def __init__(self, picture: Any, label: Any) -> None:
        self.note = len(picture)


class Slotted(Pair):
    """A named tuple that has methods, and nothing else."""

    __slots__ = ()


Make = Callable[[np.random.Generator, int], Any]
MAKES: dict[str, Make] = {}


def numbers(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Any:
    return rng.integers(0, 256, shape).astype(dtype)


def _add(name: str, make: Make) -> None:
    MAKES[name] = make


# Those first whose rows are copied by ranges.
_add("an array", lambda rng, n: numbers(rng, n, 3))
_add("numbers", lambda rng, n: numbers(rng, n, dtype=np.int64))
_add("a tuple", lambda rng, n: (numbers(rng, n, 4, 5, dtype=np.uint8), numbers(rng, n, dtype=np.int64)))
_add("a list", lambda rng, n: [numbers(rng, n, 2), torch.from_numpy(numbers(rng, n))])
_add("a dict", lambda rng, n: {"b": numbers(rng, n, 2), "a": numbers(rng, n, dtype=np.float32)})
_add("a named tuple", lambda rng, n: Pair(numbers(rng, n, 3, 3), {"id": [numbers(rng, n, dtype=np.int32)]}))
_add("an empty part", lambda rng, n: (numbers(rng, n, 2), ()))
_add("steps", lambda rng, n: (numbers(rng, 2 * n, 6)[::2, ::3], np.asfortranarray(numbers(rng, n, 4))))
_add("backwards", lambda rng, n: numbers(rng, n, 3)[::-1])
_add("read-only", lambda rng, n: np.broadcast_to(numbers(rng, 3), (n, 3)))
_add(
    "tensors",
    lambda rng, n: {
        str(dtype): torch.from_numpy(numbers(rng, n, 3)).to(dtype)
        for dtype in (torch.bool, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.int16)
    },
)
_add("tensors in steps", lambda rng, n: torch.from_numpy(numbers(rng, 3, n)).T)
_add("one object twice", lambda rng, n: [numbers(rng, n, 2)] * 2)
_add("every dtype", lambda rng, n: [numbers(rng, n, 2, dtype=code) for code in "?bBhHiIlLqefdFD"])
_add("numbers of every dtype", lambda rng, n: {code: numbers(rng, n, dtype=code) for code in "?bBhHiIlqefdFD"})
_add("truths of any byte", lambda rng, n: [numbers(rng, 2 * n, dtype=np.uint8)[::2].view(bool)] * 2)
_add("a derived named tuple", lambda rng, n: Slotted(numbers(rng, n, 3), numbers(rng, n)))
_add("numbers that are none", lambda rng, n: (_any_bits(rng, n, "f"), _any_bits(rng, n, "d"), _any_bits(rng, n, "e")))
# And those that are read one by one.
_add("other keys", lambda rng, n: {1: numbers(rng, n, 2), "a": numbers(rng, n)})
_add("a named tuple with a __new__", lambda rng, n: Swapped(numbers(rng, n, 3), numbers(rng, n, 3)))
_add("a named tuple with an __init__", lambda rng, n: Noted(numbers(rng, n, 3), numbers(rng, n)))
_add("an ordered dict", lambda rng, n: collections.OrderedDict(x=numbers(rng, n, 2), y=numbers(rng, n)))
_add("text", lambda rng, n: (numbers(rng, n), np.array([f"row {i}" for i in range(n)], "U9")))
_add("objects", lambda rng, n: np.array([{"a": i} for i in range(n)], object))
_add("nothing in a row", lambda rng, n: np.zeros((n, 0, 2)))
_add("the other byte order", lambda rng, n: (numbers(rng, n, dtype=">i4"), numbers(rng, n)))
_add("rows of the other byte order", lambda rng, n: numbers(rng, n, 2, dtype=">i4"))
_add("rows that go backwards", lambda rng, n: numbers(rng, n, 3)[:, ::-1])
_add("times", lambda rng, n: np.zeros(n, "datetime64[s]"))
_add("large numbers", lambda rng, n: numbers(rng, n, dtype=np.uint64) + np.uint64(1 << 63))
_add("a gradient", lambda rng, n: (torch.zeros(n, 2, requires_grad=True) * 2).detach().requires_grad_())
_add("sparse", lambda rng, n: torch.from_numpy(numbers(rng, n, 3)).to_sparse())
_add("a matrix", lambda rng, n: numbers(rng, n, 3).view(np.matrix))
_add("a masked array", lambda rng, n: np.ma.masked_array(numbers(rng, n, 3), numbers(rng, n, 3) > 100))


# Of which torch makes no batch.
REFUSED = "rows of the other byte order", "rows that go backwards", "times", "large numbers"


def _any_bits(rng: np.random.Generator, count: int, code: str) -> Any:
    """Returns floats of which many are NaNs, quiet and signalling."""
    dtype = np.dtype(code)
    bits = np.frombuffer(rng.bytes(count * dtype.itemsize), f"u{dtype.itemsize}")
    nans = np.array(np.nan, dtype).view(bits.dtype)
    return np.where(rng.integers(0, 2, count), bits, bits >> 9 | (nans & ~(nans >> 1 & ~nans))).view(dtype)


@pytest.mark.sampled(5)
@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", MAKES)
def test_batches_are_stocks_whatever_a_chunk_is(kind: str) -> None:
    rng = np.random.default_rng(0)
    chunks = [MAKES[kind](rng, length) for length in (5, 1, 0, 7, 20, 3, 1, 1, 0)]
    assert_same_stream(lambda: ChunkedDataset(Shards(chunks)), batch_size=6, num_workers=1)


@dataclasses.dataclass
class Cut:
    """Random chunks, and how they are loaded."""

    chunks: list[Any]
    arguments: dict[str, Any]
    lasting: bool

    def dataset(self) -> ChunkedDataset:
        return ChunkedDataset((Lasting if self.lasting else Shards)(self.chunks))


def cut(seed: int) -> Cut:
    """Draws chunks: most of one kind, some of others, errors among them."""
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    kinds = draw.choices([make for name, make in MAKES.items() if name not in REFUSED], k=draw.choice([1, 1, 2]))
    longest = draw.choice([1, 3, 10, 50])
    chunks: list[Any] = []
    for _ in range(draw.randint(0, 40)):
        kind = kinds[0] if draw.random() < 0.8 else draw.choice(kinds)
        chunks.append(kind(rng, draw.randint(0, longest)))
        if draw.random() < 0.05:
            chunks.append(draw.choice([ValueError("bad"), KeyError("key"), "no chunk", (np.zeros(2), np.zeros(3))]))
    arguments = {
        "batch_size": draw.randint(1, 20),
        "num_workers": draw.choice([0, 1, 1, 2, 3]),
        "drop_last": draw.random() < 0.3,
        "epochs": draw.choice([1, 1, 2]),
        "stop_after": draw.choice([None, None, 3]),
    }
    if arguments["num_workers"]:
        arguments |= {"prefetch_factor": draw.choice([None, 1, 4]), "persistent_workers": draw.random() < 0.5}
    return Cut(chunks, arguments, lasting=draw.random() < 0.3)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.sampled(100)
@pytest.mark.parametrize("seed", range(400))
def test_batches_are_stocks_however_rows_are_cut(seed: int) -> None:
    case = cut(seed)
    assert_same_stream(case.dataset, **case.arguments)


def test_a_kind_that_changes_in_a_batch() -> None:
    def sizes() -> list[Any]:
        return [np.full((length, 2), number, np.float32) for number, length in enumerate((10, 7, 3, 9))]

    other = [part.astype(np.float64) for part in sizes()]
    _, errors, _ = assert_same_stream(
        lambda: ChunkedDataset([*sizes(), *other, np.zeros((5, 3)), *sizes()]), batch_size=4, num_workers=1
    )
    assert [type(error) for error in errors] == [RuntimeError] * 2  # rows of two shapes, which torch does not stack


def test_batches_too_large_for_their_share_of_the_pool() -> None:
    chunks = [np.full((100, 10_000), number, np.uint8) for number in range(12)]
    stock = list(DataLoader(ChunkedDataset(chunks), batch_size=90))
    loader = ShmDataLoader(ChunkedDataset(chunks), batch_size=90, num_workers=1, max_pool_bytes=3 << 20)
    for ours, theirs in zip(loader, stock, strict=True):
        assert_same(ours, theirs)


# -- rows, and how they get into a batch -------------------------------------------------------------------------------


def test_rows_are_what_indexing_gives() -> None:
    images, labels, ids = np.zeros((2, 3)), np.arange(2, dtype=np.int16), torch.arange(2)
    first, second = ChunkedDataset([{"pair": Pair(images, labels), "ids": [ids]}])
    assert np.shares_memory(first["pair"].picture, images)
    assert type(first["pair"]) is Pair
    assert type(second["pair"].label) is np.int16
    assert (second["ids"][0].ndim, second["ids"][0].item()) == (0, 1)
    assert second["ids"][0].data_ptr() == ids.data_ptr() + 8


Counts = np.ndarray[Any, np.dtype[np.int64]]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Counts, of this process and its workers: rows that are read, and batches that are packed."""
    counts: Counts = np.ndarray((2,), np.int64, mmap.mmap(-1, 16))
    for place, (owner, name) in enumerate(((Chunk, "row"), (Packer, "lay_out"))):
        monkeypatch.setattr(owner, name, _counting(getattr(owner, name), counts[place : place + 1]))
    return counts


def _counting(method: Callable[..., Any], count: Counts) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        count[0] += 1
        return method(*arguments)

    return counted


def pictures(count: int, length: int = 300) -> list[Any]:
    return [(np.full((length, 28, 28), number, np.uint8), np.arange(length)) for number in range(count)]


@pytest.mark.parametrize("make", [tuple, Pair._make, Slotted._make])
def test_no_row_is_read_and_no_batch_packed_but_for_the_first(make: Callable[[Any], Any], counts: Counts) -> None:
    loader = ShmDataLoader(ChunkedDataset(map(make, pictures(12))), batch_size=64, num_workers=1)
    assert sum(len(labels) for _, labels in loader) == 3600
    assert counts.tolist() == [1, 2]  # what is packed too is the last batch, which is shorter
    statistics = loader.statistics()
    assert statistics is not None
    assert statistics.copies == 0


@pytest.mark.parametrize("arguments", [{"collate_fn": list}, {"batch_size": None}, {"num_workers": 0}], ids=str)
def test_elsewhere_rows_are_read_one_by_one(arguments: dict[str, Any], counts: Counts) -> None:
    assert_same_stream(lambda: ChunkedDataset(pictures(2, 10)), **({"batch_size": 4, "num_workers": 1} | arguments))
    assert counts[0] == 2 * 20


class Doubled(ChunkedDataset):
    """Has other samples than its rows."""

    def __iter__(self) -> Any:
        return (row * 2 for row in super().__iter__())


class Wrapped(IterableDataset[Any]):
    """Reads one."""

    def __init__(self, dataset: ChunkedDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        for row in self.dataset:
            yield row + 1


class Named(ChunkedDataset):
    """Has the same samples, and a name."""

    name = "rows"


@pytest.mark.parametrize(
    "wrap",
    [
        Doubled,
        Named,
        lambda chunks: Wrapped(ChunkedDataset(chunks)),
        lambda chunks: ChunkedDataset(chunks) + Doubled(chunks),
        lambda chunks: IterableWrapper(ChunkedDataset(chunks)),
    ],
    ids=["overridden", "inherited", "wrapped", "chained", "a datapipe"],
)  # fmt: skip
def test_what_is_made_of_it_is_stocks(wrap: Any) -> None:
    chunks = [np.arange(length * 2.0).reshape(length, 2) for length in (3, 9, 1)]
    assert_same_stream(lambda: wrap(chunks), batch_size=4, num_workers=1)


def replace_entry(worker: int = 0) -> None:
    default_collate_fn_map[np.ndarray] = lambda batch, *, collate_fn_map=None: [part.sum().item() for part in batch]


class Replacing(Shards):
    """Replaces an entry of torch's map while a batch is made."""

    def __iter__(self) -> Iterator[Any]:
        for number, part in enumerate(super().__iter__()):
            if number == 2:
                replace_entry()
            yield part


def test_entries_of_users_in_torchs_map_count() -> None:
    chunks = [np.ones((5, 3)) * number for number in range(6)]
    assert_same_stream(lambda: ChunkedDataset(chunks), batch_size=4, num_workers=1, worker_init_fn=replace_entry)
    batches, _, _ = assert_same_stream(lambda: ChunkedDataset(Replacing(chunks)), batch_size=4, num_workers=1)
    assert isinstance(batches[0][1], torch.Tensor)
    assert isinstance(batches[0][2], list)


# -- what chunks may be ------------------------------------------------------------------------------------------------

BAD_CHUNKS: dict[str, tuple[Any, type[Exception], str]] = {
    "text": ("pictures.npz", TypeError, r"^chunk 1 must be an array, .* and is an object of type str$"),
    "none": (None, TypeError, r"chunk 1 .* and is an object of type NoneType"),
    "a number": ((np.zeros(3), {"id": [np.zeros(3), 7]}), TypeError, r"its field \[1\]\['id'\]\[1\] is .* type int$"),
    "numbers of a list": ([1, 2], TypeError, r"its field \[0\] is an object of type int"),
    "nothing": ((), TypeError, r"chunk 1 .* and has none: \(\)"),
    "no rows": (np.array(3), ValueError, r"chunk 1 has no axis of rows"),
    "a field without rows": ({"a": np.zeros(2), "b": torch.tensor(3)}, ValueError, r"1, field \['b'\] has no axis"),
    "lengths": (
        (np.zeros(4), Pair(np.zeros((4, 2)), torch.zeros(5))),
        ValueError,
        r"^chunk 1: field \[1\]\[1\] has 5 rows, and field \[0\] has 4$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_CHUNKS)
def test_bad_chunks(bad: str) -> None:
    value, kind, text = BAD_CHUNKS[bad]
    rows = iter(ChunkedDataset([np.zeros(2), value, np.ones(1)]))
    assert [next(rows), next(rows)] == [0, 0]
    with pytest.raises(kind, match=text):
        next(rows)
    assert list(rows) == [1]
    _, errors, _ = assert_same_stream(
        lambda: ChunkedDataset([np.zeros(6), value, np.ones(9)]), batch_size=4, num_workers=1
    )
    assert [type(error) for error in errors] == [kind]


def make_chunks() -> Iterator[Any]:
    yield from ()


@pytest.mark.parametrize(
    ("chunks", "text"),
    [(3, "object of type int"), (None, "NoneType"), (make_chunks, "function; call it"), (Shards, "type; call it")],
)  # fmt: skip
def test_what_is_no_iterable(chunks: Any, text: str) -> None:
    with pytest.raises(TypeError, match=f"ChunkedDataset takes an iterable of chunks, and not .*{text}"):
        ChunkedDataset(chunks)


class Mischievous:
    """An iterator that begins again after its end, as one over a queue may."""

    def __init__(self) -> None:
        self.left = [np.zeros(3), np.ones(3)]

    def __iter__(self) -> Mischievous:
        return self

    def __next__(self) -> Any:
        if not self.left:
            self.left = [np.full(3, 7.0)]
            raise StopIteration
        return self.left.pop(0)


def test_nothing_follows_the_end() -> None:
    rows = iter(ChunkedDataset(Mischievous()))
    assert len([*rows, *rows]) == 6
    for drop_last in (False, True):
        assert_same_stream(lambda: ChunkedDataset(Mischievous()), batch_size=4, num_workers=1, drop_last=drop_last)


@pytest.mark.parametrize(
    "chunks", [list, make_chunks, lambda: [np.zeros((0, 3))] * 5], ids=["list", "generator", "empty"]
)
def test_no_rows_at_all(chunks: Callable[[], Iterable[Any]]) -> None:
    assert_same_stream(lambda: ChunkedDataset(chunks()), batch_size=4, num_workers=2)


def test_it_has_no_length() -> None:
    with pytest.raises(TypeError, match="no len"):
        len(ShmDataLoader(ChunkedDataset([np.zeros(3)])))


def test_arrays_are_chunks_too() -> None:
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, np.int16, "w+", shape=(6, 5, 3))
    mapped[:] = np.arange(mapped.size).reshape(mapped.shape)
    assert_same_stream(lambda: ChunkedDataset(mapped), batch_size=4, num_workers=1)
    assert_same_stream(lambda: ChunkedDataset(mapped[0]), batch_size=4, num_workers=1)


# -- iterables with a life of their own --------------------------------------------------------------------------------


def generated() -> Iterator[Any]:
    for number in range(5):
        yield np.full(7, number), np.arange(7)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("arguments", [{}, {"persistent_workers": True}, {"stop_after": 3}], ids=str)
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_generators_are_read_as_stock_reads_them(num_workers: int, arguments: dict[str, Any]) -> None:
    if not num_workers and "persistent_workers" in arguments:
        arguments = {}
    assert_same_stream(
        lambda: ChunkedDataset(generated()), batch_size=4, num_workers=num_workers, epochs=3, **arguments
    )


class Refilled:
    """One buffer for all chunks."""

    def __init__(self, count: int, length: int) -> None:
        self.count = count
        self.buffers = np.zeros((length, 4)), torch.zeros(length), np.zeros(length, np.int64)

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.count):
            for buffer in self.buffers:
                buffer[:] = number
            yield self.buffers
            for buffer in self.buffers:
                buffer[:] = -1


@pytest.mark.parametrize("length", [1, 3, 8, 20])
def test_a_buffer_that_is_filled_again_gives_each_row_once(length: int) -> None:
    expected = np.repeat(np.arange(30), length)
    loader = ShmDataLoader(ChunkedDataset(Refilled(30, length)), batch_size=8, num_workers=1)
    columns = zip(*[detached(batch) for batch in loader], strict=True)
    for column in map(torch.cat, columns):
        rows = column.reshape(len(column), -1)
        assert (rows == torch.from_numpy(expected)[:, None]).all()


def test_held_batches_stay_and_hold_no_chunk() -> None:
    loader = ShmDataLoader(ChunkedDataset(Refilled(40, 10)), batch_size=8, num_workers=2, num_slots=6)
    with pytest.warns(UserWarning, match="num_slots"):
        held = list(loader)
    for batch in held:
        assert_same([column.reshape(8, -1)[:, 0].long() for column in batch[:2]], [batch[2], batch[2].clone()])


class Collating(Shards):
    """Chunks that are made with torch's own function in the worker, and kept."""

    kept: list[Any]

    def __iter__(self) -> Iterator[Any]:
        self.kept = []
        for part in super().__iter__():
            self.kept.append((default_collate(list(part)), part))
            yield self.kept[-1][0]
            for ours, theirs in self.kept:
                assert ours.tolist() == theirs.tolist()


def test_chunks_that_are_collated_in_the_worker_and_kept() -> None:
    chunks = [np.full((7, 3), number) for number in range(9)]
    _, errors, _ = assert_same_stream(lambda: ChunkedDataset(Collating(chunks)), batch_size=5, num_workers=1)
    assert not errors


class Forking(Shards):
    """Forks while a batch is made, and the child comes back with other rows."""

    def __iter__(self) -> Iterator[Any]:
        for number, part in enumerate(super().__iter__()):
            child = os.fork() if number % 3 == 1 else None
            if child == 0:
                yield part * 0 - 1
            elif child is not None:
                os.waitpid(child, 0)
            yield part


def test_a_child_that_comes_back_writes_nothing_to_the_batch() -> None:
    chunks = [np.full((7, 3), number) for number in range(9)]
    ours = ShmDataLoader(ChunkedDataset(Forking(chunks)), batch_size=5, num_workers=1)
    stock = DataLoader(ChunkedDataset(Shards(chunks)), batch_size=5)
    for one, other in zip(ours, stock, strict=True):
        assert_same(one, other)


class Ending(Shards):
    """Kills its worker, once, before a certain chunk."""

    def __init__(self, chunks: list[Any], at: int, flag: Path) -> None:
        super().__init__(chunks)
        self.at = at
        self.flag = flag

    def __iter__(self) -> Iterator[Any]:
        for number, part in enumerate(super().__iter__()):
            if number == self.at:
                with contextlib.suppress(FileExistsError):  # of several workers, one dies
                    self.flag.touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            yield part


@pytest.mark.sampled(3)
@pytest.mark.parametrize("at", [0, 1, 4, 9])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_worker_that_is_replaced_goes_on_where_it_was(at: int, drop_last: bool, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"batch_size": 8, "num_workers": 2, "drop_last": drop_last}
    chunks: list[Any] = [(numbers(np.random.default_rng(n), n % 5 + 3, 6), np.arange(n % 5 + 3)) for n in range(20)]
    chunks[7] = list(chunks[7])  # its batches with others are read row by row
    stock = [detached(batch) for batch in DataLoader(ChunkedDataset(Shards(chunks)), **arguments)]
    let_stock_end()
    loader = ShmDataLoader(ChunkedDataset(Ending(chunks, at, tmp_path / "died")), worker_restarts=1, **arguments)
    with pytest.warns(WorkerRestartWarning):
        ours = [detached(batch) for batch in loader]
    assert_same(ours, stock)


# -- declared shapes ---------------------------------------------------------------------------------------------------


class Rowwise(IterableDataset[Any]):
    """The same rows, by no means known to the library."""

    def __init__(self, chunks: Iterable[Any]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(zip(*part, strict=True) for part in self.chunks)


@pytest.mark.parametrize("kind", [ChunkedDataset, Rowwise])
def test_rows_are_compared_with_their_declaration(kind: Any) -> None:
    chunks = [(np.zeros((9, 3), np.float32), np.arange(9)), (np.zeros((9, 4), np.float32), np.arange(9))]
    loader = ShmDataLoader(
        kind(chunks), 4, num_workers=1, sample_shapes=((3,), ()), sample_dtypes=(torch.float32, torch.int64)
    )
    iterator = iter(loader)
    assert [len(next(iterator)[1]) for _ in range(2)] == [4, 4]
    for number in (9, 8):  # a batch that is refused does not count
        with pytest.raises(SpecMismatchError, match=rf"sample {number}, field \[0\]: expected shape \(3,\)"):
            next(iterator)
    del iterator
