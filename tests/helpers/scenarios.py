"""Random scenarios for the two loaders: a dataset, arguments, and what the loop does with the batches.

A scenario is made of its seed alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.helpers.collating import (
    COLLATE_WAYS,
    KEEPS,
    Chunks,
    Into,
    IntoAll,
    KeepingCollate,
    KeepingInit,
    Rows,
    random_collating,
)
from tests.helpers.keeping import Habit, random_habit
from tests.helpers.samples import schema
from tests.helpers.sources import (
    COLLATES,
    FAILURES,
    LASTING,
    LENIENT,
    LONG,
    MAPS,
    STREAMS,
    Broken,
    Map,
    Plan,
    Sized,
    Spent,
    ending,
    failing,
    pipe,
    ready_made,
    seed_streams,
    set_tag,
    subset,
    teach,
)

# -- samplers ----------------------------------------------------------------------------------------------------------


class Counted(Sampler[Any]):
    """Passes a sampler on, and counts the iterations that were begun and the items that were drawn.

    Stock pickles what it was given in another thread, some time later. Where the sampler changes its list in place
    that is a race, which stock's loader is spared by ``copies``.
    """

    def __init__(self, source: Any, copies: bool) -> None:
        self._source = source
        self._copies = copies
        self.begun = self.drawn = 0

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return self._items(iter(self._source))

    def _items(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.drawn += 1
            yield list(item) if self._copies and isinstance(item, list) else item

    def __len__(self) -> int:
        return len(self._source)


class InPlace(Sampler[list[int]]):
    """Yields one list again and again, with other numbers in it, and of another length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        indices: list[int] = []
        for step in range(self.length):
            indices[:] = range(step, step - step % 4 - 1, -1)
            yield indices


class Endless(Sampler[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return itertools.cycle(range(self.length))


class Breaking(Sampler[int]):
    """One that fails after some indices."""

    def __init__(self, after: int, error: Callable[[], Exception]) -> None:
        self.after = after
        self.error = error

    def __iter__(self) -> Iterator[int]:
        yield from range(self.after)
        failing(self.error)

    def __len__(self) -> int:
        return self.after


MakeSampler = Callable[[torch.Generator | None], Any]


def index_sampler(draw: random.Random, length: int) -> MakeSampler:
    """Returns a function that makes a sampler of indices; ``length`` is positive."""
    count, seed = draw.choice([1, 9, 40]), draw.getrandbits(30)
    some = [draw.randrange(-length, length) for _ in range(count)]
    weights = [draw.random() for _ in range(length)]
    error = draw.choice(LASTING)
    kinds: list[MakeSampler] = [
        lambda generator: SequentialSampler(range(length)),
        lambda generator: RandomSampler(range(length), generator=generator),
        lambda generator: RandomSampler(range(length), generator=torch.Generator().manual_seed(seed)),
        lambda generator: RandomSampler(range(length), replacement=True, num_samples=count, generator=generator),
        lambda generator: RandomSampler(range(length), num_samples=count),
        lambda generator: WeightedRandomSampler(weights, count, generator=generator),
        lambda generator: SubsetRandomSampler(some, generator=generator),
        lambda generator: some,
        lambda generator: np.array(some),
        lambda generator: [*some, 99, "a", None, *some],
        lambda generator: iter(some),
        lambda generator: dict.fromkeys(range(length)).keys(),
        lambda generator: Breaking(count, error),
        lambda generator: Endless(length),
    ]
    return draw.choice(kinds)


def batch_sampler(draw: random.Random, length: int) -> MakeSampler:
    """Returns a function that makes a sampler of lists of indices."""
    inner, size, drops = index_sampler(draw, length), draw.choice([1, 2, 4]), draw.random() < 0.5
    uneven = [[draw.randrange(length) for _ in range(draw.choice([0, 1, 1, 2, 5]))] for _ in range(9)]
    kinds: list[MakeSampler] = [
        lambda generator: BatchSampler(inner(generator), size, drops),
        lambda generator: BatchSampler(inner(generator), size, drops),
        lambda generator: BatchSampler(inner(generator), size, drops),
        lambda generator: uneven,
        lambda generator: [(0,), [0, 99], "ab", range(1), 5],
        lambda generator: InPlace(length),
        lambda generator: InPlace(length),
    ]
    return draw.choice(kinds)


# -- scenarios ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Visit:
    """What the loop does in one pass.

    Attributes:
        limit: after how many batches and errors it leaves; None: it does not.
        overlaps: whether the pass begins while the iterator of the one before is alive.
        measures: when it asks for the loader's length.
    """

    limit: int | None
    overlaps: bool
    measures: str


@dataclasses.dataclass
class Scenario:
    """One random run.

    Attributes:
        kind: makes the dataset.
        plan: what the dataset does.
        arguments: for either loader.
        own: for ours alone.
        sampler: the argument that ``make_sampler`` makes, if any.
        kept: the share of the batches that the loop keeps to the end.
        scribbles: whether it writes to those that it drops.
        is_ordered: whether stock's batches come in one order only.
        cannot_begin: whether a worker fails at its start. Stock says so once, and then that it has no fetcher.
        habits: in what forms the loop keeps batches; none: as they are.
    """

    seed: int
    kind: Callable[[Plan], Any]
    plan: Plan
    arguments: dict[str, Any]
    own: dict[str, Any]
    visits: list[Visit]
    sampler: str = ""
    make_sampler: MakeSampler | None = None
    has_generator: bool = False
    kept: float = 0.0
    scribbles: bool = False
    is_ordered: bool = True
    cannot_begin: bool = False
    habits: list[Habit] = dataclasses.field(default_factory=list)

    def make(self, kind: type[DataLoader[Any]]) -> tuple[DataLoader[Any], Counted | None]:
        """Returns a loader, and what counts its sampler's items; nothing in them is shared with another."""
        generator = torch.Generator().manual_seed(self.seed) if self.has_generator else None
        arguments: dict[str, Any] = {**self.arguments, "generator": generator}
        counted = None
        if self.make_sampler is not None:
            counted = Counted(self.make_sampler(generator), copies=kind is DataLoader)
            arguments[self.sampler] = counted
        if kind is not DataLoader:
            arguments.update(self.own)
        return kind(self.kind(self.plan), **arguments), counted


def scenario(seed: int) -> Scenario:
    """Returns the scenario of a seed."""
    draw = random.Random(seed)
    wild = draw.random() < 0.4
    length = draw.choice([1, 2, 5, 13, 24, 24]) if draw.random() < 0.97 else 0
    declared = length if draw.random() < 0.7 else draw.choice([length // 2, length // 2, length + 3, length + 3, 0])
    failures = {draw.randrange(max(length, 4)): draw.choice(FAILURES) for _ in range(draw.choice([0, 0, 0, 1, 4]))}
    plan = Plan(seed, length, declared, schema(draw, wild), draw.random() < 0.4, failures)
    make_dataset = draw.choice(STREAMS if draw.random() < 0.35 else MAPS)
    if make_dataset is subset and not length:
        make_dataset = Map
    arguments = _arguments(draw, wild)
    found = Scenario(seed, make_dataset, plan, arguments, _own_arguments(draw, arguments), _visits(draw))
    found.has_generator = draw.random() < 0.3
    found.kept = draw.choice([0.0, 0.0, 0.3, 1.0])
    # Stock shares the memory of samples that are not made anew: writing to them would change what the workers read.
    found.scribbles = draw.random() < 0.5 and make_dataset not in (ready_made, pipe)
    if make_dataset in MAPS:
        _choose_sampler(draw, declared, found)
    found.cannot_begin = make_dataset is Broken and arguments["num_workers"] > 0
    _choose_init(draw, found)
    _leave_out_races(draw, found, plan, make_dataset)
    if make_dataset is Sized:
        plan.declared = draw.choice([-1, 0, 1, 1, 2, 3, length, 100])
    return found


def extended(seed: int) -> Scenario:
    """Returns the scenario of a seed with code in it that collates on its own, and keeps what it makes.

    What is added is drawn apart, so that the rest is what it is without.
    """
    found, draw = scenario(seed), random.Random(f"more-{seed}")
    plan, arguments = found.plan, found.arguments
    was_noisy, plan.noisy = plan.noisy, True
    if found.kind in MAPS:
        found.kind = draw.choice([found.kind, Rows, Into, Into, IntoAll, IntoAll])
        if found.kind in (Into, IntoAll) and _has_odd_indices(found):
            found.kind = Map
    elif found.kind not in (Broken, Spent, pipe):
        found.kind = draw.choice([found.kind, Chunks])
    direct = found.kind in (Into, IntoAll)
    _make_room_for_batches(draw, found)
    _choose_functions(draw, found)
    if draw.random() < 0.3:
        plan.failures[draw.randrange(max(plan.length, 4))] = draw.choice([*LONG, *LASTING])
    _leave_out_races(draw, found, plan, found.kind)
    # What stock's workers hand over as it is, the loop shares with them.
    copied = arguments["collate_fn"] is None and arguments["batch_size"] is not None
    plan.make = random_collating(draw, plan.noisy, direct, copied)
    plan.noisy &= was_noisy
    found.scribbles &= copied
    found.kept = draw.choice([0.0, 0.3, 0.8, 1.0]) if found.is_ordered else draw.choice([0.0, 1.0])
    is_shared = arguments["num_workers"] > 0
    found.habits = [random_habit(draw, is_shared) for _ in range(draw.choice([1, 1, 2, 4]) if found.is_ordered else 1)]
    return found


def _make_room_for_batches(draw: random.Random, found: Scenario) -> None:
    """Has workers make several batches that are alike, in most cases: places are learned from one, for others."""
    plan, arguments = found.plan, found.arguments
    if draw.random() < 0.8 and plan.length:
        if plan.declared == plan.length:
            plan.declared = 24
        plan.length = 24
    is_free = found.kind is not Broken and "worker_init_fn" not in arguments  # which may fail in workers
    if draw.random() < 0.8 and is_free and not arguments["num_workers"]:
        arguments["num_workers"] = draw.choice([1, 1, 2])
        found.own["num_slots"] = None
    if draw.random() < 0.6 and arguments["batch_size"] in (None, 1) and found.sampler != "batch_sampler":
        arguments["batch_size"] = draw.choice([2, 3])


def _choose_functions(draw: random.Random, found: Scenario) -> None:
    choice = draw.random()
    failure = draw.choice([None, None, *LONG, *LASTING])
    if choice < 0.3:
        way, keeps = draw.choice(list(COLLATE_WAYS)), draw.choice(["", *KEEPS])
        found.arguments["collate_fn"] = KeepingCollate(way, keeps, failure)
    elif choice < 0.9:
        found.arguments["collate_fn"] = None
    if draw.random() < 0.2 and "worker_init_fn" not in found.arguments:
        found.arguments["worker_init_fn"] = KeepingInit()


def _has_odd_indices(found: Scenario) -> bool:
    """Whether there are batches of something else than a list of indices."""
    batches = found.make_sampler(None) if found.sampler == "batch_sampler" and found.make_sampler is not None else None
    return isinstance(batches, list) and not all(isinstance(batch, list) for batch in batches)


def _arguments(draw: random.Random, wild: bool) -> dict[str, Any]:
    workers = draw.choice([0, 1, 1, 2, 2, 3])
    chances: list[tuple[float, str, Any]] = [
        (0.1, "pin_memory", True),
        (0.05, "pin_memory_device", "cuda"),
        (0.05, "timeout", 60),
        (0.2, "drop_last", True),
        (0.2, "in_order", False),
    ]
    if workers:
        chances += [(0.1, "multiprocessing_context", "fork"), (0.4, "persistent_workers", True), (0.1, "timeout", 60)]
    arguments: dict[str, Any] = {name: value for chance, name, value in chances if draw.random() < chance}
    arguments["num_workers"] = workers
    arguments["batch_size"] = draw.choice([None, 1, 2, 3, 5]) if draw.random() < 0.99 else 0
    collates = LENIENT if wild else [None, *LENIENT] if arguments["batch_size"] is None else COLLATES
    arguments["collate_fn"] = draw.choice(COLLATES if draw.random() < 0.2 else collates)
    if workers:
        arguments["prefetch_factor"] = draw.choice([None, None, 1, 2, 4])
    if arguments["batch_size"] is None and draw.random() < 0.9:  # they exclude each other
        arguments.pop("drop_last", None)
    return arguments


def _own_arguments(draw: random.Random, arguments: dict[str, Any]) -> dict[str, Any]:
    in_flight = arguments["num_workers"] * (arguments.get("prefetch_factor") or 2)
    # Few slots make private copies, and a low cap makes large batches wait; all that can be held fits under it.
    return {
        "num_slots": draw.choice([None, None, in_flight + 2, in_flight + 3]),
        "max_pool_bytes": draw.choice([None, None, 24 << 20]),
        "worker_restarts": draw.choice([0, 0, 1]),  # with which workers note their random states
    }


def _visits(draw: random.Random) -> list[Visit]:
    leaves = draw.random() < 0.4
    return [
        Visit(
            draw.choice([None, 0, 1, 1, 3, 3, 6, 9]) if leaves else None,
            draw.random() < 0.3,
            draw.choice(["never", "before", "before", "during"]),
        )
        for _ in range(draw.choice([1, 1, 2, 3]))
    ]


def _choose_sampler(draw: random.Random, length: int, found: Scenario) -> None:
    choice = draw.random()
    if choice < 0.2:
        found.arguments["shuffle"] = draw.choice([True, True, False])
    elif choice < 0.6 and length:
        found.sampler, found.make_sampler = "sampler", index_sampler(draw, length)
    elif choice < 0.85 and length:
        found.sampler, found.make_sampler = "batch_sampler", batch_sampler(draw, length)
        found.arguments["batch_size"] = 1
        found.arguments.pop("drop_last", None)


def _choose_init(draw: random.Random, found: Scenario) -> None:
    choice, worker, error = draw.random(), draw.randrange(3), draw.choice(LASTING)

    def fail(number: int) -> None:
        if number == worker:
            failing(error)

    if choice < 0.35:
        found.arguments["worker_init_fn"] = draw.choice([seed_streams, set_tag, teach])
    elif choice < 0.42:
        found.arguments["worker_init_fn"] = fail
        found.cannot_begin |= worker < found.arguments["num_workers"]


def _leave_out_races(draw: random.Random, found: Scenario, plan: Plan, make_dataset: Callable[[Plan], Any]) -> None:
    """Takes out of a scenario what stock itself does differently from time to time, and sees to it that it ends."""
    arguments = found.arguments
    several = arguments["num_workers"] > 1
    source = found.make_sampler(None) if found.make_sampler is not None else None
    source = getattr(source, "sampler", source)
    if found.cannot_begin:
        found.visits = [Visit(6, False, "never")]
    if isinstance(source, Endless):
        for visit in found.visits:
            visit.limit = visit.limit or draw.randrange(1, 12)
    left = any(visit.limit is not None for visit in found.visits)
    ends = (
        any(isinstance(make(), StopIteration) for make in plan.failures.values()) or arguments["collate_fn"] is ending
    )
    if several and not arguments.get("in_order", True):
        # Which worker makes which batch, and which batch comes when, is chance.
        if found.cannot_begin or left or ends or isinstance(source, Breaking):
            del arguments["in_order"]
        else:
            plan.noisy = found.is_ordered = False
    if several and left and make_dataset in STREAMS and arguments.get("persistent_workers"):
        # How far ahead workers are when a pass is left depends on when the ends of others were seen.
        plan.noisy = False
        if make_dataset is Spent:
            del arguments["persistent_workers"]
