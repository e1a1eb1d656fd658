"""The beginning and the end of passes: ``python -m benchmarks.edges``. See `turnaround` for what is measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from shmloader.cli.bench.figures import duration, size, times
from shmloader.cli.bench.memory import Memory
from shmloader.cli.console import Parser, positive, shown
from shmloader.cli.machine import machine, machine_line

from . import charts
from .cells import CELLS, Cell, Stream
from .output import chosen, command, markdown, options
from .turnaround import BARS, FIRST, Found, measure, turns

# Streams end when they like, and not where a pass is to end.
_CELLS = [cell for cell in CELLS if cell.arrange is not Stream]
_DEFAULT = "gray28,rgb224"

_NAMES = {"ours": "shmloader", "stock": "torch's DataLoader", "bare": "starting the processes alone"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit code. Blocks for about half a minute a cell."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(argv)
    cells = chosen(parser, "cell", args.cells, _CELLS, " here")
    results = _measure(cells, args.num_workers, args.rounds)
    run = command("benchmarks.edges", argv)
    if args.json:
        found = [result.as_dict() for result in results]
        print(
            json.dumps(
                {"command": run, "machine": machine(), "num_workers": args.num_workers, "cells": found}, indent=2
            )
        )
    else:
        tables = [line for result in results for line in [*_table(result), ""]]
        print("\n".join([machine_line(), "", *tables, *_lines(results)]))
    if args.plot:
        _draw(results, args.plot / "edges.png", run)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.edges",
        description="Measures the beginning and the end of passes, and the memory of a loader.",
        parents=[options()],
    )
    parser.add_argument(
        "--cells",
        default=_DEFAULT,
        metavar="A,B",
        help=f"of {', '.join(cell.name for cell in _CELLS)}; default: {_DEFAULT}",
    )
    parser.add_argument("--rounds", type=positive, default=11, metavar="N", help="default: 11")
    parser.add_argument("--num-workers", type=positive, default=2, metavar="N", help="default: 2")
    return parser


def _measure(cells: Sequence[Cell], num_workers: int, rounds: int) -> list[Found]:
    results = []
    with shown(len(cells) * turns(rounds)) as progress:
        for cell in cells:
            progress.begin(cell.name)
            results.append(measure(cell, num_workers, rounds, progress.step))
    return results


def _table(found: Found) -> list[str]:
    rows = [
        (edge, took["ours"].text(duration), took["stock"].text(duration), found.to_stock[edge].text(times))
        for edge, took in found.seconds.items()
    ]
    bare = [
        ("processes alone", found.seconds[FIRST]["bare"].text(duration), "", ""),
        ("first batch / processes alone", found.to_bare.text(times), "", ""),
    ]
    memory = [
        _memory_row("memory added (PSS)", found, lambda memory: memory.pss),
        _memory_row("shared memory in transit", found, lambda memory: memory.in_transit),
    ]
    return markdown((found.cell, "ours", "stock", "stock / ours"), [*rows, *bare, *memory])


def _memory_row(what: str, found: Found, pick: Callable[[Memory], int]) -> tuple[str, ...]:
    memories = (found.memory[name] for name in ("ours", "stock"))
    return (what, *("not known" if memory is None else size(pick(memory)) for memory in memories), "")


def _lines(results: Sequence[Found]) -> list[str]:
    lines = []
    for edge, most in BARS.items():
        word = "holds" if all(found.holds[edge] for found in results) else "DOES NOT HOLD"
        numbers = "; ".join(
            f"{found.cell} {duration(found.seconds[edge]['ours'].median)}{'' if found.holds[edge] else ', too long'}"
            for found in results
        )
        lines.append(f"- {edge}: ours takes at most {duration(most)}: {word} ({numbers})")
    return lines


def _draw(results: Sequence[Found], path: Path, run: str) -> None:
    notes = [f"Medians, and lines from the least to the greatest round. {run}", machine_line()]
    series = {
        text: {
            f"{found.cell}: {edge}": took[name].scaled(1e3)
            for found in results
            for edge, took in found.seconds.items()
            if name in took
        }
        for name, text in _NAMES.items()
    }
    charts.dots(path, charts.Labels("The beginning and the end of passes", notes, "milliseconds"), series)


if __name__ == "__main__":
    sys.exit(main())
