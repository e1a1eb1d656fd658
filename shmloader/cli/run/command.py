"""The ``run`` command: a training script, unchanged, on our workers."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from shmloader.cli.console import UsageError
from shmloader.patching.patch import patch
from shmloader.patching.record import record
from shmloader.run_options import Options, split

from . import births, figures, report, script, stock_meter, tracing, uncaught
from .ranks import with_rank

_USAGE = "%(prog)s [-h] [--report] [--trace FILE] [--stock] [--] (script.py | -m module) [argument ...]"

_DESCRIPTION = """\
Runs a script, or with -m a module, as Python would, and has torch's DataLoader load with shmloader's workers in it, as
shmloader.patch() does. Arguments, __main__, output and exit code are the script's own.
"""

_EPILOG = """\
With several ranks (torchrun -m shmloader run script.py) each has its own report, marked with the rank, and its own
trace: FILE gets the rank's number. Processes that the script starts run as without all this, but for forked ones.
"""


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``run`` and its options."""
    parser = commands.add_parser(
        "run",
        help="run a training script, unchanged, on shmloader's workers",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run, parser=parser)
    add = parser.add_argument
    add("--report", action="store_true", help="print the figures of every loader on stderr, at the end")
    add("--trace", metavar="FILE", help="write one trace of all loaders, as loader.trace does")
    add("--stock", action="store_true", help="leave torch's workers as they are, and measure them; with --report")
    # argparse itself would take options behind the script for ours, or ours before it for the script's, by version.
    parse = parser.parse_known_args

    def parse_own(arguments: Any = None, namespace: Any = None) -> Any:
        own, target = split(arguments)
        found, rest = parse(own, namespace)
        found.target = target
        return found, rest

    parser.parse_known_args = parse_own


def _run(args: argparse.Namespace) -> int:
    if not args.target or args.target == ["-m"]:
        raise UsageError("name a script, or -m and a module")
    if args.stock and args.trace is not None:
        raise UsageError("there is no trace of torch's own workers: leave out --trace or --stock")
    options = Options(args.report, args.stock, args.trace)
    with uncaught.ShownAsPythons():
        script.run(args.target, functools.partial(begin, options))
    return 0


def begin(options: Options) -> None:
    """Does what is to be done before the script runs, and was found.

    Raises:
        UsageError: the trace cannot be written.
    """
    script.stay_importable()
    if options.trace is not None:
        _begin_trace(with_rank(Path(options.trace)))
    if not options.stock:
        patch()
    if options.report:
        record.listeners = (*record.listeners, figures.keep)
        stock_meter.measure(is_all=options.stock)
        births.Births().watch()
        report.at_end()


def _begin_trace(path: Path) -> None:
    try:
        tracing.trace_all(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written: {error}") from None
