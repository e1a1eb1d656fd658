"""The checks of Python, torch and CUDA."""

from __future__ import annotations

import multiprocessing
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import torch

from shmloader import start_method, torch_private
from shmloader.device import cuda
from shmloader.device.pinned import PinnedArena
from shmloader.workers.kinds import context_for

from . import judge, trial
from .finding import ADVICE, MISSING, OK, UNKNOWN, Finding

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def python(seconds: float) -> Finding:
    """Which Python it is, and whether it has its lock."""
    is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    has_lock = bool(getattr(sys, "_is_gil_enabled", lambda: True)())
    return judge.python(sys.version_info[:3], is_free_threaded, has_lock)


def fork_beside_threads(seconds: float) -> Finding:
    """Whether Python warns of forks in a process with as many threads as this one."""
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, DeprecationWarning)]
    return judge.fork_beside_threads(sys.version_info[:3], threads, " ".join(said))


def start(seconds: float) -> Finding:
    """How workers are started where nothing else is asked for."""
    method = str(context_for(None).get_start_method())
    default = multiprocessing.get_all_start_methods()[0]
    facts = {"method": method, "chosen": start_method.is_chosen(), "python_default": default}
    if method == "fork":
        return Finding(OK, f"fork, unless the program chooses another; Python's default is {default}", facts=facts)
    advice = "workers start slowly, and all that they need is pickled; multiprocessing_context='fork' forks them"
    return Finding(ADVICE, f"{method}, which was chosen by the program", advice, facts)


def torch_itself(seconds: float) -> Finding:
    """Whether this torch is what the loader builds on."""
    difference = torch_private.difference()
    version = str(torch.__version__)
    facts = {"version": version, "difference": difference or None}
    if difference:
        return Finding(MISSING, difference, "install a torch that this release knows, see docs/versions.md", facts)
    return Finding(OK, f"{version} has all that the loader builds on", facts=facts)


def page_locking(seconds: float) -> Finding:
    """Whether there is a CUDA device, and slots can be page-locked for it."""
    try:
        outcome = trial.run(_page_lock, seconds)
    except OSError as error:
        outcome = trial.Outcome(failure=f"no process could be forked to try it: {error}")
    if outcome.failure:
        advice = "without a device nothing needs it; with one, see whether torch.cuda.init() works"
        return Finding(UNKNOWN, outcome.failure, advice, {"devices": None, "page_locked": None})
    devices, failure = outcome.value["devices"], outcome.value["failure"]
    facts = {"devices": devices, "page_locked": bool(devices) and not failure}
    if not devices:
        return _no_device(facts)
    if failure:
        advice = "batches are copied to page-locked memory, as torch's loader does; CUDA 12.5 or later is needed"
        return Finding(ADVICE, f"{devices} devices, but {failure}", advice, facts)
    return Finding(OK, f"{devices} devices, and a slot was page-locked", facts=facts)


def _no_device(facts: dict[str, Any]) -> Finding:
    if _NVIDIA_DRIVER.exists():
        advice = f"torch {torch.__version__} is perhaps built without CUDA, or CUDA_VISIBLE_DEVICES hides the devices"
        return Finding(ADVICE, "there is an NVIDIA driver, and torch finds no device", advice, facts)
    return Finding(OK, "torch finds no CUDA device, so nothing is page-locked", facts=facts)


def _page_lock() -> dict[str, Any]:
    if not cuda.is_available():
        return {"devices": 0, "failure": ""}
    arena = PinnedArena(1, 1 << 20)
    arena.populate(0, 1 << 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arena.announce()
    arena.unpin_all()
    return {"devices": torch.cuda.device_count(), "failure": " ".join(str(warning.message) for warning in caught)}
