"""The command line: ``python -m shmloader COMMAND``.

A command adds a parser to those of its siblings, with two defaults: ``run``, which gets the parsed arguments and
returns the exit code, and ``parser``, which says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Sequence

from shmloader.version import __version__

from .bench import command as bench
from .console import Parser, UsageError
from .doctor import command as doctor
from .run import command as run
from .trace import command as trace


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Blocks as long as the command takes.

    Args:
        argv: the arguments behind ``python -m shmloader``; None: those of this process.

    Raises:
        SystemExit: with code 2, after one line on stderr: the arguments, or what they name, cannot be used. With code
            0: help or the version was asked for.
        Exception: what the user's own code raises.
    """
    parser = Parser(prog="python -m shmloader", description="Tools for shmloader, a faster DataLoader for torch.")
    parser.add_argument("--version", action="version", version=f"shmloader {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run.add_command(commands)
    bench.add_command(commands)
    trace.add_command(commands)
    doctor.add_command(commands)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except UsageError as error:
        args.parser.error(str(error))
    return code
