"""Many events as lines of JSON at once, by columns: a number costs tens of nanoseconds and not a microsecond.

A line's text is fixed but for its numbers, which stand right-aligned in fields of fixed widths; JSON allows blanks
before a number. So a thousand lines are one array of bytes, into which each column is written.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.int64]

_GROUP = 4  # digits that are looked up at a time
_GROUPS = {"ts": 4, "dur": 3}  # of microseconds: a time is some months at most, a length some days
_NUMBER_GROUPS = 3
_BASE = 10**_GROUP
_FIELD = re.compile(r"<(\w+)>")


def _table(text: str, zero: str) -> npt.NDArray[np.uint32]:
    """Returns groups of digits as they begin a number, 0 as ``zero``, and behind them as they go on in one."""
    first = [text.format(number) for number in range(_BASE)]
    first[0] = zero
    following = [f"{number:04}" for number in range(_BASE)]
    return np.frombuffer("".join(first + following).encode(), np.uint32)


_LAST = _table("{:4}", "   0")
_HIGHER = _table("{:4}", "    ")
_THOUSANDTHS = np.frombuffer("".join(f"{number:03}" for number in range(1000)).encode(), np.uint8).reshape(-1, 3)


def write_number(out: npt.NDArray[np.uint8], numbers: Column) -> None:
    """Writes numbers of 0 or more, right-aligned.

    Args:
        out: (n, width), a multiple of 4 bytes wide.
        numbers: (n,), of no more digits than that.
    """
    rest = numbers
    for start in range(out.shape[1] - _GROUP, -1, -_GROUP):
        table = _HIGHER if start + _GROUP < out.shape[1] else _LAST
        higher = rest // _BASE
        at = rest - higher * _BASE
        at += (higher > 0) * np.int64(_BASE)
        out[:, start : start + _GROUP] = table[at].view(np.uint8).reshape(-1, _GROUP)
        rest = higher


def write_microseconds(out: npt.NDArray[np.uint8], nanoseconds: Column) -> None:
    """Writes times as microseconds, with the nanoseconds behind a point: the last four of ``out``'s (n, width)."""
    microseconds = nanoseconds // 1000
    write_number(out[:, :-4], microseconds)
    out[:, -3:] = _THOUSANDTHS[nanoseconds - microseconds * 1000]


class Line:
    """The lines of one kind of event.

    Args:
        text: the line, with names in angle brackets where numbers go. ``<ts>`` and ``<dur>`` are nanoseconds, and
            written as microseconds.
    """

    def __init__(self, text: str) -> None:
        self._fields: dict[str, slice] = {}
        template = ""
        for part, name in zip(*[iter([*_FIELD.split(text), ""])] * 2, strict=True):
            template += part
            if name:
                start = len(template)
                template += " " * (_GROUP * _GROUPS.get(name, _NUMBER_GROUPS)) + (".   " if name in _GROUPS else "")
                self._fields[name] = slice(start, len(template))
        self._template = np.frombuffer(template.encode(), np.uint8)

    def format(self, **columns: Any) -> bytes:
        """Returns a line for each row of ``columns``, int64 arrays of one length, by the names of the fields."""
        rows = len(next(iter(columns.values())))
        out = np.empty((rows, len(self._template)), np.uint8)
        out[:] = self._template
        for name, place in self._fields.items():
            (write_microseconds if name in _GROUPS else write_number)(out[:, place], columns[name])
        return out.tobytes()
