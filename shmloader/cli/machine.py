"""What the figures were measured on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from shmloader import __version__
from shmloader.observe import processors


def machine() -> dict[str, str | int]:
    """Returns the processor, how many cores this process may use, and the versions that matter."""
    return {
        "cpu": _cpu_model(),
        "cores": processors.allowed(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "shmloader": __version__,
    }


def machine_line(facts: Mapping[str, str | int] | None = None) -> str:
    """Returns the same in one line; of this machine, or of one whose facts were kept."""
    facts = facts or machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "numpy", "shmloader"))
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}, {versions}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "") or platform.processor() or platform.machine()
