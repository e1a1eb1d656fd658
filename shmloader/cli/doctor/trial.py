"""Runs a function in a child process, with a time limit: it may hang, crash, or change its process.

What is tried is what may do so: drivers of devices, workers, forks under limits. The child is killed when its time is
over, and reaped in any case, so that nothing is left of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A child that was killed ends at once, unless it waits in the kernel, for a device perhaps: then it is left.
_REAP_SECONDS = 5.0
_CHUNK = 1 << 16
_LENGTH = 500  # of an error's text


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        value: what the function returned; None where it failed.
        failure: why it failed, in words; empty where it did not.
    """

    value: Any = None
    failure: str = ""


def run(function: Callable[[], Any], seconds: float) -> Outcome:
    """Calls ``function`` in a forked child and returns what it returned, as JSON knows it.

    Blocks until the child has answered or ended, or for ``seconds``. What it prints goes to stderr.

    Raises:
        OSError: there is no descriptor left for a pipe, or no process can be forked.
    """
    reader, writer = os.pipe()
    pid, line, has_ended = None, b"", False
    try:
        pid = _fork(function, reader, writer)
        os.close(writer)
        writer = -1
        line, has_ended = _read_line(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        ending = "" if pid is None else _end(pid, has_ended)
    if line.endswith(b"\n"):
        return Outcome(**json.loads(line))
    return Outcome(failure=ending or f"nothing happened within {seconds:g} s")


def _fork(function: Callable[[], Any], reader: int, writer: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads beside a fork: another check says so
        pid = os.fork()
    if pid:
        return pid
    try:
        os.close(reader)
        os.dup2(2, 1)  # stdout has the JSON
        answer = _answer(function)
        os.write(writer, answer.encode() + b"\n")
    finally:
        os._exit(0)  # nothing of the parent's is the child's to end


def _answer(function: Callable[[], Any]) -> str:
    try:
        return json.dumps({"value": function()})
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return json.dumps({"failure": text[:_LENGTH]})


def _read_line(reader: int, deadline: float) -> tuple[bytes, bool]:
    """Returns the line that the child has written, or less, and whether it has ended before the line did."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return line, False
        part = os.read(reader, _CHUNK)
        if not part:
            return line, True
        line += part
    return line, False


def _end(pid: int, is_ending: bool) -> str:
    """Reaps the child, kills it first if it does not end by itself, and says how it ended; empty where it was killed.

    Args:
        pid: the child's.
        is_ending: whether it has closed its pipe.
    """
    with contextlib.suppress(ChildProcessError):
        status = _reap(pid) if is_ending else None
        if status is None:
            os.kill(pid, signal.SIGKILL)
            return "its process does not end when it is killed" if _reap(pid) is None else ""
        code = os.waitstatus_to_exitcode(status)
        return f"its process ended with exit code {code}" if code >= 0 else f"its process was ended by signal {-code}"
    return "its process was reaped by others"


def _reap(pid: int) -> int | None:
    """Returns how a child has ended that is about to, or None if it does not for some seconds."""
    deadline = time.monotonic() + _REAP_SECONDS
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)  # a descriptor of the process would tell, where the kernel has one; this works everywhere
