"""Where the main process's processor time goes, by library, as ``perf`` samples it: with small batches, and with large.

It samples by the clock, which needs no counters of the processor: guests of a virtual machine have none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import CELLS, Cell
from benchmarks.output import markdown
from shmloader import ShmDataLoader
from shmloader.cli.bench.measure import Track, calibrate

_CELLS = ("floats8", "rgb224b256", "jpeg224")
_SECONDS = 8.0
_HERTZ = 9000
_STARTS_WITHIN = 20.0  # seconds; perf itself

# By how a library's name begins. What is in none of them is the rest.
_GROUPS = {
    "Python": ("libpython", "python", "_pickle", "_struct", "select", "math"),
    "kernel": ("[kernel", "[vdso", "[unknown"),
    "libc": ("libc.", "ld-linux", "libm."),
    "torch": ("libtorch", "libc10", "libshm", "_C."),
    "numpy": ("_multiarray",),
}
REST = "others"


@dataclass(frozen=True)
class Profile:
    """What was found.

    Attributes:
        cpu: seconds of the main process's processor time a batch, by cell.
        shares: of that, by cell and by group of libraries. None where ``perf`` is missing, or may not be used.
    """

    cpu: dict[str, float]
    shares: dict[str, dict[str, float] | None]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            cell: {"consumer_cpu_seconds_per_batch": cpu, "shares": self.shares[cell]} for cell, cpu in self.cpu.items()
        }

    def lines(self) -> list[str]:
        """Returns a table: microseconds a batch, and each group's share."""
        groups = (*_GROUPS, REST)
        rows = [(cell, f"{cpu * 1e6:.1f}", *self._cells(cell, groups)) for cell, cpu in self.cpu.items()]
        return markdown(("cell", "CPU us/batch", *groups), rows)

    def _cells(self, cell: str, groups: tuple[str, ...]) -> list[str]:
        shares = self.shares[cell]
        return ["not known" if shares is None else f"{shares[group]:.0%}" for group in groups]


def measure(
    rounds: int, done: Callable[[], None] = lambda: None, *, seconds: float = _SECONDS, cells: tuple[Cell, ...] = ()
) -> Profile:
    """Measures, once whatever ``rounds`` says. Blocks for about ``seconds`` a cell; no process is left.

    Args:
        rounds: not used: there are thousands of samples in one.
        done: called after each cell.
        seconds: how long each is sampled.
        cells: what is loaded; none: small batches, large ones, and JPEG files.
    """
    cpu: dict[str, float] = {}
    shares: dict[str, dict[str, float] | None] = {}
    for cell in cells or tuple(cell for cell in CELLS if cell.name in _CELLS):
        cpu[cell.name], shares[cell.name] = _profile(cell, seconds)
        done()
    return Profile(cpu, shares)


def turns(rounds: int) -> int:
    """Returns how often `measure` calls ``done``."""
    return len(_CELLS)


def _profile(cell: Cell, seconds: float) -> tuple[float, dict[str, float] | None]:
    track = Track(ShmDataLoader(cell.dataset(), cell.batch_size, num_workers=2, collate_fn=cell.collate))
    batches = calibrate(track, seconds)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "perf.data"
            with _sampled(path):
                took = track.run(batches)
            return took.cpu_per_batch, _shares(path)
    finally:
        track.stop()


@contextlib.contextmanager
def _sampled(path: Path) -> Iterator[None]:
    """Samples this process, and nobody else, as long as the block takes; not at all where there is no ``perf``."""
    if shutil.which("perf") is None:
        yield
        return
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(_HERTZ), "--no-inherit", "-p", str(os.getpid())]
    with subprocess.Popen([*command, "-o", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as perf:
        try:
            deadline = time.monotonic() + _STARTS_WITHIN
            while not _has_bytes(path) and perf.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)  # it does not say when it has begun
            yield
        finally:
            perf.send_signal(signal.SIGINT)


def _has_bytes(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _shares(path: Path) -> dict[str, float] | None:
    if not _has_bytes(path):
        return None
    report = subprocess.run(
        ["perf", "report", "-i", str(path), "--stdio", "-q", "--sort", "dso", "-t", ";"],
        capture_output=True,
        text=True,
        check=False,
    )
    return grouped(report.stdout)


def grouped(report: str) -> dict[str, float] | None:
    """Returns each group's share in a report of ``perf``, whose lines are a percentage, a semicolon and a library.

    None where there are no such lines.
    """
    shares = dict.fromkeys((*_GROUPS, REST), 0.0)
    for line in report.splitlines():
        percent, semicolon, library = line.strip().partition(";")
        if semicolon:
            group = next((group for group, names in _GROUPS.items() if library.strip().startswith(names)), REST)
            shares[group] += float(percent.strip(" %")) / 100
    return shares if any(shares.values()) else None
