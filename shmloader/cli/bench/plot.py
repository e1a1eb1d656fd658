"""The table of ``shmloader bench`` as a picture, drawn with matplotlib, which is in the extra ``[plot]``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shmloader.cli.console import UsageError

from .figures import Figure, duration, ratio, times
from .report import Report
from .sweep import Sweep

_INCHES = (6.4, 4.0)
_STOCK, _OURS = "#8c8c8c", "#1f6fb4"


def check(path: Path) -> None:
    """Finds before anything is measured whether a picture could be drawn, and written to ``path``.

    Raises:
        UsageError: matplotlib is not there, or does not write files of that kind, or there is no such folder.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is in the extra [plot]: pip install 'shmloader[plot]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kinds = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise UsageError(f"--plot {path}: a picture's name ends in one of .{', .'.join(kinds)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")


def save(sweep: Sweep, path: Path) -> None:
    """Draws the time of a batch with either loader over the number of workers, and writes that to ``path``.

    Raises:
        UsageError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(canvas)
    _draw(canvas.add_subplot(), sweep.reports)
    try:
        canvas.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from error


def _draw(axes: Any, reports: Sequence[Report]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    places = list(range(len(reports)))
    _line(axes, places, [report.stock.time for report in reports], "torch's DataLoader", _STOCK)
    _line(axes, places, [report.ours.time for report in reports], "ShmDataLoader", _OURS)
    for place, report in zip(places, reports, strict=True):
        quotient = times(ratio(report.stock.time.rounds, report.ours.time.rounds).median)
        below = {"xytext": (0, -8), "textcoords": "offset points", "ha": "center", "va": "top", "color": _OURS}
        axes.annotate(quotient, (place, report.ours.time.low), **below)
    axes.set_yscale("log")
    axes.margins(x=0.15, y=0.2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(places, [str(report.settings["num_workers"]) for report in reports])
    axes.set_xlabel("workers")
    axes.set_ylabel("time per batch")
    axes.set_title(f"{reports[0].dataset}, batch size {reports[0].settings['batch_size']}", fontsize="medium")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _line(axes: Any, places: Sequence[int], figures: Sequence[Figure], label: str, colour: str) -> None:
    """Draws medians, and whiskers from the least to the greatest."""
    medians = [figure.median for figure in figures]
    spread = [
        [figure.median - figure.low for figure in figures],
        [figure.high - figure.median for figure in figures],
    ]
    axes.errorbar(places, medians, yerr=spread, label=label, color=colour, marker="o", markersize=5, capsize=3)
