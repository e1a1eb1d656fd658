"""Measures what is left of the bars that the project has set itself, and what each of them is up against.

Each part is an experiment, with a control beside the loader:

- waking: the same lines of Python with and without a sleep before them; no loader at all.
- profile: where the main process's processor time goes, as ``perf`` samples it.
- least: this loader, two processes with pipes and nothing else, and the limit.
- passes: the first pass and later ones.
- closing: the end of a loader, and of processes that share as much memory.
- holding: memory, where the loop holds a batch while it waits and where it does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.output import Found, some_of
from shmloader.cli.console import positive, shown

from . import closing, holding, least, passes, profile, waking


class _Result(Protocol):
    def as_dict(self) -> dict[str, Any]: ...

    def lines(self) -> list[str]: ...


@dataclass(frozen=True)
class Part:
    """One experiment.

    Attributes:
        name: what the command line calls it.
        measure: takes how many rounds are counted, and what is called after each turn.
        turns: how many there are, given the rounds.
    """

    name: str
    measure: Callable[[int, Callable[[], None]], _Result]
    turns: Callable[[int], int]


PARTS = (
    Part("waking", waking.measure, waking.turns),
    Part("profile", profile.measure, profile.turns),
    Part("least", least.measure, least.turns),
    Part("passes", passes.measure, passes.turns),
    Part("closing", closing.measure, closing.turns),
    Part("holding", holding.measure, holding.turns),
)


@dataclass(frozen=True)
class Bars(Found):
    """What was measured, by the name of the experiment."""

    parts: dict[str, _Result]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {name: found.as_dict() for name, found in self.parts.items()}

    def lines(self) -> list[str]:
        """Returns a table for each experiment."""
        return [line for found in self.parts.values() for line in (*found.lines(), "")][:-1]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    names = ", ".join(part.name for part in PARTS)
    add("--parts", type=some_of("part", PARTS), default=PARTS, metavar="A,B", help=f"of {names}; default: all")
    add("--rounds", type=positive, default=7, metavar="N", help="default: 7")


def measure(args: argparse.Namespace) -> Bars:
    """Measures. Blocks for about three minutes; no process is left."""
    found: dict[str, _Result] = {}
    with shown(sum(part.turns(args.rounds) for part in args.parts)) as progress:
        for part in args.parts:
            progress.begin(part.name)
            found[part.name] = part.measure(args.rounds, progress.step)
    return Bars(found)
