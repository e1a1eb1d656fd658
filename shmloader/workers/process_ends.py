"""How worker processes have ended, in words. Used in the parent."""

from __future__ import annotations

import signal

from shmloader.slots.limits import memory_limit, oom_kills


def ending(owner: str, pid: int | None, code: int | None, oom_kills_before: int | None) -> str:
    """Says how a process has ended, and what may be done about it.

    Args:
        owner: what the workers belong to, see `brief.Words`.
        pid: the process.
        code: its exit code, or a signal's number below zero; None: it has not ended in time.
        oom_kills_before: what `limits.oom_kills` said before it was started.
    """
    if code is None or code >= 0:
        return f"{owner} worker (pid(s) {pid}) exited unexpectedly with exit code {code}. "
    text = f"{owner} worker (pid {pid}) is killed by signal: {signal.strsignal(-code)}. "
    if -code == signal.SIGKILL:
        text += _suspicion(oom_kills_before)
    elif -code == signal.SIGBUS:
        text += "There was no memory for what it wrote: lower max_pool_bytes, batch_size or prefetch_factor. "
    return text


def _suspicion(before: int | None) -> str:
    now = oom_kills()
    if before is None or now is None:
        return "The kernel's out-of-memory killer does that; its log says so (dmesg). "
    if now == before:
        return "The kernel's out-of-memory killer does that, but its count for this control group did not rise. "
    return (
        f"The kernel's out-of-memory killer has ended {now - before} of this control group since the workers were "
        f"started; memory is limited to {memory_limit() / 1e9:.3g} GB. Lower num_workers, prefetch_factor, "
        "batch_size or max_pool_bytes, or hold fewer batches. "
    )
