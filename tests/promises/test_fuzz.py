"""Random scenarios through both loaders; see `scenarios`.

A failure names the seed: ``pytest tests/promises/test_fuzz.py -k "scenario and 12"`` plays it again if it is among
those that run, and ``play(seed)`` does in any case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import re
import resource
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from shmloader import HeldBatchesWarning, ShmDataLoader
from tests.helpers.collating import Memory
from tests.helpers.keeping import FORMS, Echo, Habit, Kept, all_habits
from tests.helpers.samples import warn_once
from tests.helpers.scenarios import Scenario, Visit, extended, scenario
from tests.helpers.sources import seed_streams, set_tag, teach
from tests.helpers.support import assert_same, bits, detached, let_stock_end, random_states, seed_everything, tensors_in

# Of torch, about read-only arrays, prototypes and so on, where scenarios are made.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _room_for_stock() -> Iterator[None]:
    """A tensor that is kept costs stock a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    warn_once()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- what is compared ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Failure:
    """What the loop can see of an exception; between its first and its last line are lines of either library."""

    kind: type
    arguments: list[type]
    first: str
    last: str


@dataclasses.dataclass
class Step:
    """What a call of ``next`` brought: a batch, an error or the end."""

    what: str
    value: Any
    drawn: tuple[int, int] | None
    warned: list[tuple[type, str]]


@dataclasses.dataclass
class Pass:
    begun: Step
    length: Any = None
    measured: Any = None
    steps: list[Step] = dataclasses.field(default_factory=list)
    states: list[dict[str, str]] = dataclasses.field(default_factory=list)


def failure(error: BaseException) -> Failure:
    error.with_traceback(None)  # whose frames hold the iterator, in a cycle
    # Of several arguments, or of a KeyError's one, str() makes a single line.
    text = next((text for text in error.args if isinstance(text, str) and "\n" in text), str(error))
    lines = [_without_addresses(line) for line in text.splitlines() if line.strip()] or [""]
    first = lines[0].replace("in DataLoader worker thread", "in DataLoader worker process")
    return Failure(type(error), [type(argument) for argument in error.args], first, lines[-1])


def _without_addresses(text: str) -> str:
    return re.sub(r"\bat 0x[0-9a-f]+", "at ...", text)


def digest(state: Any) -> str:
    return hashlib.sha1(repr(state).encode()).hexdigest()


class Recorder:
    """Plays a scenario with a loader, and writes down what comes of it.

    Batches are copied, but for those that the loop keeps: they are looked at when all is over, and the loader gone.
    """

    def __init__(self, plan: Scenario, kind: type[DataLoader[Any]]) -> None:
        self._scenario = plan
        self._kind = kind
        self._choice = random.Random(plan.seed)
        self._echo = Echo()
        self._caught: list[warnings.WarningMessage] = []
        self._seen = 0
        self._counted: Any = None
        self._generator: torch.Generator | None = None

    def record(self) -> list[Pass]:
        Memory.looks = self._kind is not DataLoader
        try:
            if any(habit.move == "sent and back" for habit in self._scenario.habits):
                self._echo.start()
            seed_everything(self._scenario.seed)
            with warnings.catch_warnings(record=True) as self._caught:
                warnings.simplefilter("always")
                warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # a fork beside stock's threads
                passes = [*self._play(), Pass(self._step("over"))]
            for step in [step for one in passes for step in one.steps if isinstance(step.value, Kept)]:
                step.value = step.value.contents()
        finally:
            self._echo.close()
            Memory.looks = True
        return passes

    def _play(self) -> list[Pass]:
        try:
            loader, self._counted = self._scenario.make(self._kind)
        except Exception as error:
            return [Pass(self._step("error", failure(error)))]
        self._generator = loader.generator
        passes: list[Pass] = []
        iterator: Any = None
        for visit in self._scenario.visits:
            if not visit.overlaps:
                iterator = None
            measured = self._attempt(lambda: len(loader)) if visit.measures == "before" else None
            iterator, begun = self._begin(loader)
            passes.append(Pass(begun, measured=measured))
            if iterator is not None:
                self._visit(loader, iterator, visit, passes[-1])
            passes[-1].states.append(self._states())
        return passes

    def _begin(self, loader: Any) -> tuple[Any, Step]:
        try:
            iterator = iter(loader)
        except Exception as error:
            return None, self._step("error", failure(error))
        return iterator, self._step("begun")

    def _visit(self, loader: Any, iterator: Any, visit: Visit, into: Pass) -> None:
        into.states.append(self._states())
        into.length = self._attempt(lambda: len(iterator))
        ends = 0
        # Once more after the end: which may have been a StopIteration of the dataset, and no end.
        while ends < 2 and (visit.limit is None or len(into.steps) < visit.limit):
            assert len(into.steps) < 300
            into.steps.append(self._next(iterator))
            ends += into.steps[-1].what == "end"
            if visit.measures == "during" and len(into.steps) == 2:
                into.measured = self._attempt(lambda: len(loader))

    def _next(self, iterator: Any) -> Step:
        try:
            batch = next(iterator)
        except StopIteration as error:
            return self._step("end", failure(error))
        except Exception as error:
            return self._step("error", failure(error))
        return self._step("batch", self._take(batch))

    def _take(self, batch: Any) -> Any:
        if self._choice.random() < self._scenario.kept:
            if self._scenario.habits:
                return self._choice.choice(self._scenario.habits).keep(batch, self._echo)
            return batch
        copied = detached(batch)
        if self._scenario.scribbles:
            scribble(batch)
        return copied

    def _attempt(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            return failure(error)

    def _step(self, what: str, value: Any = None) -> Step:
        fresh = self._caught[self._seen :]
        self._seen = len(self._caught)
        warned = [
            (one.category, _without_addresses(str(one.message).split("\n", 1)[0]))
            for one in fresh
            if one.category is not HeldBatchesWarning and "This DataLoader will create" not in str(one.message)
        ]
        drawn = None if self._counted is None else (self._counted.begun, self._counted.drawn)
        return Step(what, value, drawn, warned)

    def _states(self) -> dict[str, str]:
        states = dict(zip(("torch", "random", "numpy"), random_states(), strict=True))
        if self._generator is not None:
            states["generator"] = bits(self._generator.get_state())
        return {name: digest(state) for name, state in states.items()}


def scribble(batch: Any) -> None:
    """Writes to a batch that nobody needs any more."""
    for tensor in tensors_in(batch):
        with contextlib.suppress(RuntimeError, NotImplementedError), torch.no_grad():  # of one that is expanded, say
            tensor.zero_()


# -- comparing -----------------------------------------------------------------------------------------------------


def play(seed: int, make: Callable[[int], Scenario] = scenario) -> None:
    """Runs one scenario through both loaders and asserts that all is equal."""
    stock = Recorder(make(seed), DataLoader).record()
    let_stock_end()
    ours = Recorder(make(seed), ShmDataLoader).record()
    plan = make(seed)
    if plan.cannot_begin:
        only_first_error(ours)
        only_first_error(stock)
    if not plan.is_ordered:
        ours = [put_in_order(one, other) for one, other in zip(ours, stock, strict=True)]
        stock = [put_in_order(one, one) for one in stock]
    assert_same(ours, stock, "passes")


def only_first_error(passes: list[Pass]) -> None:
    errors = [step for one in passes for step in one.steps if step.what == "error"]
    for step in errors[1:]:
        step.value = None


def put_in_order(one: Pass, like: Pass) -> Pass:
    """Returns a pass with its batches and errors in another pass's order, as far as they are equal."""
    left = [_anybodys(step) for step in one.steps]
    steps = []
    for step in map(_anybodys, like.steps):
        found = next((other for other in left if is_same(other, step)), left[0] if left else None)
        if found is not None:
            left = [other for other in left if other is not found]
            steps.append(found)
    return dataclasses.replace(
        one,
        steps=[
            dataclasses.replace(step, drawn=at.drawn, warned=[])
            for step, at in zip(steps + left, one.steps, strict=True)
        ],
        begun=dataclasses.replace(one.begun, warned=sorted(one.begun.warned, key=str)),
        measured=(one.measured, sorted((warned for step in one.steps for warned in step.warned), key=str)),
    )


def _anybodys(step: Step) -> Step:
    """Returns a step that does not say which worker failed."""
    if not isinstance(step.value, Failure):
        return step
    value = dataclasses.replace(step.value, first=re.sub(r"process \d+", "process ...", step.value.first))
    return dataclasses.replace(step, value=value)


def is_same(one: Step, other: Step) -> bool:
    try:
        assert_same((one.what, one.value), (other.what, other.value))
    except AssertionError:
        return False
    return True


@pytest.mark.sampled(28)
@pytest.mark.parametrize("seed", range(70))
def test_scenario(seed: int) -> None:
    play(seed)


# -- what the loop keeps -------------------------------------------------------------------------------------------


class Pictures(Dataset[Any]):
    """A large tensor and two small ones."""

    def __len__(self) -> int:
        return 240

    def __getitem__(self, index: int) -> Any:
        return torch.full((2, 40, 50), index, dtype=torch.int32), index, torch.tensor([index, -index])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_slots", [8, 200])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_loop_keeps(form: str, num_slots: int) -> None:
    """Each batch is kept in another way; all is compared when the loader is gone."""
    habits = [habit for habit in all_habits() if habit.form == form]
    source = ShmDataLoader(Pictures(), batch_size=4, num_workers=2, num_slots=num_slots)
    echo = Echo()
    echo.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HeldBatchesWarning)
            kept = [habit.keep(batch, echo) for habit, batch in zip(habits, source, strict=False)]
        assert len(kept) == len(habits)
        del source
        for number, (habit, things) in enumerate(zip(habits, kept, strict=True)):
            batch = default_collate([Pictures()[index] for index in range(4 * number, 4 * number + 4)])
            should_be = dataclasses.replace(habit, move="nothing").keep(batch, echo).contents()
            times = 2 if habit.move in ("pickled and loaded", "sent and back") else 1
            assert things.contents() == should_be * times, habit
    finally:
        kept = []
        echo.close()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("collate", ["default", "own"])
@pytest.mark.parametrize("form", FORMS)
def test_small_tensors_that_are_kept_for_whole_passes(form: str, collate: str) -> None:
    """They hold no slots."""
    habit = Habit("the smallest", "all", form, "nothing", before=True)
    collate_fn = None if collate == "default" else lambda samples: [part.clone() for part in default_collate(samples)]
    source = ShmDataLoader(Pictures(), batch_size=4, num_workers=2, collate_fn=collate_fn)
    echo = Echo()
    kept = [[habit.keep(batch, echo) for batch in source] for _ in range(3)]
    statistics = source.statistics()
    assert statistics is not None
    assert (statistics.copies, statistics.leased) == (0, 0)
    del source
    labels = [habit.keep(torch.arange(4 * number, 4 * number + 4), echo).contents() for number in range(60)]
    assert [[things.contents() for things in one] for one in kept] == [labels] * 3


# -- random ones ---------------------------------------------------------------------------------------------------


@pytest.mark.sampled(28)
@pytest.mark.parametrize("seed", range(60))
def test_extended_scenario(seed: int) -> None:
    play(seed, extended)


def in_threads(seed: int) -> Scenario:
    """Returns the scenario of a seed with worker threads, and without what their sharing of the process changes."""
    found = scenario(seed)
    found.plan.noisy = False
    found.arguments.pop("multiprocessing_context", None)
    if found.arguments.get("worker_init_fn") in (seed_streams, set_tag, teach):
        del found.arguments["worker_init_fn"]
    found.own["worker_type"] = "thread"
    return found


@pytest.mark.sampled(20)
@pytest.mark.parametrize("seed", range(70))
def test_scenario_in_threads(seed: int) -> None:
    play(seed, in_threads)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", range(20))
def test_many_extended_scenarios(block: int) -> None:
    play_all(range(1000 + 100 * block, 1100 + 100 * block), extended)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", range(20))
def test_many_scenarios(block: int) -> None:
    play_all(range(1000 + 100 * block, 1100 + 100 * block), scenario)


def play_all(seeds: range, make: Callable[[int], Scenario]) -> None:
    for seed in seeds:
        try:
            play(seed, make)
        except BaseException as error:
            error.add_note(f"in scenario {seed}") if hasattr(error, "add_note") else None
            raise
