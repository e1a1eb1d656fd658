"""What the kernel knows of a worker, be it a process or a thread. Used in the parent."""

from __future__ import annotations

from pathlib import Path

_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "in a wait that nothing interrupts, of a disk or a device",
    "T": "stopped by a signal",
    "t": "held by a debugger",
    "Z": "ended",
}


def read(folder: str) -> str:
    """Says whether a process or a thread runs, waits, or is stopped.

    Args:
        folder: the kernel's for it: /proc/PID, or /proc/PID/task/TID.
    """
    try:
        letter = Path(folder, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        letter = "Z"
    return _STATES.get(letter, letter)
