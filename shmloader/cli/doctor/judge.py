"""Figures in, findings out. Pure.

What counts here is what the package does with a figure; where it decides something itself, a check asks it instead.
"""

from __future__ import annotations

from typing import Any

from .finding import ADVICE, MISSING, OK, UNKNOWN, Finding

# A loader takes six descriptors, and five for each worker. What a program has open besides is its own affair.
_DESCRIPTORS = 6
_DESCRIPTORS_PER_WORKER = 5

# Less than this of addresses, and the first slots hold less than a batch of pictures: a pool takes an eighth.
_ADDRESSES = 8 << 30

# What stock's loader needs for some batches of pictures; Docker gives 64 MB.
_DEV_SHM = 1 << 30

# Percent of the last ten seconds in which some process waited for it.
_PRESSURE = 20.0

_FORK_WARNING = (3, 12)


def gigabytes(nbytes: float) -> str:
    """Writes a number of bytes in GB, or in MB where it is less than one."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def descriptors(soft: int, hard: int, used: int, processors: int) -> Finding:
    """Judges whether there are descriptors for a loader with a worker for each processor.

    Args:
        soft: how many this process may have.
        hard: how many it may ask for.
        used: how many it has.
        processors: how many workers the loader would have.
    """
    needed = _DESCRIPTORS + _DESCRIPTORS_PER_WORKER * processors
    found = f"{soft} may be open, {used} are; a loader with {processors} workers takes {needed}"
    facts = {"soft": soft, "hard": hard, "open": used, "needed": needed}
    if soft - used >= needed:
        return Finding(OK, found, facts=facts)
    workers = max(0, (soft - used - _DESCRIPTORS) // _DESCRIPTORS_PER_WORKER)
    advice = f"raise it: ulimit -n {max(1024, 2 * needed)}"
    return Finding(ADVICE, found, f"take {workers} workers at most, or {advice}" if workers else advice, facts)


def address_space(left: int | None) -> Finding:
    """Judges how many bytes may still be mapped; None: no limit is set."""
    facts = {"left_bytes": left}
    if left is None:
        return Finding(OK, "no limit", facts=facts)
    found = f"{gigabytes(left)} are left under the limit (ulimit -v), of which a first pool reserves an eighth"
    if left >= _ADDRESSES:
        return Finding(OK, found, facts=facts)
    return Finding(
        ADVICE, found, "lift it (ulimit -v unlimited), or give sample_shapes: what is declared has room", facts
    )


def file_size(limit: int | None) -> Finding:
    """Judges how large a file, and so the whole pool, may be in bytes; None: no limit is set."""
    facts = {"limit_bytes": limit}
    if limit is None:
        return Finding(OK, "no limit", facts=facts)
    return Finding(
        ADVICE, f"{gigabytes(limit)}, which is all that a pool may reserve", "lift it: ulimit -f unlimited", facts
    )


def memory(limit: int, available: int, group: int | None, cap: int) -> Finding:
    """Judges what memory there is, in bytes.

    Args:
        limit: what this process may use.
        available: what could be used beside what is used now.
        group: the control groups' limit, if any.
        cap: what a pool takes at most, where ``max_pool_bytes`` is not given.
    """
    whose = "the machine's" if group is None else "its control group's"
    found = f"{gigabytes(limit)} ({whose}), {gigabytes(available)} available; a pool takes {gigabytes(cap)} at most"
    facts = {"limit_bytes": limit, "available_bytes": available, "control_group_bytes": group, "pool_cap_bytes": cap}
    if available >= cap:
        return Finding(OK, found, facts=facts)
    advice = "a pool stays below what is available when it is made; free some, or give max_pool_bytes"
    return Finding(ADVICE, found, advice, facts)


def processors(machine: int, allowed: int, quota: float | None) -> Finding:
    """Judges how many processors there are for workers and loop together.

    Args:
        machine: how many the machine has.
        allowed: how many this process may use.
        quota: how many the control groups let it use at a time, if they say.
    """
    facts = {"machine": machine, "allowed": allowed, "control_group": quota}
    found = f"{allowed} of {machine} may be used" if allowed < machine else f"{machine}, and all may be used"
    if quota is None or quota >= allowed:
        return Finding(OK, found, facts=facts)
    found += f", for {quota:g} processors' time by the control group's quota"
    return Finding(
        ADVICE,
        found,
        f"torch counts {allowed}: workers beyond {max(1, round(quota))} take turns; raise the quota",
        facts,
    )


def pressure(some: dict[str, float | None]) -> Finding:
    """Judges whether other programs are in the way.

    Args:
        some: for ``cpu``, ``memory`` and ``io`` the percentage of the last ten seconds in which some process waited
            for it, or None where the kernel does not say.
    """
    told = {name: value for name, value in some.items() if value is not None}
    facts: dict[str, Any] = {f"{name}_percent": value for name, value in some.items()}
    if not told:
        return Finding(UNKNOWN, "this kernel does not say how much processes wait (/proc/pressure)", facts=facts)
    found = "processes waited " + ", ".join(f"{value:.0f} % of the time for {name}" for name, value in told.items())
    if max(told.values()) < _PRESSURE:
        return Finding(OK, f"{found} (last 10 s)", facts=facts)
    return Finding(ADVICE, f"{found} (last 10 s)", "other programs are in the way; measure when they have ended", facts)


def dev_shm(size: int | None, free: int, is_writable: bool) -> Finding:
    """Judges /dev/shm, which nothing of ours uses.

    Args:
        size: its bytes, or None where there is none.
        free: how many of these are free.
        is_writable: whether files can be made in it.
    """
    facts = {"size_bytes": size, "free_bytes": free, "writable": is_writable}
    if size is None:
        found = "there is none"
    else:
        found = f"{gigabytes(free)} of {gigabytes(size)} free" + ("" if is_writable else ", read-only")
    note = "" if size and is_writable and free >= _DEV_SHM else "; torch's own loader may fail with it"
    return Finding(OK, f"{found}; not used{note}", facts=facts)


def python(version: tuple[int, ...], is_free_threaded: bool, has_lock: bool) -> Finding:
    """Judges the interpreter: whether it is free-threaded, and if so, whether its lock is off.

    Args:
        version: its numbers.
        is_free_threaded: whether it can do without its lock.
        has_lock: whether it has the lock now.
    """
    text = ".".join(map(str, version[:3]))
    facts = {"version": text, "free_threaded": is_free_threaded, "lock": has_lock}
    if not is_free_threaded:
        return Finding(OK, f"{text}, with the interpreter lock, which worker threads share", facts=facts)
    if not has_lock:
        return Finding(OK, f"{text}, free-threaded", facts=facts)
    advice = "worker threads would share it; PYTHON_GIL=0 keeps it off, if all extension modules bear that"
    return Finding(ADVICE, f"{text}, free-threaded, but with the interpreter lock on", advice, facts)


def fork_beside_threads(version: tuple[int, ...], threads: int, warning: str) -> Finding:
    """Judges whether Python warns when workers are forked.

    Args:
        version: Python's numbers.
        threads: how many threads this process has, those of libraries too.
        warning: what Python said of a fork.
    """
    facts = {"threads": threads, "warns": bool(warning)}
    if warning:
        advice = (
            "it is a warning only; it goes away with worker_type='thread' or multiprocessing_context='forkserver', or "
            "where workers start before other threads do"
        )
        return Finding(ADVICE, "Python warns of a fork in this process, which has threads", advice, facts)
    when = "does not warn" if version >= _FORK_WARNING else "before 3.12 does not warn"
    return Finding(OK, f"{threads} in this process; Python {when} of a fork beside them", facts=facts)


def scheduling(autogroup: int | None, batch_failure: str) -> Finding:
    """Judges how the kernel shares processors out.

    Args:
        autogroup: 1 where sessions get equal shares, 0 where not, None where the kernel does not say.
        batch_failure: why workers cannot have the policy SCHED_BATCH; empty where they can.
    """
    facts = {"autogroup": None if autogroup is None else bool(autogroup), "batch_policy": not batch_failure}
    if autogroup:
        shares = "each session has an equal share of the processors (autogroup), so nice counts within a session only"
    else:
        shares = "processes share the processors by their niceness"
    if not batch_failure:
        return Finding(OK, shares, facts=facts)
    advice = "none is needed; where batches take some microseconds, workers interrupt the loop more often"
    return Finding(ADVICE, f"{shares}; the policy SCHED_BATCH cannot be had ({batch_failure})", advice, facts)


def tried(found: str, failure: str, advice: str, **facts: Any) -> Finding:
    """Returns what follows from a trial of what workers need.

    Args:
        found: what to say where it worked.
        failure: why it did not; empty where it did.
        advice: what to do where it did not.
        facts: of the trial.
    """
    if failure:
        return Finding(MISSING, failure, advice, {**facts, "failure": failure})
    return Finding(OK, found, facts={**facts, "failure": None})
