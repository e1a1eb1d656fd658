"""The checks that read what this process may use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shmloader.cli.machine import machine
from shmloader.observe.processors import cgroup_quota
from shmloader.slots import limits

from . import judge, trial
from .finding import OK, Finding

with contextlib.suppress(ImportError):  # on Windows, where each check that needs it says so
    import resource

_DEV_SHM = "/dev/shm"


def descriptors(seconds: float) -> Finding:
    """How many files may be open, and are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - less the listing's own
    return judge.descriptors(soft, hard, used, int(machine()["cores"]))


def address_space(seconds: float) -> Finding:
    """How much may still be mapped."""
    return judge.address_space(limits.address_space_left())


def file_size(seconds: float) -> Finding:
    """How large files may be."""
    return judge.file_size(limits.file_size_limit())


def memlock(seconds: float) -> Finding:
    """How much memory may be locked by mlock, which nothing here uses: devices' drivers page-lock without it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = None if soft == resource.RLIM_INFINITY else soft
    found = "no limit" if limit is None else judge.gigabytes(limit)
    return Finding(OK, f"{found}; not used, drivers of devices page-lock without it", facts={"limit_bytes": limit})


def memory(seconds: float) -> Finding:
    """How much memory there is, by machine and control groups."""
    there_is = limits.memory()
    return judge.memory(there_is.limit, there_is.available, limits.cgroup_memory_limit(), there_is.limit // 2)


def processors(seconds: float) -> Finding:
    """How many processors there are, by machine, affinity and control groups."""
    allowed = int(machine()["cores"])
    return judge.processors(os.cpu_count() or allowed, allowed, cgroup_quota())


def scheduling(seconds: float) -> Finding:
    """How the kernel shares processors out, and whether workers may choose their policy."""
    autogroup = _number("/proc/sys/kernel/sched_autogroup_enabled")
    try:
        failure = trial.run(_run_as_batch, seconds).failure
    except OSError as error:
        failure = str(error)
    return judge.scheduling(autogroup, failure)


def _run_as_batch() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def pressure(seconds: float) -> Finding:
    """How much processes wait for processors, memory and disks."""
    return judge.pressure({name: _waited(name) for name in ("cpu", "memory", "io")})


def _waited(name: str) -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        # some avg10=4.70 avg60=4.51 avg300=9.07 total=20970324482
        fields = Path("/proc/pressure", name).read_text().splitlines()[0].split()
        return float(dict(field.split("=") for field in fields[1:])["avg10"])
    return None


def dev_shm(seconds: float) -> Finding:
    """What there is of /dev/shm, which torch's loader uses."""
    try:
        found = os.statvfs(_DEV_SHM)
    except OSError:
        return judge.dev_shm(None, 0, False)
    is_writable = not found.f_flag & os.ST_RDONLY and os.access(_DEV_SHM, os.W_OK)
    return judge.dev_shm(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, is_writable)


def _number(file: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(Path(file).read_text())
    return None
