"""How long a thread waits for a processor: while another process has it, that grows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shmloader.workers import run_queue


@pytest.mark.skipif(not run_queue.waited(), reason="this kernel does not count it")
def test_a_thread_that_shares_its_processor_waits_for_it() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            before = run_queue.waited()
            while run_queue.waited() < before + 10_000_000:
                pass
            other.kill()
    finally:
        os.sched_setaffinity(0, cores)


def test_where_it_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_queue, "_FILE", "/proc/thread-self/nothing")
    assert run_queue.waited() == 0
    monkeypatch.setattr(run_queue, "_FILE", os.devnull)
    assert run_queue.waited() == 0
