"""What is the loader's own: the platform, the start method, copies, figures."""

from __future__ import annotations

import contextlib
import copy
import errno
import multiprocessing
import os
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import shmloader
from shmloader import FallbackWarning, ShmDataLoader
from shmloader.passes.iterator import ShmIterator
from shmloader.workers import kinds
from tests.helpers.datasets import Images, Shards
from tests.helpers.support import assert_same, run_file, stream


def test_the_iterator_is_torchs_too() -> None:
    loader = ShmDataLoader(Images(), num_workers=1)
    iterator = iter(loader)
    assert isinstance(iterator, ShmIterator)
    assert isinstance(iterator, torch.utils.data.dataloader._BaseDataLoaderIter)
    with pytest.raises(NotImplementedError):
        pickle.dumps(iterator)


@pytest.mark.parametrize("missing", ["memfd_create", "pidfd_open"])
def test_a_platform_without(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = stream(DataLoader(Images(), batch_size=4, num_workers=1))[0]
    monkeypatch.delattr(os, missing)
    loader = ShmDataLoader(Images(), batch_size=4, num_workers=1)
    with pytest.warns(FallbackWarning, match=f"os.{missing}"):
        assert_same(stream(loader)[0], stock)
    assert_same(stream(loader)[0], stock)  # it says so once


@pytest.mark.parametrize("name", ["memfd_create", "pidfd_open"])
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_that_refuses(name: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    stock = stream(DataLoader(Images(), batch_size=4, num_workers=1))[0]
    monkeypatch.setattr(os, name, refuse)
    with pytest.warns(FallbackWarning, match=f"os.{name}"):
        assert_same(stream(ShmDataLoader(Images(), batch_size=4, num_workers=1))[0], stock)


def test_a_platform_with_nothing_of_it() -> None:
    script = """
        import multiprocessing.context, os, select, signal, sys
        import torch
        if __name__ == "__main__":
            missing = {
                os: "memfd_create pidfd_open fork register_at_fork",
                signal: "pthread_sigmask pidfd_send_signal SIGKILL",
                select: "poll epoll",
                multiprocessing.context: "ForkContext ForkProcess",
            }
            for module, names in missing.items():
                for name in names.split():
                    delattr(module, name)
            sys.modules["resource"] = sys.modules["fcntl"] = None
            from shmloader import ShmDataLoader
            assert [int(value) for value in ShmDataLoader(range(4))] == [0, 1, 2, 3]
    """
    result = run_file(script)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_platform_without_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(DataLoader, "_get_iterator", lambda self: "stock's iterator")
    with pytest.warns(FallbackWarning, match=r"os\.fork"):
        assert ShmDataLoader(Images(), num_workers=1)._get_iterator() == "stock's iterator"  # type: ignore[comparison-overlap]


def test_fork_is_the_default_and_the_users_choice_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kinds.context_for(None).get_start_method() == "fork"
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: "spawn")
    assert kinds.context_for(None) is torch.multiprocessing
    chosen = ShmDataLoader(Images(), num_workers=1, multiprocessing_context="forkserver")
    assert kinds.context_for(chosen.multiprocessing_context).get_start_method() == "forkserver"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "changes",
    [{"num_workers": 4}, {"prefetch_factor": 10}, {"num_workers": 1, "prefetch_factor": 1}, {"num_workers": 0}],
)
@pytest.mark.parametrize("used", [False, True])
def test_attributes_that_are_changed_later(changes: dict[str, Any], used: bool) -> None:
    loader = ShmDataLoader(Images(40), batch_size=2, num_workers=2)
    expected = stream(DataLoader(Images(40), batch_size=2))[0]
    if used:
        stream(loader)
    for name, value in changes.items():
        setattr(loader, name, value)
    assert_same(stream(loader)[0], expected)


@pytest.mark.long
def test_what_another_library_settles_on_is_no_choice() -> None:
    script = """
        from shmloader.workers import kinds
        if __name__ == "__main__":
            import multiprocessing
            multiprocessing.Lock()
            assert multiprocessing.get_start_method() == multiprocessing.get_all_start_methods()[0]
            assert kinds.context_for(None).get_start_method() == "fork"
            for method in "forkserver", "fork", "spawn":
                multiprocessing.set_start_method(method, force=True)
                assert kinds.context_for(None).get_start_method() == method
    """
    result = run_file(script)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.long
def test_a_start_method_that_is_chosen_later() -> None:
    script = """
        from shmloader import ShmDataLoader
        if __name__ == "__main__":
            import multiprocessing
            loaders = [ShmDataLoader(range(4), num_workers=1) for _ in range(2)]
            loaders[0].multiprocessing_context = "spawn"
            multiprocessing.set_start_method("spawn")
            for loader in loaders:
                assert [int(value) for value in loader] == [0, 1, 2, 3]
    """
    result = run_file(script)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
@pytest.mark.parametrize("used", [False, True])
def test_copies_load_by_themselves(duplicate: Any, used: bool) -> None:
    loader = ShmDataLoader(Images(20), batch_size=4, num_workers=1, max_pool_bytes=1 << 25)
    if used:
        list(zip(range(2), loader, strict=False))
    other = duplicate(loader)
    assert type(other) is ShmDataLoader
    assert other.max_pool_bytes == 1 << 25
    assert_same(stream(other)[0], stream(loader)[0])


def _profiled(loader: DataLoader[Any], batches: int) -> Counter[str]:
    """Returns the labels of the loader's steps in a profile of the first batches of a pass, and how often each is."""
    iterator = iter(loader)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(batches):
            next(iterator)
    return Counter(event.name for event in profile.events() or () if event.name.startswith("enumerate(DataLoader)"))


@pytest.mark.parametrize("dataset", [Images(20), Shards((20,))])
def test_a_profiler_sees_every_step_as_it_sees_torchs(dataset: Any) -> None:
    arguments: dict[str, Any] = {"batch_size": 2, "num_workers": 1}
    label = "enumerate(DataLoader)#{}.__next__"
    stock = _profiled(DataLoader(dataset, **arguments), 4)
    assert stock == {label.format("_MultiProcessingDataLoaderIter"): 4}
    assert _profiled(ShmDataLoader(dataset, **arguments), 4) == {label.format("ShmIterator"): 4}


def test_without_a_profiler_no_label_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []

    def note(label: str) -> contextlib.nullcontext[None]:
        labels.append(label)
        return contextlib.nullcontext()

    monkeypatch.setattr("torch.autograd.profiler.record_function", note)
    arguments: dict[str, Any] = {"batch_size": 4, "num_workers": 1}
    assert len(list(ShmDataLoader(Images(20), **arguments))) == 5
    assert labels == []
    assert len(list(DataLoader(Images(20), **arguments))) == 5
    assert len(labels) == 6  # with the step that finds the end


def test_figures() -> None:
    loader = ShmDataLoader(Images(20), batch_size=4, num_workers=1)
    assert (loader.statistics().batches, loader.statistics().num_slots) == (0, 0)
    held = list(loader)
    statistics = loader.statistics()
    assert statistics is not None
    assert (statistics.batches, statistics.copies, statistics.leased, statistics.num_slots) == (5, 0, 5, 20)
    assert 0 < statistics.resident_bytes <= statistics.max_bytes
    del held
    assert loader.statistics().leased == 0


def test_slots_are_returned_by_a_loader_that_was_left_early() -> None:
    loader = ShmDataLoader(Images(100), num_workers=2)
    for _ in range(20):
        for _batch in loader:
            break
    del _batch
    statistics = loader.statistics()
    assert statistics is not None
    assert (statistics.leased, statistics.copies) == (0, 0)


def test_what_is_exported() -> None:
    assert all(hasattr(shmloader, name) for name in shmloader.__all__)
    assert shmloader.__version__
