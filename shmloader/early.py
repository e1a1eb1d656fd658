"""Has ``python -m shmloader run`` begin again, as a program that has not imported torch.

Python imports a package before it runs its ``__main__``, and this one imports torch. A script may set variables that
are read when torch is imported, or import something else first. So the process runs another program in its place, by
``exec``: the same interpreter, flags, descriptors and process id, with a file that imports nothing of ours until the
script itself has imported torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import run_options

_BOOTSTRAP = Path(__file__).parent / "cli" / "run" / "bootstrap.py"
_WITH_VALUE = "-W", "-X", "--check-hash-based-pycs"


def restart() -> None:
    """Does so where this process is such a command, and returns elsewhere.

    It is not where a debugger or a profiler has been asked to run it, which `exec` would end: then torch is imported
    first. Nor where something is to be said about the options.
    """
    if sys.argv[:1] != ["-m"]:  # what it is while Python looks for a module that is to be run
        return
    place = place_of_module(sys.orig_argv)
    if place and sys.orig_argv[place + 1 : place + 3] == [__name__.split(".")[0], "run"]:
        program, *flags = sys.orig_argv[:place]
        arguments = sys.orig_argv[place + 3 :]
        if run_options.plain(*run_options.split(arguments)) is not None:
            os.execv(sys.executable, [program, *flags, str(_BOOTSTRAP), *arguments])


def place_of_module(command: Sequence[str]) -> int:
    """Returns where the interpreter's own ``-m`` is in a command line; 0: it is told to run something else."""
    place = 1
    while place < len(command):
        one = command[place]
        if one == "-m":
            return place
        if not one.startswith("-") or one in ("-", "-c"):
            return 0
        place += 2 if one in _WITH_VALUE else 1
    return 0
