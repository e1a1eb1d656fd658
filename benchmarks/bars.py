"""The bars: what is to hold of the suite's medians with two workers, and whether it does. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .suite import CellResult

_SMALL = ("floats8", "gray28", "single28", "stream28")
_LARGE = ("rgb224", "rgb224b256", "rgb224f32", "batch100mb")
_DEMANDING = ("fields32", "fields200", "tokens", "tokens1000", "tokenspad")
_LARGE_BATCH = 1_000_000

# Where the time goes into making samples and batches, which every library has to do.
_BOUND_BY_THE_DATASET = ("jpeg224", "tokenspad")

_Pick = Callable[[CellResult], float]


@dataclass(frozen=True)
class Bar:
    """Something that is to hold of the medians of some cells.

    Attributes:
        text: what is to hold.
        applies: whether a cell is one of them.
        value: the number in question.
        bound: what it is compared with.
        is_ceiling: whether the number must not be above the bound; else it must not be below.
        unit: what to write behind the number.
    """

    text: str
    applies: Callable[[CellResult], bool]
    value: _Pick
    bound: _Pick
    is_ceiling: bool = False
    unit: str = ""

    def judge(self, result: CellResult) -> Outcome:
        """Returns what comes of it for one cell."""
        value, bound = self.value(result), self.bound(result)
        holds = value <= bound if self.is_ceiling else value >= bound
        return Outcome(self.text, result.cell, value, bound, holds, self.unit)


@dataclass(frozen=True)
class Outcome:
    """One bar and one cell: the number, what it is compared with, and whether the bar holds."""

    bar: str
    cell: str
    value: float
    bound: float
    holds: bool
    unit: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, for JSON."""
        return asdict(self)


def _one_of(names: Sequence[str]) -> Callable[[CellResult], bool]:
    return lambda result: result.cell in names


def _of_stock(factor: int, cells: str, applies: Callable[[CellResult], bool]) -> Bar:
    return Bar(
        f"at least {factor}x stock on {cells}",
        applies,
        lambda result: result.ratio.median,
        lambda result: factor,
        unit="x",
    )


def _of_the_limit(share: float, cells: str, applies: Callable[[CellResult], bool]) -> Bar:
    return Bar(
        f"at least {share} of the limit {cells}",
        applies,
        lambda result: result.share_of_limit.median,
        lambda result: share,
    )


BARS = (
    _of_stock(20, "samples of 28x28 and below", _one_of(_SMALL)),
    _of_stock(10, "samples of 3x224x224", _one_of(_LARGE)),
    _of_stock(5, "many fields and padded tokens", _one_of(_DEMANDING)),
    _of_stock(60, "a TensorDataset", _one_of(("tensors28",))),
    _of_stock(1, "every cell", lambda result: True),
    _of_the_limit(0.9, "where a batch is 1 MB or more", lambda result: result.batch_bytes >= _LARGE_BATCH),
    _of_the_limit(0.7, "for 64 samples of 28x28", _one_of(("gray28",))),
    Bar(
        "main process's CPU at most 15 us a batch, and 1.5 us for each tensor beyond two",
        lambda result: True,
        lambda result: result.consumer_cpu["ours"].median * 1e6,
        lambda result: 15 + 1.5 * max(0, result.batch_tensors - 2),
        is_ceiling=True,
        unit=" us",
    ),
    Bar(
        "at least 5x the fastest peer where the dataset's own work leaves room",
        lambda result: bool(result.peers) and result.cell not in _BOUND_BY_THE_DATASET,
        lambda result: min(found.median for found in result.peer_ratios.values()),
        lambda result: 5,
        unit="x",
    ),
)


def judge(results: Sequence[CellResult]) -> list[Outcome]:
    """Returns every bar's outcome for every cell that it applies to."""
    return [bar.judge(result) for bar in BARS for result in results if bar.applies(result)]


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns one line of Markdown for each bar that applied to any cell."""
    return [
        f"- {bar}: {_word(group)} ({'; '.join(map(_number, group))})"
        for bar in dict.fromkeys(outcome.bar for outcome in outcomes)
        if (group := [outcome for outcome in outcomes if outcome.bar == bar])
    ]


def _word(group: Sequence[Outcome]) -> str:
    return "holds" if all(outcome.holds for outcome in group) else "DOES NOT HOLD"


def _number(outcome: Outcome) -> str:
    missed = "" if outcome.holds else f", not {outcome.bound:g}"
    return f"{outcome.cell} {outcome.value:.2f}{outcome.unit}{missed}"
