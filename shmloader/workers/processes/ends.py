"""How worker processes have ended, in words. Used in the parent."""

from __future__ import annotations

import signal

from shmloader.slots.limits import memory_limit, oom_kills
from shmloader.words import Words, alternatives


def ending(words: Words, pid: int | None, code: int | None, oom_kills_before: int | None) -> str:
    """Says how a process has ended, and what may be done about it.

    Args:
        words: of whom the workers belong to.
        pid: the process.
        code: its exit code, or a signal's number below zero; None: it has not ended in time.
        oom_kills_before: what `limits.oom_kills` said before it was started.
    """
    if code is None or code >= 0:
        return f"{words.owner} worker (pid(s) {pid}) exited unexpectedly with exit code {code}. "
    text = f"{words.owner} worker (pid {pid}) is killed by signal: {signal.strsignal(-code)}. "
    if -code == signal.SIGKILL:
        text += _suspicion(words, oom_kills_before)
    elif -code == signal.SIGBUS:
        knobs = alternatives(("max_pool_bytes", *words.less))
        text += f"There was no memory for what it wrote: lower {knobs}. "
    return text


def _suspicion(words: Words, before: int | None) -> str:
    now = oom_kills()
    if before is None or now is None:
        return "The kernel's out-of-memory killer does that; its log says so (dmesg). "
    if now == before:
        return "The kernel's out-of-memory killer does that, but its count for this control group did not rise. "
    knobs = alternatives(("num_workers", *words.less, "max_pool_bytes"))
    return (
        f"The kernel's out-of-memory killer has ended {now - before} of this control group since the workers were "
        f"started; memory is limited to {memory_limit() / 1e9:.3g} GB. Lower {knobs}, or hold "
        f"fewer {words.many}. "
    )
