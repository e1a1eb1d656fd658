"""Where a report's figures may go: functions of a loader's statistics.

They know the fields of the statistics by looking at them, so that new ones arrive by themselves. They import nothing:
what they write to is given.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .statistics import StreamStatistics

_FIRST_NAME = b"time,"  # of a file of CsvSink's


def flat(statistics: StreamStatistics) -> dict[str, Any]:
    """Returns all figures by name, numbers and texts; those within others as ``workers/0/batches``."""
    return dict(_leaves("", statistics))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    parts: Mapping[Any, Any] | None = None
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, Mapping):
        parts = value
    elif isinstance(value, (tuple, list)):
        parts = dict(enumerate(value))
    if parts is None:
        yield path, value
        return
    for name, part in parts.items():
        yield from _leaves(f"{path}/{name}" if path else str(name), part)


def _numbers(statistics: StreamStatistics) -> dict[str, float]:
    return {
        name: value
        for name, value in flat(statistics).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _name_of(statistics: StreamStatistics) -> str:
    return str(getattr(statistics, "name", None) or "loader")


class TensorBoardSink:
    """Writes each number of a loader's statistics as a scalar.

    The tag is ``shmloader/NAME/FIELD``, where a `report` gives each of its loaders a name. The step is how many batches
    the loader has handed out.

    Args:
        writer: a ``SummaryWriter`` of torch's or tensorboardX's, or what else has ``add_scalar(tag, value, step)``.

    Raises:
        TypeError: it has no such method.
    """

    def __init__(self, writer: Any) -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"TensorBoardSink takes a writer that has add_scalar, got {writer!r}")
        self._writer = writer

    def __call__(self, statistics: StreamStatistics) -> None:
        """Writes the figures."""
        name = _name_of(statistics)
        for field, value in _numbers(statistics).items():
            self._writer.add_scalar(f"shmloader/{name}/{field}", value, statistics.batches)


class LogSink:
    """Calls a function with the numbers of a loader's statistics in one dict, as Weights & Biases has them.

    Keys are ``shmloader/NAME/FIELD``. For example: ``LogSink(wandb.log)``.

    Args:
        log: the function.
        arguments: given with each call, by name; ``commit=False``, say.

    Raises:
        TypeError: it cannot be called.
    """

    def __init__(self, log: Callable[..., object], **arguments: Any) -> None:
        if not callable(log):
            raise TypeError(f"LogSink takes a function of a dict, got {log!r}")
        self._log = log
        self._arguments = arguments

    def __call__(self, statistics: StreamStatistics) -> None:
        """Calls the function."""
        name = _name_of(statistics)
        figures = {f"shmloader/{name}/{field}": value for field, value in _numbers(statistics).items()}
        self._log(figures, **self._arguments)


class CsvSink:
    """Appends a row to a file of comma-separated values.

    The first row has the names: ``time`` (seconds since 1970) and the fields of the statistics. Later rows have what
    is under these names; a figure that there was not at first, of one worker more, say, is left out. The file is opened
    for each row, so that each is on disk, and the file may be moved away meanwhile. A row that was cut, since the disk
    was full or the program was killed, is left as it is: the next one begins on a line of its own.

    Args:
        path: the file. One that is there is gone on with.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __call__(self, statistics: StreamStatistics) -> None:
        """Appends a row.

        Raises:
            OSError: the file cannot be written to.
            ValueError: the file has other names in its first row, or that row was cut.
        """
        row = {"time": f"{time.time():.3f}", **flat(statistics)}
        with self._path.open("ab+") as file:
            names, end = None, b""
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # of a device there may be no end of the first row
                names, end = self._names(file), _end_of_a_cut_row(file)
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, names or list(row), restval="", extrasaction="ignore")
            if names is None:
                writer.writeheader()
            writer.writerow(row)
            file.write(end + text.getvalue().encode(errors="backslashreplace"))

    def _names(self, file: IO[bytes]) -> list[str] | None:
        """Returns what stands in the first row, or None where there is none."""
        file.seek(0)
        first = file.readline()
        if not first:
            return None
        if not first.startswith(_FIRST_NAME) and not _FIRST_NAME.startswith(first):
            raise ValueError(f"{self._path} is not a file of CsvSink's: its first row does not begin with 'time'")
        if not first.endswith(b"\n"):
            raise ValueError(f"{self._path} was cut in its first row, which has the names; remove it, or take another")
        return next(csv.reader([first.decode(errors="replace")]))


def _end_of_a_cut_row(file: IO[bytes]) -> bytes:
    """Returns what ends the last row of a file, if that was cut: else the next one would be a part of it."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return b""
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return b""
    file.seek(0)
    quotes = sum(block.count(b'"') for block in iter(lambda: file.read(1 << 20), b""))
    return b'"\r\n' if quotes % 2 else b"\r\n"  # the former of one that was cut within a text


class TqdmSink:
    """Shows figures behind a progress bar: how long the loop has waited, and copies and restarts if there are any.

    Args:
        bar: a bar of tqdm's, or what else has ``set_postfix(dict, refresh)``.

    Raises:
        TypeError: it has no such method.
    """

    def __init__(self, bar: Any) -> None:
        if not callable(getattr(bar, "set_postfix", None)):
            raise TypeError(f"TqdmSink takes a bar that has set_postfix, got {bar!r}")
        self._bar = bar

    def __call__(self, statistics: StreamStatistics) -> None:
        """Sets what is shown with the bar's next update."""
        self._bar.set_postfix(postfix(statistics), refresh=False)


def postfix(statistics: StreamStatistics) -> dict[str, str]:
    """Returns a few figures as text, for the end of a line."""
    waited = getattr(statistics, "wait_seconds", None)
    shown = {} if waited is None else {"waited": f"{waited:.1f}s"}
    counts = {"copies": statistics.copies, "restarts": statistics.restarts}
    return shown | {name: str(count) for name, count in counts.items() if count}
