"""In a process of its own: each way to import the class, before and after the library, and patched before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import shmloader
from tests.helpers.support import PATIENCE

ROOT = Path(shmloader.__file__).parent.parent

LIBRARY = """
    import torch
    import torch.utils.data
    import torch.utils.data as data
    import torch.utils.data.dataloader
    from torch.utils.data import DataLoader, DataLoader as Loader
    from torch.utils.data import *
    from torch.utils.data.dataloader import DataLoader as Deep

    class Derived(DataLoader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

        def __iter__(self):
            for batch in super().__iter__():
                yield batch

    class MoreDerived(Derived):
        pass

    def default(*args, kind=DataLoader, **kwargs):
        return kind(*args, **kwargs)

    def closure():
        kind = DataLoader
        return lambda *args, **kwargs: kind(*args, **kwargs)

    class Holder:
        kind = DataLoader

    def kinds():
        from torch.utils.data import DataLoader as local
        return {
            "attribute": torch.utils.data.DataLoader, "module alias": data.DataLoader, "name": DataLoader,
            "alias": Loader, "deep": Deep, "deep attribute": torch.utils.data.dataloader.DataLoader,
            "derived": Derived, "more derived": MoreDerived, "default": default, "closure": closure(),
            "attribute of a class": Holder.kind, "local": local, "getattr": getattr(data, "DataLoader"),
            "table": {"loader": DataLoader}["loader"],
        }
"""
SCRIPT = """
    import importlib, json, multiprocessing, pickle, sys

    class Readers:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return index, multiprocessing.current_process()._target.__module__

    def readers(make):
        loader = make(Readers(), batch_size=2, num_workers=1)
        pickle.loads(pickle.dumps(loader))
        batches = list(loader)
        assert [numbers.tolist() for numbers, _ in batches] == [[0, 1], [2, 3]]
        return sorted({reader.split(".")[0] for _, names in batches for reader in names})

    def main():
        steps, told = sys.argv[1:], {}
        for step in steps:
            if step == "import shmloader":
                import shmloader
            elif step == "patch":
                shmloader.patch()
            else:
                library = importlib.import_module(step)
        for name in ("early", "late"):
            if name in sys.modules:
                told[name] = {way: readers(kind) for way, kind in sys.modules[name].kinds().items()}
        print(json.dumps(told))

    if __name__ == "__main__":
        main()
"""
ORDERS = [
    ["early", "import shmloader", "patch", "late"],
    ["import shmloader", "early", "patch", "late"],
    ["import shmloader", "patch", "early", "late"],
]


@pytest.mark.long
@pytest.mark.parametrize("order", [ORDERS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in ORDERS[1:])])
def test_each_way_to_import_it(order: list[str], tmp_path: Path) -> None:
    for name in ("early", "late"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(LIBRARY))
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    ended = subprocess.run(
        [sys.executable, "script.py", *order],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert set(told) == {"early", "late"}
    for ways in told.values():
        assert len(ways) == 14
        assert all(readers == ["shmloader"] for readers in ways.values()), ways
