"""Training scripts that know nothing of this library, on its workers: the same is seen and learned."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.frameworks.support import PATCHED, assert_patched, needs, run_ranks

TRANSFORMERS = """
    import sys
    import torch
    from transformers import Trainer, TrainingArguments
    from tests.frameworks.support import Numbers, Seeing

    def main():
        torch.manual_seed(5)
        model = Seeing()
        arguments = TrainingArguments(
            sys.argv[1] + "/out", num_train_epochs=2, per_device_train_batch_size=4, per_device_eval_batch_size=3,
            gradient_accumulation_steps=2, dataloader_num_workers=2, dataloader_persistent_workers=True,
            dataloader_prefetch_factor=3, eval_strategy="epoch", save_strategy="no", logging_strategy="no",
            remove_unused_columns=False, report_to=[], use_cpu=True, disable_tqdm=True, seed=3,
        )
        trainer = Trainer(model, arguments, train_dataset=Numbers(), eval_dataset=Numbers(7))
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
        predicted = trainer.predict(Numbers(5)).predictions.tolist()
        return [*model.told(), loss, predicted, trainer.state.global_step]
"""

ACCELERATE = """
    import torch
    from accelerate import Accelerator, skip_first_batches
    from torch.utils.data import DataLoader
    from tests.frameworks.support import Numbers, Seeing

    def main():
        torch.manual_seed(5)
        model = Seeing()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        gathered = []
        for each in (loader, loader, skip_first_batches(loader, 2)):
            for batch in each:
                with accelerator.accumulate(prepared):
                    accelerator.backward(prepared(**batch)["loss"])
                    optimizer.step()
                    optimizer.zero_grad()
                gathered += accelerator.gather_for_metrics(batch["index"]).tolist()
        return [*model.told(), gathered]
"""

LIGHTNING = """
    import torch
    import lightning.pytorch as lightning
    from torch.utils.data import DataLoader
    from tests.frameworks.support import Numbers, Seeing

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = Seeing()

        def training_step(self, batch, number):
            return self.inner(**batch)["loss"]

        def validation_step(self, batch, number):
            self.inner(**batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def main():
        torch.manual_seed(5)
        model = Model()
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=2, accumulate_grad_batches=2, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )
        loaders = [DataLoader(Numbers(), batch_size=4, shuffle=shuffle, num_workers=2) for shuffle in (True, False)]
        trainer.fit(model, *loaders)
        return model.inner.told()
"""

IGNITE = """
    import ignite.distributed as idist
    import torch
    from ignite.engine import Engine, Events
    from ignite.engine.deterministic import DeterministicEngine
    from tests.frameworks.support import Numbers, Seeing

    def main():
        torch.manual_seed(5)
        model = Seeing()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(engine, batch):
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()

        for kind in (Engine, DeterministicEngine):
            loader = idist.auto_dataloader(Numbers(), batch_size=4, shuffle=True, num_workers=2)
            kind(step).run(loader, max_epochs=2)
        return model.told()
"""

SKORCH = """
    import numpy as np
    import torch
    from skorch import NeuralNetRegressor
    from tests.frameworks.support import Logits, Pairs

    def main():
        torch.manual_seed(5)
        net = NeuralNetRegressor(
            Logits, max_epochs=2, lr=0.1, batch_size=4, train_split=None, verbose=0,
            iterator_train__shuffle=True, iterator_train__num_workers=2, iterator_valid__num_workers=2,
        )
        net.fit(Pairs(), None)
        predicted = net.predict(Pairs(7)).tolist()
        return [*net.module_.told(), predicted, net.history[:, "train_loss"]]
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(TRANSFORMERS, marks=needs("transformers"), id="transformers"),
        pytest.param(ACCELERATE, marks=needs("accelerate"), id="accelerate"),
        pytest.param(LIGHTNING, marks=[needs("lightning"), pytest.mark.slow], id="lightning"),
        pytest.param(IGNITE, marks=[needs("ignite"), pytest.mark.slow], id="ignite"),
        pytest.param(SKORCH, marks=[needs("skorch"), pytest.mark.slow], id="skorch"),
    ],
)
def test_a_script_sees_and_learns_the_same(code: str, tmp_path: Path) -> None:
    (told,) = run_ranks(textwrap.dedent(code) + textwrap.dedent(PATCHED), tmp_path, ranks=1)
    assert_patched(told)
