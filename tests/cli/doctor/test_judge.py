"""What follows from figures: which are as they should be, and what is said of the others."""

from __future__ import annotations

import pytest

from shmloader.cli.doctor import judge
from shmloader.cli.doctor.finding import ADVICE, MISSING, OK, UNKNOWN, Finding, conclusion, runs_on_own_workers

GB = 1 << 30


@pytest.mark.parametrize(
    ("finding", "state", "words"),
    [
        (judge.descriptors(1024, 4096, 10, 2), OK, "a loader with 2 workers takes 16"),
        (judge.descriptors(64, 64, 10, 64), ADVICE, "take 9 workers at most, or raise it: ulimit -n 1024"),
        (judge.descriptors(8, 8, 8, 2), ADVICE, "; raise it: ulimit -n 1024"),
        (judge.address_space(None), OK, "no limit"),
        (judge.address_space(100 * GB), OK, "107.4 GB are left"),
        (judge.address_space(0), ADVICE, "ulimit -v unlimited"),
        (judge.file_size(None), OK, "no limit"),
        (judge.file_size(0), ADVICE, "0 MB"),
        (judge.memory(8 * GB, 6 * GB, None, 4 * GB), OK, "8.6 GB (the machine's)"),
        (judge.memory(8 * GB, 6 * GB, 8 * GB, 4 * GB), OK, "8.6 GB (its control group's)"),
        (judge.memory(8 * GB, 1 * GB, None, 4 * GB), ADVICE, "max_pool_bytes"),
        (judge.processors(8, 8, None), OK, "8, and all may be used"),
        (judge.processors(8, 2, None), OK, "2 of 8 may be used"),
        (judge.processors(8, 8, 8.0), OK, "8"),
        (judge.processors(64, 64, 0.5), ADVICE, "workers beyond 1 take turns"),
        (judge.pressure({"cpu": None, "memory": None, "io": None}), UNKNOWN, "/proc/pressure"),
        (judge.pressure({"cpu": 3.0, "memory": None, "io": 0.0}), OK, "3 % of the time for cpu, 0 %"),
        (judge.pressure({"cpu": 3.0, "memory": 60.0, "io": 0.0}), ADVICE, "other programs"),
        (judge.dev_shm(None, 0, False), OK, "there is none; not used; torch's own"),
        (judge.dev_shm(64 << 20, 64 << 20, True), OK, "67 MB of 67 MB free; not used; torch's own"),
        (judge.dev_shm(8 * GB, 8 * GB, False), OK, "read-only; not used; torch's own"),
        (judge.dev_shm(8 * GB, 8 * GB, True), OK, "8.6 GB of 8.6 GB free; not used"),
        (judge.python((3, 13, 1), False, True), OK, "3.13.1, with the interpreter lock"),
        (judge.python((3, 13, 1), True, False), OK, "free-threaded"),
        (judge.python((3, 13, 1), True, True), ADVICE, "PYTHON_GIL=0"),
        (judge.fork_beside_threads((3, 11, 0), 4, ""), OK, "before 3.12 does not warn"),
        (judge.fork_beside_threads((3, 12, 0), 1, ""), OK, "Python does not warn"),
        (judge.fork_beside_threads((3, 12, 0), 4, "This process is multi-threaded"), ADVICE, "forkserver"),
        (judge.scheduling(1, ""), OK, "autogroup"),
        (judge.scheduling(None, ""), OK, "niceness"),
        (judge.scheduling(0, "PermissionError: no"), ADVICE, "SCHED_BATCH cannot be had (PermissionError: no)"),
        (judge.tried("it was made", "", "buy one"), OK, "it was made"),
        (judge.tried("it was made", "no", "buy one"), MISSING, "buy one"),
    ],
)
def test_findings(finding: Finding, state: str, words: str) -> None:
    assert finding.state == state
    assert words in f"{finding.found}; {finding.advice}"
    assert bool(finding.advice) == (state in (ADVICE, MISSING))


def test_the_conclusion() -> None:
    findings = {"a": Finding(OK, ""), "b": Finding(UNKNOWN, ""), "c": Finding(ADVICE, "", "do it")}
    assert runs_on_own_workers(findings.values())
    assert conclusion(findings).endswith("runs on its own workers here. Something would be better otherwise: c.")
    findings["d"] = Finding(MISSING, "")
    assert not runs_on_own_workers(findings.values())
    assert conclusion(findings).endswith("or fails: d.")
