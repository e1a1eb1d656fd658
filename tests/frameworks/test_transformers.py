"""A Trainer whose loader is ours, prepared by our way into Accelerate, also where it goes on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.support import needs, run_ranks

TRAINER = """
    import sys
    from transformers import Trainer, TrainingArguments
    from shmloader import ShmDataLoader
    from shmloader.integrations.accelerate import prepare
    from tests.frameworks.support import Numbers, Seeing, tell

    class MyTrainer(Trainer):
        def get_train_dataloader(self):
            loader = ShmDataLoader(
                self.train_dataset, self._train_batch_size, shuffle=True, num_workers=2, worker_restarts=2
            )
            return prepare(self.accelerator, loader)

    def trained(kind, name, checkpoint=None):
        model = Seeing()
        arguments = TrainingArguments(
            f"{sys.argv[1]}/{name}", max_steps=10, per_device_train_batch_size=4, gradient_accumulation_steps=1,
            dataloader_num_workers=2, save_steps=8, logging_strategy="no", remove_unused_columns=False, report_to=[],
            use_cpu=True, disable_tqdm=True, seed=3,
        )
        trainer = kind(model, arguments, train_dataset=Numbers())
        trainer.train(resume_from_checkpoint=checkpoint)
        loader = trainer.callback_handler.train_dataloader
        return [sorted(model.readers), [numbers for numbers, _ in model.seen], type(loader.base_dataloader).__name__]

    def main():
        plain = trained(Trainer, "plain")
        ours = trained(MyTrainer, "ours")
        tell([plain, ours, trained(MyTrainer, "rest", sys.argv[1] + "/ours/checkpoint-8")])

    main()
"""


@pytest.mark.slow
@needs("transformers")
def test_a_trainers_own_loader_is_ours(tmp_path: Path) -> None:
    ((plain, ours, rest),) = run_ranks(TRAINER, tmp_path, ranks=1)
    assert (plain[0], ours[0], rest[0]) == ([1], [2], [2])
    assert (plain[2], ours[2], rest[2]) == ("DataLoader", "ShmDataLoader", "ShmDataLoader")
    assert len(plain[1]) == 10
    assert ours[1] == plain[1]
    assert rest[1] == ours[1][8:]
