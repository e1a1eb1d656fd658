"""What the commands share: progress on a terminal, and the line about the machine."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from shmloader.cli.console import printed, shown
from shmloader.cli.machine import machine, machine_line


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _work() -> None:
    with shown(2) as progress:
        progress.begin("work")
        progress.step()


def test_a_terminal_shows_one_line_that_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    _work()
    assert terminal.getvalue().split("\r\x1b[K") == ["", "[0/2] work", "[1/2] work", ""]


def test_nothing_is_shown_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    _work()
    assert pipe.getvalue() == ""


def test_the_machine_is_one_line() -> None:
    assert "\n" not in machine_line()
    assert f"torch {torch.__version__}" in machine_line()
    assert machine_line(machine()) == machine_line()


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(memory, "ascii"))
    assert printed("gr\u00f6\u00dfe \udce9")
    assert memory.getvalue() == b"gr\\xf6\\xdfe \\udce9\n"
