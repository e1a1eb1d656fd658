"""Where the time of one batch goes: its steps one by one, in the parent and in a worker.

Each step is run alone, over and over, on what a batch of 64 uint8 images of 28 x 28 with labels gives it. So caches are
warm and nobody waits: in a loop, where three processes share two processors, all of it takes half as long again, and a
system call that wakes a process several times as long. The whole is measured there too.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import timeit
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, SequentialSampler

from shmloader.batches.packing import Packer
from shmloader.cli.machine import machine_line
from shmloader.collate.columns import ColumnCollate, write_arrays, write_numbers
from shmloader.collate.templates import Template, Templates
from shmloader.passes.schedule import Schedule
from shmloader.slots.pool import Packed, Pool
from shmloader.slots.writer import SlotWriter
from shmloader.workers.wire import JOB, PipeEnd, Token, pipe

_BATCH_SIZE = 64
_ROOM = 1 << 20
_RUNS = 2000
_ROUNDS = 11

Steps = dict[str, Callable[[], Any]]


def main() -> int:
    """Prints the table and returns the exit code. Blocks for some seconds."""
    print(f"{machine_line()}; medians of {_ROUNDS} rounds\n")
    worker = _Worker()
    reader, writer = pipe(8)
    with contextlib.closing(reader), contextlib.closing(writer):
        for place, steps in (("parent", _parent(worker.indices, reader, writer)), ("worker", worker.steps())):
            print(f"| {place} | us |\n| --- | ---: |")
            for name, step in steps.items():
                print(f"| {name} | {_micros(step):.2f} |")
            print()
    return 0


def _micros(step: Callable[[], Any]) -> float:
    return median(timeit.repeat(step, number=_RUNS, repeat=_ROUNDS)) / _RUNS * 1e6


def _parent(indices: list[int], reader: PipeEnd, writer: PipeEnd) -> Steps:
    pool = Pool(num_slots=12, in_flight=4, max_bytes=1 << 30, num_workers=2)
    schedule: Schedule[int] = Schedule(2, 2, True)
    for _ in range(schedule.look_ahead):
        schedule.send(schedule.next_worker() or 0, b"", 0)
    sampler = iter(BatchSampler(SequentialSampler(range(1 << 40)), _BATCH_SIZE, False))
    os.set_blocking(reader.fd, False)
    job = pickle.dumps(indices, 5)
    packed = _one_batch(pool, job)
    token = Token(JOB, 1, 1)

    def follow() -> None:
        assert schedule.awaited is not None
        schedule.arrive(schedule.awaited.seq, 1)
        schedule.take()
        schedule.send(schedule.next_worker() or 0, job, 0)

    def claim() -> None:
        slot, _ = pool.claim(job)
        pool.withdraw(slot)

    def cycle() -> None:
        slot, _ = pool.claim(job)
        made = packed._replace(slot=slot)
        pool.ready(made)
        pool.hand_over(made)
        pool.collect()

    def travel() -> None:
        writer.write(token)
        reader.read_ready()

    block = pool.arena.block(packed.slot, packed.tail_offset + packed.tail_bytes)
    return {
        "the sampler's indices": lambda: next(sampler),
        "pickling them": lambda: pickle.dumps(indices, 5),
        "schedule: whose turn, sent, arrived, taken": follow,
        "a token written and read, nobody woken": travel,
        "a slot claimed, the job written into it": claim,
        "two tensors over the slot": lambda: pool._unpacker.views(block, packed.tail_offset, packed.tail_bytes),
        "a slot's whole cycle: claimed, ready, lent with its tensors, given back": cycle,
    }


def _one_batch(pool: Pool, job: bytes) -> Packed:
    """Takes one batch through the pool, and returns what a worker would say of it."""
    writer = SlotWriter(pool.arena, "", lambda need, written: need)
    slot, room = pool.claim(job)
    writer.open(slot, room)
    packed = Packed(slot, *Packer().pack(_laid_out(writer), writer))
    pool.ready(packed)
    pool.hand_over(packed)
    pool.collect()
    return packed


def _laid_out(writer: SlotWriter) -> list[torch.Tensor]:
    """Returns a batch that lies in the slot."""
    shapes: list[tuple[tuple[int, ...], Any]] = [((_BATCH_SIZE, 28, 28), np.uint8), ((_BATCH_SIZE,), np.int64)]
    arrays = [writer.array(shape, np.dtype(dtype)) for shape, dtype in shapes]
    return [torch.from_numpy(array) for array in arrays if array is not None]


class _Worker:
    """What a worker has, with a pool of its own."""

    def __init__(self) -> None:
        self._pool = Pool(num_slots=12, in_flight=4, max_bytes=1 << 30, num_workers=2)
        self._writer = SlotWriter(self._pool.arena, "", lambda need, written: need)
        self._templates = Templates(self._writer)
        self._collate = ColumnCollate(self._templates, self._writer, lambda: True)
        images = np.random.default_rng(0).integers(0, 256, (2048, 28, 28), dtype=np.uint8)
        self._samples = [(image, number % 10) for number, image in enumerate(images)]
        self.indices = list(range(1000, 1000 + _BATCH_SIZE))

    def steps(self) -> Steps:
        samples = self._fetch()
        images, labels = zip(*samples, strict=True)
        self._writer.open(0, _ROOM)
        self._collate(samples)  # says what batch is to be learned
        batch = _laid_out(self._writer)
        self._templates.learn(batch, *Packer().pack(batch, self._writer))
        self._writer.open(0, _ROOM)
        layout: Template = self._collate(samples)
        self._writer.open(0, _ROOM)
        image_place, label_place = self._templates.places(layout) or []
        job = pickle.dumps(self.indices, 5)
        return {
            "the job unpickled": lambda: pickle.loads(job),
            "the samples fetched": self._fetch,
            "taken apart into columns": lambda: list(zip(*samples, strict=True)),
            "places in the slot": lambda: self._places(layout),
            "images written": lambda: write_arrays(images, image_place),
            "labels written": lambda: write_numbers(labels, label_place),
            "the whole of it": lambda: self._make(self._fetch()),
        }

    def _places(self, layout: Template) -> Any:
        self._writer.open(0, _ROOM)
        return self._templates.places(layout)

    def _fetch(self) -> list[Any]:
        return [self._samples[index] for index in self.indices]

    def _make(self, samples: list[Any]) -> None:
        self._writer.open(0, _ROOM)
        layout = self._collate(samples)
        self._writer.write(layout.tail_offset, layout.tail)
        self._writer.close()


if __name__ == "__main__":
    sys.exit(main())
