"""Workers that die are replaced, and the stream goes on as if nothing had happened.

Workers kill themselves at chosen points of their work, and the loop kills them at random steps; what arrives is
compared with torch's own loader, to the random numbers that samples and collate functions draw.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import random
import signal
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shmloader import HeldBatchesWarning, ShmDataLoader, WorkerDiedError, WorkerRestartWarning
from shmloader.slots.shared_state import SharedState
from shmloader.workers.wire import ASK, BATCH, ENDED, RESUMED, Fields, Outbox, Token
from tests.helpers.datasets import Images
from tests.helpers.support import (
    PATIENCE,
    assert_same,
    checksum,
    children,
    detached,
    let_stock_end,
    random_states,
    seed_everything,
    tensors_in,
)

# -- a worker that kills itself ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kill:
    """A death: at the ``hit``-th time that a worker passes the point ``place``, at batch or worker ``key``."""

    place: str
    key: int | None
    hit: int = 1


class Kills:
    """The deaths of one run. What was passed already is noted in a folder, since those who pass die."""

    def __init__(self, kills: list[Kill], folder: str) -> None:
        self.kills = kills
        self.folder = Path(folder)
        self.at_batch: int | None = None  # in a worker: the batch that it is at, None before its first

    def passes(self, place: str, key: int | None) -> None:
        here = [(number, kill) for number, kill in enumerate(self.kills) if (kill.place, kill.key) == (place, key)]
        if any([self._count(number) == kill.hit for number, kill in here]):  # all are counted  # noqa: C419
            self.end()

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _count(self, number: int) -> int:
        for hit in range(1, 10_000):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.folder / f"{number}-{hit}", os.O_CREAT | os.O_EXCL))
                return hit
        raise AssertionError("a kill is passed again and again")

    @property
    def done(self) -> int:
        """How many have died."""
        return sum((self.folder / f"{number}-{kill.hit}").exists() for number, kill in enumerate(self.kills))

    def init(self, worker: int) -> None:
        """An init function: draws from the random streams, and watches what the library does in this worker."""
        torch.rand(1), random.random(), np.random.rand(1)
        self.passes("init", worker)
        if self.kills:
            self._watch(worker)

    def _watch(self, worker: int) -> None:
        begin, save, write = SharedState.begin, SharedState.save, Outbox.write

        def watched_begin(state: SharedState, number: int, seq: int) -> int:
            began = begin(state, number, seq)
            self.at_batch = seq
            self.passes("begin", seq)
            return began

        def watched_save(state: SharedState, number: int, tag: int, data: bytes) -> None:
            self.passes("save", self.at_batch)
            with torn(state, self, "saving", self.at_batch):
                save(state, number, tag, data)

        def watched_write(pipe: Outbox, fields: Fields) -> None:
            token = Token._make(fields)
            kind = {BATCH: "token", ENDED: "end", RESUMED: "resumed", ASK: "ask"}.get(token.kind & 0xFF, "fault")
            key = worker if kind == "resumed" else token.seq
            self.passes(f"before {kind}", key)
            write(pipe, token)
            self.passes(f"after {kind}", key)

        for owner, name, function in (
            (SharedState, "begin", watched_begin),
            (SharedState, "save", watched_save),
            (Outbox, "write", watched_write),
        ):
            setattr(owner, name, function)


@contextlib.contextmanager
def torn(state: SharedState, kills: Kills, place: str, key: int | None) -> Iterator[None]:
    """Within this, what is written to the arena may be cut off in its middle by the writer's death."""
    memory = state._memory

    class Torn:
        def __setitem__(self, where: slice, data: bytes) -> None:
            middle = len(data) // 2
            memory[where.start : where.start + middle] = data[:middle]
            kills.passes(place, key)
            memory[where] = data

    pack = saved_struct().pack_into

    class Packing:
        size = saved_struct().size

        @staticmethod
        def pack_into(_: Any, place_: int, *values: int) -> None:
            pack(memory, place_, *values)

    import shmloader.slots.shared_state as module

    before, module._SAVED = module._SAVED, Packing  # type: ignore[assignment]
    state._memory = Torn()  # type: ignore[assignment]
    try:
        yield
    finally:
        state._memory, module._SAVED = memory, before


@functools.cache
def saved_struct() -> Any:
    import shmloader.slots.shared_state as module

    return module._SAVED


# -- what is loaded ----------------------------------------------------------------------------------------------------


class Marked:
    """A part of a batch that dies while it is pickled, when its batch is half written; it arrives as 0."""

    def __init__(self, kills: Kills) -> None:
        self.kills = kills

    def __reduce__(self) -> Any:
        self.kills.passes("write", self.kills.at_batch)
        return int, (0,)


def draws() -> tuple[Any, ...]:
    """Returns numbers from each random stream."""
    return torch.rand(2), random.random(), np.random.rand(2)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is loaded and how; one run by torch's loader is what all runs with deaths have to equal."""

    is_stream: bool = False
    num_workers: int = 2
    batch_size: int | None = 4
    shuffle: bool = False
    prefetch_factor: int = 1
    persistent_workers: bool = False
    epochs: int = 1
    breaks: tuple[int | None, ...] = (None,)  # after how many batches the loop leaves, by epoch
    in_order: bool = True
    collation: str = "drawing"
    ragged: bool = False
    large: bool = False  # so large that workers have to ask for room
    declared: bool = False
    drop_last: bool = False
    length: int = 60
    start_method: str = "fork"

    def arguments(self) -> dict[str, Any]:
        names = ["num_workers", "batch_size", "prefetch_factor", "persistent_workers", "in_order"]
        arguments = {name: getattr(self, name) for name in names}
        if self.batch_size is not None:
            arguments["drop_last"] = self.drop_last
        if not self.is_stream:
            arguments["shuffle"] = self.shuffle
        return arguments | {"multiprocessing_context": self.start_method}

    def own_arguments(self) -> dict[str, Any]:
        own: dict[str, Any] = {}
        if self.large:
            slots = self.num_workers * self.prefetch_factor + 2
            own |= {"num_slots": slots, "max_pool_bytes": (slots + self.num_workers) * (1 << 16) + (1 << 18)}
        if self.declared:
            own |= {"sample_shapes": ((), ((2,), None, (2,)), (3,)), "sample_dtypes": None}
            own["sample_dtypes"] = (torch.int64, (torch.float32, None, torch.float64), torch.float32)
        return own

    @property
    def batches(self) -> int:
        """How many batches there are in an epoch, about."""
        return self.length // (self.batch_size or 1)


class Drawing:
    """Samples that draw from each random stream."""

    def __init__(self, setting: Setting, kills: Kills) -> None:
        self.setting, self.kills = setting, kills

    def __len__(self) -> int:
        return self.setting.length

    def __getitem__(self, index: int) -> Any:
        self.kills.passes("sample", self.kills.at_batch)
        return np.array(index), draws(), torch.full((self.size_of(index),), float(index))

    def size_of(self, index: int) -> int:
        size = 1 + index * 7 % 13 if self.setting.ragged else 12 if self.setting.large else 3
        return size * (1000 if self.setting.large else 1)


class Drawn(IterableDataset[Any]):
    """The same as a stream, of another length in each worker, which draws some numbers before its first sample."""

    def __init__(self, samples: Drawing) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        draws()
        length = self.samples.setting.length // info.num_workers
        for step in range(length - 9 * (info.id % 2) + 3 * (info.id // 2)):
            yield self.samples[1000 * info.id + step]
            draws()


CACHE: list[Any] = []


class Collation:
    """Collates, draws random numbers too, and keeps what it has made where that is asked for."""

    def __init__(self, setting: Setting, kills: Kills) -> None:
        self.setting, self.kills = setting, kills

    def __call__(self, data: Any) -> Any:
        samples = data if self.setting.batch_size is not None else [data]
        fixed = torch.utils.data.default_collate([sample[:2] for sample in samples])
        self.kills.passes("collate", self.kills.at_batch)
        long = [sample[2] for sample in samples]
        tensors = long if self.setting.ragged else torch.utils.data.default_collate(long)
        batch = [fixed, draws(), tensors, Marked(self.kills)]
        if self.setting.collation == "kept":
            kept = list(tensors_in(batch))
            CACHE.append((kept, checksum(kept)))
            assert all(checksum(old) == before for old, before in CACHE)
        return batch


# -- how it is loaded --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Loop:
    """What the loop does: which workers it kills before which steps, and how many batches it holds.

    Attributes:
        kills: by epoch and step, workers to kill; step -1 is before the epoch, step n before batch n is taken.
        pauses: for how many microseconds the loop is busy before it kills.
        hold: how many batches it holds.
        done: how many it has killed.
    """

    kills: dict[tuple[int, int], list[int]] = dataclasses.field(default_factory=dict)
    pauses: Iterator[float] = dataclasses.field(default_factory=lambda: iter(lambda: 0.0, None))
    hold: int = 0
    done: int = 0

    def kill(self, epoch: int, step: int, iterator: Any) -> None:
        for worker in self.kills.get((epoch, step), ()):
            until = time.perf_counter() + next(self.pauses)
            while time.perf_counter() < until:
                pass
            process = iterator._workers[worker]
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                self.done += 1


Outcome = tuple[list[list[Any]], Any]


def load(loader: DataLoader[Any], setting: Setting, loop: Loop) -> Outcome:
    """Returns copies of the batches of each epoch, and the main process's random states after the last."""
    epochs: list[list[Any]] = []
    held: deque[tuple[Any, Any]] = deque(maxlen=loop.hold)
    iterator: Any = None
    for epoch in range(setting.epochs):
        if epoch and setting.persistent_workers:
            loop.kill(epoch, -1, loader._iterator)
        iterator = iter(loader)
        batches: list[Any] = []
        stop_after = setting.breaks[epoch % len(setting.breaks)]
        while stop_after is None or len(batches) < stop_after:
            loop.kill(epoch, len(batches), iterator)
            try:
                batch = next(iterator)
            except StopIteration:
                break
            batches.append(detached(batch))
            held.append((batch, batches[-1]))
            del batch
        epochs.append(batches)
        if not setting.persistent_workers:
            iterator = None
        for one, copy in held:
            assert_same(one, copy, "a batch that the loop holds")
    return epochs, random_states()


def make(kind: type, setting: Setting, kills: Kills, **own: Any) -> Any:
    samples = Drawing(setting, kills)
    return kind(
        Drawn(samples) if setting.is_stream else samples,
        collate_fn=Collation(setting, kills),
        worker_init_fn=kills.init,
        **setting.arguments(),
        **own,
    )


@functools.cache
def without_deaths(setting: Setting) -> Outcome:
    """Returns what torch's loader makes of a setting."""
    CACHE.clear()
    seed_everything(3)
    outcome = load(make(DataLoader, setting, Kills([], "")), setting, Loop())
    let_stock_end()
    return outcome


def assert_survives(setting: Setting, kills: list[Kill], loop: Loop | None = None, restarts: int = 50) -> int:
    """Asserts that all batches arrive as if nobody had died. Returns how many have died."""
    expected = without_deaths(dataclasses.replace(setting, large=False) if not setting.large else setting)
    loop = loop or Loop()
    CACHE.clear()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors
        plan = Kills(kills, folder)
        seed_everything(3)
        loader = make(ShmDataLoader, setting, plan, worker_restarts=restarts, **setting.own_arguments())
        failure = ""
        try:
            epochs, states = load(loader, setting, loop)
        except Exception as error:  # whose frames would keep the workers
            failure = f"{type(error).__name__}: {error}"
        died, counted = plan.done + loop.done, loader.statistics().restarts
        del loader
    assert not failure, failure
    for epoch, (ours, stock) in enumerate(zip(epochs, expected[0], strict=True)):
        assert len(ours) == len(stock), f"epoch {epoch} has {len(ours)} batches, and not {len(stock)}"
        for step, (one, other) in enumerate(zip(ours, stock, strict=True)):
            assert_same(one, other, f"epoch {epoch}, batch {step}")
    assert states == expected[1]
    told = [warning for warning in caught if warning.category is WorkerRestartWarning]
    assert {warning.category for warning in caught} <= {WorkerRestartWarning, HeldBatchesWarning}, caught
    assert counted == len(told) <= died
    return died


# -- random deaths -----------------------------------------------------------------------------------------------------

PLACES = ["begin", "sample", "collate", "write", "save", "saving", "before token", "after token", "before ask"]


def random_setting(draw: random.Random) -> Setting:
    is_stream = draw.random() < 0.35
    persistent = draw.random() < 0.5
    in_order = draw.random() < 0.8
    batch_size = draw.choice([None, 4, 4])
    breaks = draw.choice([(None,), (None,), (5, None, 3), (0, 7, None), (1, 1, None)])
    large = draw.random() < 0.25
    declared = not is_stream and not large and draw.random() < 0.25
    return Setting(
        is_stream=is_stream,
        num_workers=draw.choice([1, 2, 3]) if in_order else 1,
        batch_size=batch_size,
        shuffle=draw.random() < 0.5 and not is_stream,
        prefetch_factor=draw.choice([1, 3]),
        persistent_workers=persistent,
        epochs=3 if persistent else 1,
        breaks=breaks if persistent else (None,),
        in_order=in_order,
        collation="drawing" if large else draw.choice(["drawing", "drawing", "kept"]),
        ragged=not declared and draw.random() < (0.8 if large else 0.4),
        large=large,
        declared=declared,
        drop_last=draw.random() < 0.3,
        # Long enough for streams not to end near a break: how many jobs their workers get then is a matter of luck.
        length=(30 if batch_size is None else 60) * (1 + is_stream),
    )


def random_kills(draw: random.Random, setting: Setting) -> list[Kill]:
    """Returns deaths at different batches: the second at one batch would be the last."""
    seqs = draw.sample(range(setting.batches), draw.randint(1, 5))
    kills = [Kill(draw.choice(PLACES), seq, draw.choice([1, 1, 1, 2, 3, 5])) for seq in seqs]
    if draw.random() < 0.5:
        kills.append(Kill("init", draw.randrange(setting.num_workers), draw.choice([1, 2, 2, 3])))
    if draw.random() < 0.5 and setting.is_stream:
        kills.append(Kill(draw.choice(["sample", "collate"]), None, draw.randint(1, 6)))  # while it skips
    if draw.random() < 0.3 and setting.is_stream:
        kills.append(Kill(draw.choice(["before end", "after end"]), draw.randrange(setting.batches)))
    if draw.random() < 0.3:
        kills.append(Kill("before resumed", draw.randrange(setting.num_workers)))
    if draw.random() < 0.3 and not setting.is_stream:
        kills.append(Kill("after resumed", draw.randrange(setting.num_workers)))
    return kills


def random_loop(draw: random.Random, setting: Setting, kills: bool) -> Loop:
    """Returns a loop that kills at steps so far apart that no batch ends two workers."""
    plan: dict[tuple[int, int], list[int]] = {}
    apart = setting.num_workers * setting.prefetch_factor + 1
    for epoch in range(setting.epochs if kills else 0):
        # The moment when a streaming worker resumes has a test of its own.
        step = draw.randint(setting.num_workers if setting.is_stream else -1, 4)
        while step < setting.batches:
            count = draw.randint(1, setting.num_workers) if draw.random() < 0.3 else 1
            plan[epoch, step] = draw.sample(range(setting.num_workers), count)
            step += apart + draw.randint(1, 8) if step >= 0 else 10**6
    pauses = iter(lambda: draw.choice([0.0, draw.uniform(0, 0.0005), draw.uniform(0, 0.003)]), None)
    # A loop that holds small batches may leave no room for a larger one.
    return Loop(plan, pauses, hold=0 if setting.large and setting.ragged else draw.choice([0, 0, 1, 3]))


def check_seed(seed: int) -> int:
    draw = random.Random(seed)
    setting = random_setting(draw)
    if seed % 2:
        return assert_survives(setting, random_kills(draw, setting), random_loop(draw, setting, kills=False))
    return assert_survives(setting, [], random_loop(draw, setting, kills=True))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(12))
def test_random_deaths(seed: int) -> None:
    check_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 440))
def test_many_random_deaths(seed: int) -> None:
    check_seed(seed)


# -- chosen deaths -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(10)
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_each_place(place: str, is_stream: bool) -> None:
    setting = Setting(is_stream=is_stream, large=place == "before ask")
    if is_stream and place.startswith("sav"):  # which is when a pass begins
        kills = [Kill(place, None, hit) for hit in (1, 2, 4, 5)]
    else:
        kills = [Kill(place, seq) for seq in (0, 3, 4, 7)]
    died = assert_survives(setting, kills)
    # Who asks depends on who has asked before, and who saves next on whose pass begins first.
    is_chance = place == "before ask" or (is_stream and place.startswith("sav"))
    assert died >= (2 if is_chance else 4)


def test_the_first_worker_dies_in_its_init_function() -> None:
    assert assert_survives(Setting(), [Kill("init", 0, 1), Kill("init", 0, 2), Kill("init", 1, 1)]) == 3


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_successor_dies_in_its_init_function(is_stream: bool) -> None:
    kills = [Kill("sample", 5), Kill("init", 1, 2), Kill("init", 1, 3)]
    assert assert_survives(Setting(is_stream=is_stream), kills) == 3


def test_the_successor_dies_while_it_skips() -> None:
    kills = [Kill("collate", 8), Kill("sample", None, 5), Kill("collate", None, 3), Kill("sample", None, 20)]
    assert assert_survives(Setting(is_stream=True, num_workers=1), kills) == 4


@pytest.mark.sampled(2)
@pytest.mark.parametrize("hit", [1, 2])
@pytest.mark.parametrize("place", ["save", "saving"])
def test_a_stream_dies_while_it_resumes(place: str, hit: int) -> None:
    setting = Setting(
        is_stream=True,
        num_workers=3,
        prefetch_factor=3,
        persistent_workers=True,
        epochs=3,
        breaks=(1, 1, None),
        length=120,
    )
    assert assert_survives(setting, [Kill(place, 7, hit)]) == 1


def test_a_stream_s_successor_dies_while_it_begins() -> None:
    kills = [Kill("collate", 8), Kill("init", 0, 2), Kill("save", None, 3), Kill("saving", None, 3)]
    assert assert_survives(Setting(is_stream=True, persistent_workers=True, epochs=2), kills) >= 2


def test_a_stream_dies_at_its_end() -> None:
    setting = Setting(is_stream=True, persistent_workers=True, epochs=3)
    kills = [Kill(place, seq) for place in ("before end", "after end") for seq in range(10, 16)]
    assert assert_survives(setting, kills) >= 2


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_death_between_passes(is_stream: bool) -> None:
    setting = Setting(is_stream=is_stream, persistent_workers=True, epochs=4, breaks=(3, None), length=120)
    loop = Loop({(1, -1): [0], (2, -1): [1], (3, -1): [0, 1]})
    assert assert_survives(setting, [], loop) == 4


def test_a_map_style_worker_dies_just_after_it_resumed() -> None:
    setting = Setting(persistent_workers=True, epochs=3, breaks=(3, None))
    assert assert_survives(setting, [Kill("after resumed", 0), Kill("after resumed", 1, 2)]) == 2


def test_a_streaming_worker_dies_just_after_it_resumed() -> None:
    setting = Setting(is_stream=True, persistent_workers=True, epochs=2)
    assert assert_survives(setting, [Kill("after resumed", 0)]) == 1


class Uneven(IterableDataset[int]):
    """A stream that ends soon in worker 1, which dies as the next pass begins, while worker 0 is in the one before."""

    def __init__(self, folder: Path) -> None:
        self.died, self.replaced = folder / "died", folder / "replaced"
        self.passes = 0

    def init(self, worker: int) -> None:
        if self.died.exists():
            self.replaced.touch()

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        assert info is not None
        self.passes += 1
        if self.passes == 2 and info.id == 1:
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.samples(info.id)

    def samples(self, worker: int) -> Iterator[int]:
        for step in range(2 if worker else 8):
            if step == 5 and self.passes == 1:
                until = time.monotonic() + PATIENCE
                while not self.replaced.exists() and time.monotonic() < until:
                    time.sleep(0.001)
            yield 100 * worker + step


@pytest.mark.filterwarnings("ignore::shmloader.WorkerRestartWarning")
def test_a_stream_that_has_ended_begins_anew_and_dies_before_the_others_are_done(tmp_path: Path) -> None:
    data = Uneven(tmp_path)
    loader = ShmDataLoader(
        data, batch_size=None, num_workers=2, persistent_workers=True, worker_restarts=1, worker_init_fn=data.init
    )
    expected = [0, 100, 1, 101, 2, 3, 4, 5, 6, 7]
    assert list(itertools.islice(loader, 6)) == expected[:6]
    assert list(loader) == expected
    assert data.replaced.exists()


def test_a_stream_of_declared_samples_skips_with_its_collate_function() -> None:
    assert assert_survives(Setting(is_stream=True, declared=True), [Kill("sample", 6)]) == 1


def test_batches_that_the_dead_had_kept_and_the_loop_holds() -> None:
    loop = Loop(hold=100)
    assert assert_survives(Setting(collation="kept"), [Kill("begin", seq) for seq in (2, 5, 8, 11)], loop) == 4


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("prefetch_factor", [1, 3])
def test_all_workers_die_at_every_few_steps(prefetch_factor: int) -> None:
    setting = Setting(prefetch_factor=prefetch_factor, length=160)
    loop = Loop({(0, step): [0, 1] for step in range(0, 40, 2 * prefetch_factor + 1)})
    assert assert_survives(setting, [], loop) >= 10


@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_other_start_methods(start_method: str, is_stream: bool) -> None:
    setting = Setting(is_stream=is_stream, start_method=start_method, persistent_workers=True, epochs=2)
    loop = Loop({(0, 2): [0], (1, -1): [1], (1, 4): [0, 1]})
    assert assert_survives(setting, [Kill("sample", 9), Kill("init", 0, 2)], loop) >= 4


# -- rules -------------------------------------------------------------------------------------------------------------


class Deadly(Images):
    """Images, some of which kill the worker each time."""

    def __init__(self, *deadly: int) -> None:
        super().__init__(40)
        self.deadly = deadly

    def __getitem__(self, index: int) -> Any:
        if index in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_batch_that_ends_two_workers_is_named() -> None:
    loader = ShmDataLoader(Deadly(12), batch_size=4, num_workers=2, worker_restarts=9)
    iterator = iter(loader)
    seen: list[int] = []
    with (
        pytest.warns(WorkerRestartWarning, match=r"indices \[12, 13, 14, 15\].*1 of worker_restarts=9") as told,
        pytest.raises(WorkerDiedError, match=r"indices \[12, 13, 14, 15\].*second worker that batch 3 has ended"),
    ):
        seen.extend(int(label) for _, labels in iterator for label in labels)
    assert seen == list(range(len(seen)))
    assert len(told) == 1
    assert told[0].filename == __file__
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    assert not children()


@pytest.mark.parametrize("restarts", [1, 3])
def test_one_death_too_many(restarts: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills([Kill("sample", batch) for batch in range(restarts + 1)], folder)
        loader = make(ShmDataLoader, Setting(num_workers=1), kills, worker_restarts=restarts)
        with (
            pytest.warns(WorkerRestartWarning) as told,
            pytest.raises(WorkerDiedError, match=f"All {restarts} of worker_restarts are used up"),
        ):
            list(loader)
        assert len(told) == loader.statistics().restarts == restarts
        assert kills.done == restarts + 1


def test_each_pass_has_its_own_replacements() -> None:
    setting = Setting(persistent_workers=True, epochs=3)
    kills = [Kill("sample", 2, 1), Kill("sample", 5, 5), Kill("sample", 7, 9)]
    assert assert_survives(setting, kills, restarts=1) == 3
    assert assert_survives(dataclasses.replace(setting, persistent_workers=False), kills, restarts=1) == 3


def test_batches_of_two_passes_are_two_batches() -> None:
    """One worker dies at what is left of the pass before, and another at the batch of that number in the next."""
    setting = Setting(num_workers=1, prefetch_factor=3, persistent_workers=True, epochs=2, breaks=(1, None))
    assert assert_survives(setting, [Kill("begin", 3, 1), Kill("begin", 3, 3)]) == 2


def test_a_warning_that_is_an_error_loses_no_batch() -> None:
    for setting in (Setting(), Setting(is_stream=True), Setting(num_workers=1, in_order=False, prefetch_factor=3)):
        expected = without_deaths(setting)[0][0]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("error", WorkerRestartWarning)
            kills = Kills([Kill("sample", seq) for seq in (0, 1, 4, 9)], folder)  # batches that there are
            seed_everything(3)
            loader = make(ShmDataLoader, setting, kills, worker_restarts=9)
            batches: list[Any] = []
            told = 0
            iterator = iter(loader)
            while True:
                try:
                    batches.append(detached(next(iterator)))
                except WorkerRestartWarning:
                    told += 1
                except StopIteration:
                    break
        assert_same(batches, expected)
        assert told == 4 == loader.statistics().restarts


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_warning_that_is_an_error_between_passes(is_stream: bool) -> None:
    setting = Setting(is_stream=is_stream, persistent_workers=True, epochs=2, breaks=(3, None), length=120)
    expected = without_deaths(setting)[0][1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", WorkerRestartWarning)
        seed_everything(3)
        with tempfile.TemporaryDirectory() as folder:
            loader = make(ShmDataLoader, setting, Kills([], folder), worker_restarts=9)
            iterator = iter(loader)
            for _ in range(3):
                next(iterator)
            process = iterator._workers[1]
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            with pytest.raises(WorkerRestartWarning):
                iter(loader)
            batches = [detached(batch) for batch in loader]
    if is_stream:  # it was begun once more, so that it has other random numbers: its samples must be there
        assert [batch[0][0].tolist() for batch in batches] == [batch[0][0].tolist() for batch in expected]
    else:
        assert_same(batches, expected)


def test_without_restarts_a_death_is_an_error_that_does_not_speak_of_them() -> None:
    loader = ShmDataLoader(Deadly(12), batch_size=4, num_workers=2)
    with pytest.raises(WorkerDiedError, match="is killed by signal: Killed") as caught:
        list(loader)
    assert "restart" not in str(caught.value)
    assert "replaced" not in str(caught.value)
    statistics = loader.statistics()
    assert statistics is not None
    assert statistics.restarts == 0


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("1", TypeError)])
def test_wrong_numbers_of_restarts(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="worker_restarts must be"):
        ShmDataLoader(Images(), worker_restarts=value)


def test_none_is_no_number_of_restarts() -> None:
    with pytest.raises(TypeError, match="worker_restarts must be"):
        ShmDataLoader(Images(), worker_restarts=None)  # type: ignore[arg-type]


def test_no_workers_no_restarts() -> None:
    loader = ShmDataLoader(Images(8), worker_restarts=3)
    assert [int(label) for _, label in loader] == list(range(8))


def test_two_loaders_of_one_loop() -> None:
    """Each has its own deaths, and the workers of the one have the other's pipes."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        setting = Setting()
        expected = without_deaths(setting)[0][0]
        loaders = [
            make(ShmDataLoader, setting, Kills([Kill("write", seq) for seq in seqs], folder), worker_restarts=9)
            for folder, seqs in ((one, (1, 4, 8)), (other, (0, 4, 9)))
        ]
        with pytest.warns(WorkerRestartWarning) as told:
            pairs = [[detached(batch) for batch in pair] for pair in zip(*loaders, strict=True)]
        assert len(told) == 6
        assert len(pairs) == len(expected)
        for pair, batch in zip(pairs, expected, strict=True):
            for one in pair:
                assert_same(one[0][0], batch[0][0])
