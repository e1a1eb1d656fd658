"""The options of the ``run`` command, read with nothing else of ours imported; see `early`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Options(NamedTuple):
    """What was asked for.

    Attributes:
        report, stock: whether it was.
        trace: the file; None: no trace.
    """

    report: bool = False
    stock: bool = False
    trace: str | None = None


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides a command line into our own options, and the script, or ``-m`` and a module, with its arguments."""
    place = 0
    while place < len(arguments):
        one = arguments[place]
        if one == "--":
            return list(arguments[:place]), list(arguments[place + 1 :])
        if one.startswith("-m") and one != "-m":
            return list(arguments[:place]), ["-m", one[2:], *arguments[place + 1 :]]
        if one == "-m" or one == "-" or not one.startswith("-"):
            return list(arguments[:place]), list(arguments[place:])
        place += 2 if one == "--trace" else 1
    return list(arguments), []


def plain(own: Sequence[str], target: Sequence[str]) -> Options | None:
    """Returns the options, or None where there is something else, or wrong: that is for the command's parser to say."""
    left, found = list(own), Options()
    while left:
        one = left.pop(0)
        if one == "--report":
            found = found._replace(report=True)
        elif one == "--stock":
            found = found._replace(stock=True)
        elif one == "--trace" and left:
            found = found._replace(trace=left.pop(0))
        elif one.startswith("--trace="):
            found = found._replace(trace=one.removeprefix("--trace="))
        else:
            return None
    is_wrong = not target or list(target) == ["-m"] or (found.stock and found.trace is not None)
    return None if is_wrong else found
