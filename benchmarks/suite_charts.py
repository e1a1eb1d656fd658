"""The suite's charts, from what its ``--json`` prints.

``python -m benchmarks.suite_charts RESULTS.json DIR`` draws them again and measures nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shmloader.cli.bench.figures import Figure
from shmloader.cli.console import Parser
from shmloader.cli.machine import machine_line

from . import charts
from .output import chart_folder

_OURS, _STOCK = "shmloader", "torch's DataLoader"
_NAMES = {"ours": _OURS, "stock": _STOCK, "limit": "limit, without a loader"}


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Draws the ratio to stock, the time a batch, and the main process's processor time a batch, each by cell.

    Args:
        found: what ``python -m benchmarks --json`` prints.
        folder: where the files go.
    """
    notes = [
        f"Medians, and lines from the least to the greatest round. {found['command']}",
        machine_line(found["machine"]),
    ]
    cells = {cell["cell"]: cell for cell in found["cells"]}
    charts.bars(
        folder / "ratio.png",
        charts.Labels(f"How many times as fast as {_STOCK}", notes, "torch's time a batch / shmloader's"),
        {name: Figure(**cell["ratio"]) for name, cell in cells.items()},
        mark=1,
    )
    charts.dots(
        folder / "time.png",
        charts.Labels("Time a batch", notes, "microseconds"),
        _by_contestant(cells, "seconds_per_batch"),
    )
    charts.dots(
        folder / "cpu.png",
        charts.Labels("Main process's processor time a batch", notes, "microseconds"),
        _by_contestant(cells, "consumer_cpu_seconds_per_batch"),
    )


def _by_contestant(cells: Mapping[str, Any], what: str) -> dict[str, dict[str, Figure]]:
    contestants = dict.fromkeys([*_NAMES, *(name for cell in cells.values() for name in cell[what])])
    series = {
        _NAMES.get(one, one): {
            name: Figure(**cell[what][one]).scaled(1e6) for name, cell in cells.items() if one in cell[what]
        }
        for one in contestants
    }
    return {name: figures for name, figures in series.items() if figures}


def main(argv: Sequence[str] | None = None) -> int:
    """Draws from a file and returns the exit code."""
    parser = Parser(prog="python -m benchmarks.suite_charts", description="Draws what the suite has measured before.")
    parser.add_argument("results", type=Path, metavar="RESULTS.json", help="what `python -m benchmarks --json` printed")
    parser.add_argument("folder", type=chart_folder, metavar="DIR", help="where the PNG files go")
    args = parser.parse_args(argv)
    draw(json.loads(args.results.read_text()), args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
