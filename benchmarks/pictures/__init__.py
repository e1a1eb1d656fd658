"""Loads random crops of JPEG files: torch's loader, other libraries and this one, and what decoders cost by themselves.

Some thousand JPEG files of about 500 x 375 pixels are made from photographs that come with scikit-image and
scikit-learn. All contestants read them from disk in a random order, take a part of each with torchvision's distribution
of random resized crops, bring it to 224 x 224, mirror half of them, and give batches of 64 with labels.

With --ideas it is one process without a loader: what a picture costs, decoder by decoder, and how far its pixels are
from Pillow's. The extra [bench] has the decoders, and [peers] the libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.output import Found
from shmloader.cli.console import UsageError, positive, shown

from . import costs, race
from .contestants import BATCH_SIZE, CONTESTANTS
from .files import LabelledFile, find_files, make_files


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("--ideas", action="store_true", help="what a picture costs, decoder by decoder, without a loader")
    add("--data", type=Path, metavar="FOLDER", help="JPEG files of your own, labelled by their folders")
    add("--length", type=positive, default=2048, metavar="N", help="files that are made; default: 2048")
    add("--rounds", type=positive, default=5, metavar="N", help="default: 5")
    add("--num-workers", type=positive, default=2, metavar="N", help="of each contestant; default: 2")
    add("--seconds", type=float, default=1.5, metavar="S", help="about how long a turn takes; default: 1.5")


def measure(args: argparse.Namespace) -> Found:
    """Measures. Blocks for some minutes; no process is left.

    Raises:
        UsageError: there are no files.
    """
    with _files(args) as files:
        return _ideas(files, args) if args.ideas else _race(files, args)


def _ideas(files: list[LabelledFile], args: argparse.Namespace) -> Found:
    with shown(costs.turns(args.rounds)) as progress:
        progress.begin("ideas")
        return costs.measure_costs(files, args.rounds, progress.step)


def _race(files: list[LabelledFile], args: argparse.Namespace) -> Found:
    if len(files) < 2 * BATCH_SIZE:
        raise UsageError(f"loading takes {2 * BATCH_SIZE} pictures at least, and there are {len(files)}")
    contestants = race.installed(CONTESTANTS)
    with shown(race.turns(contestants, args.rounds)) as progress:
        progress.begin("contest")
        return race.race(files, contestants, args.num_workers, args.rounds, args.seconds, progress.step)


@contextlib.contextmanager
def _files(args: argparse.Namespace) -> Iterator[list[LabelledFile]]:
    """Gives the files to read; those that are made are gone with the block."""
    if args.data is not None:
        files = find_files(args.data)
        if not files:
            raise UsageError(f"there are no JPEG files in {args.data}")
        yield files
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_files(Path(folder), args.length)
