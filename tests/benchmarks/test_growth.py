"""How the cost of a batch grows: that each axis is measured, and what is said of a curve, never of this machine."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.growth import _CPU, AXES, Axis, AxisGrowth, Growth, Rounds, fit, measure
from shmloader.cli.bench.figures import Figure, figure
from shmloader.cli.bench.measure import Round

_BY_NAME = {axis.name: axis for axis in AXES}


def _curve(medians: Mapping[int, float]) -> dict[int, Figure]:
    return {place: figure([0.9 * median, median, 2 * median]) for place, median in medians.items()}


def _rounds(medians: Mapping[int, float]) -> Rounds:
    return {place: [Round(1, median, median / 2)] * 3 for place, median in medians.items()}


def test_a_straight_line_is_found() -> None:
    line = fit(_curve({1: 12.5, 2: 15.0, 4: 20.0, 64: 170.0}))
    assert (line.intercept, line.slope, line.r_squared) == pytest.approx((10.0, 2.5, 1.0))


@pytest.mark.parametrize(
    ("axis", "medians", "lines"),
    [
        (
            "slots",
            {10: 4.0, 100: 5.0, 1000: 4.5},
            ["- time a batch by slots of the pool, from 10 to 1,000: the dearest is 1.25 times the cheapest"],
        ),
        (
            "tensors",
            {1: 12.5e-6, 2: 15e-6, 4: 20e-6, 64: 170e-6},
            [
                "- time a batch by tensors in a batch, from 1 to 64: 10.0 us and 2.50 us each, R^2 1.0000",
                f"- {_CPU} by tensors in a batch, from 1 to 64: 5.00 us and 1.25 us each, R^2 1.0000",
            ],
        ),
        (
            "workers",
            {1: 1.0, 8: 0.125 / 0.9},
            [
                "- throughput by workers, where each of a batch's 4 samples waits 5 ms: 0.90 of 8 times what one makes",
            ],
        ),
    ],
)
def test_the_growth_is_summed_up(axis: str, medians: Mapping[int, float], lines: list[str]) -> None:
    assert AxisGrowth(_BY_NAME[axis], _rounds(medians)).summary() == lines


def test_a_line_may_begin_below_nothing() -> None:
    bent = AxisGrowth(_BY_NAME["tensors"], _rounds({place: 1e-6 * place**2 for place in (1, 2, 4, 8, 16)}))
    assert ": -38.7 us and " in bent.summary()[0]


def test_shares_are_of_one_workers_throughput_in_the_same_round() -> None:
    rounds: Rounds = {1: [Round(10, 10.0), Round(10, 20.0)], 4: [Round(10, 2.5), Round(10, 10.0)]}
    found = AxisGrowth(_BY_NAME["workers"], rounds).shares
    assert found[1].rounds == (1.0, 1.0)
    assert found[4].rounds == (1.0, 0.5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_every_axis_is_measured(axis: Axis) -> None:
    costs_time = axis.name in ("passes", "tensors", "workers")
    places = axis.places[:2] if costs_time else (axis.places[0], axis.places[-1])
    found = axis.measure(places, 2, 0.0)
    assert list(found) == list(places)
    for rounds in found.values():
        assert len(rounds) >= 2
        assert all(took.batches >= 10 and took.wall > 0 for took in rounds)


def test_passes_are_measured_one_by_one() -> None:
    found = _BY_NAME["passes"].measure((1, 3), 2, 0.0)
    assert {place: len(rounds) for place, rounds in found.items()} == {1: 2, 3: 4}
    for rounds in found.values():
        assert {len(took.first_batches) for took in rounds} == {1}
        assert {took.batches for took in rounds} == {984}


def _measured(names: str) -> Growth:
    """Measures along some axes, which somebody else has measured."""

    def already(places: tuple[int, ...], rounds: int, seconds: float) -> Rounds:
        assert (rounds, seconds) == (3, 0.25)
        return {
            place: [Round(1, 1e-3 / place + 1e-6 * number, 1e-6 * place) for number in range(rounds)]
            for place in places
        }

    axes = [dataclasses.replace(_BY_NAME[name], measure=already) for name in names.split()]
    return measure(Namespace(axes=axes, rounds=3, milliseconds=250))


def test_it_says_what_grows_how() -> None:
    found = _measured("workers slots")
    text = "\n".join(found.lines())
    assert "| workers | us/batch | CPU us/batch | share of linear |" in text
    assert "| 1,024 | 2.0 (1.0 to 3.0) | 1024 (1024 to 1024) |" in text
    assert text.splitlines()[-1].startswith("- time a batch by slots of the pool, from 3 to 1,024: the dearest is ")
    axes = found.as_dict()["axes"]
    assert set(axes) == {"workers", "slots"}
    assert set(axes["slots"]) == {"counts", "seconds_per_batch", "consumer_cpu_seconds_per_batch"}


@pytest.mark.usefixtures("_matplotlib")
def test_it_draws_a_chart_for_each_axis(tmp_path: Path) -> None:
    _measured(" ".join(_BY_NAME)).draw(tmp_path, ["a note"])
    assert {path.stem for path in tmp_path.iterdir()} == {f"growth-{axis.name}" for axis in AXES}
