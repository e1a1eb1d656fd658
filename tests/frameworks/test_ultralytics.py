"""Loaders that Ultralytics makes: a script that iterates them has the same batches when it is run on our workers."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.frameworks.support import OUR, STOCKS, imports, needs, run_ranks

pytestmark = [needs("ultralytics", "and a torchvision that fits to torch"), pytest.mark.slow]

# Knows nothing of this library, but to tell what it has seen. The trainer itself has no workers on a CPU.
SCRIPT = """
    import multiprocessing
    import sys
    from pathlib import Path
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import get_worker_info
    from ultralytics.cfg import get_cfg
    from ultralytics.data import YOLODataset
    from ultralytics.data.build import InfiniteDataLoader, build_dataloader
    from ultralytics.utils.torch_utils import init_seeds
    from tests.frameworks.support import Numbers, digest, tell

    FOLDER = Path(sys.argv[1]) / sys.argv[2]

    def make_pictures():
        for kind in "images", "labels":
            (FOLDER / kind).mkdir(parents=True)
        for index in range(18):
            generator = np.random.default_rng(index)
            array = generator.integers(0, 256, (48 + index, 64, 3), np.uint8)
            Image.fromarray(array).save(FOLDER / "images" / f"{index}.png")
            boxes = (f"{kind % 2} {generator.uniform(0.3, 0.7)} 0.5 0.3 0.2" for kind in range(index % 4))
            (FOLDER / "labels" / f"{index}.txt").write_text("\\n".join(boxes))

    class Pictures(YOLODataset):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "reader": int(Numbers()[0]["reader"])}

    def told(batch):
        digests = {name: digest(one) if isinstance(one, torch.Tensor) else one for name, one in batch.items()}
        return {name: one for name, one in digests.items() if name not in ("im_file", "reader")}

    def main():
        make_pictures()
        init_seeds(5)
        given = get_cfg(overrides={"imgsz": 64, "mixup": 0.5, "task": "detect"})
        pictures = Pictures(
            img_path=str(FOLDER / "images"), imgsz=64, batch_size=4, augment=True, hyp=given, stride=32,
            data={"names": {0: "a", 1: "b"}, "channels": 3}, task="detect",
        )
        loader = build_dataloader(pictures, batch=4, workers=2, shuffle=True, device="cpu")
        seen, readers, left = [], set(), []
        for epoch in range(4):
            if epoch == 2:  # as its trainer does for the last epochs
                pictures.close_mosaic(given)
                loader.reset()
            for batch in loader:
                readers |= set(batch["reader"])
                seen.append(told(batch))
        loader.close()
        left.append(len(multiprocessing.active_children()))
        for arguments in ({"num_workers": 2, "persistent_workers": True}, {"num_workers": 1, "drop_last": True}):
            loader = InfiniteDataLoader(Numbers(18), batch_size=4, shuffle=True, **arguments)
            for _ in range(3):
                for batch in loader:
                    readers |= set(batch.pop("reader").tolist())
                    seen.append(told(batch))
            del loader
            left.append(len(multiprocessing.active_children()))
        tell([sorted(readers), left, torch.rand(1).item(), seen])

    if __name__ == "__main__":
        main()
"""


def test_a_script_has_the_same_batches(tmp_path: Path) -> None:
    variables = {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "1"}
    imports("ultralytics.data", variables)
    code = textwrap.dedent(SCRIPT)
    found = []
    for name, launcher in (("plain", []), ("run", ["-m", "shmloader", "run"])):
        ended = run_ranks(code.replace("sys.argv[2]", repr(name)), tmp_path, 1, launcher=launcher, variables=variables)
        found += ended
    (plain_readers, *plain), (readers, *run) = found
    assert (plain_readers, readers) == ([STOCKS], [OUR])
    assert run == plain
    left, _, seen = run
    assert left == [0, 0, 0]
    assert len(seen) == 4 * 5 + 3 * 5 + 3 * 4
