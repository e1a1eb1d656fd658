"""What the commands have in common: how they print and draw, and how they say what was run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from shmloader.cli.bench.figures import Figure
from shmloader.cli.console import Parser

from . import charts


def options() -> Parser:
    """Returns the options that change nothing about what is measured: the ``parents`` of a command's parser."""
    parser = Parser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    parser.add_argument("--plot", type=chart_folder, metavar="DIR", help="draw charts, as PNG files in this folder")
    return parser


def chart_folder(name: str) -> Path:
    """Reads the name of a folder for charts, and makes it; says at once what would fail after all the measuring."""
    if not charts.can_draw():
        raise argparse.ArgumentTypeError(
            "charts need matplotlib, which is in the extra [bench]: pip install '.[bench]'"
        )
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"no folder can be made there: {error}") from None
    return folder


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Thing = TypeVar("_Thing", bound=_Named)


def chosen(parser: Parser, what: str, names: str | None, things: Sequence[_Thing], where: str = "") -> list[_Thing]:
    """Returns the things that an option names, in its order; all where it was not given.

    Exits, as ``parser`` does, where there is no such thing; ``where`` says where.
    """
    by_name = {thing.name: thing for thing in things}
    try:
        return list(things) if names is None else [by_name[name] for name in names.split(",")]
    except KeyError as error:
        parser.error(f"there is no {what} {error}{where}; there are {', '.join(by_name)}")


def command(name: str, argv: Sequence[str]) -> str:
    """Returns the command line that measures the same again."""
    _, rest = options().parse_known_args(argv)
    return shlex.join(["python", "-m", name, *rest])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table whose first column holds names and whose others hold numbers."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def micros(found: Figure) -> str:
    """Writes seconds as microseconds, with their spread."""
    return found.text(lambda seconds: f"{seconds * 1e6:.{0 if seconds >= 1e-4 else 1}f}")
