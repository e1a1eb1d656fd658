"""What ``shmloader bench`` prints: a table, or JSON. Pure.

The keys of the JSON:

- ``dataset``: the name that was given, or "synthetic"; ``machine``; ``settings``: the loaders' arguments.
- ``stock``, ``ours``: each with ``batches_per_round``, ``memory_bytes`` and ``memory_in_transit_bytes`` (null where
  the kernel does not say), and three figures: ``seconds_per_batch``, ``consumer_cpu_seconds_per_batch``,
  ``first_batch_seconds``. A figure has ``median``, ``low``, ``high``, and its values in ``rounds``, one a round; of
  first batches there is one a pass, and a round of short passes has several.
- ``ratio``: a figure, stock's time per batch over ours, round by round.
- ``equal``: whether the batches were equal bit for bit; ``compared_batches``: how many were compared;
  ``difference``: the place of the first difference, or null; ``stock_repeats``: where they differ, whether stock's
  own batches are the same when it runs twice, else null.
- ``verdict``: what limits a loop whose steps take ``step_seconds``, as our loader has it: ``kind``, ``knob`` (the
  argument that would help, or null) and ``text``.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .figures import Figure, duration, figure, ratio, size, times
from .measure import Round
from .memory import Memory
from .steps import Judgement
from .verify import Verdict

_COLUMNS = 118  # of a line of words


@dataclass(frozen=True)
class LoaderReport:
    """The figures of one loader."""

    rounds: Sequence[Round]
    memory: Memory | None

    @property
    def time(self) -> Figure:
        """Seconds a batch."""
        return figure([took.per_batch for took in self.rounds])

    @property
    def cpu(self) -> Figure:
        """Seconds of the main process's processor time a batch."""
        return figure([took.cpu_per_batch for took in self.rounds])

    @property
    def first_batch(self) -> Figure:
        """Seconds from ``iter()`` to the first batch, of every pass."""
        return figure([seconds for took in self.rounds for seconds in took.first_batches])

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "batches_per_round": self.rounds[0].batches,
            "seconds_per_batch": self.time.as_dict(),
            "consumer_cpu_seconds_per_batch": self.cpu.as_dict(),
            "first_batch_seconds": self.first_batch.as_dict(),
            "memory_bytes": None if self.memory is None else self.memory.pss,
            "memory_in_transit_bytes": None if self.memory is None else self.memory.in_transit,
        }


@dataclass(frozen=True)
class Report:
    """All that was found out about a dataset."""

    dataset: str
    settings: dict[str, Any]
    machine: dict[str, str | int]
    stock: LoaderReport
    ours: LoaderReport
    verdict: Verdict
    judgement: Judgement | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "dataset": self.dataset,
            "machine": self.machine,
            "settings": self.settings,
            "stock": self.stock.as_dict(),
            "ours": self.ours.as_dict(),
            "ratio": self._ratio(lambda loader: loader.time).as_dict(),
            "equal": self.verdict.equal,
            "compared_batches": self.verdict.batches,
            "difference": self.verdict.difference,
            "stock_repeats": self.verdict.stock_repeats,
            "verdict": None if self.judgement is None else self.judgement.as_dict(),
        }

    def text(self) -> str:
        """Returns the table, with what was measured above it and whether batches were equal below."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        rounds = (
            f"rounds: {len(self.stock.rounds)}, of {self.stock.rounds[0].batches} batches (stock) and "
            f"{self.ours.rounds[0].batches} (ours), in turn; medians and, in brackets, least to greatest"
        )
        head = [f"{self.dataset}: {settings}", rounds, ""]
        return "\n".join([*head, *align(self._rows()), "", equality(self.verdict), *judged(self.judgement)])

    def _rows(self) -> list[list[str]]:
        return [
            ["", "stock", "ours", "stock / ours"],
            self._row("time per batch", lambda loader: loader.time),
            self._row("main process's CPU per batch", lambda loader: loader.cpu),
            self._row("iter() to first batch", lambda loader: loader.first_batch, in_pairs=False),
            self._memory_row("memory added (PSS)", lambda memory: memory.pss),
            self._memory_row("shared memory in transit", lambda memory: memory.in_transit),
        ]

    def _row(self, name: str, pick: Callable[[LoaderReport], Figure], in_pairs: bool = True) -> list[str]:
        quotient = self._ratio(pick).text(times) if in_pairs else ""
        return [name, pick(self.stock).text(duration), pick(self.ours).text(duration), quotient]

    def _ratio(self, pick: Callable[[LoaderReport], Figure]) -> Figure:
        return ratio(pick(self.stock).rounds, pick(self.ours).rounds)

    def _memory_row(self, name: str, pick: Callable[[Memory], int]) -> list[str]:
        cells = (loader.memory for loader in (self.stock, self.ours))
        return [name, *("not known" if memory is None else size(pick(memory)) for memory in cells), ""]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a line for each row, with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join([row[0].ljust(widths[0]), *itertools.starmap(str.rjust, zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def equality(verdict: Verdict) -> str:
    """Says in a line whether batches were equal, and where not."""
    if verdict.equal:
        return f"batches equal: yes, bit for bit ({verdict.batches} compared)"
    blame = (
        "stock's own batches are the same when it runs twice"
        if verdict.stock_repeats
        else "stock's own batches differ from run to run too, so the dataset is not repeatable"
    )
    return f"batches equal: NO, {verdict.difference} (stock against ours); {blame}"


def judged(judgement: Judgement | None) -> list[str]:
    """Returns the lines that say what limits the loop."""
    if judgement is None:
        return []
    loop = f"steps of {duration(judgement.step)}" if judgement.step else "a loop that does nothing"
    return ["", *textwrap.wrap(f"For {loop}: {judgement.text}", _COLUMNS)]
