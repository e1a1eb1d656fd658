"""A loader's figures as a table that a person reads at a glance. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = "B", "KB", "MB", "GB", "TB"
_WIDTH = 100


def seconds(value: float) -> str:
    """Returns a time."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return "0" if value <= 0 else f"{value * 1e9:.3g} ns"


def size(value: float) -> str:
    """Returns a number of bytes."""
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.3g} {_UNITS[unit]}"


def count(value: float) -> str:
    """Returns a number, or a rate."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """Returns a part of a whole."""
    return f"{100 * part / whole:.0f} %" if whole > 0 else "-"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(pairs)
        ).rstrip()
        for pairs in (zip(row, widths, strict=True) for row in rows)
    ]


def wrapped(text: str) -> list[str]:
    """Returns a text in lines."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= _WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
