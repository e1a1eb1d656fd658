"""What the parent and a Ray actor tell each other. Nothing here imports Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from shmloader.batches.tensors import Block
from shmloader.workers.brief import BatchSource, Brief, Resume
from shmloader.workers.recorder import Extract

_USERS = ("dataset", "collate_fn", "init_fn", "sample_spec")  # what of a source is in the parcel


class Orders(NamedTuple):
    """What a worker is told once, beside its parcel.

    Attributes:
        brief: the fields of its brief that are the same here.
        source: the fields of the source of its batches that are not in the parcel.
        max_slot_bytes: what a batch may take.
        gate: how the gate is.
        record: what the worker before it has recorded.
        machine: where that was; see `machine`.
        saved: the state of the random generators that it goes on from.
    """

    brief: dict[str, Any]
    source: dict[str, Any]
    max_slot_bytes: int
    gate: tuple[int, int]
    record: Extract
    machine: str
    saved: bytes | None


class Hello(NamedTuple):
    """What a worker says of itself when it has begun.

    Attributes:
        node: Ray's id of its node.
        pid: its process.
        machine: tells machines apart: their clocks differ.
        clock: its `time.monotonic_ns`.
    """

    node: str
    pid: int
    machine: str
    clock: int


class Reply(NamedTuple):
    """What has become of a call.

    Attributes:
        kind: of the token that a worker process would have sent; 0: there would have been none.
        offset: where in ``content`` the tail lies.
        nbytes: how long it is.
        content: the slot, up to the tail's end; None where nothing is in it.
        samples: how many samples the batch has.
        note: what was noted beside the slot.
        between: what was noted when a pass began, or when a stream had no more in it.
        saved: the state of the random generators for a successor, and its tag.
        record: what was recorded.
    """

    kind: int
    offset: int
    nbytes: int
    content: Block | None
    samples: int
    note: bytes | None
    between: bytes | None
    saved: tuple[int, bytes] | None
    record: Extract


class Look(NamedTuple):
    """What an actor does now.

    Attributes:
        state: what the kernel knows of the thread that makes batches.
        frames: the Python frames that it is in, the innermost first, as far as they are the user's.
    """

    state: str
    frames: list[str]


def fields_of(brief: Brief) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns what a brief consists of: fields of its own, those of its source, and what of the user's is in that."""
    source = brief.source
    assert isinstance(source, BatchSource)
    own = {one.name: getattr(brief, one.name) for one in dataclasses.fields(brief)}
    if brief.snapshots is not None and brief.snapshots.resumes:  # those of others it does not need
        resumes = [one if worker == brief.worker else Resume() for worker, one in enumerate(brief.snapshots.resumes)]
        own["snapshots"] = dataclasses.replace(brief.snapshots, resumes=tuple(resumes))
    others = {one.name: getattr(source, one.name) for one in dataclasses.fields(source)}
    del own["arena"], own["source"]
    return own, others, {name: others.pop(name) for name in _USERS}


def machine() -> str:
    """Returns what is the same for all processes that have the same `time.monotonic_ns`."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
