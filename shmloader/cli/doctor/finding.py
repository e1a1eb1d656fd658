"""What a check has found, and what follows from all of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

OK = "ok"  # it is there, or does not matter here
ADVICE = "advice"  # the loader works, and something would be better otherwise
UNKNOWN = "unknown"  # it could not be found out
MISSING = "missing"  # the loader does not run on its own workers for this reason
STATES = (OK, ADVICE, UNKNOWN, MISSING)


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        state: one of `STATES`.
        found: what there is, in words.
        advice: what to do about it; empty where nothing is to be done.
        facts: what there is, in numbers and strings, by names that stay.
    """

    state: str
    found: str
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def runs_on_own_workers(findings: Iterable[Finding]) -> bool:
    """Whether a loader on this machine runs on its own workers, as far as the findings say."""
    return all(finding.state != MISSING for finding in findings)


def conclusion(findings: Mapping[str, Finding]) -> str:
    """Says in one line what follows from all findings."""
    missing = [name for name, finding in findings.items() if finding.state == MISSING]
    if missing:
        return f"ShmDataLoader falls back to torch's loader here, or fails: {', '.join(missing)}."
    advised = [name for name, finding in findings.items() if finding.state == ADVICE]
    rest = f" Something would be better otherwise: {', '.join(advised)}." if advised else ""
    return f"ShmDataLoader runs on its own workers here.{rest}"
