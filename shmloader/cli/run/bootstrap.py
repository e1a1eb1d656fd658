"""The program that ``python -m shmloader run`` becomes; see `shmloader.early`. Run as a file, and never imported.

What it has is the script's ``__main__`` soon. So nothing that stays may be defined here, and `launch` does it all.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any


def _launch() -> Any:
    path = os.path.join(os.path.dirname(__file__), "launch.py")  # noqa: PTH118, PTH120 - pathlib is not imported yet
    spec: Any = importlib.util.spec_from_file_location("_shmloader_launch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    launch = _launch()
    launch.end(launch.run(sys.argv[1:]))
