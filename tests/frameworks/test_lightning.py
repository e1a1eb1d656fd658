"""Lightning: which loader it ends up with, each rank's share, and going on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from tests.frameworks.support import Traced, flat, indices, needs, run_ranks, share
from tests.helpers.support import let_stock_end

LIGHTNING = """
    import os
    import torch
    import lightning.pytorch as lightning
    from shmloader import ShmDataLoader
    from tests.frameworks.support import OURS, Traced, given_or_default, our_indices, own_arguments, tell

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


LIGHTNING_RESUMES = """
    import sys
    import torch
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from shmloader import ShmDataLoader
    from tests.frameworks.support import Traced, our_indices, tell

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


LIGHTNING_REBUILDS = """
    import torch
    import lightning.pytorch as lightning
    from lightning.fabric.utilities.data import _update_dataloader
    from torch.utils.data import DataLoader, DistributedSampler
    from shmloader import ShmDataLoader
    from tests.frameworks.support import OURS, Traced, given_or_default, our_indices, own_arguments, tell

    class Passing(ShmDataLoader):
        def __init__(self, dataset, *args, **kwargs):
            super().__init__(dataset, *args, **kwargs)

    class Setting(ShmDataLoader):
        def __init__(self, dataset, batch_size=4, **kwargs):
            super().__init__(dataset, batch_size, **OURS, **kwargs)

    class Library(DataLoader):
        def __init__(self, dataset, batch_size=1, follow=None, **kwargs):
            self.follow = follow
            super().__init__(dataset, batch_size, **kwargs)

    class Both(Library, ShmDataLoader):
        pass

    class Model(lightning.LightningModule):
        def __init__(self, make_loader=None):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.make_loader = make_loader
            self.seen = []

        def train_dataloader(self):
            return self.make_loader()

        def training_step(self, batch, number):
            self.seen += our_indices([batch])
            return self.layer(batch[0].float().reshape(-1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

    def makers():
        yield Passing, lambda: Passing(Traced(), batch_size=4, shuffle=True, num_workers=2, **OURS)
        yield Setting, lambda: Setting(Traced(), shuffle=True, num_workers=2)
        yield Both, lambda: Both(Traced(), 4, follow=["x"], shuffle=True, num_workers=2, **OURS)

    def check(loader, kind, given=OURS):
        assert type(loader) is kind
        assert own_arguments(loader) == given_or_default(given), own_arguments(loader)
        assert getattr(loader, "follow", ["x"]) == ["x"]

    def main():
        found = []
        for kind, make in makers():
            for source in ("passed", "from the hook"):
                model = Model(make)
                trainer = lightning.Trainer(
                    accelerator="cpu", devices=1, max_epochs=1, logger=False, overfit_batches=2,
                    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                )
                trainer.fit(model, make() if source == "passed" else None)
                check(trainer.train_dataloader, kind)
                found.append(model.seen)
            loader = make()
            loader.worker_restarts = 5
            loader = _update_dataloader(loader, DistributedSampler(Traced(), 2, 1))
            check(loader, kind, {**OURS, "worker_restarts": 5})
            assert loader._sample_spec is not None
            assert sum(our_indices(loader), []) == sorted(sum(our_indices(loader), []), key=list(loader.sampler).index)
        tell(found)

    main()
"""


@needs("lightning")
def test_lightning_keeps_the_arguments_of_classes_that_pass_them_on(tmp_path: Path) -> None:
    (found,) = run_ranks(LIGHTNING_REBUILDS, tmp_path, ranks=1)
    assert found == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 6
