"""Charts that can be looked at, and tables."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from benchmarks.output import Labels, curves, dots, markdown, micros
from shmloader.cli.bench.figures import figure

_LABELS = Labels("Title", ["a note", "another " * 40], "microseconds", "places")
_FIGURES = {"one": figure([1.0, 2.0, 4.0]), "two": figure([30.0])}


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:])
    return width, height


@pytest.mark.usefixtures("_matplotlib")
def test_charts_fit_a_page_and_grow_with_their_rows(tmp_path: Path) -> None:
    more = _FIGURES | {f"name{number}": figure([2.0]) for number in range(20)}
    for name, values in (("few", _FIGURES), ("many", more)):
        dots(tmp_path / f"ratios-{name}.png", _LABELS, {"ours": values})
        dots(tmp_path / f"dots-{name}.png", _LABELS, {"ours": values, "theirs": {"one": values["one"]}})
    for is_log in (False, True):
        curve = {1: figure([2.0]), 10: figure([1.0, 3.0])}
        curves(tmp_path / f"curves-{is_log}.png", _LABELS, {"ours": curve}, {"line": {1: 2, 10: 2}}, log_values=is_log)
    sizes = {path.stem: _png_size(path) for path in tmp_path.iterdir()}
    assert {width for width, _ in sizes.values()} == {900}
    assert sizes["ratios-many"][1] > sizes["ratios-few"][1]
    assert sizes["dots-many"][1] > sizes["dots-few"][1]


def test_a_table_is_markdown() -> None:
    row = ("a", micros(figure([1.5e-6])), micros(figure([1e-4, 3e-4])))
    assert markdown(("name", "x", "y"), [row]) == [
        "| name | x | y |",
        "| --- | ---: | ---: |",
        "| a | 1.5 | 200 (100 to 300) |",
    ]
