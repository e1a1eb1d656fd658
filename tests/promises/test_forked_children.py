"""Processes that are forked while batches are held: each has them as they were, and what it writes is its own.

A child here waits until its parent has gone on, looks at what it holds, writes to it, and says how it went. It waits on
a pipe, which wakes it too when its parent ends. For tensors, stock's loader lets a child's writes back; ours does not.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from shmloader import ShmDataLoader, WorkerRestartWarning
from tests.helpers.collating import Memory, as_arrays, mapped, mark
from tests.helpers.datasets import Mapped
from tests.helpers.keeping import FORMS, PARTS
from tests.helpers.support import assert_same, assert_same_stream

pytestmark = pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")


class Child:
    """A forked process.

    Args:
        body: called in it; whatever it raises is raised by `finish` in the parent. It gets what blocks until `tell` is
            called.
    """

    def __init__(self, body: Callable[[Callable[[], None]], Any]) -> None:
        self._is_told = False
        told, self._tell = os.pipe()
        self._answer, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            text = b"it was interrupted"
            try:
                os.close(self._tell)
                os.close(self._answer)
                body(lambda: self._wait(told))
                text = b""
            except BaseException:
                text = traceback.format_exc().encode()
            finally:
                with contextlib.suppress(OSError):
                    os.write(answer, text)
                os._exit(0)
        os.close(told)
        os.close(answer)

    def _wait(self, told: int) -> None:
        if not self._is_told:
            os.read(told, 1)
        self._is_told = True

    def tell(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._tell, b"x")

    def finish(self) -> str:
        """Tells it, and returns what went wrong in it. Blocks until it has ended."""
        self.tell()
        text = b""
        while more := os.read(self._answer, 1 << 16):
            text += more
        os.close(self._answer)
        os.close(self._tell)
        os.waitpid(self.pid, 0)
        return text.decode()


class Samples(Dataset[Any]):
    """Arrays large and small; their index is in all elements."""

    def __init__(self, length: int = 40, large: int = 6000) -> None:
        self.length, self.large = length, large

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return {"large": np.full(self.large, index, np.int32), "small": np.full(3, index, np.int16), "label": index}


def expected(indices: list[int], large: int = 6000) -> Any:
    column = torch.tensor(indices)
    return {
        "large": column.int()[:, None].repeat(1, large),
        "small": column.short()[:, None].repeat(1, 3),
        "label": column,
    }


def to_arrays(samples: list[Any]) -> Any:
    return as_arrays(default_collate(samples))


def to_new_arrays(samples: list[Any]) -> Any:
    return {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in samples[0]}


COLLATES: dict[str, Callable[[list[Any]], Any] | None] = {
    "default": None,
    "own": lambda samples: mapped(torch.Tensor.clone, default_collate(samples)),
    "to arrays": to_arrays,
    "to new arrays": to_new_arrays,
}


def tensors_of(batch: Any) -> Any:
    return {key: torch.from_numpy(part) if isinstance(part, np.ndarray) else part for key, part in batch.items()}


def content(thing: Any) -> bytes:
    return thing.numpy().tobytes() if isinstance(thing, torch.Tensor) else bytes(thing.tobytes())


def overwrite(thing: Any, value: int) -> None:
    array = thing.numpy() if isinstance(thing, torch.Tensor) else np.asarray(thing)
    if array.flags.writeable:  # arrays by DLPack are not
        array[...] = value
        assert (array == value).all()


class Hand:
    """What the loop holds, each with the bytes that it should have."""

    def __init__(self, draw: random.Random, most: int) -> None:
        self._draw, self._most = draw, most
        self.held: list[tuple[Any, bytes]] = []

    def take(self, batch: Any) -> None:
        for part in batch.values():
            tensor = part if isinstance(part, torch.Tensor) else torch.from_numpy(part)
            if self._draw.random() < 0.7:
                form = FORMS[self._draw.choice(list(FORMS))]
                thing = form(PARTS[self._draw.choice(["all", "a slice", "a row"][: 1 + tensor.ndim])](tensor))
                self.held.append((thing, content(thing)))
        while len(self.held) > self._most:
            self.drop()

    def drop(self) -> None:
        del self.held[self._draw.randrange(len(self.held))]

    def check(self) -> None:
        for thing, before in self.held:
            assert content(thing) == before

    def overwrite(self, value: int) -> None:
        for thing, _ in self.held:
            overwrite(thing, value)
        self.held = [(thing, content(thing)) for thing, _ in self.held]


# -- children of the loop ----------------------------------------------------------------------------------------------


def reads(hand: Hand, wait: Callable[[], None]) -> None:
    wait()
    hand.check()


def writes_after(hand: Hand, wait: Callable[[], None]) -> None:
    wait()
    hand.check()
    hand.overwrite(77)
    hand.check()


def writes_at_once(hand: Hand, wait: Callable[[], None]) -> None:
    hand.check()
    hand.overwrite(78)
    wait()
    hand.check()


def drops_some(hand: Hand, wait: Callable[[], None]) -> None:
    del hand.held[::2]
    gc.collect()
    hand.overwrite(79)
    wait()
    hand.check()


def has_a_child(hand: Hand, wait: Callable[[], None]) -> None:
    child = Child(lambda wait_for_child: writes_after(hand, wait_for_child))
    hand.overwrite(80)
    other = Child(lambda wait_for_child: writes_at_once(hand, wait_for_child))
    wait()
    hand.check()
    hand.held.pop()
    assert (child.finish(), other.finish()) == ("", "")
    hand.check()


def loads(hand: Hand, wait: Callable[[], None]) -> None:
    """Runs a loader of its own, whose workers see what it holds too."""

    def check_and_overwrite(worker: int) -> None:
        hand.check()
        hand.overwrite(81)

    loader = ShmDataLoader(Samples(12, 2000), batch_size=4, num_workers=1, worker_init_fn=check_and_overwrite)
    for _ in range(2):
        batches = list(loader)
        for number, batch in enumerate(batches):
            assert_same(batch, expected(list(range(4 * number, 4 * number + 4)), 2000))
        hand.check()
        wait()
    hand.overwrite(82)
    for number, batch in enumerate(batches):
        assert_same(batch, expected(list(range(4 * number, 4 * number + 4)), 2000))


BODIES: list[Callable[[Hand, Callable[[], None]], None]] = [
    reads, writes_after, writes_at_once, drops_some, has_a_child, loads,
]  # fmt: skip


def walk(seed: int, passes: int = 3) -> None:
    """Loads with random arguments, holds some of it, and has children at random steps, which end at others."""
    draw = random.Random(seed)
    in_flight = draw.choice([1, 2, 4])
    num_workers = draw.choice([n for n in (1, 2) if in_flight % n == 0])
    large = draw.choice([10, 6000, 100_000])
    batch_size = draw.choice([1, 2, 4])
    name = draw.choice(list(COLLATES))
    source = ShmDataLoader(
        Samples(40, large),
        batch_size=batch_size,
        num_workers=num_workers,
        prefetch_factor=in_flight // num_workers,
        persistent_workers=draw.random() < 0.5,
        num_slots=draw.choice([None, in_flight + 2, in_flight + 3, 60]),
        max_pool_bytes=draw.choice([None, None, 24 << 20]),
        collate_fn=COLLATES[name],
    )
    hand = Hand(draw, draw.choice([1, 4, 12]))
    children: list[Child] = []
    wrong: list[str] = []
    try:
        for _ in range(passes):
            for step, batch in enumerate(source):
                indices = list(range(step * batch_size, (step + 1) * batch_size))
                assert_same(tensors_of(batch), expected(indices, large))
                hand.take(batch)
                del batch
                hand.check()
                if hand.held and draw.random() < 0.1:
                    body = draw.choice(BODIES)
                    children.append(Child(lambda wait, body=body: body(hand, wait)))  # type: ignore[misc]
                if children and draw.random() < 0.1:
                    wrong.append(children.pop(draw.randrange(len(children))).finish())
                if hand.held and draw.random() < 0.1:
                    hand.overwrite(draw.randrange(100))
        if draw.random() < 0.5:
            del source
            gc.collect()
    finally:
        wrong += [child.finish() for child in children]
    assert wrong == [""] * len(wrong)
    hand.check()


@pytest.mark.sampled(20)
@pytest.mark.parametrize("seed", range(25))
def test_children_at_random_steps(seed: int) -> None:
    walk(seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", range(10))
def test_many_children_at_random_steps(block: int) -> None:
    for seed in range(1000 + 50 * block, 1050 + 50 * block):
        walk(seed)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("collate", COLLATES)
def test_a_child_that_lives_on_while_its_parent_loads(collate: str, body: Any) -> None:
    """The parent lets go of all that the child holds, and its slots are written to for two passes."""
    draw = random.Random(f"{collate} {body.__name__}")
    source = ShmDataLoader(
        Samples(), batch_size=2, num_workers=1, collate_fn=COLLATES[collate], persistent_workers=True
    )
    hand = Hand(draw, 6)
    child = None
    for step, batch in enumerate(source):
        hand.take(batch)
        del batch
        if step == 7:
            child = Child(lambda wait: body(hand, wait))
            hand.held.clear()
    for _ in range(2):
        assert [int(np.asarray(batch["label"])[0]) for batch in source] == list(range(0, 40, 2))
    assert child is not None
    assert child.finish() == ""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("body", BODIES)
def test_a_child_does_not_write_to_what_the_parent_holds(body: Any) -> None:
    source = ShmDataLoader(Samples(), batch_size=2, num_workers=1)
    hand = Hand(random.Random(0), 100)
    for batch in source:
        hand.take(batch)
    children = [Child(lambda wait: body(hand, wait)) for _ in range(3)]
    del batch, source
    gc.collect()
    assert [child.finish() for child in children] == [""] * 3
    hand.check()


# -- children that load ------------------------------------------------------------------------------------------------


class Refers(Dataset[Any]):
    """Samples that are parts of batches which were held when the worker began; it writes to them once they are read."""

    def __init__(self, memory: Memory, batches: list[Any], writes: bool) -> None:
        self.memory, self.batches, self.writes = memory, batches, writes
        self.seen = 0

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        changed = self.memory.changed if self.seen == 0 or not self.writes else 0
        self.seen += 1
        batch = self.batches[index % len(self.batches)]
        sample = mapped(lambda tensor: tensor[0], batch) if not self.writes else mapped(torch.clone, batch)["label"][0]
        if self.writes:
            mapped(lambda tensor: tensor.fill_(index), batch)
        return sample, changed


@pytest.mark.sampled(4)
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("kind", [ShmDataLoader, DataLoader])
def test_another_loaders_workers(kind: Any, writes: bool, persistent_workers: bool) -> None:
    """The first loop lets go of the batches when the workers have begun, and goes on."""
    first = ShmDataLoader(Samples(), batch_size=2, num_workers=1, persistent_workers=True)
    iterator = iter(first)
    batches = [next(iterator) for _ in range(4)]
    memory = Memory(100)
    for batch in batches:
        memory.keep(batch)
    del batch
    dataset = Refers(memory, batches, writes)
    second = kind(dataset, batch_size=3, num_workers=2, persistent_workers=persistent_workers)
    for number in range(3 if persistent_workers else 1):
        others = iter(second)
        if number == 0:
            assert memory.changed == 0
            batches.clear()
            memory.clear()
        for _ in range(2):
            assert [int(batch["label"][0]) for batch in first] == list(range(0, 40, 2))
        seen = 0
        for batch in others:
            sample, changed = batch
            assert not changed.any()
            if not writes:
                indices = [(seen + row) % 4 * 2 for row in range(3)]
                assert_same(sample, expected(indices))
            elif number == 0 and seen < 3:
                assert sample.tolist() == [0, 2, 4]
            seen += 3
        assert seen == 24
        del batch, sample, changed, others


@pytest.mark.sampled(6)
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("collate", COLLATES)
def test_the_same_loaders_next_pass(collate: str, num_workers: int) -> None:
    """Its workers see what was held of the passes before, while their own batches go where the parent's lie."""

    class Remembers(Samples):
        def __init__(self) -> None:
            super().__init__()
            self.memory = Memory(12)

        def __getitem__(self, index: int) -> Any:
            return {**super().__getitem__(index), "changed": self.memory.changed}

    dataset = Remembers()
    source = ShmDataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=COLLATES[collate])
    for number in range(6):
        for step, batch in enumerate(source):
            assert not np.asarray(batch.pop("changed")).any()
            assert_same(tensors_of(batch), expected(list(range(4 * step, 4 * step + 4))))
            if (step + number) % 3 == 0:
                dataset.memory.keep(batch)
        del batch
        assert dataset.memory.changed == 0


class DiesOnce(Samples):
    """Its worker is killed at some samples, once at each; it looks at what the parent has kept before."""

    def __init__(self, at: list[int], writes: bool) -> None:
        super().__init__()
        self.at, self.writes = at, writes
        self.done = mmap.mmap(-1, 4096)
        self.memory = Memory(100)

    def __getitem__(self, index: int) -> Any:
        changed = self.memory.changed
        if self.writes:
            for thing in self.memory.things:
                mapped(torch.Tensor.zero_, thing)
            self.memory.clear()
        if index in self.at and not self.done[index]:
            self.done[index] = 1
            os.kill(os.getpid(), signal.SIGKILL)
        return {**super().__getitem__(index), "changed": changed}


def look_at_pass(source: Any, dataset: DiesOnce) -> int:
    """Compares the batches of a pass, keeps some of them, and returns how many there were."""
    for step, batch in enumerate(source):
        assert not batch.pop("changed").any()
        assert_same(batch, expected([2 * step, 2 * step + 1]))
        if step % 3 == 0:
            dataset.memory.keep(batch)
            assert dataset.memory.changed == 0
    dataset.memory.clear()
    return step + 1


@pytest.mark.sampled(6)
@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("at", [[13], [6, 30], [38]])
def test_a_worker_that_takes_anothers_place(at: list[int], writes: bool, persistent_workers: bool) -> None:
    """It is forked in the middle of a pass, when batches of that pass are held."""
    dataset = DiesOnce(at, writes)
    source = ShmDataLoader(
        dataset, batch_size=2, num_workers=2, worker_restarts=len(at), persistent_workers=persistent_workers
    )
    with pytest.warns(WorkerRestartWarning):
        numbers = [look_at_pass(source, dataset) for _ in range(3)]
    assert numbers == [20] * 3
    dataset.done.close()


# -- children of workers -----------------------------------------------------------------------------------------------


class Forker:
    """Forks in a worker: children that hold what the worker holds, and end when some more has been made."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.children: list[Child] = []
        self.wrong = 0
        self.texts = ""

    def fork(self, *things: Any) -> None:
        if self.draw.random() < 0.3:
            self.children.append(Child(lambda wait: self._in_the_child(things, wait)))
        if len(self.children) > 2 or (self.children and self.draw.random() < 0.2):
            text = self.children.pop(0).finish()
            self.wrong += text != ""
            if text:
                print(text, file=sys.stderr)

    def _in_the_child(self, things: tuple[Any, ...], wait: Callable[[], None]) -> None:
        at_once = self.draw.random() < 0.5
        before = mark(list(things))
        made = default_collate([torch.full((3000,), 5), torch.full((3000,), 6)])
        if at_once:
            for thing in things:
                fill(thing)
            before = mark(list(things))
        wait()
        assert mark(list(things)) == before
        more = default_collate([made, made])
        for thing in (*things, more):
            fill(thing)
        assert made.tolist() == [[5] * 3000, [6] * 3000]

    def end(self) -> int:
        """Ends all children, and returns how many went wrong."""
        while self.children:
            self.wrong += self.children.pop().finish() != ""
        return self.wrong


def fill(thing: Any) -> None:
    """Writes to all tensors and arrays of a structure."""
    if isinstance(thing, torch.Tensor):
        thing.fill_(99)
    elif isinstance(thing, np.ndarray):
        thing[...] = 99
    elif isinstance(thing, dict):
        fill(list(thing.values()))
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            fill(part)


class Forks(Dataset[Any]):
    """Forks while it makes a sample, of tensors that it has collated; the last one of each worker ends all children."""

    def __init__(self, seed: int, where: str) -> None:
        self.seed, self.where = seed, where
        self.forker: Forker | None = None
        self.memory = Memory(6)

    def __len__(self) -> int:
        return 40

    @property
    def here(self) -> Forker:
        if self.forker is None:  # in each worker anew
            info = get_worker_info()
            self.forker = Forker(self.seed + (info.id if info is not None else 0))
        return self.forker

    def clip(self, index: int) -> Any:
        return default_collate([torch.full((700,), index, dtype=torch.int32), torch.arange(700, dtype=torch.int32)])

    def __getitem__(self, index: int) -> Any:
        clip = self.clip(index)
        if self.where == "in a sample":
            self.memory.keep(clip)
            self.here.fork(clip, *self.memory.things)
        return clip, index, self.told(index)

    def told(self, index: int) -> int:
        wrong = self.here.end() if index >= 36 else self.here.wrong
        return wrong + self.memory.changed


class ForksInto(Forks):
    """The same where samples are written into the slot."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)

    def __getitem_into__(self, index: int, out: Any) -> None:
        first = self.here.draw.random() < 0.5
        if first:
            self.here.fork(out)
        out[0][:], out[1][...] = self.clip(index), index
        if not first:
            self.memory.keep([out[0], out[1]])
            self.here.fork(out[0], out[1])
        out[2][...] = self.told(index)


def collate_and_fork(dataset: Forks) -> Callable[[list[Any]], Any]:
    def collate(samples: list[Any]) -> Any:
        batch = default_collate(samples)
        again = default_collate([batch, batch])
        if dataset.here.draw.random() < 0.3:
            dataset.memory.keep(batch)
        dataset.here.fork(batch, again)
        return batch

    return collate


@pytest.mark.sampled(10)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("where", ["in a sample", "in the collate function", "in direct writing"])
def test_children_of_a_worker(where: str, seed: int) -> None:
    """What they write is not in the batch, and what the worker goes on to write is not in what they hold."""
    dataset = ForksInto(seed, where) if where == "in direct writing" else Forks(seed, where)
    collate = collate_and_fork(dataset) if where == "in the collate function" else None
    source = ShmDataLoader(
        dataset, batch_size=4, num_workers=1 + seed % 2, collate_fn=collate, persistent_workers=seed % 3 == 0
    )
    for _ in range(2):
        for step, (clips, numbers, wrong) in enumerate(source):
            indices = list(range(4 * step, 4 * step + 4))
            assert numbers.tolist() == indices
            assert torch.equal(clips, torch.stack([Forks.clip(dataset, index) for index in indices]))
            assert not wrong.any()
            fill([clips, numbers])


class ReturningError(Exception):
    """What a child raises in the middle of its parent's work."""


class Forgets(Dataset[Any]):
    """Forks, and the child goes on as the worker does."""

    def __init__(self, where: str, how: str) -> None:
        self.where, self.how = where, how

    def __len__(self) -> int:
        return 30

    def fork(self, where: str, index: int) -> bool:
        """Forks at some indices; returns whether this is the child."""
        if where != self.where or index % 7 != 3:
            return False
        pid = os.fork()
        if pid == 0 and self.how == "raises":
            raise ReturningError
        if pid == 0 and self.how == "exits":
            sys.exit(3)
        if pid:
            self.reap(pid)
        return pid == 0

    def reap(self, pid: int) -> None:
        # Half of them are left to be reaped by whoever comes after.
        if pid % 2:
            os.waitpid(pid, 0)

    def sample(self, index: int) -> Any:
        return torch.full((2000,), index), index

    def __getitem__(self, index: int) -> Any:
        if self.fork("in a sample", index):
            return torch.full((2000,), -1), -1
        return self.sample(index)


class ForgetsInto(Forgets):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)

    def __getitem_into__(self, index: int, out: Any) -> None:
        if self.fork("in direct writing", index):
            out[0][...], out[1][...] = -1, -1
            return
        out[0][...], out[1][...] = index, index


class ForgetsInAStream(Forgets, IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for index in range(30):
            if self.fork("in a stream", index):
                yield torch.full((2000,), -1), -1
            yield self.sample(index)


def forgetting_collate(dataset: Forgets) -> Callable[[list[Any]], Any]:
    def collate(samples: list[Any]) -> Any:
        batch = default_collate(samples)
        if any(dataset.fork("in the collate function", index) for _, index in samples):
            fill(batch)
        return batch

    return collate


@pytest.mark.sampled(6)
@pytest.mark.parametrize("how", ["returns", "raises", "exits"])
@pytest.mark.parametrize("restarts", [0, 1])
@pytest.mark.parametrize("where", ["in a sample", "in direct writing", "in a stream", "in the collate function"])
def test_a_child_that_goes_on_as_its_worker(where: str, restarts: int, how: str) -> None:
    """It ends; the worker's own batch comes once, unchanged."""
    kinds: dict[str, type[Forgets]] = {"in direct writing": ForgetsInto, "in a stream": ForgetsInAStream}
    dataset = kinds.get(where, Forgets)(where, how)
    source = ShmDataLoader(
        dataset,
        batch_size=3,
        num_workers=1,
        worker_restarts=restarts,
        persistent_workers=bool(restarts),
        collate_fn=forgetting_collate(dataset) if where == "in the collate function" else None,
    )
    for _ in range(2):
        for step, (images, numbers) in enumerate(source):
            assert numbers.tolist() == list(range(3 * step, 3 * step + 3))
            assert torch.equal(images, numbers[:, None].expand(-1, 2000))
        assert step == 9


class Splits:
    """Something of a batch that forks when it is pickled; the child goes on with the pickling."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return Splits, (self.number if pid else -1,)


@pytest.mark.parametrize("nbytes", [100, 300_000])
def test_a_child_that_goes_on_to_send_a_batch(nbytes: int) -> None:
    def collate(samples: list[Any]) -> Any:
        batch = default_collate(samples)
        return batch, Splits(int(batch["label"][0])), torch.full((nbytes,), 3, dtype=torch.uint8)

    source = ShmDataLoader(Samples(20), batch_size=2, num_workers=1, collate_fn=collate)
    for _ in range(2):
        for step, (batch, one, more) in enumerate(source):
            assert one.number == 2 * step
            assert_same(batch, expected([2 * step, 2 * step + 1]))
            assert more.numel() == nbytes
            assert (more == 3).all()
        assert step == 9


class Returning(IterableDataset[Any]):
    """A stream whose beginning forks, and lets the child come back."""

    def __iter__(self) -> Iterator[int]:
        os.fork()
        return iter(range(20))


def fork_and_return(worker: int) -> None:
    os.fork()


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_children_that_come_back_from_where_a_pass_begins(num_workers: int) -> None:
    """They would take the worker's jobs, and make batches twice."""
    source = Mapped(lambda index: torch.full((100,), index), 40)
    assert_same_stream(lambda: source, batch_size=2, num_workers=num_workers, worker_init_fn=fork_and_return)
    stream = ShmDataLoader(Returning(), batch_size=4, num_workers=num_workers)
    assert sorted(int(one) for batch in stream for one in batch) == sorted([*range(20)] * num_workers)
