"""The command line of the suite."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from shmloader.cli.bench.figures import size
from shmloader.cli.console import Parser, positive, shown
from shmloader.cli.machine import machine, machine_line

from . import bars, suite_charts
from .cells import CELLS, Cell
from .output import chosen, command, markdown, micros, options
from .peers import PEERS, PREFETCH_FACTOR, Peer
from .suite import SECONDS, CellResult, run_cell, turns

_HEAD = (
    "cell",
    "batch",
    "stock us/batch",
    "ours us/batch",
    "stock / ours",
    "limit us/batch",
    "share of limit",
    "stock CPU us/batch",
    "ours CPU us/batch",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the suite and returns the exit code. Blocks for about 1.5 s a cell and round."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(argv)
    cells = chosen(parser, "cell", args.cells, CELLS)
    peers = [] if args.peers is None else chosen(parser, "peer", None if args.peers == "all" else args.peers, PEERS)
    peers = _installed(peers)
    results = _run(cells, args.num_workers, args.rounds, args.limit_buffers, peers)
    outcomes = bars.judge(results)
    found = {
        "command": command("benchmarks", argv),
        "machine": machine(),
        "num_workers": args.num_workers,
        "limit_buffers": args.limit_buffers,
        "cells": [result.as_dict() for result in results],
        "bars": [outcome.as_dict() for outcome in outcomes],
    }
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        head = f"{machine_line()}; {args.num_workers} workers, {args.rounds} rounds of about {SECONDS} s"
        compared = ["", *_peer_table(results, peers)] if peers else []
        print("\n".join([head, "", *markdown(_HEAD, map(_row, results)), *compared, "", *bars.lines(outcomes)]))
    if args.plot:
        suite_charts.draw(found, args.plot)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks",
        description="Times torch's DataLoader, ShmDataLoader, other libraries, and what fills memory without a loader.",
        parents=[options()],
    )
    parser.add_argument("--cells", metavar="A,B", help=f"of {', '.join(cell.name for cell in CELLS)}; default: all")
    names = ", ".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", metavar="A,B", help=f"other libraries, of {names}; or all. Default: none")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    parser.add_argument("--num-workers", type=positive, default=2, metavar="N", help="default: 2")
    parser.add_argument(
        "--limit-buffers",
        type=positive,
        default=PREFETCH_FACTOR + 1,
        metavar="N",
        help=f"buffers of each process of the limit; default: {PREFETCH_FACTOR + 1}, see benchmarks/limit.py",
    )
    return parser


def _installed(peers: Sequence[Peer]) -> list[Peer]:
    """Returns the peers that are installed; says which are not."""
    for peer in peers:
        if not peer.is_installed:
            print(f"{peer.name} is left out: {peer.module} is not installed", file=sys.stderr)
    return [peer for peer in peers if peer.is_installed]


def _run(
    cells: Sequence[Cell], num_workers: int, rounds: int, limit_buffers: int, peers: Sequence[Peer]
) -> list[CellResult]:
    results = []
    with shown(len(cells) * turns(rounds, len(peers))) as progress:
        for cell in cells:
            progress.begin(cell.name)
            found = run_cell(cell, num_workers, rounds, limit_buffers=limit_buffers, peers=peers, done=progress.step)
            results.append(found)
    return results


def _peer_table(results: Sequence[CellResult], peers: Sequence[Peer]) -> list[str]:
    """Each peer's time a batch, and in brackets how many times ours it is."""
    rows = []
    for result in results:
        times, ratios = result.times, result.peer_ratios
        found = [
            f"{times[peer.name].median * 1e6:.0f} us, {ratios[peer.name].text(lambda value: f'{value:.1f}')}x"
            if peer.name in ratios
            else "no way to load it"
            for peer in peers
        ]
        rows.append((result.cell, micros(times["ours"]), *found))
    return markdown(("cell", "ours us/batch", *(peer.name for peer in peers)), rows)


def _row(result: CellResult) -> tuple[str, ...]:
    times, cpu = result.times, result.consumer_cpu
    return (
        result.cell,
        size(result.batch_bytes),
        micros(times["stock"]),
        micros(times["ours"]),
        result.ratio.text(lambda value: f"{value:.1f}"),
        micros(times["limit"]),
        result.share_of_limit.text(lambda value: f"{value:.2f}"),
        micros(cpu["stock"]),
        micros(cpu["ours"]),
    )


if __name__ == "__main__":
    sys.exit(main())
