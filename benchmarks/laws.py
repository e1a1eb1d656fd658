"""How a cost grows: whether it stays flat, or grows in a straight line. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shmloader.cli.bench.figures import Figure, duration

# Medians of the same thing differ by a tenth or so on a machine that does other work too.
_FLAT = 1.25
_STRAIGHT = 0.99
_PROPORTIONAL = 0.95

Curve = Mapping[int, Figure]


@dataclass(frozen=True)
class Law:
    """What is to hold of a curve, and whether it does.

    Attributes:
        text: what grows, how, and the numbers that show it.
        holds: whether it does.
    """

    text: str
    holds: bool

    def line(self) -> str:
        """Returns a line of Markdown."""
        return f"- {self.text}: {'holds' if self.holds else 'DOES NOT HOLD'}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Line:
    """A straight line through the medians of a curve, by least squares.

    Attributes:
        intercept: its value at 0.
        slope: what it rises for each place.
        r_squared: which share of the medians' variance it explains.
    """

    intercept: float
    slope: float
    r_squared: float

    def at(self, place: float) -> float:
        """Returns its value at a place."""
        return self.intercept + self.slope * place


def fit(curve: Curve) -> Line:
    """Fits a straight line.

    Raises:
        StatisticsError: there are fewer than two places, or all medians are the same.
    """
    places, medians = list(curve), [found.median for found in curve.values()]
    slope, intercept = statistics.linear_regression(places, medians)
    return Line(intercept, slope, statistics.correlation(places, medians) ** 2)


def flat(what: str, curve: Curve) -> Law:
    """Judges a cost that is to stay the same."""
    medians = [found.median for found in curve.values()]
    spread = max(medians) / min(medians)
    text = f"{what}: flat from {min(curve):,} to {max(curve):,}; the dearest is {spread:.2f} times the cheapest"
    return Law(text, spread <= _FLAT)


def linear(what: str, curve: Curve) -> Law:
    """Judges a cost, in seconds, that is to grow in a straight line."""
    line = fit(curve)
    text = (
        f"{what}: linear from {min(curve):,} to {max(curve):,}; "
        f"{_signed(line.intercept)} and {_signed(line.slope)} each, R^2 {line.r_squared:.4f}"
    )
    return Law(text, line.r_squared >= _STRAIGHT)


def proportional(what: str, shares: Curve) -> Law:
    """Judges what is to grow as the place does, by its share of that at the last place."""
    last = max(shares)
    text = f"{what}: linear from {min(shares):,} to {last:,}; {shares[last].median:.2f} of it at {last:,}"
    return Law(text, shares[last].median >= _PROPORTIONAL)


def _signed(seconds: float) -> str:
    return duration(seconds) if seconds >= 0 else f"-{duration(-seconds)}"
