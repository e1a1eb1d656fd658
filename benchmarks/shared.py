"""Measures what data takes in workers, as it is and as share() has it.

- A list of dicts that forked workers read in random order for a whole pass: what each of them grows by, and what
  getting one item takes.
- An array that spawned workers read whole: what the processes take together, and how many page tables.
"""

from __future__ import annotations

import argparse
import functools
import gc
import multiprocessing
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from shmloader import ShmDataLoader, share
from shmloader.cli.bench.figures import Figure, duration, figure, size
from shmloader.cli.bench.measure import interleave
from shmloader.cli.bench.memory import now
from shmloader.cli.console import UsageError, positive, shown

from .output import Found, as_dicts, markdown

PLAIN, SHARED = "plain", "shared"

_BATCH_SIZE = 1000
_READS = 50_000  # in a round
_TURNS = 5  # of the display


class Items(Dataset[int]):
    """What a dataset does with a list of annotations: it gets one, and makes something small of it."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> int:
        item = self._items[index]
        return len(item["path"]) + len(item["caption"]) + int(item["label"])


def records(length: int) -> list[dict[str, Any]]:
    """Returns such a list."""
    return [
        {"path": f"pictures/{number:08}.jpg", "label": number % 1000, "caption": f"what number {number} shows"}
        for number in range(length)
    ]


@dataclass(frozen=True)
class Held:
    """Memory of one process, in bytes.

    Attributes:
        private: in pages that no other process maps.
        resident: in all pages that it maps, whoever else does.
        page_tables: what the kernel takes to know them.
    """

    private: int
    resident: int
    page_tables: int

    def since(self, start: Held) -> Held:
        """Returns what was added since ``start``."""
        return Held(self.private - start.private, self.resident - start.resident, self.page_tables - start.page_tables)


def held(pid: int) -> Held:
    """Returns the memory of a process.

    Raises:
        UsageError: the kernel does not say.
    """
    try:
        found = _kilobytes(pid, "smaps_rollup"), _kilobytes(pid, "status")
    except OSError as error:
        raise UsageError(f"the memory of a worker is not known here: {error}") from None
    rollup, status = found
    private = rollup["Private_Clean"] + rollup["Private_Dirty"]
    return Held(private * 1024, rollup["Rss"] * 1024, status["VmPTE"] * 1024)


def _kilobytes(pid: int, name: str) -> dict[str, int]:
    lines = [line.split() for line in Path(f"/proc/{pid}/{name}").read_text().splitlines()]
    return {fields[0].rstrip(":"): int(fields[1]) for fields in lines if fields[-1] == "kB"}


@dataclass(frozen=True)
class Taken(Found):
    """What was measured.

    Attributes:
        num_workers: how many there were of either kind.
        length: items of the list.
        growth: what each worker grew by in a pass over it.
        item: seconds that getting one of it takes, in random order.
        array_bytes: the size of the array.
        together: what this process and its workers had more than before there was the array.
        page_tables: what each worker's took.
    """

    num_workers: int
    length: int
    growth: dict[str, list[Held]]
    item: dict[str, Figure]
    array_bytes: int
    together: dict[str, int]
    page_tables: dict[str, list[int]]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {**asdict(self), "item": as_dicts(self.item)}

    def lines(self) -> list[str]:
        """Returns a table of the list, and one of the array."""
        of_list = [
            ("private memory, each worker", *self._growth("private")),
            ("resident memory, each worker", *self._growth("resident")),
            ("page tables, each worker", *self._growth("page_tables")),
            ("getting one item", *(self.item[kind].text(duration) for kind in (PLAIN, SHARED))),
        ]
        of_array = [
            ("all processes together", *(size(self.together[kind]) for kind in (PLAIN, SHARED))),
            ("page tables, each worker", *(_range(self.page_tables[kind]) for kind in (PLAIN, SHARED))),
        ]
        kinds = "as it is", "share()"
        return [
            *markdown(
                (f"a list of {self.length:,} dicts, growth of {self.num_workers} forked workers", *kinds), of_list
            ),
            "",
            *markdown((f"an array of {size(self.array_bytes)}, {self.num_workers} spawned workers", *kinds), of_array),
        ]

    def _growth(self, what: str) -> list[str]:
        return [_range([getattr(one, what) for one in self.growth[kind]]) for kind in (PLAIN, SHARED)]


def _range(values: Sequence[int]) -> str:
    low, high = (size(max(0, value)) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("--items", type=positive, default=400_000, metavar="N", help="of the list; default: 400000")
    add("--megabytes", type=positive, default=256, metavar="N", help="of the array; default: 256")
    add("--num-workers", type=positive, default=2, metavar="N", help="default: 2")
    add("--rounds", type=positive, default=7, metavar="N", help="default: 7")


def measure(args: argparse.Namespace) -> Taken:
    """Measures both. Blocks for about a minute; no process is left.

    Raises:
        UsageError: the list is too short for its workers, or the kernel does not say what a process takes.
    """
    nbytes = args.megabytes * 1_000_000
    if args.items < 2 * _BATCH_SIZE * args.num_workers:
        raise UsageError(f"--items must be {2 * _BATCH_SIZE * args.num_workers} at least: two batches for each worker")
    with shown(_TURNS) as progress:
        plain = records(args.items)
        shared = share(plain)
        progress.begin("list")
        item = dict(zip((PLAIN, SHARED), item_seconds((plain, shared), args.rounds), strict=True))
        progress.step()
        growth = {}
        for kind, items in ((SHARED, shared), (PLAIN, plain)):
            growth[kind] = growth_in_a_pass(items, args.num_workers)
            progress.step()
        del plain, shared, items
        progress.begin("array")
        taken = {}
        for kind in (PLAIN, SHARED):
            taken[kind] = taken_by_an_array(nbytes, kind == SHARED, args.num_workers)
            progress.step()
    together = {kind: total for kind, (total, _) in taken.items()}
    tables = {kind: each for kind, (_, each) in taken.items()}
    return Taken(args.num_workers, args.items, growth, item, nbytes, together, tables)


def growth_in_a_pass(items: Sequence[dict[str, Any]], num_workers: int) -> list[Held]:
    """Returns what each worker grows by from its first batch to the end of a shuffled pass."""
    gc.collect()
    loader = ShmDataLoader(
        Items(items),
        _BATCH_SIZE,
        shuffle=True,
        num_workers=num_workers,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    iterator = iter(loader)
    for _ in range(num_workers):
        next(iterator)
    workers = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    start = [held(pid) for pid in workers]
    for _ in range(len(loader) - num_workers):
        next(iterator)
    return [held(pid).since(before) for pid, before in zip(workers, start, strict=True)]


def item_seconds(kinds: Sequence[Sequence[dict[str, Any]]], rounds: int) -> list[Figure]:
    """Returns what getting one item takes, of each list."""
    draw = random.Random(0)
    order = [draw.randrange(len(kinds[0])) for _ in range(_READS)]

    def read(items: Sequence[dict[str, Any]]) -> float:
        start = time.perf_counter()
        for number in order:
            items[number]
        return (time.perf_counter() - start) / len(order)

    took = interleave([functools.partial(read, items) for items in kinds], 1 + rounds)
    return [figure(each[1:]) for each in took]


def taken_by_an_array(nbytes: int, is_shared: bool, num_workers: int) -> tuple[int, list[int]]:
    """Returns what an array adds to this process and those that read it whole, and each one's page tables."""
    gc.collect()
    without = _with_workers(np.zeros(1, np.uint8), num_workers)
    array: Any = np.ones(nbytes, np.uint8)
    if is_shared:
        array = share(array)
    found = _with_workers(array, num_workers)
    tables = [one.page_tables - other.page_tables for one, other in zip(found[1], without[1], strict=True)]
    return found[0] - without[0], tables


def _with_workers(array: Any, num_workers: int) -> tuple[int, list[Held]]:
    """Returns what all processes take while so many spawned ones have read an array, and what each has."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    gate, opener = context.Pipe(duplex=False)
    with receiver, sender, gate, opener:
        processes = [context.Process(target=_hold, args=(array, sender, gate)) for _ in range(num_workers)]
        for process in processes:
            process.start()
        for _ in processes:
            receiver.recv()
        memory = now()
        if memory is None:
            raise UsageError("the memory of processes is not known here")
        each = [held(process.pid) for process in processes if process.pid is not None]
        opener.close()
        for process in processes:
            process.join()
            process.close()
    return memory.total, each


def _hold(array: Any, sender: Connection, gate: Connection) -> None:
    sender.send(int(array.max()))
    gate.poll(None)  # until its other end is closed
