"""Under `patch`, a loader of torch's class gives what it gives without, bit for bit, from workers of ours."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, get_worker_info

import shmloader
from shmloader.patching import patched_loader
from shmloader.patching.record import On
from tests.helpers.datasets import Images, Mapped, Noise, Shards
from tests.helpers.support import assert_same, first_line, let_stock_end, seed_everything, stream


def note_worker(worker: int) -> None:
    torch.manual_seed(100 + worker)


def fail_at_five(index: int) -> int:
    if index == 5:
        raise ValueError("five")
    return index


def number_and_kind_of_workers(index: int) -> tuple[int, str]:
    info: Any = get_worker_info()
    return info.num_workers, type(multiprocessing.current_process()).__name__


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (Images, {"batch_size": 4, "num_workers": 2}),
    "shuffled": (Noise, {"batch_size": 4, "num_workers": 2, "shuffle": True}),
    "persistent": (Noise, {"batch_size": 4, "num_workers": 2, "shuffle": True, "persistent_workers": True}),
    "a generator": (Noise, {"batch_size": 4, "num_workers": 2, "shuffle": True, "generator": seeded}),
    "a timeout": (Noise, {"batch_size": 4, "num_workers": 2, "timeout": 60, "drop_last": True}),
    "an init function": (Noise, {"batch_size": 4, "num_workers": 3, "worker_init_fn": note_worker}),
    "no batches": (Noise, {"batch_size": None, "num_workers": 2}),
    "a stream": (Shards, {"batch_size": 3, "num_workers": 3}),
    "a stream, persistent": (Shards, {"batch_size": 3, "num_workers": 3, "persistent_workers": True}),
    "prefetching": (Noise, {"batch_size": 4, "num_workers": 2, "prefetch_factor": 5, "collate_fn": list}),
    "a sampler": (Noise, {"batch_size": 4, "num_workers": 1, "sampler": lambda: RandomSampler(range(20))}),
    "a batch sampler": (
        Noise,
        {"num_workers": 2, "batch_sampler": lambda: BatchSampler(SequentialSampler(range(11)), 3, False)},
    ),
    "out of order, one worker": (Noise, {"batch_size": 4, "num_workers": 1, "in_order": False}),
    "page-locked, without a device": (Images, {"batch_size": 4, "num_workers": 2, "pin_memory": True}),
    "an error": (lambda: Mapped(fail_at_five), {"batch_size": 2, "num_workers": 2}),
    "in process": (Noise, {"batch_size": 4, "shuffle": True}),
    "in process, a stream": (Shards, {"batch_size": 4}),
    "spawned": (Noise, {"batch_size": 4, "num_workers": 1, "multiprocessing_context": "spawn"}),
}


def outcome(make_dataset: Any, arguments: dict[str, Any], kind: Any = DataLoader, **how: Any) -> Any:
    given = {
        name: value() if name in ("sampler", "batch_sampler", "generator") else value
        for name, value in arguments.items()
    }
    seed_everything(7)
    return stream(kind(make_dataset(), **given), 2, **how)


@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_after", [None, 2], ids=["whole passes", "passes that are left"])
@pytest.mark.sampled(6)
def test_the_stream_is_torchs(case: str, stop_after: int | None) -> None:
    make_dataset, arguments = CASES[case]
    if case == "spawned" and stop_after:
        pytest.skip("as others, and slow")
    expected = outcome(make_dataset, arguments, stop_after=stop_after)
    let_stock_end()
    with shmloader.patch() as patch:
        before = len(patch.ran)
        found = outcome(make_dataset, arguments, stop_after=stop_after)
        (ran,) = patch.ran[before:]
    assert_same(found[0], expected[0], "epochs")
    assert [(type(one), first_line(one)) for one in found[1]] == [(type(one), first_line(one)) for one in expected[1]]
    assert found[2] == expected[2], "the main process's random states differ after the last epoch"
    assert (ran.on, ran.passes) == (On.OURS if arguments.get("num_workers") else On.IN_PROCESS, 2)


def test_attributes_that_are_changed_between_passes_count() -> None:
    with shmloader.patch():
        loader = DataLoader(Images(6), batch_size=3, num_workers=1)
        assert len(list(loader)) == 2
        loader.collate_fn = len
        assert list(loader) == [3, 3]
        loader.num_workers = 0
        loader.collate_fn = str
        assert all(type(batch) is str for batch in loader)


class TheirProcess(multiprocessing.context.ForkProcess):
    """Is told from others by its class."""


class TheirContext(multiprocessing.context.ForkContext):
    """Makes such processes."""

    Process = TheirProcess


class Limited(DataLoader[Any]):
    """Answers for itself how many workers there are, and of what kind, over what torch's constructor has put in."""

    @property
    def num_workers(self) -> int:
        return min(1, int(vars(self)["num_workers"]))

    @num_workers.setter
    def num_workers(self, number: int) -> None:
        vars(self)["num_workers"] = number

    @property
    def multiprocessing_context(self) -> Any:
        return TheirContext()

    @multiprocessing_context.setter
    def multiprocessing_context(self, context: Any) -> None:
        pass


def test_a_derived_class_answers_for_its_attributes() -> None:
    expected = outcome(lambda: Mapped(number_and_kind_of_workers), {"num_workers": 3}, kind=Limited)
    let_stock_end()
    with shmloader.patch():
        found = outcome(lambda: Mapped(number_and_kind_of_workers), {"num_workers": 3}, kind=Limited)
    assert_same(found[0], expected[0], "epochs")
    assert [(int(number), *kind) for number, kind in found[0][0]] == [(1, "TheirProcess")] * len(found[0][0])


def test_a_constructor_of_others_that_puts_in_more(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(Images(6), batch_size=3, num_workers=1)
    make: Any = DataLoader.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.theirs = 1

    monkeypatch.setattr(DataLoader, "__init__", __init__)
    patched_loader._torchs.cache_clear()
    try:
        with shmloader.patch():
            assert len(list(loader)) == len(list(DataLoader(Images(6), batch_size=3, num_workers=1))) == 2
    finally:
        patched_loader._torchs.cache_clear()
