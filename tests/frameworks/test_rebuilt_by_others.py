"""Frameworks that build a loader of torch's class from one of ours are named, once, and no other reader is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from shmloader import RebuiltWarning, ShmDataLoader, patch, rebuilding
from tests.frameworks.support import Traced, indices, our_indices


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_told", set())


def loader_of(**given: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(Traced(), batch_size=4, num_workers=2, **given)


def another(module: str, function: str, loader: Any) -> DataLoader[Any]:
    """Builds torch's loader of what one shows, by a function of that name in a module of that name."""
    code = f"""
def {function}(loader):
    names = "batch_size", "timeout", "num_workers"
    return DataLoader(loader.dataset, **{{name: getattr(loader, name) for name in names}})
"""
    names: dict[str, Any] = {"__name__": module, "DataLoader": DataLoader}
    exec(code, names)
    found: DataLoader[Any] = names[function](loader)
    return found


@pytest.mark.parametrize(
    ("module", "function", "text"),
    [
        ("accelerate.data_loader", "prepare_data_loader", r"shmloader\.integrations\.accelerate\.prepare\("),
        ("accelerate.data_loader", "skip_first_batches", r"accelerate\.skip_first_batches\("),
        ("ray.train.torch.train_loop_utils", "with_sampler", r"shmloader\.integrations\.ray\.prepare_data_loader\("),
        ("ray.train.v2.torch.train_loop_utils", "with_sampler", r"integrations\.ray\.prepare_data_loader\("),
    ],
)
def test_who_builds_another_is_told_once(module: str, function: str, text: str) -> None:
    with pytest.warns(RebuiltWarning, match=text) as told:
        another(module, function, loader_of())
    assert [one.filename for one in told] == [__file__]
    another(module, function, loader_of())


def test_no_other_reader_is_told() -> None:
    loader = loader_of(timeout=30)
    assert loader.timeout == 30
    another("accelerate.data_loader", "get_sampler", loader)
    another("somewhere.else", "prepare_data_loader", loader)
    with rebuilding.expected(), rebuilding.expected():
        another("accelerate.data_loader", "prepare_data_loader", loader)
    loader.timeout = 20
    assert our_indices(loader) == indices(DataLoader(Traced(), batch_size=4))
    for other in (copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        assert (other.timeout, vars(other)["timeout"]) == (20, 20)
    assert rebuilding._told == set()


def test_a_warning_that_is_an_error_leaves_the_loader_as_it_is() -> None:
    loader = loader_of()
    with pytest.raises(RebuiltWarning):  # as all warnings are, in these tests
        another("accelerate.data_loader", "prepare_data_loader", loader)
    assert our_indices(loader) == indices(DataLoader(Traced(), batch_size=4))


def test_what_is_not_made_yet_has_no_timeout() -> None:
    empty = object.__new__(ShmDataLoader)
    assert not hasattr(empty, "timeout")
    assert isinstance(ShmDataLoader.timeout, rebuilding.Watched)


# -- by Accelerate itself ---------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator() -> Iterator[Any]:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate, of the extra named frameworks")
    accelerator = accelerate.Accelerator(cpu=True)
    yield accelerator
    accelerator.free_memory()
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def test_who_prepares_by_accelerates_method_is_told_once(accelerator: Any) -> None:
    with pytest.warns(RebuiltWarning, match=r"use shmloader\.integrations\.accelerate\.prepare\(accel") as told:
        accelerator.prepare(loader_of())
    assert told[0].filename == __file__
    accelerator.prepare(loader_of())


def test_nobody_is_told_where_ours_is_kept(accelerator: Any) -> None:
    from shmloader.integrations.accelerate import prepare

    loader = prepare(accelerator, loader_of())
    assert loader.timeout == loader.base_dataloader.timeout == 0
    accelerator.skip_first_batches(loader, 1)
    accelerator.prepare(loader, DataLoader(Traced()))
    assert len(list(loader)) == 5
    assert rebuilding._told == set()


def test_nobody_is_told_under_patch(accelerator: Any) -> None:
    with patch():
        assert our_indices(accelerator.prepare(loader_of())) == indices(DataLoader(Traced(), batch_size=4))
    assert rebuilding._told == set()
