"""What the command lines have in common: errors of one line, numbers, and progress on a terminal."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
from collections.abc import Iterator
from typing import NoReturn, TextIO

# Back to the beginning of the line, and the rest of it erased.
_CLEAR = "\r\x1b[K"

_STDOUT, _STDERR = 1, 2

_LONGEST = 60_000  # milliseconds
_LONGEST_TRIAL = 86_400  # seconds: the system's calls that wait take some weeks at most


class UsageError(Exception):
    """The command line, or what it names, cannot be used; its text is the one line that the user gets to see."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints ``message`` on stderr and exits with code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def positive(text: str) -> int:
    """Reads a whole number above 0."""
    number = natural(text)
    if not number:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def whole_seconds(text: str) -> int:
    """Reads a whole number of seconds, above 0."""
    number = positive(text)
    if number > _LONGEST_TRIAL:
        raise argparse.ArgumentTypeError("must be a day, 86400, or less")
    return number


def natural(text: str) -> int:
    """Reads a whole number, 0 or more."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def naturals(text: str) -> tuple[int, ...]:
    """Reads whole numbers with commas between them, 0 or more each, and returns them in order."""
    numbers = sorted(map(natural, text.split(",")))
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError("names a number twice")
    return tuple(numbers)


def milliseconds(text: str) -> float:
    """Reads a time in milliseconds, and returns it in seconds."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < _LONGEST:
        raise argparse.ArgumentTypeError("must be 0 or more, and less than a minute")
    return value / 1000


def moment(text: str) -> float:
    """Reads a time in seconds, counted from some beginning."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError("must be 0 or more, and not infinite")
    return value


def open_streams() -> None:
    """Opens those standard streams that this process was started without, to nowhere.

    Else pipes and files would get their descriptors, and what is printed in children would end there.
    """
    with contextlib.suppress(OSError):  # there are no descriptors left, or no such device: there is nothing to be done
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    for number, name in ((_STDOUT, "stdout"), (_STDERR, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 - until the process ends


def printed(text: str) -> bool:
    """Prints ``text`` on stdout, and returns whether it could be: a reader may be gone, or a disk full."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the user has named may not be ASCII, and stdout is
    try:
        print(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more at its exit
        if not isinstance(error, BrokenPipeError):  # who has ended the reader knows
            print(f"the output cannot be written: {error}", file=sys.stderr)
        return False
    return True


# What shells report of a program that Ctrl-C has ended.
INTERRUPTED = 130


class Progress:
    """One line that says which step of a longer work is under way.

    Args:
        steps: how many there are.
        terminal: where the line goes; None: nowhere.
    """

    def __init__(self, steps: int, terminal: TextIO | None) -> None:
        self._steps = steps
        self._terminal = terminal
        self._done = 0
        self._what = ""

    def begin(self, what: str) -> None:
        """Says what the next steps are about."""
        self._what = what
        self._show()

    def step(self) -> None:
        """Counts one step."""
        self._done += 1
        self._show()

    def clear(self) -> None:
        """Removes the line."""
        self._write(_CLEAR)

    def _show(self) -> None:
        self._write(f"{_CLEAR}[{self._done}/{self._steps}] {self._what}")

    def _write(self, text: str) -> None:
        if self._terminal is not None:
            self._terminal.write(text)
            self._terminal.flush()


@contextlib.contextmanager
def shown(steps: int) -> Iterator[Progress]:
    """Shows on stderr how far the block has come, and removes that in the end; nothing where that is no terminal."""
    progress = Progress(steps, sys.stderr if sys.stderr.isatty() else None)
    try:
        yield progress
    finally:
        progress.clear()
