"""Medians, units and the report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from shmloader.cli.bench import figures
from shmloader.cli.bench.measure import Round
from shmloader.cli.bench.report import LoaderReport, Report
from shmloader.cli.bench.steps import Judgement
from shmloader.cli.bench.sweep import Sweep
from shmloader.cli.bench.verify import Verdict


def test_figures() -> None:
    assert figures.figure([3.0, 1.0, 2.0]) == figures.Figure(2.0, 1.0, 3.0, (3.0, 1.0, 2.0))
    assert figures.ratio([10, 30, 40], [1, 2, 10]).rounds == (10, 15, 4)
    assert figures.ratio([10, 30, 40], [1, 2, 10]).median == 10
    assert figures.figure([1.0]).text(figures.times) == "1.00x"
    assert figures.figure([1.0, 2.0]).text(figures.times) == "1.50x (1.00x to 2.00x)"
    with pytest.raises(ValueError, match="at least one"):
        figures.figure([])
    with pytest.raises(ValueError, match="shorter"):
        figures.ratio([1.0, 2.0], [1.0])


def test_units() -> None:
    assert [figures.duration(value) for value in (2.5e-6, 12.34e-6, 0.5, 1.0)] == [
        *("2.50 us", "12.3 us", "500 ms", "1.00 s")
    ]
    assert [figures.size(value) for value in (12, 12_345, 1e6, 2.5e9, -3e6)] == [
        *("12 B", "12.3 kB", "1.00 MB", "2.50 GB", "-3.00 MB")
    ]


def test_a_report_says_no_plainly() -> None:
    rounds = [Round(10, 1e-3, 1e-4, [0.1])]
    verdict = Verdict(False, 7, "batch 3: 1 against 2", stock_repeats=True)
    report = Report("m:f", {}, {}, LoaderReport(rounds, None), LoaderReport(rounds, None), verdict)
    assert "not known" in report.text()
    assert "batches equal: NO, batch 3: 1 against 2 (stock against ours); stock's own batches are the" in report.text()
    assert json.loads(json.dumps(report.as_dict()))["stock_repeats"] is True


def _report(workers: int, times: list[float], verdict: Verdict) -> Report:
    stock, ours = ([Round(10, seconds * factor, 1e-4, [0.1]) for seconds in times] for factor in (4, 1))
    return Report("m:f", {"num_workers": workers}, {}, LoaderReport(stock, None), LoaderReport(ours, None), verdict)


def test_enough_workers_are_the_least_that_are_nearly_as_quick() -> None:
    same = Verdict(True, 7)
    reports = [_report(count, [time], same) for count, time in ((1, 4.0), (2, 2.1), (4, 2.0), (8, 2.3))]
    assert Sweep(reports).enough is reports[1]
    assert Sweep(reports[:1]).enough is reports[0]
    assert Sweep(reports[:1]).text() == reports[0].text()
    text = Sweep(reports).text()
    assert "num_workers=2 is enough" in text
    assert text.count("batches equal: yes") == 1
    assert [line.split()[5:11] for line in text.splitlines() if line.startswith("4 ")] == [
        ["4.00x", "2.00x", "not", "known", "not", "known"]
    ]


def test_enough_workers_are_the_least_that_keep_the_loop_busy() -> None:
    judgements = [
        Judgement(0.02, "too few workers", "num_workers", "Take more."),
        Judgement(0.02, "the loop is the limit", None, "Nothing is to be gained.", True),
        Judgement(0.02, "the loop is the limit", None, "Nothing is to be gained.", True),
    ]
    reports = [
        replace(_report(count, [1.0 / count], Verdict(True, 7)), judgement=judgement)
        for count, judgement in zip((1, 2, 4), judgements, strict=True)
    ]
    assert Sweep(reports).enough is reports[1]
    assert Sweep(reports).as_dict()["enough_workers"] == 2
    text = Sweep(reports).text()
    assert "num_workers=2 is enough: it keeps a loop busy whose steps take 20.0 ms" in text
    assert text.endswith("\n\nFor steps of 20.0 ms: Nothing is to be gained.")
    assert "too few workers" in text
