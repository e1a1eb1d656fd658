"""What ``shmloader bench`` says of one dataset with several numbers of workers. Pure.

The keys of the JSON, where ``--num-workers`` names several: ``dataset`` and ``machine`` as in `report`; ``runs``: for
each number of workers what `report` has, without these two; ``enough_workers``: the least number of them with which
ours keeps a loop of such steps busy; where none does, with which ours is nearly as quick as with any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .figures import duration, ratio, size, times
from .report import Report, align, equality, judged

# A number of workers is enough if the best one is quicker by this factor at most: less is noise, on most machines.
_NEARLY = 1.1


@dataclass(frozen=True)
class Sweep:
    """The reports of one dataset, by ascending number of workers."""

    reports: Sequence[Report]

    @property
    def enough(self) -> Report:
        """The one with the least workers that keep the loop busy; else, with which ours is nearly as quick as ever."""
        busy = [report for report in self.reports if report.judgement is not None and report.judgement.is_kept_busy]
        best = min(report.ours.time.median for report in self.reports)
        quick = [report for report in self.reports if report.ours.time.median <= _NEARLY * best]
        return (busy or quick)[0]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        if len(self.reports) == 1:
            return self.reports[0].as_dict()
        runs = [report.as_dict() for report in self.reports]
        shared = {name: runs[0][name] for name in ("dataset", "machine")}
        rest = [{name: value for name, value in run.items() if name not in shared} for run in runs]
        return {**shared, "enough_workers": self.enough.settings["num_workers"], "runs": rest}

    def text(self) -> str:
        """Returns the table: of one number of workers all figures, of several the main ones, one below the other."""
        if len(self.reports) == 1:
            return self.reports[0].text()
        first = self.reports[0]
        settings = ", ".join(f"{name}={value}" for name, value in first.settings.items() if name != "num_workers")
        rounds = f"rounds: {len(first.ours.rounds)}, in turn; medians and, in brackets, the ratio's least to greatest"
        rows = [
            [
                *("workers", "stock", "ours", "stock / ours", "ours, scaled"),
                *("stock adds", "ours adds", "verdict"),
            ],
            *map(self._row, self.reports),
        ]
        legend = "stock, ours: time per batch; scaled: times as quick as in the first row; adds: memory (PSS)"
        lines = [f"{first.dataset}: {settings}", rounds, "", *align(rows), "", legend, *self._equal()]
        return "\n".join([*lines, *self._ending()])

    def _row(self, report: Report) -> list[str]:
        stock, ours = report.stock, report.ours
        memories = ["not known" if memory is None else size(memory.pss) for memory in (stock.memory, ours.memory)]
        return [
            str(report.settings["num_workers"]),
            duration(stock.time.median),
            duration(ours.time.median),
            ratio(stock.time.rounds, ours.time.rounds).text(times),
            times(self.reports[0].ours.time.median / ours.time.median),
            *memories,
            "" if report.judgement is None else report.judgement.kind,
        ]

    def _ending(self) -> list[str]:
        """Returns the lines on how many workers are enough, and what is said of a loop with these."""
        judgement = self.enough.judgement
        why = "no other of these is more than a tenth quicker"
        if judgement is not None and judgement.is_kept_busy:
            why = f"it keeps a loop busy whose steps take {duration(judgement.step)}"
        return [f"num_workers={self.enough.settings['num_workers']} is enough: {why}", *judged(judgement)]

    def _equal(self) -> list[str]:
        """Returns a line on whether batches were equal; where that differs, one for each number of workers."""
        texts = [equality(report.verdict) for report in self.reports]
        if len(set(texts)) == 1:
            return texts[:1]
        counts = [report.settings["num_workers"] for report in self.reports]
        return [f"{count} workers: {text}" for count, text in zip(counts, texts, strict=True)]
