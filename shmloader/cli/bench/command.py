"""The ``bench`` command: a user's own dataset through stock's loader and ours, side by side."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader

from shmloader import ShmDataLoader
from shmloader.cli.console import INTERRUPTED, Progress, natural, positive, printed, shown
from shmloader.cli.machine import machine, machine_line

from . import memory, source
from .measure import Round, Track, calibrate, interleave
from .memory import Memory
from .report import LoaderReport, Report
from .verify import Verdict, seed_all, verify

_DESCRIPTION = """\
Runs a dataset through torch's DataLoader and through ShmDataLoader, in turn, and prints what a batch takes with
either. MODULE:CALLABLE names a dataset, a DataLoader, a dict of DataLoader's keyword arguments with the dataset among
them, or anything that returns one of these when it is called without arguments. Of a DataLoader the arguments are
taken, and both loaders are made anew. The current directory is searched for the module too. Without MODULE:CALLABLE, a
synthetic dataset of small images is measured.
"""

_EPILOG = """\
time per batch      steady state only: neither the start of workers nor the end of a pass is in it
CPU per batch       processor time of the main process, all its threads, which is not left for training
first batch         from iter() to the first batch, for every pass; with persistent workers all but the first reuse them
memory added        the most that the process tree took while a loop ran (proportional set sizes without files' pages,
                    added up), less what the main process took right before its loader was made
in transit          shared memory that no process had mapped at that moment, which those sizes leave out: batches
                    between a worker and the loop
batches equal       a pass of each from the same seed, compared bit for bit (up to 100 batches, or 512 MiB)

The keys of the JSON: python -m pydoc shmloader.cli.bench.report
"""

_SEEDS = 1 << 64  # how many torch's generators know


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``bench`` and its options."""
    parser = commands.add_parser(
        "bench",
        help="time a dataset of yours with torch's DataLoader and with ShmDataLoader",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run, parser=parser)
    add = parser.add_argument
    add("dataset", nargs="?", metavar="MODULE:CALLABLE", help="the dataset or DataLoader, or what makes it")
    _add_loader_options(parser.add_argument_group("the loaders' arguments, where MODULE:CALLABLE does not set them"))
    add("--batches", type=positive, metavar="N", help="batches a round; default: as many as take about a second")
    add("--rounds", type=positive, default=5, metavar="N", help="rounds, each with both loaders; default: 5")
    add("--seed", type=_seed, default=0, metavar="N", help="seed of every generator; default: 0")
    add("--json", action="store_true", help="print JSON, and nothing else, on stdout")


def _add_loader_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch-size", type=positive, metavar="N", help="samples a batch; default: 32")
    add("--num-workers", type=natural, metavar="N", help="worker processes; default: 2")
    add("--prefetch-factor", type=positive, metavar="N", help="batches that each worker loads ahead; default: 2")
    add("--persistent-workers", action="store_const", const=True, help="keep the workers from pass to pass")
    add("--shuffle", action="store_const", const=True, help="draw indices in random order")


def _seed(text: str) -> int:
    seed = natural(text)
    if seed >= _SEEDS:
        raise argparse.ArgumentTypeError("must be less than 2**64")
    return seed


def _run(args: argparse.Namespace) -> int:
    # What the user's code prints, in forked workers too, is no JSON.
    noise = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    try:
        with noise:
            report = _measure(args)
    except KeyboardInterrupt:
        return INTERRUPTED  # who ends it knows where, and needs no traceback
    return (
        0
        if printed(json.dumps(report.as_dict(), indent=2) if args.json else f"{machine_line()}\n{report.text()}")
        else 1
    )


def _measure(args: argparse.Namespace) -> Report:
    arguments = source.loader_arguments(args.dataset, _loader_options(args))
    seed = functools.partial(seed_all, args.seed, arguments)
    stock, ours = (functools.partial(source.build, kind, arguments) for kind in (DataLoader, ShmDataLoader))
    settings = _settings(stock())
    tracks = [Track(make()) for make in (stock, ours)]  # first, since they say whether passes are long enough
    with shown(3 + 2 * args.rounds) as progress:
        verdict = _verify(stock, ours, seed, progress)
        memories = [_memory(make, progress) for make in (stock, ours)]
        seed()
        progress.begin("timing")
        rounds = _time(tracks, args.batches, args.rounds, progress.step)
    in_stock, in_ours = (LoaderReport(*found) for found in zip(rounds, memories, strict=True))
    return Report(args.dataset or "synthetic", settings, machine(), in_stock, in_ours, verdict)


def _loader_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("batch_size", "num_workers", "prefetch_factor", "persistent_workers", "shuffle")
    return {name: getattr(args, name) for name in names}


def _settings(loader: DataLoader[Any]) -> dict[str, Any]:
    names = ("batch_size", "num_workers", "prefetch_factor", "persistent_workers")
    return {name: getattr(loader, name) for name in names}


def _verify(
    stock: Callable[[], DataLoader[Any]],
    ours: Callable[[], DataLoader[Any]],
    seed: Callable[[], None],
    progress: Progress,
) -> Verdict:
    progress.begin("comparing batches")
    verdict = verify(stock, ours, seed)
    progress.step()
    return verdict


def _memory(make: Callable[[], DataLoader[Any]], progress: Progress) -> Memory | None:
    progress.begin("measuring memory")
    found = memory.growth(make)
    progress.step()
    return found


def _time(
    tracks: Sequence[Track], batches: int | None, rounds: int, done: Callable[[], None], seconds: float = 1.0
) -> list[list[Round]]:
    """Times the loaders in turn, with a new pass for each round."""
    counts = [batches or calibrate(track, seconds) for track in tracks]

    def turn(track: Track, count: int) -> Round:
        took = track.run(count)
        track.stop()
        return took

    for track in tracks:
        track.stop()
    contestants = [functools.partial(turn, *each) for each in zip(tracks, counts, strict=True)]
    return interleave(contestants, rounds, done)
