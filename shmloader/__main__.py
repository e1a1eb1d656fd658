"""``python -m shmloader``: what it does stands in `shmloader.cli.main`."""

from __future__ import annotations

import sys

from .cli.console import open_streams
from .cli.main import main

if __name__ == "__main__":
    if sys.argv[1:2] != ["run"]:  # a script has the streams that it was started with
        open_streams()
    sys.exit(main())
