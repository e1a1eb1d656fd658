"""Frameworks that copy, rebuild or wrap a loader: what they end up with is ours, and our workers load it."""

from __future__ import annotations

import copy
import inspect
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, SequentialSampler

from shmloader import ShmDataLoader
from tests.helpers.support import OWN_ARGUMENTS, PATIENCE, detached, let_stock_end, seed_everything


class Traced(Dataset[Any]):
    """Each index, with the name of the module whose function the process runs that reads it."""

    def __len__(self) -> int:
        return 18

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        target = getattr(multiprocessing.current_process(), "_target", None)
        return torch.tensor(index), getattr(target, "__module__", "no worker")


def readers(batches: Iterable[Any]) -> set[str]:
    """Returns who read the samples."""
    return {reader for _, names in batches for reader in names}


def indices(batches: Iterable[Any]) -> list[list[int]]:
    """Returns the indices of each batch."""
    return [numbers.tolist() for numbers, _ in batches]


def our_indices(batches: Iterable[Any]) -> list[list[int]]:
    """Returns the indices of each batch, and asserts that our workers read the samples."""
    batches = list(batches)
    assert readers(batches) == {"shmloader.workers.process_main"}
    return indices(batches)


def share(rank: int, epoch: int, ranks: int = 2) -> list[list[int]]:
    """Returns the batches of indices that a rank gets from torch's loader."""
    sampler: DistributedSampler[Any] = DistributedSampler(Traced(), ranks, rank)
    sampler.set_epoch(epoch)
    return indices(DataLoader(Traced(), batch_size=4, sampler=sampler))


def flat(batches: Iterable[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


OURS: dict[str, Any] = {
    "sample_shapes": ((), None),
    "sample_dtypes": (torch.int64, None),
    "max_pool_bytes": 1 << 25,
    "num_slots": 11,
    "worker_restarts": 2,
    "device": "cpu",
    "device_prefetch": 3,
    "worker_type": "process",
    "seeding": "sample",
    "epoch_size": None,
}


def given_or_default(given: dict[str, Any]) -> dict[str, Any]:
    defaults = inspect.signature(ShmDataLoader.__init__).parameters
    return {name: given.get(name, defaults[name].default) for name in OWN_ARGUMENTS}


def own_arguments(loader: Any) -> dict[str, Any]:
    return {name: getattr(loader, name) for name in OWN_ARGUMENTS}


def rebuilt(loader: Any, sampler: Any) -> Any:
    """Makes another loader of what one shows of its arguments, with another sampler."""
    names = inspect.signature(type(loader).__init__).parameters
    arguments = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    arguments.update(sampler=sampler, shuffle=False, batch_sampler=None)
    return type(loader)(**arguments)


@pytest.mark.parametrize(
    "given",
    [
        {},
        OURS,
        {"sampler": SequentialSampler(range(18)), "batch_size": None, "num_workers": 1},
        {"batch_sampler": BatchSampler(range(18), 3, False), "num_workers": 2, "num_slots": 40},
        {
            "batch_size": 3,
            "shuffle": True,
            "num_workers": 2,
            "collate_fn": list,
            "pin_memory": True,
            "drop_last": True,
            "timeout": 30,
            "worker_init_fn": print,
            "multiprocessing_context": "spawn",
            "generator": torch.Generator(),
            "prefetch_factor": 3,
            "persistent_workers": True,
            "pin_memory_device": "cpu",
            "in_order": False,
            **OURS,
        },
    ],
)
def test_arguments_are_attributes_as_torchs_are(given: dict[str, Any]) -> None:
    dataset = Traced()
    ours = ShmDataLoader(dataset, **given)
    stock = DataLoader(dataset, **{name: value for name, value in given.items() if name not in OWN_ARGUMENTS})
    assert own_arguments(ours) == given_or_default(given)
    for name in inspect.signature(DataLoader.__init__).parameters:
        one, other = getattr(ours, name, "absent"), getattr(stock, name, "absent")
        if name in ("sampler", "batch_sampler") and name not in given:
            assert type(one) is type(other), name
        else:
            assert one is other or one == other, name


@pytest.mark.parametrize(
    "make_another",
    [
        copy.copy,
        lambda loader: pickle.loads(pickle.dumps(loader)),
        lambda loader: rebuilt(loader, SequentialSampler(loader.dataset)),
    ],
    ids=["copied", "pickled", "rebuilt"],
)
@pytest.mark.parametrize("own", [{}, OURS], ids=["learned", "declared"])
@pytest.mark.parametrize("persistent", [False, True])
def test_another_loader_made_of_one(make_another: Any, own: dict[str, Any], persistent: bool) -> None:
    loader = ShmDataLoader(Traced(), batch_size=4, num_workers=2, persistent_workers=persistent, **own)
    other = make_another(loader)
    assert type(other) is ShmDataLoader
    assert own_arguments(other) == given_or_default(own)
    for each in (other, loader):
        assert our_indices(each) == indices(DataLoader(Traced(), batch_size=4))
    statistics = other.statistics()
    assert statistics is not None
    assert statistics.num_slots == own.get("num_slots", 24)


def test_a_loader_rebuilt_with_a_ranks_sampler() -> None:
    loader = ShmDataLoader(Traced(), batch_size=4, shuffle=True, num_workers=2, **OURS)
    list(loader)
    for rank in range(2):
        assert our_indices(rebuilt(loader, DistributedSampler(Traced(), 2, rank))) == share(rank, epoch=0)


# Said in time, before the script is ended.
WHERE_IT_HANGS = f"import faulthandler\nfaulthandler.dump_traceback_later({0.8 * PATIENCE})\n"


def run_ranks(code: str, folder: Path, ranks: int) -> list[Any]:
    """Runs a script, with torchrun if more than one rank is wanted, and returns what each rank told."""
    script = folder / "script.py"
    script.write_text(WHERE_IT_HANGS + textwrap.dedent(code))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, *launcher, script, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its ranks; killed, it would leave them
            output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Exception ignored" not in output, output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def tell(result: Any) -> None:
    """Called in a script: leaves a result for the test that runs it."""
    Path(sys.argv[1], f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(result))


def test_each_rank_of_torchrun_gets_its_share(tmp_path: Path) -> None:
    script = """
        import torch.distributed
        from torch.utils.data import DistributedSampler
        from shmloader import ShmDataLoader
        from tests.promises.test_frameworks import Traced, our_indices, tell

        def main():
            torch.distributed.init_process_group("gloo")
            sampler = DistributedSampler(Traced())
            loader = ShmDataLoader(Traced(), batch_size=4, sampler=sampler, num_workers=2)
            epochs = []
            for epoch in range(2):
                sampler.set_epoch(epoch)
                epochs.append(our_indices(loader))
            torch.distributed.destroy_process_group()
            tell(epochs)

        main()
    """
    told = run_ranks(script, tmp_path, ranks=2)
    assert told == [[share(rank, epoch) for epoch in range(2)] for rank in range(2)]
    for epoch in range(2):
        assert sorted(flat(told[0][epoch]) + flat(told[1][epoch])) == list(range(18))


def needs(module: str) -> pytest.MarkDecorator:
    """Skips a test whose framework, which only its scripts import, is not installed."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs {module}, of the extra named frameworks")


LIGHTNING = """
    import os
    import torch
    import lightning.pytorch as lightning
    from shmloader import ShmDataLoader
    from tests.promises.test_frameworks import OURS, Traced, given_or_default, our_indices, own_arguments, tell

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.epochs = []

        def train_dataloader(self):
            return make_loader()

        def on_train_epoch_start(self):
            self.epochs.append([])

        def training_step(self, batch, number):
            self.epochs[-1] += our_indices([batch])
            return self.layer(batch[0].float().reshape(-1, 1)).sum()

        def predict_step(self, batch, number):
            return our_indices([batch])[0]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

    def make_loader():
        generator = torch.Generator().manual_seed(3)
        return ShmDataLoader(
            Traced(), batch_size=4, shuffle=True, num_workers=2, generator=generator, persistent_workers=True, **OURS
        )

    def sampler_of(loader):
        assert type(loader) is ShmDataLoader
        assert own_arguments(loader) == given_or_default(OURS)
        return type(loader.sampler).__name__

    def main():
        found = {}
        for source in ("passed", "from the hook"):
            model = Model()
            trainer = lightning.Trainer(
                accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", 1)), max_epochs=2, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )
            trainer.fit(model, make_loader() if source == "passed" else None)
            found[source] = [sampler_of(trainer.train_dataloader), model.epochs]
        loader = ShmDataLoader(Traced(), batch_size=4, num_workers=2, **OURS)
        predicted = trainer.predict(model, loader)
        assert trainer.predict_dataloaders is not loader
        found["predicted"] = [sampler_of(trainer.predict_dataloaders), predicted]
        tell(found)

    main()
"""


@needs("lightning")
def test_lightning_fits_and_predicts(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    stock = DataLoader(
        Traced(), batch_size=4, shuffle=True, num_workers=1, generator=generator, persistent_workers=True
    )
    fitted = ["RandomSampler", [indices(stock) for _ in range(2)]]
    del stock
    let_stock_end()
    predicted = ["SequentialSampler", indices(DataLoader(Traced(), batch_size=4))]
    (found,) = run_ranks(LIGHTNING, tmp_path, ranks=1)
    assert found == {"passed": fitted, "from the hook": fitted, "predicted": predicted}


@needs("lightning")
def test_lightning_gives_each_rank_its_share(tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(LIGHTNING, tmp_path, ranks=2)):
        fitted = ["DistributedSampler", [share(rank, epoch) for epoch in range(2)]]
        assert found["passed"] == found["from the hook"] == fitted
        assert flat(found["predicted"][1]) == list(range(rank, 18, 2))


@pytest.mark.parametrize("name", ["Engine", "DeterministicEngine"])
def test_ignite_runs_and_rebuilds(name: str) -> None:
    ignite = pytest.importorskip("ignite.engine.deterministic", reason="needs ignite, of the extra named frameworks")

    def run(loader: DataLoader[Any]) -> list[Any]:
        def process(engine: Any, batch: Any) -> None:
            assert type(engine.state.dataloader) is type(loader)
            assert (engine.state.dataloader is loader) == (name == "Engine")  # the other one rebuilds it
            batches.append(detached(batch))

        batches: list[Any] = []
        seed_everything(5)
        getattr(ignite, name)(process).run(loader, max_epochs=2)
        return batches

    ours = run(ShmDataLoader(Traced(), batch_size=4, shuffle=True, num_workers=2, **OURS))
    assert our_indices(ours) == indices(run(DataLoader(Traced(), batch_size=4, shuffle=True)))


LIGHTNING_RESUMES = """
    import sys
    import torch
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from shmloader import ShmDataLoader
    from tests.promises.test_frameworks import Traced, our_indices, tell

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen = []

        def training_step(self, batch, number):
            self.seen += our_indices([batch])
            return self.layer(batch[0].float().reshape(-1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

    def fit(max_steps, checkpoint=None):
        generator = torch.Generator().manual_seed(3)
        loader = ShmDataLoader(Traced(), batch_size=4, shuffle=True, num_workers=2, generator=generator)
        model = Model()
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_steps=max_steps, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[ModelCheckpoint(sys.argv[1], "saved", every_n_train_steps=3)],
        )
        trainer.fit(model, loader, ckpt_path=checkpoint, weights_only=False)
        return model.seen

    def main():
        whole = fit(13)
        first = fit(3)
        tell([whole, first, fit(13, sys.argv[1] + "/saved-v1.ckpt")])

    main()
"""


@needs("lightning")
def test_lightning_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    ((whole, first, rest),) = run_ranks(LIGHTNING_RESUMES, tmp_path, ranks=1)
    assert len(whole) == 13
    assert len(first) == 3
    assert [*first, *rest] == whole


ACCELERATE_RESUMES = """
    import sys
    import torch
    from accelerate import Accelerator
    from shmloader import ShmDataLoader
    from tests.promises.test_frameworks import Traced, our_indices, tell

    def prepared(accelerator, loader):
        prepared = accelerator.prepare(loader)
        prepared.use_stateful_dataloader = True  # torchdata's is not there, and not asked for
        generator = torch.Generator().manual_seed(3)
        prepared.base_dataloader = ShmDataLoader(
            Traced(), batch_size=4, shuffle=True, num_workers=2, generator=generator
        )
        return prepared

    def main():
        torch.manual_seed(1)
        accelerator = Accelerator(cpu=True)
        loader = prepared(accelerator, ShmDataLoader(Traced(), batch_size=4))
        whole = []
        for number, batch in enumerate(loader):
            whole += our_indices([batch])
            if number == 1:
                accelerator.save_state(sys.argv[1] + "/saved")
        whole += our_indices(loader)
        accelerator.free_memory()
        again = prepared(accelerator, ShmDataLoader(Traced(), batch_size=4))
        accelerator.load_state(sys.argv[1] + "/saved")
        rest = our_indices(again)
        tell([whole, rest, our_indices(again)])
        accelerator.end_training()

    main()
"""


@needs("accelerate")
def test_accelerate_saves_and_loads_our_state(tmp_path: Path) -> None:
    ((whole, rest, following),) = run_ranks(ACCELERATE_RESUMES, tmp_path, ranks=1)
    assert whole[2:5] == rest
    assert whole[5:] == following


ACCELERATE = """
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DistributedSampler
    from shmloader import ShmDataLoader
    from tests.promises.test_frameworks import Traced, indices, our_indices, readers, tell

    def main():
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(torch.nn.Linear(1, 1))

        sampler = DistributedSampler(Traced(), accelerator.num_processes, accelerator.process_index)
        loader = ShmDataLoader(Traced(), batch_size=4, sampler=sampler, num_workers=2)
        beside = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            beside.append([])
            for batch in loader:
                beside[-1] += our_indices([batch])
                accelerator.backward(model(batch[0].to(accelerator.device).float().reshape(-1, 1)).sum())

        prepared = accelerator.prepare(ShmDataLoader(Traced(), batch_size=4, num_workers=2))
        found = {"beside": beside, "prepared": indices(prepared), "readers": list(readers(prepared))}
        prepared.base_dataloader = ShmDataLoader(
            prepared.dataset, batch_sampler=prepared.batch_sampler, num_workers=prepared.num_workers
        )
        found["exchanged"] = our_indices(prepared)
        accelerator.end_training()
        tell(found)

    main()
"""


@needs("accelerate")
@pytest.mark.parametrize("ranks", [1, 2])
def test_accelerate_builds_torchs_loader_and_ours_works_beside_it_and_inside(ranks: int, tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(ACCELERATE, tmp_path, ranks)):
        assert found["beside"] == [share(rank, epoch, ranks) for epoch in range(2)]
        assert found["readers"] == ["torch.utils.data._utils.worker"]  # docs/recipes.md says so
        assert found["exchanged"] == found["prepared"]


def by_either(library: str, code: str) -> str:
    """Makes a script that loads with a library's loader and with a class that inherits from that and from ours.

    Args:
        library: the module whose ``DataLoader`` it is.
        code: defines ``make_loader(kind)`` and ``assert_usable(batch)``.
    """
    main = f"""
        from {library} import DataLoader
        from shmloader import ShmDataLoader
        from tests.helpers.support import assert_same
        from tests.promises.test_frameworks import tell

        class Loader(DataLoader, ShmDataLoader):
            pass

        def load(kind):
            seed(5)
            iterator = iter(make_loader(kind))
            return type(iterator).__module__.split(".")[0], list(iterator)

        def main():
            (stock_module, expected), (module, got) = load(DataLoader), load(Loader)
            for batch in got:
                assert_usable(batch)
            for one, other in zip(got, expected, strict=True):
                assert_same(comparable(one), comparable(other))
            restarts = Loader(range(8), num_workers=1, worker_restarts=3).worker_restarts
            tell([stock_module, module, len(got), restarts])

        main()
    """
    return textwrap.dedent(code) + textwrap.dedent(main)


GRAPHS = """
    import torch
    from torch_geometric.data import Data, HeteroData

    seed = torch.manual_seed

    def graph(nodes):
        edges = torch.randint(nodes, (2, 3 * nodes))
        return Data(x=torch.randn(nodes, 7), edge_index=edges, y=torch.tensor([nodes]), name=f"graph {nodes}")

    def graph_of_two_kinds(nodes):
        data = HeteroData()
        data["paper"].x, data["author"].x = torch.randn(nodes, 3), torch.randn(4, 2)
        data["author", "writes", "paper"].edge_index = torch.randint(4, (2, 6))
        return data

    def make_loader(kind):
        graphs = [MAKE(nodes) for nodes in range(5, 23)]
        return kind(graphs, batch_size=4, shuffle=True, num_workers=2, follow_batch=FOLLOWED)

    def comparable(batch):
        return batch.to_dict()

    def assert_usable(batch):
        assert len(batch.to_data_list()) == batch.num_graphs
"""

VOLUMES = """
    import numpy as np
    from monai import transforms
    from monai.data import CacheDataset, Dataset, decollate_batch
    from monai.utils import set_determinism as seed

    IN_COMMON = [
        transforms.EnsureChannelFirstd(["image", "label"], channel_dim="no_channel"),
        transforms.RandFlipd(["image", "label"], prob=0.5),
        transforms.RandGaussianNoised("image", prob=0.5),
    ]
    CROPS = {
        1: transforms.RandSpatialCropd(["image", "label"], (8, 8, 8), random_size=False),
        4: transforms.RandCropByPosNegLabeld(["image", "label"], "label", (8, 8, 8), num_samples=4),
    }

    def make_loader(kind):
        random = np.random.default_rng(0)
        volumes = [
            {
                "image": random.normal(size=(12, 12, 12)).astype("float32"),
                "label": (random.random((12, 12, 12)) > 0.5).astype("uint8"),
                "name": f"case {number}",
            }
            for number in range(18)
        ]
        dataset = MAKE(volumes, transforms.Compose([*IN_COMMON, CROPS[SAMPLES]]))
        return kind(dataset, batch_size=4, shuffle=True, num_workers=2)

    def comparable(part):
        # But for what says which object in which process a transform was.
        if isinstance(part, dict):
            return {key: comparable(value) for key, value in part.items() if key != "id"}
        if isinstance(part, list):
            return [comparable(value) for value in part]
        if hasattr(part, "applied_operations"):
            return [part.as_tensor(), comparable(dict(part.meta)), comparable(part.applied_operations)]
        return part

    def assert_usable(batch):
        parts = decollate_batch(batch)
        assert len(parts) == len(batch["image"])
        assert parts[0]["image"].applied_operations
"""


@needs("torch_geometric")
@pytest.mark.parametrize(("make", "followed"), [("graph", ["x"]), ("graph_of_two_kinds", None)])
def test_torch_geometrics_loader_on_ours(make: str, followed: list[str] | None, tmp_path: Path) -> None:
    code = GRAPHS.replace("MAKE", make).replace("FOLLOWED", repr(followed))
    (told,) = run_ranks(by_either("torch_geometric.loader", code), tmp_path, ranks=1)
    assert told == ["torch", "shmloader", 5, 3]


@needs("monai")
@pytest.mark.parametrize(("make", "samples"), [("Dataset", 1), ("CacheDataset", 4)])
def test_monais_loader_on_ours(make: str, samples: int, tmp_path: Path) -> None:
    code = VOLUMES.replace("MAKE", make).replace("SAMPLES", str(samples))
    (told,) = run_ranks(by_either("monai.data", code), tmp_path, ranks=1)
    assert told == ["torch", "shmloader", 5, 3]
