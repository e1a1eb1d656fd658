"""The doctor command, here and on machines that lack something: it says so, and never raises."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmloader import torch_private
from shmloader.cli.doctor import command, report, trial
from shmloader.cli.doctor.finding import STATES, Finding
from shmloader.cli.main import main
from shmloader.slots import limits

_SECONDS = 60  # for one trial: far more than it takes on a busy machine

MIB = 1 << 20

FACTS = {
    "kernel": {"system", "release"},
    "python": {"version", "free_threaded", "lock"},
    "torch": {"version", "difference"},
    "memfd": {"failure"},
    "pidfd": {"failure"},
    "fork": {"failure"},
    "pool": {"failure", "slots", "slot_bytes", "cap_bytes"},
    "workers": {"failure"},
    "threads": {"failure"},
    "start_method": {"method", "chosen", "python_default"},
    "fork_warning": {"threads", "warns"},
    "cuda": {"devices", "page_locked"},
    "descriptors": {"soft", "hard", "open", "needed"},
    "address_space": {"left_bytes"},
    "file_size": {"limit_bytes"},
    "memlock": {"limit_bytes"},
    "memory": {"limit_bytes", "available_bytes", "control_group_bytes", "pool_cap_bytes"},
    "processors": {"machine", "allowed", "control_group"},
    "scheduling": {"autogroup", "batch_policy"},
    "pressure": {"cpu_percent", "memory_percent", "io_percent"},
    "dev_shm": {"size_bytes", "free_bytes", "writable"},
}


def _open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _limit(name: str, value: int) -> None:
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _examine_after(change: Callable[[], object]) -> dict[str, Any]:
    """Returns the report of a child of this process, after a change of that child's own."""

    def examine() -> dict[str, Any]:
        change()
        return report.as_dict(command.examine(_SECONDS), {})

    outcome = trial.run(examine, 2 * _SECONDS)
    assert not outcome.failure
    found: dict[str, Any] = outcome.value
    assert set(found["checks"]) == set(FACTS)
    assert {check["state"] for check in found["checks"].values()} <= set(STATES)
    return found


def _states(found: dict[str, Any]) -> dict[str, str]:
    return {name: check["state"] for name, check in found["checks"].items()}


def test_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"own_workers", "conclusion", "machine", "checks"}
    assert (code, found["own_workers"]) == (0, True)
    assert {name: set(check["facts"]) for name, check in found["checks"].items()} == FACTS
    assert all(set(check) == {"state", "found", "advice", "facts"} for check in found["checks"].values())
    documented = report.__doc__ or ""
    assert all(f"``{name}``" in documented for names in FACTS.values() for name in names)
    assert all(f"``{name}``" in documented for name in FACTS)


def test_the_text_has_a_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-2] if "->" not in line] == list(FACTS)
    assert lines[-1].startswith("ShmDataLoader runs on its own workers here.")


def test_advice_stands_below_what_it_is_about() -> None:
    findings = {"one": Finding("advice", "too little", "get more"), "other": Finding("ok", "enough")}
    assert report.text(findings, "a machine").splitlines()[2:5] == [
        "one    advice   too little",
        "                -> get more",
        "other  ok       enough",
    ]


# -- machines that give little, and enough ---------------------------------------------------------------------------


def test_64_descriptors() -> None:
    found = _examine_after(lambda: _limit("NOFILE", _open() + 40))
    assert found["own_workers"] is True


def test_limits_that_do_not_matter() -> None:
    def limit() -> None:
        for name in ("MEMLOCK", "SIGPENDING"):
            _limit(name, 0)

    found = _examine_after(limit)
    assert found["own_workers"] is True
    assert found["checks"]["memlock"]["facts"] == {"limit_bytes": 0}


def test_a_limit_on_address_space() -> None:
    found = _examine_after(lambda: _limit("AS", limits._mapped() + 2000 * MIB))
    assert found["own_workers"] is True
    assert _states(found)["address_space"] == "advice"


# -- machines that give too little -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda: _limit("NOFILE", 1), "fork"),
        (lambda: _limit("NOFILE", _open() + 5), "workers"),
        (lambda: _limit("FSIZE", 4096), "pool"),
    ],
    ids=["hardly a descriptor", "few descriptors", "tiny files"],
)
def test_too_little(change: Callable[[], object], missing: str) -> None:
    """The child has its way to answer open already, so that it can say what it finds."""
    found = _examine_after(change)
    assert found["own_workers"] is False
    assert _states(found)[missing] == "missing"
    assert missing in found["conclusion"]


def test_next_to_no_address_space() -> None:
    """Whether anything can be forked then is chance; that it is said, and no exception, is not."""
    for more in (0, 4, 64):
        found = _examine_after(lambda more=more: _limit("AS", limits._mapped() + more * MIB))  # type: ignore[misc]
        assert _states(found)["address_space"] == "advice"


def _refuse(name: str, error: int) -> Callable[[], None]:
    def refuse(*args: object) -> None:
        raise OSError(error, os.strerror(error))

    return lambda: setattr(os, name, refuse)


@pytest.mark.parametrize(
    ("name", "error", "check"),
    [
        ("memfd_create", errno.ENOSYS, "memfd"),
        ("memfd_create", errno.EMFILE, "memfd"),
        ("pidfd_open", errno.EPERM, "pidfd"),
        ("fork", errno.EAGAIN, "fork"),
    ],
)
def test_what_a_sandbox_refuses(name: str, error: int, check: str) -> None:
    found = _examine_after(_refuse(name, error))
    assert found["own_workers"] is False
    assert _states(found)[check] == "missing"
    assert _states(found)["workers"] == "missing"


def test_a_torch_that_differs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch_private, "difference", lambda: "torch 9.9 lacks everything")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "missing  torch 9.9 lacks everything" in printed
    assert "missing  torch 9.9 lacks everything, so ShmDataLoader loads as torch's DataLoader does" in printed


def test_a_hidden_proc_and_a_read_only_dev_shm() -> None:
    hide = (
        "mount -t tmpfs -o ro tmpfs /dev/shm && for f in /proc/pressure /sys/fs/cgroup; do "
        'if [ -e $f ]; then mount -t tmpfs -o ro tmpfs $f || exit 9; fi; done; exec "$@"'
    )
    for unshare in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        prefix = [*unshare, "sh", "-c", hide, "sh"]
        if (
            shutil.which("unshare")
            and not subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
        ):
            break
    else:
        pytest.skip("this machine lets nobody mount a /dev/shm of their own (unshare --mount)")
    ran = subprocess.run(
        [*prefix, sys.executable, "-m", "shmloader", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    found = json.loads(ran.stdout)
    assert _states(found)["pressure"] == "unknown"
    assert found["checks"]["dev_shm"]["facts"]["writable"] is False


# -- the command itself ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_fault_of_the_machine(closed: str) -> None:
    command_line = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "shmloader", "doctor", "--json"]
    ran = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert closed.startswith(">") or "missing" not in _states(json.loads(ran.stdout)).values()


def test_a_full_disk_is_said_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "shmloader", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ran.returncode, ran.stderr) == (1, "the output cannot be written: [Errno 28] No space left on device\n")


def test_a_check_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(seconds: float) -> Finding:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(command, "CHECKS", {"broken": broken, "kernel": command.CHECKS["kernel"]})
    findings = command.examine(_SECONDS)
    assert [finding.state for finding in findings.values()] == ["unknown", "ok"]
    assert "ZeroDivisionError: by chance" in findings["broken"].found


def test_an_interrupt_needs_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(seconds: float) -> Finding:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "CHECKS", {"interrupted": interrupted})
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("seconds", ["0", "86401", "9" * 30])
def test_bad_usage_is_one_line_and_code_2(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--timeout", seconds])
    captured = capsys.readouterr()
    assert (caught.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
