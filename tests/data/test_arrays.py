"""ArrayDataset: rows of arrays, what is an index of one, and memory maps that are opened again in other processes."""

from __future__ import annotations

import collections
import os
import pickle
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from shmloader import ArrayDataset, ShmDataLoader
from shmloader.data.gather import gather, row_numbers
from tests.helpers.support import assert_same, assert_same_stream, detached, let_stock_end

LENGTH = 50


def test_samples_of_arrays_are_rows() -> None:
    array, tensor = np.arange(12, dtype=np.int16).reshape(4, 3), torch.arange(4.0)
    dataset = ArrayDataset(array, tensor)
    assert len(dataset) == 4
    row, number = dataset[2]
    assert (row.tolist(), row.dtype, number.item(), number.dtype) == ([6, 7, 8], torch.int16, 2.0, torch.float32)
    row += 1
    assert array[2].tolist() == [6, 7, 8]
    with pytest.raises(IndexError):
        dataset[4]


BAD_ARRAYS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "none": (lambda: ArrayDataset(), ValueError, r"one array or more.*\[\]"),
    "lengths": (lambda: ArrayDataset(np.zeros(3), np.zeros(4)), ValueError, r"all of one length.*\[3, 4\]"),
    "a list": (lambda: ArrayDataset([1, 2]), TypeError, r"arrays\[0\] is neither.*list"),  # type: ignore[arg-type]
    "a number": (lambda: ArrayDataset(np.array(3)), ValueError, r"arrays\[0\] has no axis"),
    "strings": (lambda: ArrayDataset(np.zeros(3), np.array(["a"] * 3)), TypeError, r"arrays\[1\] is of dtype <U1"),
    "the other byte order": (lambda: ArrayDataset(np.zeros(3, ">f4")), TypeError, r"dtype >f4"),
    "sparse": (lambda: ArrayDataset(torch.eye(3).to_sparse()), TypeError, r"arrays\[0\] is not a dense"),
    "gradient": (lambda: ArrayDataset(torch.ones(3, requires_grad=True)), TypeError, r"not a dense"),
    "meta": (lambda: ArrayDataset(torch.ones(3, device="meta")), TypeError, r"not a dense"),
}


@pytest.mark.parametrize("bad", BAD_ARRAYS)
def test_bad_arrays(bad: str) -> None:
    make, error, text = BAD_ARRAYS[bad]
    with pytest.raises(error, match=text):
        make()


def test_stock_reads_it_too() -> None:
    rows = collections.deque(DataLoader(ArrayDataset(np.arange(LENGTH)), batch_size=LENGTH, num_workers=1))
    let_stock_end()
    assert rows[0][0].tolist() == list(range(LENGTH))


class Doubled(np.ndarray[Any, Any]):
    """Has other rows than its elements."""

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index] * 2


SUBCLASSES: dict[str, Callable[[], Any]] = {
    "a matrix": lambda: np.matrix(np.arange(LENGTH * 3).reshape(LENGTH, 3)),
    "masked": lambda: np.ma.masked_array(np.arange(LENGTH), np.arange(LENGTH) % 3 == 0),
    "one with rows of its own": lambda: np.arange(LENGTH * 2).reshape(LENGTH, 2).view(Doubled),
    "records of one field": lambda: np.rec.array(np.arange(LENGTH)),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", SUBCLASSES)
def test_of_subclasses_the_elements_count(kind: str) -> None:
    array = SUBCLASSES[kind]()
    batches, _, _ = assert_same_stream(lambda: ArrayDataset(array), batch_size=4, num_workers=1)
    assert torch.cat([rows for (rows,) in batches[0]]).tolist() == np.asarray(array).tolist()


# -- indices -----------------------------------------------------------------------------------------------------------

CERTAIN: dict[str, Any] = {
    "ints": [3, 0, 9, 9],
    "negative": [-1, 3, -10],
    "a tuple": (1, -2),
    "a range": range(9, -3, -1),
    "one": [0],
    "none": [],
    **{f"{code} numbers": [np.dtype(code).type(n) for n in (0, 9, 3)] for code in "bBhHiIlLqQ"},
    **{f"{code} array": np.array([0, 9, 3], code) for code in "bBhHiIl"},
    "negative numbers": [np.int64(-1), np.int8(-10), 4],
    "negative array": np.array([-1, -10, 4], np.int16),
    "an array in steps": np.arange(10)[::-2],
    "an array of the other byte order": np.arange(10, dtype=">i4"),
    "an empty array": np.array([], np.int64),
    **{f"{dtype} tensors": list(torch.tensor([0, -1, 3], dtype=dtype)) for dtype in (torch.int8, torch.int64)},
    **{f"{dtype} tensor": torch.tensor([0, -1, 3], dtype=dtype) for dtype in (torch.int16, torch.int32)},
    "a tensor in steps": torch.arange(10)[::3],
}

# What is one row to nobody, or to torch and not to numpy, or is not worth the search.
UNCERTAIN: dict[str, Any] = {
    "too large": [0, 10],
    "too small": [0, -11],
    "huge": [0, 1 << 63],
    "huge the other way": [-(1 << 63), -(1 << 63) - 1],
    "a huge number": [np.uint64((1 << 64) - 1)],
    "an array of huge ones": np.array([(1 << 64) - 1], np.uint64),
    "bools": [1, True],
    "numpy's bools": [np.True_],
    "an array that could have such": np.array([3], np.uint64),
    "an array of bools": np.array([True, False]),
    "tensors of bools": [torch.tensor(True)],
    "bytes in tensors": [torch.tensor(3, dtype=torch.uint8)],
    "a tensor of bytes": torch.tensor([3], dtype=torch.uint8),
    "tensors with an axis": [torch.tensor([3])],
    "arrays without one": [np.array(3)],
    "rows of an array": np.array([[1, 2]]),
    "an array without an axis": np.array(3),
    "a tensor without an axis": torch.tensor(3),
    "floats": [1.0],
    "an array of floats": np.array([1.0]),
    "slices": [slice(0, 2)],
    "lists": [[1]],
    "eight bytes": bytes(8),
    "eight bytes that change": bytearray(8),
    "text": "ab",
    "a dict": {1: 2},
    "an iterator": iter([1]),
    "a tensor without memory": torch.empty(3, dtype=torch.int64, device="meta"),
    "a number": 3,
}


@pytest.mark.parametrize("kind", CERTAIN)
def test_indices_that_mean_rows(kind: str) -> None:
    found = row_numbers(CERTAIN[kind], 10)
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == [np.arange(10)[index] for index in CERTAIN[kind]]
    assert found.tolist() == [torch.arange(10)[index] for index in CERTAIN[kind]]


@pytest.mark.parametrize("kind", UNCERTAIN)
def test_indices_that_may_mean_something_else(kind: str) -> None:
    assert row_numbers(UNCERTAIN[kind], 10) is None
    dataset = ArrayDataset(np.zeros((10, 2)))
    assert dataset.__getitems_into__(UNCERTAIN[kind], (np.zeros((1, 2)),)) is NotImplemented


@pytest.mark.parametrize("rows", [np.zeros((10, 3, 4)), np.zeros((10, 4, 3)).transpose(0, 2, 1)])
@pytest.mark.parametrize("shape", [(2, 4), (3, 3, 4), (1, 3, 4), (2, 2, 3, 4), (2, 3, 1), (2,)])
def test_rows_go_into_their_own_shape_only(rows: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"out|into"):
        gather(rows, np.array([0, 1]), np.zeros(shape))
    assert ArrayDataset(rows).__getitems_into__([0, 1], (np.zeros(shape),)) is NotImplemented


def test_elements_between_words_are_gathered() -> None:
    raw = np.arange(1 + LENGTH * 12, dtype=np.uint8)[1:]
    rows = raw.view(np.float32).reshape(LENGTH, 3)
    assert not rows.flags.aligned
    assert_same_stream(lambda: ArrayDataset(rows), batch_size=4, shuffle=True, num_workers=1)


# -- memory maps -------------------------------------------------------------------------------------------------------

ROW = 1000  # floats, so that a map has more bytes than are compared at a time


def new_file(path: Path, start: int = 0, order: Any = "C") -> Path:
    rows = np.memmap(path, np.float32, "w+", 64, (LENGTH, ROW), order)
    rows[:] = np.arange(start, start + LENGTH)[:, None]
    rows.flush()
    return path


def opened(path: Any, mode: Any = "r", order: Any = "C") -> Any:
    return np.memmap(path, np.float32, mode, 64, (LENGTH, ROW), order)


def misaligned(path: Path) -> Any:
    return np.memmap(path, np.float32, "r", 61, (LENGTH, ROW))


def through_a_file(path: Path) -> Any:
    with path.open("rb") as file:
        return opened(file)


BY_NAME: dict[str, Callable[[Path], Any]] = {
    "read-only": opened,
    "shared": lambda path: opened(path, "r+"),
    "copy-on-write": lambda path: opened(path, "c"),
    "created": lambda path: np.memmap(path, np.float32, "w+", 64, (LENGTH, ROW)),
    "columns first": lambda path: opened(path, "r", "F"),
    "by text": lambda path: opened(str(path)),
    "through a file": through_a_file,
    "a range": lambda path: opened(path)[10:20],
    "every other": lambda path: opened(path)[::2],
    "backwards": lambda path: opened(path)[::-3, ::-7],
    "columns": lambda path: opened(path)[:, 5],
    "all as one": lambda path: opened(path).reshape(-1)[3:500],
    "turned": lambda path: opened(path).T,
    "another dtype": lambda path: opened(path).view(np.int16),
    "repeated": lambda path: np.broadcast_to(opened(path)[3], (LENGTH, ROW)),
    "a plain array": lambda path: np.asarray(opened(path)[3:]),
    "a range of a copy-on-write map": lambda path: opened(path, "c")[4:],
    "between words": misaligned,
    "opened again": lambda path: pickle.loads(pickle.dumps(ArrayDataset(opened(path))))._columns[0].rows[5:],
}


def written(path: Path, mode: Any = "c") -> Any:
    rows = opened(path, mode)
    rows[-1, -1] = -7
    return rows


def written_back(path: Path) -> Any:
    rows = written(path)
    rows[-1, -1] = LENGTH - 1
    return rows


def gone(path: Path) -> Any:
    rows = opened(path)
    path.unlink()
    return rows


def another(path: Path) -> Any:
    rows = opened(path)
    new_file(path.with_name("new"), 1000).rename(path)
    return rows


def a_folder(path: Path) -> Any:
    rows = gone(path)
    path.mkdir()
    return rows


def linked_elsewhere(path: Path) -> Any:
    link = path.with_name("link")
    link.symlink_to(path)
    rows = opened(str(link))
    link.unlink()
    link.symlink_to(new_file(path.with_name("new"), 1000))
    return rows


def unnamed(path: Path) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(path.read_bytes())
        return opened(file, "r+")


def renamed_before(path: Path) -> Any:
    """A file that has the name of another by the time that it is mapped."""
    with path.open("rb") as file:
        path.rename(path.with_name("old"))
        new_file(path, 1000)
        return opened(file)


BY_NAME["written back"] = written_back
BY_NAME["written, and shared"] = lambda path: written(path, "r+")

BY_VALUE: dict[str, Callable[[Path], Any]] = {
    "written": written,
    "a range of one that was written": lambda path: written(path)[LENGTH - 3 :],
    "written in steps": lambda path: written(path)[LENGTH - 1 :: -1],
    "gone": gone,
    "another by its name": another,
    "a folder by its name": a_folder,
    "a link to another": linked_elsewhere,
    "without a name": unnamed,
    "another before": renamed_before,
    "chosen": lambda path: opened(path)[[3, 4, 5]],
    "computed": lambda path: opened(path) + 1,
    "of a tensor": lambda path: torch.from_numpy(opened(path, "c")),
    "no rows": lambda path: opened(path)[:0],
}
ALL_MAPS = {**BY_NAME, **BY_VALUE}


def samples(dataset: Any) -> list[Any]:
    return [dataset[index] for index in range(len(dataset))]


@pytest.mark.parametrize("kind", ALL_MAPS)
def test_a_memory_map_is_the_same_when_it_was_pickled(tmp_path: Path, kind: str) -> None:
    dataset = ArrayDataset(
        ALL_MAPS[kind](new_file(tmp_path / "rows")),
    )
    pickled = pickle.dumps(dataset)
    assert kind not in BY_NAME or len(pickled) < 2000
    copy = pickle.loads(pickled)
    assert_same(samples(copy), samples(dataset))
    rows = copy._columns[0].rows
    assert kind in BY_VALUE or not rows.flags.writeable
    again = pickle.dumps(copy)
    assert kind not in BY_NAME or len(again) < 2000
    assert_same(samples(pickle.loads(again)), samples(dataset))


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_memory_maps_through_workers(tmp_path: Path, method: str) -> None:
    """All kinds of map with so many rows, side by side."""
    maps = []
    for number, kind in enumerate(ALL_MAPS):
        (tmp_path / str(number)).mkdir()
        maps.append(ALL_MAPS[kind](new_file(tmp_path / str(number) / "rows", number)))
    dataset = ArrayDataset(*[rows for rows in maps if len(rows) == LENGTH])
    loader = ShmDataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=method)
    batches = [detached(batch) for batch in loader]
    for position, column in enumerate(zip(*samples(dataset), strict=True)):
        assert_same(torch.cat([batch[position] for batch in batches]), torch.stack(column))


def test_a_memory_map_through_workers_is_what_stock_gives(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(LENGTH * 6, dtype=np.uint8).reshape(LENGTH, 2, 3))

    def make() -> Any:
        return ArrayDataset(np.load(tmp_path / "rows.npy", mmap_mode="r"))

    assert_same_stream(make, batch_size=4, shuffle=True, num_workers=2)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_relative_path_means_what_it_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_file: bool) -> None:
    for number, folder in enumerate(["here", "there"]):
        (tmp_path / folder).mkdir()
        new_file(tmp_path / folder / "rows", number)
    monkeypatch.chdir(tmp_path / "here")
    if as_file:  # of which numpy makes an absolute path when it is mapped
        with open("rows", "rb") as file:  # noqa: PTH123 - a Path would do that now
            monkeypatch.chdir(tmp_path / "there")
            dataset = ArrayDataset(opened(file))
    else:
        dataset = ArrayDataset(opened("rows"))
        monkeypatch.chdir(tmp_path / "there")
    pickled = pickle.dumps(dataset)
    assert (len(pickled) < 2000) is not as_file
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(pickled)
    assert [copy[3][0][0].item(), dataset[3][0][0].item()] == [3, 3]


def test_what_other_processes_see_of_a_shared_map_is_not_a_copy(tmp_path: Path) -> None:
    rows = opened(new_file(tmp_path / "rows"), "r+")
    copy = pickle.loads(pickle.dumps(ArrayDataset(rows)))
    rows[2, 3] = 77
    assert copy[2][0][3] == 77


def replace_file(path: Path) -> None:
    new_file(path.with_name("new"), 1000).rename(path)


def cut_file(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(64 + LENGTH * ROW * 4 - 1)


SINCE: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "gone": (Path.unlink, FileNotFoundError, "rows"),
    "replaced": (replace_file, OSError, "rows is another file than the one that the ArrayDataset's memory map was of"),
    "cut short": (
        cut_file,
        OSError,
        "rows has 200063 bytes, .* memory map of it goes to byte 200064: it was cut short",
    ),
}


@pytest.mark.parametrize("what", SINCE)
@pytest.mark.parametrize("mode", ["r", "c"])
def test_a_file_that_is_not_the_same_when_it_is_opened_again(tmp_path: Path, mode: str, what: str) -> None:
    change, error, text = SINCE[what]
    pickled = pickle.dumps(ArrayDataset(opened(new_file(tmp_path / "rows"), mode)))
    change(tmp_path / "rows")
    with pytest.raises(error, match=text):
        pickle.loads(pickled)


@pytest.mark.parametrize("is_gone", [False, True])
@pytest.mark.parametrize("mode", ["r", "c"])
def test_rows_that_were_cut_off_are_not_read(tmp_path: Path, mode: str, is_gone: bool) -> None:
    """Reading them would end the process (SIGBUS)."""
    path = new_file(tmp_path / "rows")
    rows = opened(path, mode)
    with path.open("r+b") as file:
        file.truncate(5000)
    if is_gone:
        path.unlink()
    with pytest.raises(OSError, match=r"rows has 5000 bytes, .* goes to byte 200064: it was cut short"):
        pickle.dumps(ArrayDataset(rows))
    pickle.dumps(ArrayDataset(rows[:1]))  # which are there


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_on_write_map_is_what_it_is_wherever_it_was_written(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = new_file(tmp_path / "rows")
    for _ in range(20):
        rows = opened(path, "c")
        start = draw.randrange(LENGTH)
        part = rows[start : draw.randrange(start, LENGTH) + 1 : draw.randrange(1, 4), :: draw.choice([1, 3, -2])]
        row, column = draw.randrange(LENGTH), draw.randrange(ROW)
        rows[row, column] += draw.choice([0, 1])
        copy = pickle.loads(pickle.dumps(ArrayDataset(part)))
        assert_same(samples(copy), samples(ArrayDataset(part)))


def test_where_the_kernel_does_not_say_what_is_mapped_rows_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(path)

    dataset = ArrayDataset(opened(new_file(tmp_path / "rows")))
    monkeypatch.setattr(Path, "read_bytes", refused)
    pickled = pickle.dumps(dataset)
    assert len(pickled) > LENGTH * ROW * 4
    assert_same(samples(pickle.loads(pickled)), samples(dataset))


def test_a_map_of_a_descriptor_is_sent_by_value() -> None:
    """Its name means something else in another process."""
    rows = np.arange(20.0).reshape(10, 2)
    fd = os.memfd_create("rows")
    os.write(fd, rows.tobytes())
    dataset = ArrayDataset(np.memmap(f"/proc/self/fd/{fd}", np.float64, "r+", shape=rows.shape))
    copy = pickle.dumps(dataset)
    os.close(fd)
    assert_same(pickle.loads(copy)[3], ArrayDataset(rows)[3])


def test_a_tensor_whose_memory_is_moved() -> None:
    rows = torch.arange(40.0).reshape(10, 4)
    dataset = ArrayDataset(rows)
    rows.share_memory_()
    rows += 1
    assert_same(list(ShmDataLoader(dataset, 5, num_workers=1)), list(DataLoader(TensorDataset(rows), 5)))
