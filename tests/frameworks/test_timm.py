"""Loaders that timm makes: a script that trains with them sees and learns the same when it is run on our workers."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.frameworks.support import OUR, STOCKS, imports, needs, run_ranks

pytestmark = [needs("timm", "and a torchvision that fits to torch"), pytest.mark.slow]

# Knows nothing of this library, but to tell what it has seen.
SCRIPT = """
    import sys
    import numpy as np
    import torch
    from PIL import Image
    from timm.data import FastCollateMixup, create_loader
    from timm.utils import random_seed
    from tests.frameworks.support import Numbers, digest, tell

    class Pictures(Numbers):
        transform = None  # timm sets it, or transforms what it gets

        def __getitem__(self, index):
            array = np.random.default_rng(index).integers(0, 256, (40 + index, 60, 3), np.uint8)
            picture = Image.fromarray(array)
            reader = int(super().__getitem__(index)["reader"])
            return picture if self.transform is None else self.transform(picture), 10 * index + reader

    ARGUMENTS = {
        "plain": {"use_prefetcher": False},
        "prefetched": {"re_prob": 0.7, "re_mode": "pixel", "auto_augment": "rand-m9-mstd0.5"},
        "not persistent": {"persistent_workers": False, "re_prob": 0.7, "worker_seeding": "part"},
        "for all epochs": {"use_multi_epochs_loader": True, "use_prefetcher": False, "persistent_workers": False},
        "for all epochs, persistent": {"use_multi_epochs_loader": True, "use_prefetcher": False},
        "for all epochs, prefetched": {"use_multi_epochs_loader": True, "color_jitter": 0.7},
        "mixed": {"collate_fn": FastCollateMixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=300)},
        "of several sizes": {"input_size_choices": [24, (32, 16)], "batch_size_choices": [5, 3]},
        "evaluated": {"is_training": False},
    }

    def train(**arguments):
        random_seed(5)
        arguments = {"input_size": (3, 32, 32), "batch_size": 4, "is_training": True, "num_workers": 2, **arguments}
        loader = create_loader(Pictures(), device=torch.device("cpu"), **arguments)
        layer = torch.nn.Conv2d(3, 2, 3)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        seen, readers = [], set()
        for _ in range(3):
            for pictures, targets in loader:
                layer(pictures.float()).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                if targets.dim() == 1:
                    readers |= {target % 10 for target in targets.tolist()}
                    targets = targets // 10
                else:  # mixed: a row of probabilities for each sample
                    by_reader = targets.reshape(-1, 30, 10)
                    readers.add(int(by_reader.sum((0, 1)).argmax()))
                    targets = by_reader.amax(2)
                seen.append([type(loader).__name__, list(pictures.shape), digest(pictures), digest(targets)])
        return sorted(readers), [seen, [one.tolist() for one in layer.parameters()], torch.rand(1).item()]

    if __name__ == "__main__":
        tell({name: train(**arguments) for name, arguments in ARGUMENTS.items()})
"""
CASES = (
    "plain", "prefetched", "not persistent", "for all epochs", "for all epochs, persistent",
    "for all epochs, prefetched", "mixed", "of several sizes", "evaluated",
)  # fmt: skip


def test_a_script_sees_and_learns_the_same(tmp_path: Path) -> None:
    imports("timm.data")
    code = textwrap.dedent(SCRIPT)
    (plain,) = run_ranks(code, tmp_path, ranks=1)
    (run,) = run_ranks(code, tmp_path, ranks=1, launcher=["-m", "shmloader", "run"])
    assert tuple(plain) == tuple(run) == CASES
    for name in CASES:
        (plain_readers, *seen_plain), (readers, *seen) = plain[name], run[name]
        assert (plain_readers, readers) == ([STOCKS], [OUR]), name
        assert seen == seen_plain, name
