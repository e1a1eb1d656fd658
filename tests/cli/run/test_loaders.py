"""Scripts whose loaders run on our workers, and what ``run`` tells of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import shmloader
from tests.helpers.support import PATIENCE

ROOT = Path(shmloader.__file__).parent.parent

SCRIPT = """
    import multiprocessing, os, sys
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Mine(Dataset):
        def __len__(self): return 40
        def __getitem__(self, index):
            target = getattr(multiprocessing.current_process(), "_target", None)
            return torch.full((10,), index), getattr(target, "__module__", "no worker")

    def load(loader=DataLoader, **arguments):
        batches = list(loader(Mine(), batch_size=4, **arguments))
        assert torch.equal(torch.cat([batch[0] for batch in batches]), torch.arange(40)[:, None].expand(40, 10))
        return sorted({reader for _, readers in batches for reader in readers})

    def say(*what):
        os.write(1, (" ".join(map(str, what)) + "\\n").encode())

    def in_child():
        say("child", load(num_workers=1))

    if __name__ == "__main__":
        say("fork", load(num_workers=2), "none", load())
        for method in sys.argv[2:]:
            say(method, load(num_workers=1, multiprocessing_context=method))
            child = multiprocessing.get_context(method).Process(target=in_child)
            child.start()
            child.join()
        if sys.argv[1] == "fail":
            raise ValueError("failed")
        sys.exit(int(sys.argv[1]))
"""
OURS, STOCK = "['shmloader.workers.processes.main']", "['torch.utils.data._utils.worker']"


def run(folder: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *launcher, "-m", "shmloader", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def test_a_report_and_a_trace(tmp_path: Path) -> None:
    ended = run(tmp_path, "--report", "--trace", "trace.json", "script.py", "3")
    assert (ended.returncode, ended.stdout) == (3, f"fork {OURS} none ['no worker']\n")
    header, first, second = re.split(r"\n\n(?=torch\.)", ended.stderr)
    assert re.fullmatch(r"shmloader, process \d+: 2 loaders have begun a pass", header)
    assert first.startswith(
        "torch.utils.data.dataloader.DataLoader of Mine: workers of shmloader; 1 pass, begun at scr"
    )
    assert second.startswith("torch.utils.data.dataloader.DataLoader of Mine: the loop's process (num_workers=0); 1 ")
    for part in (first, second):
        assert re.search(r"^batches +10 +10$", part, re.MULTILINE)
        assert re.search(r"^samples +40 +40$", part, re.MULTILINE)
        assert "Too little to tell: 10 batches" in part
    assert len(re.findall(r"^[01] +5 ", first, re.MULTILINE)) == 2  # workers
    events = json.loads((tmp_path / "trace.json").read_text())
    assert events[-1]["args"]["is_complete"]
    assert {"Mine", "Mine (2)"} <= {
        event["args"]["name"].split(":")[0] for event in events if event["ph"] == "M" and "name" in event["args"]
    }


@pytest.mark.slow
def test_a_script_that_fails_is_reported_too(tmp_path: Path) -> None:
    ended = run(tmp_path, "--report", "script.py", "fail")
    assert ended.returncode == 1
    traceback, report = ended.stderr.split("ValueError: failed\n")
    assert traceback.count("File") == 1
    assert report.startswith("shmloader, process")


def test_torchs_own_workers_measured(tmp_path: Path) -> None:
    ended = run(tmp_path, "--report", "--stock", "-m", "script", "0")
    assert (ended.returncode, ended.stdout) == (0, f"fork {STOCK} none ['no worker']\n")
    _, first, second = re.split(r"\n\n(?=torch\.)", ended.stderr)
    assert "DataLoader of Mine: torch's own workers; 1 pass" in first
    assert "DataLoader of Mine: the loop's process; 1 pass" in second
    for part in (first, second):
        assert re.search(r"^batches +10 +10$", part, re.MULTILINE)
        assert re.search(r"^samples +40 +40$", part, re.MULTILINE)
        assert re.search(r"^bytes +3.20 kB +3.20 kB$", part, re.MULTILINE)
        assert "torch's own iterator: the loop was in next for" in part


@pytest.mark.slow
def test_processes_of_the_scripts_own_and_spawned_workers(tmp_path: Path) -> None:
    ended = run(tmp_path, "script.py", "0", "spawn", "forkserver", "fork")
    assert (ended.returncode, ended.stderr) == (0, "")
    methods = ("spawn", "forkserver", "fork")
    expected = [f"{method} {OURS}\nchild {OURS if method == 'fork' else STOCK}" for method in methods]
    assert ended.stdout == "\n".join([f"fork {OURS} none ['no worker']", *expected, ""])


@pytest.mark.long
def test_ranks_of_torchrun(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = run(tmp_path, "--report", "--trace", "trace.json", "script.py", "0", launcher=launcher)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"fork {OURS} none ['no worker']\n" * 2
    for rank in range(2):
        lines = [line for line in ended.stderr.splitlines() if line.startswith(f"[rank {rank}]")]
        assert f"rank {rank} (process" in lines[0]
        assert sum("1 pass" in line for line in lines) == 2
        assert json.loads((tmp_path / f"trace.rank{rank}.json").read_text())


@pytest.mark.slow
def test_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    ended = run(tmp_path, "--trace", "no/such/folder.json", "script.py", "0")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "no/such/folder.json cannot be written" in ended.stderr
