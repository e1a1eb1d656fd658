"""The ``doctor`` command: what this machine has of what the loader wants."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from shmloader.cli.console import INTERRUPTED, printed, whole_seconds
from shmloader.cli.machine import machine, machine_line

from . import limits, report, software, system
from .finding import UNKNOWN, Finding, runs_on_own_workers

_DESCRIPTION = """\
Tries each thing that ShmDataLoader is made of, and says of each whether it is there, or what to do about it. The exit
code is 0 where the loader runs on its own workers, and 1 where it would load as torch's DataLoader does, or fail.
"""

_EPILOG = """\
ok        it is there, or does not matter here
advice    the loader works, and something would be better otherwise
unknown   it could not be found out
missing   the loader falls back to torch's for this reason, or fails

The keys of the JSON: python -m pydoc shmloader.cli.doctor.report
"""

# What is tried, by the name that it is reported by. Each gets the seconds that a trial may take.
CHECKS: dict[str, Callable[[float], Finding]] = {
    "kernel": system.kernel,
    "python": software.python,
    "torch": software.torch_itself,
    "memfd": system.memfd,
    "pidfd": system.pidfd,
    "fork": system.fork,
    "pool": system.pool,
    "workers": system.workers,
    "threads": system.worker_threads,
    "start_method": software.start,
    "fork_warning": software.fork_beside_threads,
    "cuda": software.page_locking,
    "descriptors": limits.descriptors,
    "address_space": limits.address_space,
    "file_size": limits.file_size,
    "memlock": limits.memlock,
    "memory": limits.memory,
    "processors": limits.processors,
    "scheduling": limits.scheduling,
    "pressure": limits.pressure,
    "dev_shm": limits.dev_shm,
}


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``doctor`` and its options."""
    parser = commands.add_parser(
        "doctor",
        help="say what this machine has of what ShmDataLoader wants",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run, parser=parser)
    parser.add_argument(
        "--timeout", type=whole_seconds, default=30, metavar="SECONDS", help="for each thing that is tried; default: 30"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")


def examine(seconds: float) -> dict[str, Finding]:
    """Returns what all checks find. Blocks while they last; each trial takes ``seconds`` at most."""
    return {name: _finding(check, seconds) for name, check in CHECKS.items()}


def _finding(check: Callable[[float], Finding], seconds: float) -> Finding:
    try:
        return check(seconds)
    except Exception as error:  # a machine that nobody has thought of: the other checks go on
        return Finding(UNKNOWN, f"it could not be found out ({type(error).__name__}: {error})")


def _run(args: argparse.Namespace) -> int:
    try:
        findings = examine(args.timeout)
    except KeyboardInterrupt:
        return INTERRUPTED  # who ends it knows where, and needs no traceback
    if args.json:
        text = json.dumps(report.as_dict(findings, machine()), indent=2)
    else:
        text = report.text(findings, machine_line())
    is_read = printed(text)
    return 0 if is_read and runs_on_own_workers(findings.values()) else 1
