"""The command line: ``python -m shmloader bench``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .cli.bench import cli
from .cli.bench.options import Parser
from .version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, or 2 after bad usage.

    Blocks as long as the command takes; worker processes have ended when it returns.
    """
    parser = Parser(prog="python -m shmloader", description="Tools for shmloader, a faster DataLoader for torch.")
    parser.add_argument("--version", action="version", version=f"shmloader {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    cli.add_command(commands)
    args = parser.parse_args(argv)
    code: int = args.run(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
