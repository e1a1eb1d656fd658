"""Medians, their spread, and ratios of values that were taken in pairs. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shmloader.observe.table import duration, size, three_digits

__all__ = ["Figure", "duration", "figure", "ratio", "size", "times"]  # with those that figures are written by


@dataclass(frozen=True)
class Figure:
    """A quantity that was measured once a round.

    Attributes:
        median: of the rounds.
        low: the least of the rounds.
        high: the greatest of the rounds.
        rounds: the values, in the order of the rounds.
    """

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    def text(self, form: Callable[[float], str]) -> str:
        """Returns the median and, in brackets, the spread."""
        if len(self.rounds) == 1:
            return form(self.median)
        return f"{form(self.median)} ({form(self.low)} to {form(self.high)})"

    def scaled(self, factor: float) -> Figure:
        """Returns the same in another unit."""
        return figure([factor * value for value in self.rounds])

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, for JSON."""
        return asdict(self)


def figure(values: Sequence[float]) -> Figure:
    """Sums up the values of some rounds.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("a figure needs at least one value")
    return Figure(statistics.median(values), min(values), max(values), tuple(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Figure:
    """Sums up the quotients of values of the same round.

    Noise that lasts longer than a round is in both values of a pair, and drops out of their quotient.

    Raises:
        ValueError: the two differ in length.
    """
    return figure([one / other for one, other in zip(above, below, strict=True)])


def times(value: float) -> str:
    """Writes a quotient, as in 12.3x."""
    return f"{three_digits(value)}x"
