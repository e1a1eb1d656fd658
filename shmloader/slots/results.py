"""What has become of a job, as the parent knows it until the loop takes it."""

from __future__ import annotations

from dataclasses import dataclass

from shmloader.batches.tensors import Block


@dataclass(slots=True, eq=False)
class Made:
    """A packed batch in its slot.

    Attributes:
        slot: the slot.
        tail_offset: bytes from the slot's beginning to the batch's tail; see `batches.packing`.
        tail_bytes: the tail's length.
        is_fault: whether what is packed is the exception that making the batch raised.
    """

    slot: int
    tail_offset: int
    tail_bytes: int
    is_fault: bool = False


@dataclass(slots=True, eq=False)
class Retained:
    """A packed batch of which code in the worker holds tensors too, so that its slot is not lent.

    Attributes:
        made: the batch.
        worker: the worker's number.
    """

    made: Made
    worker: int


@dataclass(slots=True, eq=False)
class Spilled:
    """A packed batch in private memory, since its slot was needed before its turn came.

    Attributes:
        block: what was in the slot.
        tail_offset, tail_bytes, is_fault: see `Made`.
        samples: how many samples it has.
    """

    block: Block
    tail_offset: int
    tail_bytes: int
    is_fault: bool
    samples: int = 0


@dataclass(slots=True, eq=False)
class Unsent:
    """A job that could not be sent, so that its error stands in the batch's place.

    Attributes:
        error: why.
    """

    error: Exception


Result = Made | Retained | Spilled | Unsent
