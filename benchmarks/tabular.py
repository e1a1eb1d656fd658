"""Loads rows of a table from memory maps, in a random order: torch's loader and this one, in several ways.

The table has 40 columns of float32, and a label for each row. A batch has 4,096 rows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from shmloader.cli.console import UsageError, positive

from .mapped.race import Field, MappedRace, add_options_of_races, race
from .mapped.sources import make_table

FIELD = Field("tabular", "Rows of 40 columns and a label, two workers", "rows", 4096, 4096)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_options_of_races(parser)
    parser.add_argument("--rows", type=positive, default=1_000_000, metavar="N", help="default: 1,000,000")


def measure(args: argparse.Namespace) -> MappedRace:
    """Measures. Blocks for about a minute; no process is left.

    Raises:
        UsageError: there are fewer rows than a batch has.
    """
    if args.rows < FIELD.batch_size:
        raise UsageError(f"a batch takes {FIELD.batch_size} rows, and there are {args.rows}")
    with tempfile.TemporaryDirectory() as folder:
        return race(FIELD, make_table(Path(folder), args.rows), args)
