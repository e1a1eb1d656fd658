"""What a verdict is: words, and what code needs beside. Pure."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """What a verdict says."""

    UNKNOWN = "too little to tell"
    LOOP_BOUND = "the loop is the limit"
    IN_PROCESS = "no workers"
    START_UP = "start-up"
    LATE_BEGIN = "late first batches"
    HELD_BATCHES = "held batches"
    MEMORY_CAP = "memory cap"
    OWN_WORK = "the loader's work in the loop's process"
    INTERPRETER_LOCK = "the interpreter lock"
    HELD_UP = "workers held up"
    STRAGGLERS = "straggling samples"
    SLOW_WORKER = "one slow worker"
    UNEQUAL_PARTS = "unequal parts"
    SHORT_OF_SLOTS = "too few batches ahead"
    MORE_WORKERS = "too few workers"
    SLOW_DATASET = "samples take too long"


class Verdict(str):
    """A verdict in words. It is its text, a str, and has what code needs beside.

    Attributes:
        kind: what it says.
        knob: what would help: the name of an argument; "dataset", "sampler", "target" and "function" are among them.
            None: nothing that is to be changed there.
    """

    __slots__ = ("kind", "knob")

    kind: Kind
    knob: str | None

    def __new__(cls, text: str, kind: Kind = Kind.UNKNOWN, knob: str | None = None) -> Verdict:  # noqa: PYI034 - typing.Self is newer than the oldest Python
        """Makes one; see the class."""
        verdict = super().__new__(cls, text)
        verdict.kind, verdict.knob = kind, knob
        return verdict

    def __getnewargs__(self) -> tuple[str, Kind, str | None]:  # type: ignore[override]
        return str(self), self.kind, self.knob
