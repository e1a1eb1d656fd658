"""A contact sheet: the same parts of the same pictures, as some of the ideas read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .files import LabelledFile
from .ideas import IDEAS, Pixels
from .samples import read_part

_SHOWN = ("Pillow: all, then crop and resize", "OpenCV: all", "TurboJPEG: planes, converted when small", "the recipe")
_COLUMNS = 6
_FACTOR = 8  # by which the last row is brighter than what it shows


def draw_sheet(path: Path, rows: Mapping[str, Sequence[Pixels]], notes: Sequence[str]) -> None:
    """Draws what `sheet` returns.

    Args:
        path: a PNG file.
        rows: pictures, by what is written above them.
        notes: small print below.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 1.62 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for axes, (name, pictures) in zip(grid, rows.items(), strict=True):
        for place, picture in zip(axes, pictures, strict=False):
            place.imshow(picture)
        for place in axes:
            place.set_axis_off()
        axes[0].set_title(name, loc="left", fontsize=8)
    figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=7, color="#6e7781")
    FigureCanvasAgg(figure)
    figure.savefig(path)


def sheet(files: Sequence[LabelledFile]) -> dict[str, list[Pixels]]:
    """Returns a row for each idea, and one of the differences between the last and the first, made brighter.

    Ideas that are not installed are left out.

    Args:
        files: the first of them are shown.
    """
    readers = {idea.name: idea.make() for idea in IDEAS if idea.name in _SHOWN and idea.is_installed}
    rows = {
        name: [read_part(read, path, number) for number, (path, _) in enumerate(files[:_COLUMNS])]
        for name, read in readers.items()
    }
    first, last = rows[_SHOWN[0]], rows[_SHOWN[-1]]
    rows[f"difference between the last and the first, {_FACTOR} times as bright"] = [
        np.minimum(_FACTOR * np.abs(one.astype(np.int16) - other), 255).astype(np.uint8)
        for one, other in zip(last, first, strict=True)
    ]
    return rows
