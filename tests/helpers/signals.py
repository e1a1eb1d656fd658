"""Signals that come at any moment at which Python calls their handlers."""

from __future__ import annotations

import dis
import signal
from types import FrameType
from typing import Any


class SignalAt:
    """Sends a signal at one of the moments at which Python calls handlers: in code of ours, after a call has returned.

    Args:
        moment: at which of them; the others are counted.
    """

    def __init__(self, moment: int) -> None:
        self.left = moment
        self._last: dict[int, int] = {}  # by frames' numbers: it must hold none

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call" and "shmloader" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            last = self._last.get(id(frame), 0)
            self._last[id(frame)] = frame.f_lasti
            # The interpreter's own code that leaves an except block has no line, and calls no handler.
            if frame.f_lineno is not None and dis.opname[frame.f_code.co_code[last]].startswith("CALL"):
                self.left -= 1
                if self.left == 0:
                    signal.raise_signal(signal.SIGUSR1)
        elif event == "return":
            self._last.pop(id(frame), None)
        return self
