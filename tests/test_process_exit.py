"""What is done when a process exits or forks: all of it, in its order."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

import shmloader
from shmloader import process_exit
from shmloader.process_exit import AtExit, InChild
from tests.helpers.support import run_file


def test_acts_follow_the_steps_and_not_their_registration() -> None:
    ended = run_file(
        textwrap.dedent(
            """
            import os
            from shmloader.process_exit import AtExit, InChild, at_exit, at_fork, in_child, is_exiting

            def say(text):
                os.write(1, f"{text}\\n".encode())  # whole, though the child says something at the same time

            def says(text):
                return lambda: say(text)

            at_exit(AtExit.UNPIN, says("unpin"))
            at_exit(AtExit.CLOSE_PASSES, lambda: say(f"close {is_exiting()}"))
            in_child(InChild.DISOWN_PASSES, says("child: disown"))
            in_child(InChild.TAKE_COPIES, says("child: take"))
            at_fork(says("before"), says("parent"))
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            say(is_exiting())
            """
        )
    )
    lines = ended.stdout.splitlines()
    assert ended.stderr == ""
    assert sorted(lines[:4]) == ["before", "child: disown", "child: take", "parent"]
    assert lines.index("before") == 0
    assert lines.index("child: take") < lines.index("child: disown")
    assert lines[4:] == ["False", "close True", "unpin"]


def test_one_act_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def fail() -> None:
        done.append("failed")
        raise OSError("the first one")

    monkeypatch.setattr(
        process_exit, "_at_exit", [(AtExit.UNPIN, lambda: done.append("unpin")), (AtExit.CLOSE_PASSES, fail)]
    )
    with pytest.raises(OSError, match="the first one"):
        process_exit._run(process_exit._by_step(process_exit._at_exit))
    assert done == ["failed", "unpin"]


def test_the_steps_of_a_child_are_in_order() -> None:
    assert list(InChild) == sorted(InChild)
    assert min(InChild) == InChild.TAKE_COPIES


def test_nobody_else_registers_hooks() -> None:
    package = Path(shmloader.__file__).parent
    others = [path for path in package.rglob("*.py") if path.name != "process_exit.py"]
    assert [path for path in others if "atexit" in (text := path.read_text()) or "register_at_fork" in text] == []
