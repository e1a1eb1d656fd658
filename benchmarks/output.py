"""What the commands have in common: options that name things, tables, and charts.

Charts are PNG files about 900 pixels wide, of medians and their spread. Matplotlib is imported when they are drawn.
"""

from __future__ import annotations

import argparse
import importlib.util
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from shmloader.cli.bench.figures import Figure, times


class Found(ABC):
    """What a command has measured."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""

    @abstractmethod
    def lines(self) -> list[str]:
        """Returns it as lines of Markdown."""

    def draw(self, folder: Path, notes: Sequence[str]) -> None:
        """Draws charts, with ``notes`` below each."""
        raise NotImplementedError


# -- options ---------------------------------------------------------------------------------------------------------


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Thing = TypeVar("_Thing", bound=_Named)


def some_of(what: str, things: Sequence[_Thing]) -> Callable[[str], list[_Thing]]:
    """Returns what reads the value of an option: names of things, with commas between them, or "all"."""
    by_name = {thing.name: thing for thing in things}

    def read(names: str) -> list[_Thing]:
        try:
            return [by_name[name] for name in (by_name if names == "all" else names.split(","))]
        except KeyError as error:
            raise argparse.ArgumentTypeError(f"there is no {what} {error}; there are {', '.join(by_name)}") from None

    return read


def chart_folder(name: str) -> Path:
    """Reads the name of a folder for charts, and makes it; says at once what would fail after all the measuring."""
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError(
            "charts need matplotlib, which is in the extra [bench]: pip install '.[bench]'"
        )
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"no folder can be made there: {error}") from None
    return folder


# -- tables ----------------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table whose first column holds names and whose others hold numbers."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def micros(found: Figure) -> str:
    """Writes seconds as microseconds, with their spread."""
    return found.text(lambda seconds: f"{seconds * 1e6:.{0 if seconds >= 1e-4 else 1}f}")


def as_dicts(figures: Mapping[Any, Figure]) -> dict[Any, dict[str, Any]]:
    """Returns figures for JSON."""
    return {name: found.as_dict() for name, found in figures.items()}


# -- charts ----------------------------------------------------------------------------------------------------------

_WIDTH, _ROW = 9.0, 0.34  # inches
_NOTE_COLUMNS = 150  # characters
_LEGEND_COLUMNS = 4

# The first series of a chart is what it is about, so it has the strongest colour.
_COLOURS = ("#1f6feb", "#e4572e", "#2b2b2b", "#8f6ed5", "#d49a00", "#3a9d6e", "#c2528b", "#7a7a7a")
_MARKERS = ("o", "s", "d", "D", "^", "v", "P", "X")
_FAINT = "#6e7781"

_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": "#d0d7de",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#eaeef2",
    "legend.frameon": False,
}

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


def dots(path: Path, labels: Labels, series: Mapping[str, Mapping[str, Figure]]) -> None:
    """Draws a row for each name and a dot, with its spread, for each series that has it; the axis is logarithmic.

    Args:
        path: the file.
        labels: the words.
        series: by the name of each series, its figures by the name of the row. One alone holds quotients, which are
            written beside the dots, with a line across at 1.
    """
    names = list(dict.fromkeys(name for figures in series.values() for name in figures))
    with _drawn(path, labels, 2.0 + _ROW * len(names), list(series)) as axes:
        # The first series is drawn last, so that it lies on top where dots meet.
        for (label, figures), (colour, marker) in reversed(list(zip(series.items(), _looks(), strict=False))):
            rows = [names.index(name) for name in figures]
            found = list(figures.values())
            axes.hlines(rows, [one.low for one in found], [one.high for one in found], colour, lw=1.2)
            axes.plot([one.median for one in found], rows, marker, color=colour, label=label)
        if len(series) == 1:
            for row, one in enumerate(found):
                axes.annotate(times(one.median), (one.high, row), (6, 0), textcoords="offset points", va="center")
            axes.axvline(1, color=_COLOURS[1], lw=1)
        axes.set_xscale("log")
        axes.margins(x=0.08)
        _number_often(axes)
        _plain_numbers(axes.xaxis)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
        axes.set_xlabel(labels.values)


def curves(
    path: Path,
    labels: Labels,
    series: Mapping[str, Curve],
    lines: Mapping[str, Mapping[int, float]],
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
    with _drawn(path, labels, 4.2, [*series, *lines]) as axes:
        for (label, curve), (colour, marker) in zip(series.items(), _looks(), strict=False):
            found = list(curve.values())
            axes.fill_between(
                list(curve), [one.low for one in found], [one.high for one in found], color=colour, alpha=0.18
            )
            axes.plot(list(curve), [one.median for one in found], marker=marker, color=colour, label=label)
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


def _looks() -> Iterator[tuple[str, str]]:
    """Yields the colour and the marker of each series."""
    while True:
        yield from zip(_COLOURS, _MARKERS, strict=True)


@contextmanager
def _drawn(path: Path, labels: Labels, height: float, names: Sequence[str]) -> Iterator[Any]:
    """Gives axes to draw on; then adds the words, with a legend of the series' ``names``, and writes the file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(_WIDTH, height), dpi=100, layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots()
        axes.grid(visible=True)
        yield axes
        axes.set_title(labels.title, pad=10 + _legend(axes, names))
        notes = "\n".join(line for note in labels.notes for line in textwrap.wrap(note, _NOTE_COLUMNS))
        canvas.supxlabel(notes, x=0.01, ha="left", fontsize=7, color=_FAINT)
        canvas.savefig(path)


def _number_often(axes: Any) -> None:
    """Marks 1, 2 and 5 of each decade of a logarithmic axis that is short, and would have a number or two else."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_xlim()
    if high < 300 * low:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))


def _plain_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Any, names: Sequence[str]) -> int:
    """Names the series above the axes, in their order, and returns how high that is, in points."""
    if len(names) < 2:
        return 0
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend = axes.legend(
        [handles[name] for name in names],
        names,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=_LEGEND_COLUMNS,
        borderaxespad=0.3,
        handletextpad=0.4,
    )
    legend.set_in_layout(False)  # or a long one would make the axes narrower
    return 16 * -(-len(names) // _LEGEND_COLUMNS)
