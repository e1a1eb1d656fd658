"""The command line of the benchmarks: which command runs, and what becomes of what it has measured."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from typing import Protocol

from shmloader.cli.console import Parser, UsageError
from shmloader.cli.machine import machine, machine_line

from . import (
    bars,
    cached,
    calls,
    edges,
    gpu,
    growth,
    hidden,
    libraries,
    pictures,
    producers,
    ray_actors,
    recording,
    resuming,
    samplers,
    scale,
    seeding,
    shared,
    suite,
    tabular,
    threads,
    tokens,
    tracing,
)
from .output import Found, chart_folder


class Command(Protocol):
    """A module that measures something. Its docstring is the help, and the first line of it says what it does."""

    __doc__: str | None

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options of this command."""

    def measure(self, args: argparse.Namespace) -> Found:
        """Measures. Blocks meanwhile; no process is left."""


_DEFAULT = "suite"
_COMMANDS: dict[str, Command] = {
    _DEFAULT: suite,
    "edges": edges,
    "bars": bars,
    "growth": growth,
    "scale": scale,
    "hidden": hidden,
    "threads": threads,
    "ray": ray_actors,
    "samplers": samplers,
    "seeding": seeding,
    "resuming": resuming,
    "producers": producers,
    "calls": calls,
    "shared": shared,
    "cached": cached,
    "pictures": pictures,
    "tokens": tokens,
    "tabular": tabular,
    "libraries": libraries,
    "gpu": gpu,
    "recording": recording,
    "trace": tracing,
}

# Those that draw charts.
_DRAWN = (_DEFAULT, "growth", "pictures", "tokens", "tabular", "trace")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, prints what it has measured, and returns the exit code. Blocks for some minutes.

    Raises:
        SystemExit: with code 2, after one line on stderr: the arguments cannot be used.
    """
    name, rest = _split(sys.argv[1:] if argv is None else argv)
    parser = _parser(name)
    args = parser.parse_args(rest)
    try:
        found = _COMMANDS[name].measure(args)
    except UsageError as error:
        parser.error(str(error))
    run = _again(name, rest)
    if args.json:
        print(json.dumps({"command": run, "machine": machine(), **found.as_dict()}, indent=2))
    else:
        print("\n".join([machine_line(), "", *found.lines()]))
    if name in _DRAWN and args.plot is not None:
        found.draw(args.plot, [f"Medians, and the least and the greatest round. {run}", machine_line()])
    return 0


def _split(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Returns the name of the command, and what is behind it."""
    if not argv or argv[0].startswith("-"):
        return _DEFAULT, argv
    if argv[0] not in _COMMANDS:
        Parser(prog="python -m benchmarks").error(f"there is no {argv[0]!r}; there are {', '.join(_COMMANDS)}")
    return argv[0], argv[1:]


def _parser(name: str) -> Parser:
    summaries = {command: (module.__doc__ or "").split("\n", 1)[0] for command, module in _COMMANDS.items()}
    others = "\n".join(f"  {command:10}{summary}" for command, summary in summaries.items())
    parser = Parser(
        prog=f"python -m benchmarks {name}",
        description=_COMMANDS[name].__doc__,
        epilog=f"all commands:\n{others}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_printing(name)],
    )
    _COMMANDS[name].add_options(parser)
    return parser


def _printing(name: str) -> Parser:
    """Returns the options that change nothing about what is measured."""
    parser = Parser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    if name in _DRAWN:
        parser.add_argument("--plot", type=chart_folder, metavar="DIR", help="draw charts, as PNG files in this folder")
    return parser


def _again(name: str, rest: Sequence[str]) -> str:
    """Returns the command line that measures the same again."""
    _, measured = _printing(name).parse_known_args(rest)
    return shlex.join(["python", "-m", "benchmarks", *([] if name == _DEFAULT else [name]), *measured])


if __name__ == "__main__":
    sys.exit(main())
