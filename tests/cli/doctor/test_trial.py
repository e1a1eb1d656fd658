"""Functions that answer, fail, hang and crash, each in a child of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shmloader.cli.doctor import trial


def _raise() -> None:
    raise ValueError("in\nvain " + "x" * 10_000)


def _hang() -> None:
    threading.Event().wait()


def _ignore_all() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _hang()


@pytest.mark.parametrize(
    ("function", "seconds", "failure"),
    [
        (_raise, 60, "ValueError: in vain xxx"),
        (lambda: object(), 60, "TypeError: "),
        (lambda: sys.exit(3), 60, "its process ended with exit code 0"),
        (lambda: os._exit(3), 60, "its process ended with exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 60, "its process was ended by signal 9"),
        (_hang, 0.01, "nothing happened within 0.01 s"),
        (_ignore_all, 0.01, "nothing happened within 0.01 s"),
    ],
)
def test_failures(function: Callable[[], Any], seconds: float, failure: str) -> None:
    outcome = trial.run(function, seconds)
    assert outcome.value is None
    assert outcome.failure.startswith(failure)
    assert len(outcome.failure) <= 500


def test_values() -> None:
    value = {"a": [1, None, "x" * 20_000]}
    assert trial.run(lambda: value, 60) == trial.Outcome(value)


def test_what_is_printed_is_no_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert trial.run(lambda: os.write(1, b"noise\n"), 60).value == 6
    assert capfd.readouterr() == ("", "noise\n")
