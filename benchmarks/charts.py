"""Charts of medians and their spread, as PNG files about 900 pixels wide.

They get names and figures, and know nothing of what was measured. Only this module imports matplotlib, and only when it
draws.
"""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmloader.cli.bench.figures import Figure, times

_WIDTH = 9.0
_DPI = 100
_ROW = 0.34  # inches
_NOTE_COLUMNS = 150  # characters
_LEGEND_COLUMNS = 4

# The first series of a chart is what it is about, so it has the strongest colour.
_COLOURS = ("#1f6feb", "#e4572e", "#2b2b2b", "#8f6ed5", "#d49a00", "#3a9d6e", "#c2528b", "#7a7a7a")
_MARKERS = ("o", "s", "d", "D", "^", "v", "P", "X")
_TEXT = "#24292f"
_FAINT = "#6e7781"

_STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": "#d0d7de",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#eaeef2",
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "white",
}

Series = Mapping[str, Mapping[str, Figure]]
Curve = Mapping[int, Figure]


@dataclass(frozen=True)
class Labels:
    """The words of a chart.

    Attributes:
        title: what it shows.
        notes: what was run, and where: small print below, a paragraph each.
        values: what the axis of values counts, with its unit.
        places: what the other axis counts; for curves only.
    """

    title: str
    notes: Sequence[str]
    values: str
    places: str = ""


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def bars(path: Path, labels: Labels, values: Mapping[str, Figure], mark: float) -> None:
    """Draws a bar for each name, the length of a quotient, with its spread, and a line across at ``mark``."""
    names = list(values)
    with _drawn(path, labels, 1.6 + _ROW * len(names)) as axes:
        places = range(len(names))
        axes.barh(places, [found.median for found in values.values()], height=0.62, color=_COLOURS[0], alpha=0.85)
        _spread(axes, places, values.values(), _TEXT)
        for place, found in enumerate(values.values()):
            axes.annotate(times(found.median), (found.high, place), (6, 0), textcoords="offset points", va="center")
        axes.axvline(mark, color=_COLOURS[1], lw=1)
        axes.set_xlim(left=0)
        axes.margins(x=0.08)
        _name_rows(axes, names, labels)


def dots(path: Path, labels: Labels, series: Series) -> None:
    """Draws a row for each name and a dot, with its spread, for each series that has it; the axis is logarithmic.

    Args:
        path: the file.
        labels: the words.
        series: by the name of each series, its figures by the name of the row.
    """
    names = list(dict.fromkeys(name for figures in series.values() for name in figures))
    with _drawn(path, labels, 2.0 + _ROW * len(names), list(series)) as axes:
        # The first series is drawn last, so that it lies on top where dots meet.
        for number, (label, figures) in reversed(list(enumerate(series.items()))):
            places = [names.index(name) for name in figures]
            colour = _COLOURS[number % len(_COLOURS)]
            _spread(axes, places, figures.values(), colour)
            medians = [found.median for found in figures.values()]
            axes.plot(medians, places, _MARKERS[number % len(_MARKERS)], color=colour, label=label)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        _name_rows(axes, names, labels)


def curves(
    path: Path,
    labels: Labels,
    series: Mapping[str, Curve],
    lines: Mapping[str, Mapping[int, float]] | None = None,
    *,
    log_values: bool = False,
) -> None:
    """Draws each series' medians over its places, with the spread as a band; the places' axis is logarithmic.

    Args:
        path: the file.
        labels: the words.
        series: figures at places, by name.
        lines: values at places to compare them with, by name: broken lines.
        log_values: whether the axis of values is logarithmic too; else it begins at 0.
    """
    lines = lines or {}
    with _drawn(path, labels, 4.2, [*series, *lines]) as axes:
        for number, (label, curve) in enumerate(series.items()):
            lows, medians, highs = zip(
                *((found.low, found.median, found.high) for found in curve.values()), strict=True
            )
            colour = _COLOURS[number % len(_COLOURS)]
            axes.fill_between(list(curve), lows, highs, color=colour, alpha=0.18)
            axes.plot(list(curve), medians, marker=_MARKERS[number % len(_MARKERS)], color=colour, label=label)
        for label, line in lines.items():
            axes.plot(list(line), list(line.values()), "--", color=_FAINT, lw=1, label=label)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.set_xticks(list(dict.fromkeys(place for curve in series.values() for place in curve)))
        if log_values:
            axes.set_yscale("log")
            _plain_numbers(axes.yaxis)
        else:
            axes.set_ylim(bottom=0, top=1.15 * axes.get_ylim()[1])
        axes.set_xlabel(labels.places)
        axes.set_ylabel(labels.values)
        axes.grid(visible=True)


@contextmanager
def _drawn(path: Path, labels: Labels, height: float, names: Sequence[str] = ()) -> Iterator[Any]:
    """Gives axes to draw on; then adds the words, with a legend of the series' ``names``, and writes the file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots()
        yield axes
        axes.set_title(labels.title, pad=10 + _legend(axes, names))
        notes = "\n".join(line for note in labels.notes for line in textwrap.wrap(note, _NOTE_COLUMNS))
        canvas.supxlabel(notes, x=0.01, ha="left", fontsize=7, color=_FAINT)
        canvas.savefig(path)


def _spread(axes: Any, places: Sequence[int], figures: Iterable[Figure], colour: str) -> None:
    lows, highs = zip(*((found.low, found.high) for found in figures), strict=True)
    axes.hlines(places, lows, highs, colour, lw=1.2)


def _name_rows(axes: Any, names: Sequence[str], labels: Labels) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.set_xlabel(labels.values)
    axes.grid(visible=True)


def _plain_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Any, labels: Sequence[str]) -> int:
    """Names the series above the axes, in their order, and returns how high that is, in points."""
    if len(labels) < 2:
        return 0
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend = axes.legend(
        [handles[label] for label in labels],
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=_LEGEND_COLUMNS,
        borderaxespad=0.3,
        handletextpad=0.4,
    )
    legend.set_in_layout(False)  # or a long one would make the axes narrower
    return 16 * math.ceil(len(labels) / _LEGEND_COLUMNS)
