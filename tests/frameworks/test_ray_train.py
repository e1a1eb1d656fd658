"""Ray Train: each rank's share from our workers, as Ray's own function gives it, and going on from a checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from shmloader import PermutationSampler, ShmDataLoader
from shmloader.integrations import needed
from shmloader.integrations.ray import prepare_data_loader
from tests.frameworks.support import (
    OURS,
    Traced,
    flat,
    given_or_default,
    indices,
    needs,
    our_indices,
    own_arguments,
    run_ranks,
    share,
)


@pytest.fixture
def ray_says(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What Ray's context would say in a training worker, of which there is none here."""
    says = SimpleNamespace(ranks=2, rank=1, device=torch.device("cpu"))
    context = SimpleNamespace(get_world_size=lambda: says.ranks, get_world_rank=lambda: says.rank)
    modules = {
        "ray.train": SimpleNamespace(get_context=lambda: context),
        "ray.train.torch": SimpleNamespace(get_device=lambda: says.device),
    }
    monkeypatch.setattr(needed, "module", lambda name, extra: modules[name])
    return says


class Kept(ShmDataLoader[Any]):
    """A loader whose constructor is its own."""

    def __init__(self, dataset: Any, secret: int, **others: Any) -> None:
        super().__init__(dataset, 4, shuffle=True, **others)
        self.secret = secret


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_rank_gets_its_share_of_each_epoch(ray_says: SimpleNamespace, ranks: int) -> None:
    ray_says.ranks = ranks
    seen: dict[int, list[int]] = {0: [], 1: []}
    for ray_says.rank in range(ranks):
        own = {**OURS, "num_slots": 30}
        loader = prepare_data_loader(Kept(Traced(), 7, num_workers=2, persistent_workers=True, **own))
        assert isinstance(loader, Kept)
        assert loader.secret == 7
        assert own_arguments(loader) == given_or_default(own)
        for epoch in seen:
            if ranks > 1:
                loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            found = our_indices(loader)
            assert ranks == 1 or found == share(ray_says.rank, epoch, ranks)
            seen[epoch] += flat(found)
    assert all(sorted(each) == list(range(18)) for each in seen.values())


@pytest.mark.parametrize("ranks", [1, 2])
def test_torchs_loader_becomes_ours(ray_says: SimpleNamespace, ranks: int) -> None:
    ray_says.ranks = ranks
    given = {"num_workers": 2, "drop_last": True, "prefetch_factor": 3, "timeout": 30, "persistent_workers": True}
    loader = prepare_data_loader(DataLoader(Traced(), 4, shuffle=True, **given))  # type: ignore[arg-type]
    assert type(loader) is ShmDataLoader
    assert {name: getattr(loader, name) for name in given} == given
    found = our_indices(loader)
    assert list(map(len, found)) == [4] * (18 // ranks // 4)
    if ranks > 1:
        assert found == share(1, 0)[:-1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_torchs_loader_with_other_arguments_becomes_ours(ray_says: SimpleNamespace, ranks: int) -> None:
    ray_says.ranks = ranks
    stream = range(18) if ranks == 1 else range(1, 18, 2)
    single = prepare_data_loader(DataLoader(Traced(), batch_size=None))
    assert [int(index) for index, _ in single] == list(stream)
    batches = BatchSampler(SequentialSampler(range(18)), 5, drop_last=True)
    loader = prepare_data_loader(DataLoader(Traced(), batch_sampler=batches))
    expected = [list(stream)[start : start + 5] for start in range(0, len(stream) - 4, 5)]
    assert indices(loader) == expected


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


@pytest.mark.parametrize("kind", [DataLoader, ShmDataLoader])
def test_iterable_datasets_stay_whole(ray_says: SimpleNamespace, kind: Any) -> None:
    loader = prepare_data_loader(kind(Stream(), batch_size=4, num_workers=1))
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    single = prepare_data_loader(kind(Stream(), batch_size=None))
    assert list(single) == list(range(8))


def test_what_draws_a_share_already_stays(ray_says: SimpleNamespace) -> None:
    samplers: list[Any] = [DistributedSampler(Traced(), 2, 0), PermutationSampler(18, 5, 2, 0)]
    for sampler in samplers:
        loader = ShmDataLoader(Traced(), 4, sampler=sampler)
        assert prepare_data_loader(loader) is loader
        inside: Any = ShmDataLoader(Traced(), batch_sampler=BatchSampler(sampler, 4, False))
        assert prepare_data_loader(inside) is inside
    plain = ShmDataLoader(Traced(), 4)
    assert prepare_data_loader(plain, add_dist_sampler=False) is plain


def test_a_permutation_is_shared_by_the_ranks(ray_says: SimpleNamespace) -> None:
    sampler = PermutationSampler(18, seed=5)
    sampler.seek(4, epoch=3)
    expected = list(sampler)
    sampler.seek(4, epoch=3)
    loader = prepare_data_loader(ShmDataLoader(Traced(), 2, sampler=sampler, num_workers=1))
    assert flat(our_indices(loader)) == expected[1::2]
    loader.sampler.set_epoch(4)  # type: ignore[attr-defined]
    sampler.set_epoch(4)
    assert flat(our_indices(loader)) == list(sampler)[1::2]
    ray_says.ranks = 3
    with pytest.raises(ValueError, match="has num_replicas=2, and there are 3 ranks"):
        prepare_data_loader(ShmDataLoader(Traced(), sampler=PermutationSampler(18, num_replicas=2)))


def test_another_sampler_is_replaced_and_the_first_rank_says_so(ray_says: SimpleNamespace) -> None:
    loader = ShmDataLoader(Traced(), 4, sampler=WeightedRandomSampler([1.0] * 18, 18))
    assert indices(prepare_data_loader(loader)) == share(1, 0)
    ray_says.rank = 0
    with pytest.warns(UserWarning, match=r"the WeightedRandomSampler is replaced .* add_dist_sampler=False"):
        assert indices(prepare_data_loader(loader)) == share(0, 0)


class Pairs(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1], [2, 3]])


class Endless(DataLoader[Any]):
    def __iter__(self) -> Any:
        while True:
            yield from super().__iter__()


def test_what_cannot_be_prepared_is_refused(ray_says: SimpleNamespace) -> None:
    loader = ShmDataLoader(Traced(), 4)
    with pytest.raises(ValueError, match=r"batch_sampler is a Pairs, .* add_dist_sampler=False"):
        prepare_data_loader(ShmDataLoader(Traced(), batch_sampler=Pairs()))
    with pytest.raises(TypeError, match=r"data_loader is of the class Endless"):
        prepare_data_loader(Endless(Traced()))
    with pytest.raises(TypeError, match=r"data_loader must be a torch DataLoader, got an object of type list"):
        prepare_data_loader([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="move_to_device must be True or False"):
        prepare_data_loader(loader, move_to_device="cuda")  # type: ignore[arg-type]
    ray_says.device = torch.device("meta")
    with pytest.raises(ValueError, match="move_to_device=False"):
        prepare_data_loader(loader)
    next(iter(loader))
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="load it into the one that is returned"):
        prepare_data_loader(loader, move_to_device=False)


def test_batches_are_moved_as_ray_is_asked_to(ray_says: SimpleNamespace) -> None:
    ray_says.device = torch.device("cuda:1")
    loader = ShmDataLoader(Traced(), 4, device_prefetch=3)
    moved = prepare_data_loader(loader)
    assert (moved.device, moved.device_prefetch) == (torch.device("cuda:1"), 3)
    moved = prepare_data_loader(loader, auto_transfer=False)
    assert (moved.device, moved.device_prefetch) == (torch.device("cuda:1"), 0)
    assert prepare_data_loader(loader, move_to_device=False).device is None
    assert prepare_data_loader(ShmDataLoader(Traced(), 4, device="cuda:0")).device == "cuda:0"
    assert (loader.device, loader.device_prefetch) == (None, 3)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="ray")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(ImportError, match=r"ray is not installed; pip install 'shmloader\[ray\]'"):
        prepare_data_loader(ShmDataLoader(Traced()))

    def fails_inside(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

    monkeypatch.setattr(importlib, "import_module", fails_inside)
    with pytest.raises(ModuleNotFoundError, match="grpc"):
        prepare_data_loader(ShmDataLoader(Traced()))


TRAINS = """
    import json
    import os
    import sys
    import tempfile
    from pathlib import Path

    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    import ray.data
    import ray.train.torch
    from ray.train.torch import TorchTrainer
    from torch.utils.data import DataLoader
    from shmloader import ChunkedDataset, ShmDataLoader
    from shmloader.integrations.ray import chunks, prepare_data_loader
    from tests.frameworks.support import OURS, Traced, given_or_default, indices, our_indices, own_arguments, tell

    def rows_of_shard():
        rows = ChunkedDataset(chunks(ray.train.get_dataset_shard("rows")))
        loader = ShmDataLoader(rows, 8, num_workers=1, worker_type="thread")
        return [[number for batch in loader for number in batch["id"].tolist()] for _ in range(2)]

    def train(folder):
        rank = ray.train.get_context().get_world_rank()
        loader = prepare_data_loader(ShmDataLoader(Traced(), 4, shuffle=True, num_workers=2, **OURS))
        saved = f"{rank}.json"
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            rays = ray.train.torch.prepare_data_loader(DataLoader(Traced(), 4, shuffle=True))
            whole = []
            for epoch in range(3):
                rays.sampler.set_epoch(epoch)
                whole.append(indices(rays))
            found = {"rays": whole, "arguments": own_arguments(loader) == given_or_default(OURS)}
            found["rows"] = rows_of_shard()
            Path(folder, saved).write_text(json.dumps(found))
            epochs, batches = range(2), []
        else:
            with checkpoint.as_directory() as place:
                state = json.loads(Path(place, saved).read_text())
            loader.load_state_dict(state["loader"])
            epochs, batches = range(state["epoch"], 3), state["batches"]
        for epoch in epochs:
            loader.sampler.set_epoch(epoch)
            for number, batch in enumerate(loader):
                batches += our_indices([batch])
                if checkpoint is None and (epoch, number) == (1, 0):
                    with tempfile.TemporaryDirectory() as place:
                        state = {"epoch": epoch, "batches": batches, "loader": loader.state_dict()}
                        Path(place, saved).write_text(json.dumps(state))
                        ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(place))
                    raise RuntimeError("a fault, after which Ray starts the workers again")
        Path(folder, f"rest{saved}").write_text(json.dumps(batches))

    def main(folder):
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            failures = ray.train.FailureConfig(max_failures=1)
            TorchTrainer(
                train,
                train_loop_config=folder,
                datasets={"rows": ray.data.range(60)},
                scaling_config=ray.train.ScalingConfig(num_workers=2),
                run_config=ray.train.RunConfig(storage_path=folder + "/ray", failure_config=failures),
            ).fit()
        finally:
            ray.shutdown()
        told = []
        for rank in range(2):
            found = json.loads(Path(folder, f"{rank}.json").read_text())
            told.append({**found, "ours": json.loads(Path(folder, f"rest{rank}.json").read_text())})
        tell(told)

    if __name__ == "__main__":
        main(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@needs("ray")
def test_a_trainers_ranks_get_what_rays_own_function_gives_and_go_on_after_a_fault(tmp_path: Path) -> None:
    (told,) = run_ranks(TRAINS, tmp_path, ranks=1, patience=300)
    for found in told:
        assert found["arguments"]
        assert found["ours"] == [batch for epoch in found["rays"] for batch in epoch]
    for shards in zip(*(found["rows"] for found in told), strict=True):
        assert sorted(flat(shards)) == list(range(60))
