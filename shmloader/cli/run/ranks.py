"""Which one of several processes this is, as whatever has started them says."""

from __future__ import annotations

import os
from pathlib import Path

# Of torchrun and what follows it, Open MPI, MPICH and Intel MPI, MVAPICH, and Slurm: the rank, and how many there are.
_NAMES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def rank() -> int | None:
    """Returns this process's rank, or None if it is the only one."""
    for name, size in _NAMES:
        found, count = os.environ.get(name, ""), os.environ.get(size, "")
        if found.isdecimal() and count.isdecimal():
            return int(found) if int(count) > 1 else None
    return None


def with_rank(path: Path) -> Path:
    """Returns the name of a file of this rank's own: ``trace.rank3.json``."""
    number = rank()
    if number is None:
        return path
    name, *suffixes = path.name.split(".")
    return path.with_name(".".join([name, f"rank{number}", *suffixes]))
