"""What is measured is what is copied: the decoder is that of ``examples/jpeg_crops.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples"))

import jpeg_crops

__all__ = ["jpeg_crops"]
