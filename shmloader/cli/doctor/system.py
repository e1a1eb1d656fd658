"""The checks that try what pool and workers are made of, each in a child of its own."""

from __future__ import annotations

import os
import platform
import select
import sys
import warnings
from collections.abc import Callable
from typing import Any

from shmloader import FallbackWarning, ShmDataLoader, requirements
from shmloader.slots.pool import Pool
from shmloader.slots.pool_cache import PoolSettings

from . import judge, trial
from .finding import ADVICE, MISSING, OK, Finding

_SANDBOX = "use a newer kernel, or a sandbox that allows it"
_SAMPLES, _BATCH_SIZE, _WORKERS = 64, 4, 2


def kernel(seconds: float) -> Finding:
    """Which system it is: Linux, or one where the loader is torch's own."""
    name, release = platform.system(), platform.release()
    facts = {"system": name, "release": release}
    if sys.platform != "linux":
        return Finding(MISSING, f"{name} {release}", "the loader's own workers run on Linux only", facts)
    return Finding(OK, f"{name} {release}", facts=facts)


def memfd(seconds: float) -> Finding:
    """Whether a file in memory can be made."""
    failure = _failure_of("os.memfd_create")
    return judge.tried("a file in memory was made", failure, _SANDBOX)


def pidfd(seconds: float) -> Finding:
    """Whether a process can be watched by a descriptor."""
    return judge.tried("a process descriptor was opened", _failure_of("os.pidfd_open"), _SANDBOX)


def fork(seconds: float) -> Finding:
    """Whether a process can be forked, ends, is seen to end, and is reaped."""
    advice = "raise the limits on processes (ulimit -u, the control group's pids.max) and on memory"
    failure = _failure_of("os.fork")
    if not failure:
        failure = _outcome(_fork_and_reap, seconds).failure
    return judge.tried("a process was forked, watched and reaped", failure, advice)


def _fork_and_reap() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        os._exit(7)
    descriptor = os.pidfd_open(pid)
    select.select([descriptor], [], [])
    os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 7:
        raise RuntimeError(f"the forked process ended with exit code {code} and not with 7")


def pool(seconds: float) -> Finding:
    """Whether a loader's pool can be made, written to, and given back."""
    outcome = _outcome(_make_pool, seconds)
    facts = outcome.value or {}
    found = ""
    if facts:
        found = (
            f"a pool was made, written to and given back: {facts['slots']} slots, "
            f"of up to {judge.gigabytes(facts['slot_bytes'])} each"
        )
    return judge.tried(found, outcome.failure, "see address_space, file_size and memory", **facts)


def _make_pool() -> dict[str, int]:
    settings = PoolSettings(
        num_workers=_WORKERS, in_flight=2 * _WORKERS, num_slots=None, max_bytes=None, declared_bytes=1 << 20
    )
    made: Pool = settings.make()
    try:
        block = made.arena.block(0, 1 << 20)
        block[:] = 171
        if not (block == 171).all():
            raise RuntimeError("what was written to the pool cannot be read from it")
        return {"slots": made.num_slots, "slot_bytes": made.arena.stride, "cap_bytes": made.max_bytes}
    finally:
        made.close()


def workers(seconds: float) -> Finding:
    """Whether a loader loads in worker processes of its own."""
    outcome = _outcome(lambda: _load("process", seconds), seconds)
    failure = outcome.failure or outcome.value or ""
    advice = "what is said of other parts, and of limits, may tell why; torch's loader may fail here too"
    return judge.tried(f"{_SAMPLES // _BATCH_SIZE} batches came from {_WORKERS} processes", failure, advice)


def worker_threads(seconds: float) -> Finding:
    """Whether a loader loads in worker threads; whoever uses none needs none."""
    outcome = _outcome(lambda: _load("thread", seconds), seconds)
    failure = outcome.failure or outcome.value or ""
    if failure:
        return Finding(ADVICE, failure, "take worker_type='process'", {"failure": failure})
    return Finding(OK, f"{_SAMPLES // _BATCH_SIZE} batches came from {_WORKERS} threads", facts={"failure": None})


def _load(worker_type: str, seconds: float) -> str:
    """Loads some batches, and returns why another loader than ours did; empty where ours did."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples: Any = list(range(_SAMPLES))
        loader = ShmDataLoader(samples, _BATCH_SIZE, num_workers=_WORKERS, worker_type=worker_type, timeout=seconds / 2)
        if [number for batch in loader for number in batch.tolist()] != samples:
            raise RuntimeError("the batches are not those of the dataset")
    said = [str(warning.message) for warning in caught if issubclass(warning.category, FallbackWarning)]
    return " ".join(said)


def _failure_of(name: str) -> str:
    """Returns why one of `requirements.attempts` fails here; empty where it does not."""
    attempt = requirements.attempts()[name]
    if requirements.is_missing(attempt):
        return f"{name} is not there, or not allowed"
    try:
        attempt()
    except OSError as error:  # it is there, and fails
        return f"{name}: {error}"
    return ""


def _outcome(function: Callable[[], Any], seconds: float) -> trial.Outcome:
    try:
        return trial.run(function, seconds)
    except (OSError, AttributeError) as error:
        return trial.Outcome(failure=f"no process could be forked to try it: {error}")
