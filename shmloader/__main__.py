"""``python -m shmloader``: what it does stands in `shmloader.cli.main`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .cli.console import open_streams
from .cli.main import main


def _end(code: int, leave: Callable[[int], object] = sys.exit) -> None:
    # What `run` has run has this module's namespace then; and ``python -i`` takes any exit for an error.
    if code:
        leave(code)


if __name__ == "__main__":
    if sys.argv[1:2] != ["run"]:  # a script has the streams that it was started with
        open_streams()
    _end(main())
