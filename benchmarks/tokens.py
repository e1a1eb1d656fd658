"""Loads sequences of tokens from a memory map, in a random order: torch's loader and this one, in several ways.

The text is the source of Python's standard library, a token a byte, packed to sequences of 1,024 tokens. A batch has 32
of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from shmloader.cli.console import UsageError, positive

from .mapped.race import Field, MappedRace, add_options_of_races, race
from .mapped.sources import SEQUENCE, make_tokens

FIELD = Field("tokens", "Sequences of 1,024 tokens, two workers", "tokens", 32, 32 * SEQUENCE)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_options_of_races(parser)
    parser.add_argument("--tokens", type=positive, default=1 << 25, metavar="N", help="at most; default: 33,554,432")


def measure(args: argparse.Namespace) -> MappedRace:
    """Measures. Blocks for about a minute; no process is left.

    Raises:
        UsageError: there are fewer tokens than a batch has.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays = make_tokens(Path(folder), args.tokens)
        if len(arrays[0]) < FIELD.batch_size:
            raise UsageError(f"a batch takes {FIELD.units} tokens, and there are {arrays[0].size}")
        return race(FIELD, arrays, args)
