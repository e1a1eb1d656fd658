"""The ``trace`` command: a summary of a loader's trace, a picture of it, or one file of it and another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shmloader.cli.console import INTERRUPTED, UsageError, moment, printed

from . import merging, picture, summary
from .reading import read
from .timeline import Timeline, timelines

_DESCRIPTION = """\
Prints what stands in a file that loader.trace(path) has written: how long the loop waited, how busy each worker was,
which batches took longest. A file without its end, of a process that was killed, is read as far as it goes. The tracks
themselves are for ui.perfetto.dev and chrome://tracing.
"""

_EPILOG = """\
--plot draws the loop, the workers and the slots over time: 60 batches in the middle of the trace, or what --begin and
--end say. --merge puts the events of another file beside these, on the same clock: a trace that torch's profiler has
exported (export_chrome_trace), or one of another process.
"""


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``trace`` and its options."""
    parser = commands.add_parser(
        "trace",
        help="sum up, draw or merge a trace of a loader",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run, parser=parser)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="what loader.trace(path) has written")
    add("--plot", type=Path, metavar="PICTURE", help="draw it: a .png, .svg or .pdf (pip install 'shmloader[plot]')")
    add("--loader", metavar="LABEL", help="which to draw, where there are several; default: the one of most batches")
    add("--begin", type=moment, metavar="SECONDS", help="draw from here on, counted from the beginning of the trace")
    add("--end", type=moment, metavar="SECONDS", help="draw up to here")
    add("--merge", type=Path, metavar="OTHER", help="another file of trace events")
    add("--out", type=Path, metavar="BOTH", help="where both go together; compressed if it ends in .gz")


def _run(args: argparse.Namespace) -> int:
    if (args.merge is None) != (args.out is None):
        raise UsageError("--merge OTHER and --out BOTH go together")
    try:
        return _done(args)
    except KeyboardInterrupt:
        return INTERRUPTED  # who ends it knows where, and needs no traceback


def _done(args: argparse.Namespace) -> int:
    trace = read(args.file)
    if args.merge is not None:
        merging.write(merging.merged(trace, read(args.merge)), args.out)
    found = timelines(trace.events)
    if args.plot is not None:
        picture.draw(_chosen(found, args.loader), args.plot, args.begin, args.end)
    if args.plot is None and args.merge is None:
        return 0 if printed("\n".join(summary.lines(trace, found))) else 1
    return 0


def _chosen(found: list[Timeline], label: str | None) -> Timeline:
    if not found:
        raise UsageError("no pass of a loader is in this trace")
    if label is None:
        return max(found, key=lambda timeline: len(timeline.steps))
    try:
        return next(timeline for timeline in found if timeline.label == label)
    except StopIteration:
        raise UsageError(f"there is no loader {label!r}; there are {', '.join(one.label for one in found)}") from None
