"""The test suite on every torch and Python that is supported: ``nox``; on one: ``nox -s "tests-3.12(torch='2.15')"``.

What follows ``--`` goes to pytest. Interpreters that are not there are left out, and so is a pair of which torch has no
wheels. ``constraints.txt`` is not used: its versions are those of one Python.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.4.15"
nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "venv"

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
TORCHES = ["2.6", "2.13", "2.15"]
NO_WHEELS = {("3.14", "2.6"), ("3.10", "2.15")}


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCHES)
def tests(session: nox.Session, torch: str) -> None:
    """Runs the test suite."""
    if (session.python, torch) in NO_WHEELS:
        session.skip(f"torch {torch} has no wheels for Python {session.python}")
    session.install(f"torch=={torch}.*", "-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)
