"""The ``bench`` command: a user's own dataset through stock's loader and ours, side by side."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from shmloader import ShmDataLoader
from shmloader.cli.console import INTERRUPTED, Progress, milliseconds, natural, naturals, positive, printed, shown
from shmloader.cli.machine import machine, machine_line

from . import memory, plot, source
from .measure import Round, Track, calibrate, interleave
from .memory import Memory
from .report import LoaderReport, Report
from .steps import Judgement, judge
from .sweep import Sweep
from .verify import Make, Verdict, seed_all, verify

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
verdict             what limits a loop whose steps take --step milliseconds, and what would help: ShmDataLoader's own

With several numbers of workers (--num-workers 1,2,4,8) all are measured in turn, and the table has a row for each.

The keys of the JSON: python -m pydoc shmloader.cli.bench.report, and of several numbers of workers: ...bench.sweep
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
    add(
        "--step",
        type=milliseconds,
        default=0.0,
        metavar="MS",
        help="what a step takes, for the verdict; default: 0",
    )
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the times per batch too, into FILE.png or .svg; needs matplotlib",
    )
    add("--json", action="store_true", help="print JSON, and nothing else, on stdout")


def _add_loader_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch-size", type=positive, metavar="N", help="samples a batch; default: 32")
    add("--num-workers", type=naturals, metavar="N,...", help="workers; several: a table of all; default: 2")
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
        with noise, _asked_for(args.num_workers):
            if args.plot is not None:
                plot.check(args.plot)
            sweep = _measure(args)
    except KeyboardInterrupt:
        return INTERRUPTED  # who ends it knows where, and needs no traceback
    is_read = printed(json.dumps(sweep.as_dict(), indent=2) if args.json else f"{machine_line()}\n{sweep.text()}")
    if args.plot is not None:
        plot.save(sweep, args.plot)
    return 0 if is_read else 1


@contextlib.contextmanager
def _asked_for(counts: Sequence[int] | None) -> Iterator[None]:
    """Silences torch's warning of more workers than processors, where several numbers are compared."""
    with warnings.catch_warnings():
        if counts is not None and len(counts) > 1:
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


@dataclass(frozen=True)
class _Pair:
    """The two loaders with one number of workers, and what makes their random numbers the same."""

    stock: Make
    ours: Callable[[], Any]
    settings: dict[str, Any]
    seed: Callable[[], None]


def _measure(args: argparse.Namespace) -> Sweep:
    pairs = _pairs(args)
    # First, since they say whether passes are long enough.
    tracks = [Track(make()) for pair in pairs for make in (pair.stock, pair.ours)]
    with shown(len(pairs) * (4 + 2 * args.rounds)) as progress:
        checks = [_check(pair, progress) for pair in pairs]
        pairs[0].seed()
        progress.begin("timing")
        rounds = _time(tracks, args.batches, args.rounds, progress.step)
        judgements = [_judge(pair, args.step, progress) for pair in pairs]
    halves = zip(rounds[::2], rounds[1::2], strict=True)
    return Sweep([_report(args, *each) for each in zip(pairs, checks, halves, judgements, strict=True)])


def _pairs(args: argparse.Namespace) -> list[_Pair]:
    """Returns the loaders to measure. What the user has named is called once."""
    counts = args.num_workers or (None,)
    first = source.loader_arguments(args.dataset, _loader_options(args, counts[0]))
    return [_pair(args, first if count is None else {**first, "num_workers": count}) for count in counts]


def _pair(args: argparse.Namespace, arguments: dict[str, Any]) -> _Pair:
    stock, ours = (functools.partial(source.build, kind, arguments) for kind in (DataLoader, ShmDataLoader))
    return _Pair(stock, ours, _settings(stock()), functools.partial(seed_all, args.seed, arguments))


def _check(pair: _Pair, progress: Progress) -> tuple[Verdict, list[Memory | None]]:
    verdict = _verify(pair, progress)
    return verdict, [_memory(make, progress) for make in (pair.stock, pair.ours)]


def _report(
    args: argparse.Namespace,
    pair: _Pair,
    checked: tuple[Verdict, list[Memory | None]],
    rounds: tuple[list[Round], list[Round]],
    judgement: Judgement,
) -> Report:
    verdict, memories = checked
    in_stock, in_ours = (LoaderReport(*found) for found in zip(rounds, memories, strict=True))
    return Report(args.dataset or "synthetic", pair.settings, machine(), in_stock, in_ours, verdict, judgement)


def _loader_options(args: argparse.Namespace, num_workers: int | None) -> dict[str, Any]:
    names = ("batch_size", "prefetch_factor", "persistent_workers", "shuffle")
    return {"num_workers": num_workers, **{name: getattr(args, name) for name in names}}


def _settings(loader: DataLoader[Any]) -> dict[str, Any]:
    names = ("batch_size", "num_workers", "prefetch_factor", "persistent_workers")
    return {name: getattr(loader, name) for name in names}


def _verify(pair: _Pair, progress: Progress) -> Verdict:
    progress.begin("comparing batches")
    verdict = verify(pair.stock, pair.ours, pair.seed)
    progress.step()
    return verdict


def _judge(pair: _Pair, step: float, progress: Progress) -> Judgement:
    progress.begin("asking for a verdict")
    pair.seed()
    judgement = judge(pair.ours, step)
    progress.step()
    return judgement


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
