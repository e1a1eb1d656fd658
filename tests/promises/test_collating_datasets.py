"""Datasets and collate functions that call ``default_collate`` themselves, and keep what they have made.

A sample may be a batch of its own: a clip, a bag, an episode. What a worker collates is then a source of the batch, or
stays with the dataset; wherever it lies, it must not be where something is written afterwards.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from shmloader import PoolMemoryError, ShmDataLoader
from shmloader.slots.ledger import MIN_SLOT_BYTES
from tests.helpers.collating import (
    COLLATE_WAYS,
    KEEPS,
    WAYS,
    Chunks,
    Collating,
    Into,
    IntoAll,
    KeepingCollate,
    KeepingInit,
    Memory,
    Rows,
    mapped,
    random_collating,
)
from tests.helpers.datasets import Mapped
from tests.helpers.samples import Make, alike, array, tensor
from tests.helpers.sources import LASTING, LONG, Gather, Map, Plan, Stream, failing
from tests.helpers.support import Outcome, assert_same, assert_same_stream, bits, first_line, tensors_in

# Of torch, about read-only arrays and prototypes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning"),  # where there is little room
]

LENGTH = 24
KIB, MIB = 1 << 10, 1 << 20
KINDS: dict[str, Callable[[Plan], Any]] = {
    "one by one": Map,
    "in lists": Gather,
    "as rows of a batch": Rows,
    "written into the batch": Into,
    "written into the batch at once": IntoAll,
    "a stream": Stream,
    "a stream of chunks": Chunks,
}


def plan(seed: int, make: Make, **changes: Any) -> Plan:
    return Plan(seed, **{"length": LENGTH, "declared": LENGTH, "make": make, "noisy": False, "failures": {}, **changes})


def clip(seed: int) -> Make:
    """Makes a frame and its number, or something of another structure."""
    draw = random.Random(seed)
    if seed % 2:
        return alike(draw)
    frame = tensor((3, draw.choice([2, 300])), draw.choice([torch.uint8, torch.float32, torch.bfloat16]))
    return lambda inner: (frame(inner), inner.randrange(100))


def assert_like_stock(make_dataset: Callable[[], Any], **arguments: Any) -> Outcome:
    """Runs both loaders, of which ours looks at what is kept; see `Memory`."""
    count = itertools.count()

    def make() -> Any:
        Memory.looks = next(count) > 0
        return make_dataset()

    try:
        return assert_same_stream(make, **arguments)
    finally:
        Memory.looks = True


def assert_nothing_changed(outcome: Outcome) -> None:
    """Asserts that no sample tells of something that has changed; they say it last of all."""
    for batch in itertools.chain(*outcome[0]):
        assert not list(tensors_in(batch))[-1].any()


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(40)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_samples_that_were_collated(way: str, kind: str) -> None:
    """Batches that are like one before have their elements written to its places, wherever the samples lie."""
    draw = random.Random(f"{way} {kind}")
    seed, keeps = draw.randrange(100), draw.choice(["", *KEEPS])
    outcome = assert_like_stock(
        lambda: KINDS[kind](plan(seed, Collating(clip(seed), 2 + seed % 2, [way], keeps, plain_first=seed % 7))),
        batch_size=3,
        num_workers=1 + seed % 2,
        prefetch_factor=1 + seed % 3,
    )
    assert_nothing_changed(outcome)


@pytest.mark.sampled(32)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["collated", "loaded", "loaded by ours", "viewed"])
@pytest.mark.parametrize("plain_first", [True, False])
def test_samples_of_which_some_were_collated(way: str, kind: str, plain_first: bool) -> None:
    """The places are learned from a batch that lies elsewhere, and what lies in them comes later; or the reverse."""

    class Some(Collating):
        def _made(self, draw: Any) -> Any:
            was_made = (draw.index < LENGTH // 2) == plain_first
            return WAYS["plain" if was_made else way](self.inner(draw))

    seed = random.Random(f"{way} {kind}").randrange(100)
    outcome = assert_like_stock(
        lambda: KINDS[kind](plan(seed, Some(clip(seed), 3, [], "all"))),
        batch_size=4,
        num_workers=1,
        epochs=2,
        persistent_workers=seed % 2 == 0,
    )
    assert_nothing_changed(outcome)


@pytest.mark.sampled(32)
@pytest.mark.parametrize("seed", range(40))
def test_random_datasets_that_collate(seed: int) -> None:
    play(seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", range(10))
def test_many_random_datasets_that_collate(block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        play(seed)


def play(seed: int) -> None:
    draw = random.Random(seed)
    kind = draw.choice(list(KINDS))
    own = draw.random() < 0.3
    direct = kind.startswith("written")
    failures = {draw.randrange(LENGTH): draw.choice([*LONG, *LASTING])} if draw.random() < 0.3 else {}
    arguments: dict[str, Any] = {
        "batch_size": draw.choice([1, 2, 4, 5]),
        "num_workers": draw.choice([1, 1, 2, 3]),
        "epochs": draw.choice([1, 2]),
        "prefetch_factor": draw.choice([1, 2, 4]),
        "persistent_workers": draw.random() < 0.5,
        "max_pool_bytes": draw.choice([None, 24 * MIB]),
        "worker_init_fn": KeepingInit() if draw.random() < 0.3 else None,
    }
    way, keeps = draw.choice(list(COLLATE_WAYS)), draw.choice(["", *KEEPS])
    if own:
        arguments["collate_fn"] = KeepingCollate(way, keeps)
    made = draw.getrandbits(30)

    def make_dataset() -> Any:
        arguments_of_both = random.Random(made)
        collating = random_collating(arguments_of_both, remembers=True, direct=direct, copied=not own)
        return KINDS[kind](plan(seed, collating, noisy=made % 2 == 0, failures=failures))

    assert_like_stock(make_dataset, **arguments)


CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "shape": lambda tensor: tensor[:1],
    "axes": lambda tensor: tensor.unsqueeze(0),
    "dtype": torch.Tensor.double,
    "strides": lambda tensor: tensor.flip(0).transpose(0, 0),
    "a parameter": lambda tensor: torch.nn.Parameter(tensor.float(), requires_grad=False),
    "a graph": lambda tensor: tensor.float().requires_grad_(),
    "an array": lambda tensor: tensor.numpy(),
    "a list": torch.Tensor.tolist,
    "nothing": lambda tensor: None,
}


@pytest.mark.sampled(40)
@pytest.mark.parametrize("unlike", [3, 4, 5, 7, 9, 23])
@pytest.mark.parametrize("change", CHANGES)
def test_one_sample_that_is_unlike_the_others(change: str, unlike: int) -> None:
    """Columns before that of the unlike part are written already when it is found; their sources may lie there."""
    make = tensor((2, 3), torch.int16)

    def make_dataset() -> Any:
        fields = Collating(lambda inner: {"a": make(inner), "b": make(inner)}, 3, ["collated"], "all")
        fields.change, fields.unlike = lambda tensor: tensor, unlike

        class Last(Map):
            """Of several parts, the last one is unlike those of other samples."""

            def __getitem__(self, index: int) -> Any:
                sample, changed = super().__getitem__(index)
                if index == unlike:
                    sample["b"] = CHANGES[change](sample["b"])
                return {**sample, "c": changed}

        return Last(plan(0, fields))

    assert_like_stock(make_dataset, batch_size=4, num_workers=1, epochs=2)


class Running(Dataset[Any]):
    """Adds to what it has collated once, with every sample."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.mean: Any = None

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        frames = default_collate([{"x": torch.full((500,), float(index))} for _ in range(3)])
        if self.mean is None:
            self.mean = default_collate([frames, frames])
        self.mean["x"].mul_(1 - self.share).add_(frames["x"], alpha=self.share)
        return frames, self.mean["x"].mean(), self.mean["x"][0].clone()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_running_mean(share: float, num_workers: int) -> None:
    """It lies where no batch is: a batch that is on its way does not change with it."""
    assert_like_stock(lambda: Running(share), batch_size=2, num_workers=num_workers, prefetch_factor=4)


class Bags(IterableDataset[Any]):
    """A stream that is made of a loader's batches, which it keeps."""

    def __init__(self, kind: type[DataLoader[Any]]) -> None:
        self.kind = kind

    def __iter__(self) -> Iterator[Any]:
        memory = Memory(100)
        for batch in self.kind(range(60), batch_size=3):  # type: ignore[arg-type]
            memory.keep(batch)
            yield {"bag": batch.repeat(400), "changed": memory.changed}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.parametrize("kind", [DataLoader, ShmDataLoader])
def test_a_stream_of_an_inner_loaders_batches(kind: type[DataLoader[Any]], batch_size: int | None) -> None:
    outcome = assert_like_stock(lambda: Bags(kind), batch_size=batch_size, num_workers=2)
    assert all(not np.any(np.asarray(batch["changed"])) for batch in outcome[0][0])


@pytest.mark.sampled(8)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(2))
def test_samples_that_are_batches(seed: int, way: str) -> None:
    """Without batching, what the dataset has collated is what arrives."""
    keeps = random.Random(f"{way} {seed}").choice(list(KEEPS))
    outcome = assert_like_stock(
        lambda: Map(plan(seed, Collating(clip(seed), 2, [way], keeps))), batch_size=None, num_workers=1
    )
    assert [changed for _, changed in outcome[0][0]] == [0] * LENGTH


# -- collate functions -------------------------------------------------------------------------------------------------


@pytest.mark.sampled(24)
@pytest.mark.parametrize("keeps", ["", *KEEPS])
@pytest.mark.parametrize("way", COLLATE_WAYS)
def test_collate_functions(way: str, keeps: str) -> None:
    """Stock's workers share what they keep with the loop, so what it should be is made without workers."""
    seed = random.Random(f"{way} {keeps}").randrange(100)
    dataset = plan(seed, Collating(clip(seed), 2, ["collated", "plain"], "all"))
    arguments: dict[str, Any] = {"batch_size": 3, "collate_fn": KeepingCollate(way, keeps)}
    stock = list(DataLoader(Map(dataset), **arguments))
    source = ShmDataLoader(Map(dataset), num_workers=1 + seed % 2, persistent_workers=seed % 3 > 0, **arguments)
    for epoch in range(2):
        batches = list(source)
        assert_same(batches, stock, f"epoch {epoch}")
        assert [changed for _, changed in batches] == [0] * len(stock)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("failure", range(len(LASTING + LONG)))
def test_collate_functions_that_fail_when_they_have_kept(failure: int) -> None:
    """The exception takes the batch's place, but not the place of what was kept."""
    way = ["once", "in parts", "once more", "overwritten"][failure % 4]
    outcome = assert_like_stock(
        lambda: Map(plan(failure, Collating(tensor((50,), torch.int32), 2, ["collated"], "a slice"))),
        collate_fn=KeepingCollate(way, list(KEEPS)[failure % len(KEEPS)], (LASTING + LONG)[failure]),
        batch_size=2,
        num_workers=1,
    )
    assert all(changed == 0 for _, changed in outcome[0][0])


@pytest.mark.parametrize("where", ["in the dataset", "in the collate function", "in direct writing"])
@pytest.mark.parametrize("nbytes", [10, 100_000])
def test_what_is_kept_when_an_exception_that_cannot_be_sent_follows(where: str, nbytes: int) -> None:
    """Its text comes; it is written when the batch was packed in vain."""

    class Local(Exception):
        pass

    memory = Memory(100)

    def fail(number: int) -> None:
        if number % 3 == 2:
            raise Local("x" * nbytes)

    class Failing(Dataset[Any]):
        def __len__(self) -> int:
            return LENGTH

        def __getitem__(self, index: int) -> Any:
            made = default_collate([torch.full((100,), index), torch.arange(100)])
            if where == "in the dataset":
                memory.keep(made)
                fail(index)
            return made, memory.changed

    class Writing(Failing):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)

        def __getitem_into__(self, index: int, out: Any) -> None:
            made, changed = self[index]
            out[0][:], out[1][...] = made, changed
            memory.keep([out, default_collate([out, out])])
            fail(index)

    def collate(samples: list[Any]) -> Any:
        made = default_collate(samples)
        memory.keep(made)
        fail(int(made[0][0, 0, 0]))
        return [made[0], made[1] + memory.changed]

    dataset = Writing() if where == "in direct writing" else Failing()
    options: dict[str, Any] = {"collate_fn": collate} if where == "in the collate function" else {}
    iterator = iter(ShmDataLoader(dataset, num_workers=1, **options))
    for index in range(LENGTH):
        if index % 3 == 2:
            with pytest.raises(RuntimeError, match="x\n?" * 10 + "(.|\n)*Local itself cannot be sent") as caught:
                next(iterator)
            assert len(str(caught.value)) < 20_000
            del caught
            continue
        made, changed = next(iterator)
        assert_same(made, torch.stack([torch.full((100,), index), torch.arange(100)])[None])
        assert changed == 0


# -- where there is little room ----------------------------------------------------------------------------------------


class Blobs(Dataset[Any]):
    """Samples of given sizes; with each comes how much of what was kept has changed."""

    def __init__(self, sizes: list[int], memory: Memory) -> None:
        self.sizes, self.memory = sizes, memory

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Any:
        return np.full(self.sizes[index], index % 251, np.uint8), self.memory.changed


class BlobsInto(Blobs):
    """The same, written into the batch where all are of one size, and kept. Some samples fail then."""

    failing: frozenset[int] = frozenset()

    def __getitem__(self, index: int) -> Any:
        if index in self.failing:
            raise ValueError(f"no sample {index}")
        return super().__getitem__(index)

    def __getitem_into__(self, index: int, out: Any) -> None:
        beside = default_collate([np.full(3000, index % 251, np.uint8)] * 2)
        write_blob(super().__getitem__(index), out)
        self.memory.keep([beside, out] if index % 2 else [out])
        if index in self.failing:
            raise ValueError(f"no sample {index}")


def write_blob(sample: Any, out: Any) -> None:
    out[0][:], out[1][...] = sample


@pytest.mark.sampled(8)
@pytest.mark.parametrize("seed", range(40))
def test_a_batch_that_cannot_fit_while_others_are_kept(seed: int) -> None:
    """It is a `PoolMemoryError`, whatever the collate function holds; all others arrive, and what is held stays."""
    draw = random.Random(seed)
    is_tightest = draw.random() < 0.6  # with what a slot has at the least, and no more to be had
    sizes = [draw.choice([10, 3, 20 * KIB, 40 * KIB, 1 if is_tightest else 60 * KIB, 3 * MIB]) for _ in range(40)]
    num_workers, prefetch_factor = draw.choice([1, 2]), draw.choice([1, 2])
    num_slots = num_workers * prefetch_factor + 2
    memory = Memory(draw.choice([2, 8, 100]))
    order = draw.choice(
        ["keeps first", "keeps first", "keeps first", "keeps all", "keeps what is too large", "keeps a slice and fails"]
    )
    # Up to what a slot has without asking: then the exception finds no room behind it, unless some was left.
    first = [(draw.choice([5, 58, 61, 63]) if is_tightest else draw.choice([5, 60, 200, 300])) * KIB for _ in sizes]

    def collate(samples: list[Any]) -> Any:
        if order == "keeps first":
            memory.keep(default_collate([np.full(first[len(memory.things)], len(samples[0][0]) % 251, np.uint8)]))
        made = default_collate(samples)
        if order != "keeps first" and (len(samples[0][0]) < MIB or order == "keeps what is too large"):
            memory.keep(mapped(lambda tensor: tensor[..., 1:], made) if "slice" in order else made)
        if "fails" in order and len(samples[0][0]) == 20 * KIB:
            raise KeyError("y" * 90_000)
        return made[0], made[1] + memory.changed

    loader = ShmDataLoader(
        Blobs(sizes, memory),
        num_workers=num_workers,
        prefetch_factor=prefetch_factor,
        num_slots=num_slots,
        max_pool_bytes=(num_slots + num_workers) * MIN_SLOT_BYTES if is_tightest else 2 * MIB,
        collate_fn=collate,
    )
    iterator = iter(loader)
    for index, size in enumerate(sizes):
        if size == 3 * MIB:
            with pytest.raises(PoolMemoryError):
                next(iterator)
        elif "fails" in order and size == 20 * KIB:
            # The text comes whole where there is room for it.
            with pytest.raises((KeyError, RuntimeError), match="yyyyyyyyy"):
                next(iterator)
        else:
            blob, changed = next(iterator)
            assert (blob.numel(), changed.tolist()) == (size, [0])
            assert (blob == index % 251).all()
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.sampled(14)
@pytest.mark.parametrize("seed", range(20))
def test_direct_writing_where_there_is_little_room(seed: int) -> None:
    """Batches of one number of samples fit, and those of many do not; rows of both are kept."""
    draw = random.Random(seed)
    memory = Memory(draw.choice([4, 30]))
    is_tightest = draw.random() < 0.6
    counts = [draw.choice([1, 4, 4, 4, 200] if is_tightest else [1, 2, 20, 20, 200]) for _ in range(30)]
    starts = [0, *itertools.accumulate(counts)]
    batches = [list(range(start, start + count)) for start, count in zip(starts, counts, strict=False)]
    dataset = BlobsInto([16_240] * sum(counts), memory)  # four take a slot of the least size, nearly all of it
    dataset.failing = frozenset(batch[-1] for batch in batches if len(batch) < 200 and draw.random() < 0.3)
    batches.insert(0, [sum(counts) - 1])
    loader = ShmDataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=1,
        prefetch_factor=2,
        num_slots=4,
        max_pool_bytes=5 * MIN_SLOT_BYTES if is_tightest else 2 * MIB,
    )
    iterator = iter(loader)
    for indices in batches:
        if len(indices) == 200:
            with pytest.raises(PoolMemoryError):
                next(iterator)
            continue
        if dataset.failing.intersection(indices):
            with pytest.raises(ValueError, match="no sample"):
                next(iterator)
            continue
        blobs, changed = next(iterator)
        assert not changed.any()
        assert torch.equal(blobs, torch.tensor(indices)[:, None].remainder(251).expand(-1, 16_240).to(torch.uint8))
    with pytest.raises(StopIteration):
        next(iterator)


# -- direct writing ----------------------------------------------------------------------------------------------------


class Halfway(Dataset[Any]):
    """Writes some rows, keeps all or one of them, and fails; and keeps what it collates beside."""

    def __init__(self, failure: Callable[[], Exception], keeps: str, at_once: bool) -> None:
        self.failure, self.keeps = failure, keeps
        self.memory = Memory(100)
        if at_once:
            self.__class__ = HalfwayAtOnce

    def __len__(self) -> int:
        return 40

    def sample(self, index: int) -> Any:
        return np.full(700, index, np.int32), index

    def __getitem__(self, index: int) -> Any:
        if index % 9 == 8:
            failing(self.failure)
        return (*self.sample(index), self.memory.changed)

    def __getitem_into__(self, index: int, out: Any) -> None:
        out[0][:], out[1][...] = self.sample(index)
        out[2][...] = self.memory.changed
        if self.keeps == "beside":
            self.memory.keep(default_collate([out, out]))
        else:
            self.memory.keep(out if self.keeps == "out" else out[0][10:20])
        if index % 9 == 8:
            failing(self.failure)


class HalfwayAtOnce(Halfway):
    """The same for whole batches."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)

    def __getitems_into__(self, indices: list[int], out: Any) -> None:
        changed = self.memory.changed
        for row, index in enumerate(indices):
            if index % 9 == 8:
                if self.keeps != "beside":
                    self.memory.keep(out if self.keeps == "out" else out[0][:row])
                failing(self.failure)
            out[0][row], out[1][row] = self.sample(index)
            out[2][row] = changed
        if self.keeps == "beside":
            self.memory.keep(default_collate([out, out]))
        else:
            self.memory.keep(out if self.keeps == "out" else out[0][0])


@pytest.mark.sampled(12)
@pytest.mark.parametrize(
    ("keeps", "at_once", "failure"),
    [
        (["out", "a part", "beside"][(failure + more) % 3], bool((failure + more) % 2), failure)
        for failure in range(len(LASTING + LONG))
        for more in range(6 if failure % 8 == 0 else 1)
    ],
)
def test_direct_writing_that_fails_in_the_middle(keeps: str, at_once: bool, failure: int) -> None:
    outcome = assert_like_stock(
        lambda: Halfway((LASTING + LONG)[failure], keeps, at_once), batch_size=3, num_workers=1, epochs=1 + at_once
    )
    assert_nothing_changed(outcome)


# -- the rest of a worker ----------------------------------------------------------------------------------------------


def test_what_an_init_function_keeps() -> None:
    def init(worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        memory: Memory = info.dataset.memory  # type: ignore[attr-defined]
        memory.keep(default_collate([torch.arange(1000), torch.ones(1000, dtype=torch.int64)]))

    def make_dataset() -> Any:
        return Blobs([100] * 40, Memory(10))

    outcome = assert_like_stock(make_dataset, batch_size=2, num_workers=2, worker_init_fn=init, epochs=2)
    assert_nothing_changed(outcome)


def test_errors_of_collating_in_the_dataset_are_torchs() -> None:
    """What cannot be collated is refused in torch's words there, too."""

    class Uneven(Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> Any:
            uneven: list[Any] = [
                [torch.ones(2), torch.ones(3)],
                [np.ones(2), np.ones((2, 1))],
                [1, "a"],
                [torch.ones(2), torch.ones(2, dtype=torch.int8)],
                [None],
                [(1, 2), (1,)],
            ]
            return default_collate(uneven[index % 6])

    outcome = assert_like_stock(Uneven, num_workers=1)
    assert len(outcome[1]) == 10
    assert all(first_line(error).startswith("Caught") for error in outcome[1])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_samples_that_share_what_was_collated(num_workers: int) -> None:
    """One collated thing in several samples of a batch, and in several batches."""

    class Sharing(Dataset[Any]):
        shared: Any = None

        def __len__(self) -> int:
            return LENGTH

        def __getitem__(self, index: int) -> Any:
            if self.shared is None:
                self.shared = default_collate([array((40,), "int64")(random.Random(row)) for row in range(5)])  # type: ignore[arg-type]
            return self.shared[index % 5], self.shared, self.shared.numpy()[1:]

    outcome = assert_like_stock(Sharing, batch_size=5, num_workers=num_workers, epochs=2)
    first = bits(outcome[0][0][0][1][0])
    assert all(bits(row) == first for epoch in outcome[0] for batch in epoch for row in batch[1])


# -- what user code shares in a worker ---------------------------------------------------------------------------------


def shared_after(tensor: torch.Tensor) -> list[float]:
    """Returns what is in an array of a tensor, once that is in shared memory and what was free is used."""
    array = tensor.numpy()
    tensor.share_memory_()
    noise = [torch.full(tensor.shape, -1.0) for _ in range(20)]
    found: list[float] = [float(array.min()), float(array.max())]
    del noise
    return found


@pytest.mark.sampled(2)
@pytest.mark.parametrize("size", [3, 5000, 500_000])
def test_arrays_of_what_is_collated_and_shared_then(size: int) -> None:
    """torch's collate functions make shared memory in workers, which does not move."""
    kept: list[Any] = []

    def row(index: int) -> torch.Tensor:
        return torch.full((size,), float(index))

    def keeping(samples: list[Any]) -> Any:
        kept.append(default_collate([row(int(sample)) for sample in samples]))
        return shared_after(default_collate([row(int(sample)) for sample in samples]))

    assert_same_stream(
        lambda: Mapped(lambda index: shared_after(default_collate([row(index)] * 2)), 6), batch_size=2, num_workers=1
    )
    assert_same_stream(lambda: Mapped(float, 6), batch_size=2, num_workers=1, collate_fn=keeping)
