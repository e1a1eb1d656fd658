"""How the cost of a batch grows: that each axis is measured, and what is said of a curve, never of this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import axes, growth, laws
from benchmarks.axes import AXES, Rounds
from shmloader.cli.bench.figures import Figure, figure
from shmloader.cli.bench.measure import Round

# -- laws --------------------------------------------------------------------------------------------------------------


def _curve(medians: Mapping[int, float]) -> dict[int, Figure]:
    return {place: figure([0.9 * median, median, 2 * median]) for place, median in medians.items()}


def test_a_straight_line_is_found() -> None:
    line = laws.fit(_curve({1: 12.5, 2: 15.0, 4: 20.0, 64: 170.0}))
    assert (line.intercept, line.slope, line.r_squared) == pytest.approx((10.0, 2.5, 1.0))
    assert line.at(1000) == pytest.approx(2510)


def test_linear_goes_by_how_much_the_line_explains() -> None:
    straight = laws.linear("time", _curve({1: 12.5e-6, 2: 15e-6, 4: 20e-6, 64: 170e-6}))
    assert straight.line() == "- time: linear from 1 to 64; 10.0 us and 2.50 us each, R^2 1.0000: holds"
    bent = laws.linear("time", _curve({place: 1e-6 * place**2 - 1e-6 for place in (1, 2, 4, 8, 16)}))
    assert not bent.holds
    assert "; -39.7 us and " in bent.text


def test_flat_goes_by_the_dearest_and_the_cheapest() -> None:
    law = laws.flat("time", _curve({10: 4.0, 100: 5.0, 1000: 4.5}))
    assert law.line() == "- time: flat from 10 to 1,000; the dearest is 1.25 times the cheapest: holds"
    assert laws.flat("time", _curve({10: 5.0, 100: 3.9})).line().endswith("1.28 times the cheapest: DOES NOT HOLD")


def test_proportional_goes_by_the_last_place() -> None:
    assert laws.proportional("rate", _curve({1: 1.0, 2: 0.5, 8: 0.96})).holds
    law = laws.proportional("rate", _curve({1: 1.0, 8: 0.89}))
    assert law.line() == "- rate: linear from 1 to 8; 0.89 of it at 8: DOES NOT HOLD"


def test_shares_are_of_one_workers_throughput_in_the_same_round() -> None:
    rounds: Rounds = {1: [Round(10, 10.0), Round(10, 20.0)], 4: [Round(10, 2.5), Round(10, 10.0)]}
    assert axes.shares(rounds)[1].rounds == (1.0, 1.0)
    assert axes.shares(rounds)[4].rounds == (1.0, 0.5)


# -- measuring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_every_axis_is_measured(axis: axes.Axis) -> None:
    costs_time = axis.name in ("passes", "tensors", "workers")
    places = axis.places[:2] if costs_time else (axis.places[0], axis.places[-1])
    found = axis.measure(places, 2, 0.0)
    assert list(found) == list(places)
    for rounds in found.values():
        assert len(rounds) >= 2
        assert all(took.batches >= 10 and took.wall > 0 for took in rounds)


def test_passes_are_measured_one_by_one() -> None:
    (passes,) = (axis for axis in AXES if axis.name == "passes")
    found = passes.measure((1, 3), 2, 0.0)
    assert {place: len(rounds) for place, rounds in found.items()} == {1: 2, 3: 4}
    for rounds in found.values():
        assert {len(took.first_batches) for took in rounds} == {1}
        assert {took.batches for took in rounds} == {984}


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Axes that have been measured before anybody asks."""

    def measure(places: tuple[int, ...], rounds: int, seconds: float) -> Rounds:
        return {
            place: [Round(1, 1e-3 / place + 1e-6 * number, 1e-6 * place) for number in range(rounds)]
            for place in places
        }

    monkeypatch.setattr(growth, "AXES", tuple(dataclasses.replace(axis, measure=measure) for axis in AXES))


@pytest.mark.usefixtures("_measured")
def test_it_prints_markdown_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main(["--axes", "workers,slots", "--rounds", "3"]) == 0
    text = capsys.readouterr().out
    assert "| workers | us/batch | CPU us/batch | share of linear |" in text
    assert "| 1,024 | 2.0 (1.0 to 3.0) | 1024 (1024 to 1024) |" in text
    assert "\n- throughput by workers, where each of a batch's 4 samples waits 5 ms: linear from 1 to 64; 0.9" in text
    assert "\n- time a batch by slots of the pool: flat from 3 to 1,024; the dearest is " in text
    assert growth.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"command", "machine", "axes"}
    assert set(found["axes"]) == {"length", "slots", "passes", "tensors", "workers"}
    assert set(found["axes"]["tensors"]) == {"counts", "seconds_per_batch", "consumer_cpu_seconds_per_batch", "laws"}
    assert len(found["axes"]["tensors"]["laws"]) == 2


@pytest.mark.usefixtures("_measured", "_matplotlib")
def test_it_draws_a_chart_for_each_axis(tmp_path: Path) -> None:
    assert growth.main(["--plot", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == {f"growth-{axis.name}" for axis in AXES}


def test_it_knows_its_axes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.main(["--axes", "slots,height"])
    assert "there is no axis 'height'; there are length, slots" in capsys.readouterr().err
