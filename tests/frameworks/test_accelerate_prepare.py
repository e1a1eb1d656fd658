"""Our way into Accelerate gives what its own ``prepare`` gives, with our loader inside."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from shmloader import FallbackWarning, HeldBatchesWarning, ResumeWarning, ShmDataLoader
from tests.frameworks.support import (
    OURS,
    Traced,
    given_or_default,
    needs,
    our_indices,
    own_arguments,
    readers,
    run_ranks,
)
from tests.helpers.support import PATIENCE

pytestmark = needs("accelerate")

SCRIPT = """
    from accelerate import PartialState
    from tests.frameworks import accelerated
    from tests.frameworks.support import tell

    def main():
        process = PartialState(cpu=True)
        tell(RUN)
        process.destroy_process_group()

    main()
"""
DAILY = "shuffled", "seedable", "split", "dispatched", "a stream"
LONG = (
    "in order", "a generator", "one batch", "shuffled, no remainder", "without workers", "persistent",
    "seedable with a seed", "uneven", "the last dropped", "fewer samples than ranks", "none at all",
    "a batch sampler", "dispatched and split", "a stream that is split", "a stream for each rank",
)  # fmt: skip


def both(run: str, folder: Path, ranks: int) -> list[Any]:
    return run_ranks(SCRIPT.replace("RUN", run), folder, ranks)


@pytest.mark.parametrize("names", [DAILY, pytest.param(LONG, marks=pytest.mark.slow)], ids=["daily", "long"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_rank_sees_what_accelerates_own_gives(ranks: int, names: tuple[str, ...], tmp_path: Path) -> None:
    assert both(f"accelerated.differences({names})", tmp_path, ranks) == [[]] * ranks


def test_all_cases_are_run() -> None:
    from tests.frameworks.accelerated import CASES

    assert {*DAILY, *LONG} == CASES.keys()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_skipped_as_accelerates_own_functions_do(ranks: int, tmp_path: Path) -> None:
    names = ("shuffled", "a stream", "dispatched", "seedable")
    assert both(f"accelerated.differences_of_skipped({names})", tmp_path, ranks) == [[]] * ranks


PLACES = {"daily": [("shuffled", 0, 1, False), ("seedable", 1, 0, True), ("dispatched", 1, 1, True)]}
for name in (*DAILY, "persistent", "dispatched and split", "a generator", "shuffled, no remainder", "the last dropped"):
    PLACES[name] = [(name, *at, fresh) for at in ((0, 1), (1, 0), (1, 1), (1, 2)) for fresh in (False, True)]


@pytest.mark.parametrize(
    "places", [pytest.param(name, marks=[pytest.mark.slow] * (name != "daily")) for name in PLACES]
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_saved_place_is_taken_up(ranks: int, places: str, tmp_path: Path) -> None:
    run = (
        "[accelerated.whole_and_resumed(accelerated.CASES[name], sys.argv[1] + '/saved', *place) "
        f"for name, *place in {PLACES[places]}]"
    )
    for found in run_ranks("import sys\n" + SCRIPT.replace("\n    ", "\n").replace("RUN", run), tmp_path, ranks):
        for place, (whole, resumed) in zip(PLACES[places], found, strict=True):
            assert whole == resumed, place


@pytest.fixture
def accelerator() -> Iterator[Any]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    accelerator = Accelerator(cpu=True)
    yield accelerator
    accelerator.free_memory()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def prepare(*given: Any, **more: Any) -> Any:
    from shmloader.integrations.accelerate import prepare

    return prepare(*given, **more)


class Sub(ShmDataLoader[Any]):
    """One that takes other arguments, and sets some itself."""

    def __init__(self, length: int, **more: Any) -> None:
        super().__init__(Traced(), batch_size=4, num_workers=2, worker_restarts=1, **more)
        self.length = length


def test_what_goes_in_comes_out_in_its_order_and_kind(accelerator: Any) -> None:
    from accelerate.data_loader import DataLoaderShard
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.scheduler import AcceleratedScheduler

    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    ours, stock = ShmDataLoader(Traced(), batch_size=4, num_workers=2, **OURS), DataLoader(Traced(), batch_size=4)
    objects = "something else", ours, model, Sub(3), optimizer, stock, scheduler
    other, loader, same, sub, moved, plain, schedule = prepare(accelerator, *objects)
    assert (other, same) == ("something else", model)
    assert (type(moved), type(schedule)) == (AcceleratedOptimizer, AcceleratedScheduler)
    assert [type(one) for one in (loader, sub, plain)] == [DataLoaderShard] * 3
    assert [type(one.base_dataloader) for one in (loader, sub, plain)] == [ShmDataLoader, Sub, DataLoader]
    assert own_arguments(loader.base_dataloader) == given_or_default(OURS)
    assert (sub.length, sub.worker_restarts) == (3, 1)
    assert isinstance(loader, ShmDataLoader)
    assert our_indices(loader) == our_indices(sub) == our_indices(ours)
    assert prepare(accelerator, loader) is loader
    assert prepare(accelerator, loader, sub) == (loader, sub)
    assert accelerator.prepare(loader) is loader
    assert loader.statistics().batches == 5


def test_a_loader_with_an_epoch_size_has_no_remainder(accelerator: Any) -> None:
    loader = prepare(accelerator, ShmDataLoader(Traced(), batch_size=4, num_workers=2, epoch_size=3))
    found = []
    for _ in range(3):
        assert len(loader) == 3
        for batch in loader:
            found += accelerator.gather_for_metrics(batch[0]).tolist()
    assert found == [*range(18), *range(16)]  # nothing is cut from the last batch of a pass


def test_held_batches_stay_as_they_were(accelerator: Any) -> None:
    loader = prepare(accelerator, ShmDataLoader(Traced(), batch_size=4, num_workers=2, num_slots=7))
    with pytest.warns(HeldBatchesWarning, match="you hold 3 batches"):
        held = [batch[0] for _ in range(2) for batch in loader]
    assert [batch.tolist() for batch in held] == 2 * our_indices(loader)


def test_copies_and_pickles_of_what_was_prepared(accelerator: Any) -> None:
    loader = prepare(accelerator, ShmDataLoader(Traced(), batch_size=4, num_workers=2, name="one"))
    del loader.gradient_state  # Accelerate's, and not to be pickled within a pass
    other = pickle.loads(pickle.dumps(loader.base_dataloader))
    assert our_indices(other) == our_indices(copy.copy(loader.base_dataloader))


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (lambda accelerator: (None, Sub(3)), TypeError, "accelerator must be an accelerate.Accelerator, got None"),
        (lambda accelerator: (Sub(3), accelerator), TypeError, "accelerator must be an accelerate.Accelerator"),
        (lambda accelerator: (accelerator,), TypeError, "something to prepare behind the accelerator"),
    ],
)
def test_what_cannot_be_prepared(accelerator: Any, given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        prepare(*given(accelerator))


def test_a_state_that_was_given_before_is_not_lost(accelerator: Any) -> None:
    loader = ShmDataLoader(Traced(), batch_size=4, num_workers=2)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="call load_state_dict of what prepare returns"):
        prepare(accelerator, loader)
    assert accelerator._dataloaders == []


def test_where_ours_cannot_run_accelerates_stays(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmloader.requirements.lack", lambda kind: "there is no memfd_create")
    with pytest.warns(FallbackWarning, match="stays as Accelerate has made it"):
        loader = prepare(accelerator, ShmDataLoader(Traced(), batch_size=4, num_workers=2))
    assert type(loader.base_dataloader) is DataLoader
    assert readers(loader) == {"torch.utils.data._utils.worker"}


@pytest.mark.parametrize("damage", ["ranks", "state", "text", "gone"])
def test_a_place_that_does_not_fit_is_told(accelerator: Any, damage: str, tmp_path: Path) -> None:
    loader = prepare(accelerator, ShmDataLoader(Traced(), batch_size=4, num_workers=2))
    other = prepare(accelerator, ShmDataLoader(Traced(), batch_size=4, num_workers=2))
    next(iter(loader))
    accelerator.save_state(str(tmp_path))
    path = tmp_path / "shmloader_0_rank_0.json"
    place = json.loads(path.read_text())
    assert sorted(one.name for one in tmp_path.glob("shmloader_*")) == [path.name, "shmloader_1_rank_0.json"]
    if damage == "ranks":
        path.write_text(json.dumps({**place, "ranks": 2}))
    elif damage == "state":
        place["state"]["loader"]["batch_size"] = 3
        path.write_text(json.dumps(place))
    elif damage == "text":
        path.write_text(path.read_text()[:40])
    else:
        path.unlink()
    with pytest.warns(ResumeWarning, match="does not go on where .*shmloader_0_rank_0.json says"):
        accelerator.load_state(str(tmp_path))
    assert len(list(loader)) == len(list(other)) == 5


@pytest.mark.parametrize("keeps", [True, False])
def test_who_skips_begins_at_the_beginning(accelerator: Any, keeps: bool, tmp_path: Path) -> None:
    from shmloader.integrations.accelerate import skip_first_batches

    loader = prepare(accelerator, ShmDataLoader(Traced(), batch_size=4, num_workers=2), use_stateful_dataloader=keeps)
    for number, _ in enumerate(loader):
        if number == 1:
            accelerator.save_state(str(tmp_path))
    assert bool(list(tmp_path.glob("shmloader_*"))) == keeps
    accelerator.load_state(str(tmp_path))
    assert len(list(loader)) == (3 if keeps else 5)
    accelerator.load_state(str(tmp_path))
    assert len(list(skip_first_batches(loader, 1))) == 4
    assert len(list(loader)) == 5


def test_other_loaders_are_skipped_as_ever(accelerator: Any) -> None:
    from accelerate import skip_first_batches as theirs

    from shmloader.integrations.accelerate import skip_first_batches as ours

    loader = ShmDataLoader(Traced(), batch_size=4, num_workers=2, name="one")
    prepare(accelerator, loader)  # has theirs be ours
    for skip in (theirs, ours):
        assert type(skip(DataLoader(Traced(), batch_size=4), 2)) is DataLoader
        assert our_indices(skip(loader, 2)) == our_indices(loader)[2:]
        assert skip(loader, 2).name == "one"
        assert type(skip(accelerator.prepare(DataLoader(Traced())), 2).base_dataloader) is DataLoader


def test_it_is_imported_by_its_name_and_not_before() -> None:
    code = """
import sys, shmloader
assert "accelerate" not in sys.modules
assert not hasattr(shmloader.integrations, "nothing")
assert shmloader.integrations.accelerate.prepare.__module__ == "shmloader.integrations.accelerate"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


def test_without_accelerate_it_is_named() -> None:
    code = """
import sys
sys.modules["accelerate"] = None
import shmloader
try:
    shmloader.integrations.accelerate
except ImportError as error:
    assert "pip install accelerate" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
