"""What ``shmloader doctor`` prints: lines, or JSON. Pure.

The keys of the JSON:

- ``own_workers``: whether a loader runs on its own workers here; the exit code is 0 if so, else 1.
- ``conclusion``: the last line of the text.
- ``machine``: processor, cores and versions, as in ``shmloader bench``.
- ``checks``: for each check, by name, ``state``, ``found`` (in words), ``advice`` (what to do, or null), ``facts``. A
  state is "ok"; "advice" (it works, and something would be better otherwise); "unknown" (it could not be found out); or
  "missing" (the loader falls back to torch's for that reason, or fails).

The checks, and their facts (bytes where a name ends so; null: no limit, or not known):

- ``kernel``: ``system``, ``release``. ``torch``: ``version``, ``difference``. ``python``: ``version``,
  ``free_threaded``, ``lock``.
- ``memfd``, ``pidfd``, ``fork``, ``workers``, ``threads``: ``failure``. ``pool``: ``failure``, ``slots``,
  ``slot_bytes``, ``cap_bytes``.
- ``start_method``: ``method``, ``chosen``, ``python_default``. ``fork_warning``: ``threads``, ``warns``.
- ``descriptors``: ``soft``, ``hard``, ``open``, ``needed``. ``address_space``: ``left_bytes``. ``file_size`` and
  ``memlock``: ``limit_bytes``.
- ``memory``: ``limit_bytes``, ``available_bytes``, ``control_group_bytes``, ``pool_cap_bytes``. ``dev_shm``:
  ``size_bytes``, ``free_bytes``, ``writable``.
- ``processors``: ``machine``, ``allowed``, ``control_group``. ``scheduling``: ``autogroup``, ``batch_policy``.
  ``pressure``: ``cpu_percent``, ``memory_percent``, ``io_percent``.
- ``cuda``: ``devices``, ``page_locked``.

A check that failed in a way that it does not know is "unknown", and has no facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .finding import Finding, conclusion, runs_on_own_workers


def as_dict(findings: Mapping[str, Finding], machine: Mapping[str, str | int]) -> dict[str, Any]:
    """Returns everything, for JSON."""
    return {
        "own_workers": runs_on_own_workers(findings.values()),
        "conclusion": conclusion(findings),
        "machine": dict(machine),
        "checks": {
            name: {
                "state": finding.state,
                "found": finding.found,
                "advice": finding.advice or None,
                "facts": dict(finding.facts),
            }
            for name, finding in findings.items()
        },
    }


def text(findings: Mapping[str, Finding], machine_line: str) -> str:
    """Returns a line for each check, one for each piece of advice, and the conclusion."""
    width = max(map(len, findings), default=0)
    indent = " " * (width + 11)
    lines = [machine_line, ""]
    for name, finding in findings.items():
        lines.append(f"{name.ljust(width)}  {finding.state.ljust(7)}  {finding.found}")
        if finding.advice:
            lines.append(f"{indent}-> {finding.advice}")
    return "\n".join([*lines, "", conclusion(findings)])
