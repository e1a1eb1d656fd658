"""Figures as text: how times, sizes, counts and shares are written everywhere, and tables of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_TIMES = ("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)
_SIZES = ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)
_NEARLY_ONE = 0.9995  # which three digits make 1.00
_WIDTH = 100


def duration(seconds: float) -> str:
    """Writes a time with three digits, in the unit that suits it; none is less than 0."""
    for unit, scale in _TIMES:
        if seconds >= _NEARLY_ONE * scale:
            return f"{three_digits(seconds / scale)} {unit}"
    return "0" if seconds <= 0 else f"{seconds * 1e9:.2g} ns"


def size(nbytes: float) -> str:
    """Writes a number of bytes with three digits, in the unit that suits it."""
    for unit, scale in _SIZES:
        if abs(nbytes) >= _NEARLY_ONE * scale:
            return f"{three_digits(nbytes / scale)} {unit}"
    return f"{nbytes:.0f} B"


def three_digits(value: float) -> str:
    """Writes a number of 1 to 999 with three digits, zeros included."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def count(value: float) -> str:
    """Returns a number, or a rate."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """Returns a part of a whole."""
    return f"{100 * part / whole:.0f} %" if whole > 0 else "-"


def percent(share: float) -> str:
    """Writes a share of time, with a digit behind the point where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


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
