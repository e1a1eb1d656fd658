"""A trace's file: whole after each write, bounded, and never a reason for an exception once it is open."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from shmloader.cli.trace.reading import read
from shmloader.observe.trace_file import LEAST_BYTES, TraceFile
from shmloader.observe.trace_spans import event

NAMES = ("trace.json", "trace.json.gz")


def events(path: Path) -> list[int]:
    return [one["number"] for one in read(path).events if "number" in one]


def write(file: TraceFile, numbers: range) -> None:
    file.write(b"".join(event(number=number).text for number in numbers), len(numbers))


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_read_after_each_write(tmp_path: Path, name: str) -> None:
    file = TraceFile(tmp_path / name, LEAST_BYTES, {"fact": 1})
    written = 0
    for count in (0, 1, 5, 30):
        write(file, range(written, written + count))
        written += count
        assert events(file.path) == list(range(written))
        assert read(file.path).is_whole
        assert read(file.path).end["is_complete"] is False
    file.close()
    file.close()
    found = read(file.path)
    assert found.is_whole
    assert found.end == {"fact": 1, "events": 36, "dropped": 0, "is_complete": True}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_bounded_and_says_what_it_lacks(tmp_path: Path, name: str) -> None:
    file = TraceFile(tmp_path / name, LEAST_BYTES, {})
    rng = random.Random(0)
    written = 0
    for _ in range(2000):
        write(file, range(written, written + 20))
        written += 20
        file.write(event(text=rng.randbytes(50).hex()).text, 1)  # which does not compress
    file.close()
    assert file.is_full
    assert file.path.stat().st_size <= LEAST_BYTES
    found = read(file.path)
    assert found.end["events"] + found.end["dropped"] == written + 2000
    kept = events(file.path)
    assert kept == list(range(len(kept)))
    assert kept
    assert len(found.events) == found.end["events"] + 1


class FullDisk:
    """In the place of os.pwrite: room for so many bytes, and none behind."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.real = os.pwrite

    def __call__(self, fd: int, data: Any, place: int) -> int:
        if place + len(data) <= self.room:
            return self.real(fd, data, place)
        if place >= self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real(fd, memoryview(data)[: self.room - place], place)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", [1100, 1500, 5000])
def test_a_disk_that_becomes_full_leaves_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, room: int
) -> None:
    file = TraceFile(tmp_path / name, LEAST_BYTES, {})
    monkeypatch.setattr(os, "pwrite", FullDisk(room))
    written = 0
    while file.error is None:
        before = written
        write(file, range(written, written + 7))
        written += 7
    assert file.error.errno == errno.ENOSPC
    write(file, range(written, written + 7))
    file.close()
    assert file.dropped == written + 7 - before
    assert read(file.path).is_whole
    assert read(file.path).end["error"] == "ENOSPC"
    if name == NAMES[1]:  # others are more particular than our own reader
        assert gzip.decompress(file.path.read_bytes()).endswith(b"]\n")
    if before:
        assert events(file.path) == list(range(before))


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_may_become_full_at_any_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for room in range(1060, 1400 if name == NAMES[0] else 1200):  # from the first end, to behind some writes
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", FullDisk(room))
            file = TraceFile(tmp_path / name, LEAST_BYTES, {"fact": 1})
            for number in range(30):
                write(file, range(number, number + 1))
            file.close()
        assert file.written < 30
        found = read(file.path)
        assert found.is_whole
        assert found.end["error"] == "ENOSPC"
        assert events(file.path) == list(range(file.written))


def test_a_disk_that_is_full_at_once_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", FullDisk(0))
    with pytest.raises(OSError, match="No space left"):
        TraceFile(tmp_path / "trace.json", LEAST_BYTES, {})


def test_another_process_closes_and_writes_nothing(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "trace.json", LEAST_BYTES, {})
    write(file, range(3))
    before = file.path.read_bytes()
    file.disown()
    write(file, range(3))
    file.close()
    assert file.path.read_bytes() == before
    assert json.loads(before)[-1]["args"]["is_complete"] is False


def test_a_larger_file_that_was_there_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(b"x" * 100_000)
    TraceFile(path, LEAST_BYTES, {}).close()
    assert read(path).is_whole


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        TraceFile(tmp_path / "pipe", LEAST_BYTES, {})
    with pytest.raises(OSError, match="directory"):
        TraceFile(tmp_path, LEAST_BYTES, {})
    with pytest.raises(OSError, match="nowhere"):
        TraceFile(tmp_path / "nowhere" / "trace.json", LEAST_BYTES, {})
    with pytest.raises(ValueError, match="regular file"):
        TraceFile(Path(os.devnull), LEAST_BYTES, {})


def test_a_file_that_another_trace_writes_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    file = TraceFile(path, LEAST_BYTES, {})
    write(file, range(3))
    (tmp_path / "link").symlink_to(path)
    for same in (path, tmp_path / "link"):
        with pytest.raises(ValueError, match="another trace"):
            TraceFile(same, LEAST_BYTES, {})
    write(file, range(3, 6))
    kept = os.dup(file._fd)  # as a process has it that is being forked
    file.close()
    assert events(path) == list(range(6))
    TraceFile(path, LEAST_BYTES, {}).close()
    os.close(kept)
    assert events(path) == []


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    file = TraceFile(tmp_path / "trace.json", LEAST_BYTES, {})
    write(file, range(3))
    file.close()
    assert events(file.path) == [0, 1, 2]
