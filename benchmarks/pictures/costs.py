"""What one picture costs, idea by idea, in one process and one thread, and how far its pixels are from Pillow's."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import Found, as_dicts, markdown, micros
from shmloader.cli.bench.figures import Figure, figure, ratio, times
from shmloader.cli.bench.measure import interleave

from .files import LabelledFile
from .ideas import IDEAS, SIDE, Pixels, Read
from .samples import difference, part_of
from .sheet import draw_sheet, sheet

_COMPARED = 64  # pictures, of which differences are the mean
_WARM_UP = 1


@dataclass(frozen=True)
class Costs(Found):
    """What was measured.

    Attributes:
        seconds: of processor time a picture, round by round, by the name of the idea; none where it is not installed.
        differences: from Pillow's pixels, in levels of 255; the mean of all.
        length: how many files there were.
        shown: the rows of a contact sheet.
    """

    seconds: dict[str, list[float]]
    differences: dict[str, float]
    length: int
    shown: dict[str, list[Pixels]]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        found = {name: figure(took) for name, took in self.seconds.items() if took}
        return {"pictures": self.length, "seconds": as_dicts(found), "differences": self.differences}

    def lines(self) -> list[str]:
        """Returns a table."""
        head = (f"{self.length:,} pictures", "us a picture", f"{IDEAS[0].name} / this", "difference, of 255")
        return markdown(head, [(idea.name, *self._cells(idea.name)) for idea in IDEAS])

    def _cells(self, name: str) -> tuple[str, str, str]:
        took = self.seconds[name]
        if not took:
            return "not installed", "", ""
        return micros(figure(took)), self._gain(took).text(times), f"{self.differences[name]:.2f}"

    def _gain(self, took: Sequence[float]) -> Figure:
        return ratio(self.seconds[IDEAS[0].name], took)

    def draw(self, folder: Path, notes: Sequence[str]) -> None:
        """Draws pictures as some of the ideas read them."""
        draw_sheet(folder / "pictures-crops.png", self.shown, notes)


def measure_costs(files: list[LabelledFile], rounds: int, done: Callable[[], None]) -> Costs:
    """Measures all ideas that are installed. Blocks for some milliseconds a picture, idea and round.

    Args:
        files: what is read.
        rounds: how many are counted.
        done: called after each idea's turn, of which there are `turns`.
    """
    installed = [idea for idea in IDEAS if idea.is_installed]
    readers = {idea.name: idea.make() for idea in installed}
    turns = [functools.partial(_turn, read, files) for read in readers.values()]
    took = dict(zip(readers, interleave(turns, _WARM_UP + rounds, done), strict=True))
    differences = {name: difference(read, readers[IDEAS[0].name], files[:_COMPARED]) for name, read in readers.items()}
    seconds = {idea.name: took.get(idea.name, [])[_WARM_UP:] for idea in IDEAS}
    return Costs(seconds, differences, len(files), sheet(files))


def turns(rounds: int) -> int:
    """Returns how often `measure_costs` calls ``done``."""
    return sum(idea.is_installed for idea in IDEAS) * (_WARM_UP + rounds)


def _turn(read: Read, files: Sequence[LabelledFile]) -> float:
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    start = time.process_time()
    for number, (path, _) in enumerate(files):
        read(path, part_of(number), out)
    return (time.process_time() - start) / len(files)
