"""What the command lines of ``shmloader bench`` and of the benchmark suite have in common."""

from __future__ import annotations

import argparse
from typing import NoReturn


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


def natural(text: str) -> int:
    """Reads a whole number, 0 or more."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number
