"""The first bars: what the project set out to reach, and whether it holds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .suite import CellResult

_SMALL = ("floats8", "gray28", "rgb64", "fields32")
_LARGE = ("rgb224", "rgb224b256", "rgb224f32")
_TWO_TENSORS = ("gray28", "rgb64", *_LARGE)
_LARGE_BATCH = 100_000


@dataclass(frozen=True)
class Bar:
    """Something that is to hold of the medians of some cells.

    Attributes:
        text: what is to hold.
        applies: whether a cell is one of them.
        value: the number in question.
        holds: whether it is good enough.
        unit: what to write behind the number.
    """

    text: str
    applies: Callable[[CellResult], bool]
    value: Callable[[CellResult], float]
    holds: Callable[[float], bool]
    unit: str = ""


@dataclass(frozen=True)
class Outcome:
    """One bar and one cell: the number, and whether the bar holds."""

    bar: str
    cell: str
    value: float
    holds: bool
    unit: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, for JSON."""
        return asdict(self)


def _one_of(names: Sequence[str]) -> Callable[[CellResult], bool]:
    return lambda result: result.cell in names


def _at_least_as_fast(factor: int, cells: str, names: Sequence[str]) -> Bar:
    return Bar(
        f"at least {factor}x stock on {cells}",
        _one_of(names),
        lambda result: result.ratio.median,
        lambda value: value >= factor,
        "x",
    )


BARS = (
    _at_least_as_fast(10, "the small and middle cells", _SMALL),
    _at_least_as_fast(8, "the 224 cells", _LARGE),
    _at_least_as_fast(3, "tokens", ("tokens",)),
    Bar(
        "at least 0.8 of the limit where a batch is 100 kB or more",
        lambda result: result.batch_bytes >= _LARGE_BATCH,
        lambda result: result.share_of_limit.median,
        lambda value: value >= 0.8,
    ),
    Bar(
        "main process's CPU at most 30 us for a batch of two tensors",
        _one_of(_TWO_TENSORS),
        lambda result: result.consumer_cpu["ours"].median * 1e6,
        lambda value: value <= 30,
        " us",
    ),
)


def judge(results: Sequence[CellResult]) -> list[Outcome]:
    """Returns every bar's outcome for every cell that it applies to."""
    return [
        Outcome(bar.text, result.cell, bar.value(result), bar.holds(bar.value(result)), bar.unit)
        for bar in BARS
        for result in results
        if bar.applies(result)
    ]


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns one line of Markdown for each bar that applied to any cell."""
    return [
        f"- {bar}: {_word(group)} ({', '.join(map(_number, group))})"
        for bar in dict.fromkeys(outcome.bar for outcome in outcomes)
        if (group := [outcome for outcome in outcomes if outcome.bar == bar])
    ]


def _word(group: Sequence[Outcome]) -> str:
    return "holds" if all(outcome.holds for outcome in group) else "DOES NOT HOLD"


def _number(outcome: Outcome) -> str:
    return f"{outcome.cell} {outcome.value:.2f}{outcome.unit}{'' if outcome.holds else ' short'}"
