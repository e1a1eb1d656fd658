"""Two ranks that ``accelerate launch`` has started: what each sees is what Accelerate's own loaders give it.

Accelerate has two ways to start several processes on a CPU: torch's launcher, which it takes for GPUs only unless it is
asked for by ``--multi_gpu``, and mpirun, where a file of hosts is given. ``--cpu --num_processes 2`` alone, and a
configuration of ``distributed_type: MULTI_CPU``, start one process.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.support import OUR, STOCKS, needs, run_ranks
from tests.helpers.support import PATIENCE

pytestmark = needs("accelerate")

# Stands for Open MPI's as far as Accelerate and gloo need it: starts the ranks, and tells each which one it is.
MPIRUN = """\
#!{python}
import ctypes, os, signal, subprocess, sys

def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

if sys.argv[1:] == ["--version"]:
    print("mpirun (Open MPI) 5.0")
    sys.exit()
end_with_parent()
hostfile, hosts, npernode, per_node, n, ranks, bind, to, *command = sys.argv[1:]
assert (hostfile, npernode, n, bind) == ("--hostfile", "--npernode", "-n", "--bind-to"), sys.argv
names = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"
sizes = dict.fromkeys(("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"), ranks)
started = []
for rank in range(int(ranks)):
    variables = {{**os.environ, **sizes, **dict.fromkeys(names, str(rank))}}
    started.append(subprocess.Popen(command, env=variables, preexec_fn=end_with_parent))
for _ in started:
    pid, status = os.wait()
    if status:
        sys.exit(1)  # the other ranks would wait for that one
"""


def _by_torch(folder: Path) -> tuple[list[str], dict[str, str]]:
    return ["--multi_gpu", "--main_process_port", "0"], {}


def _by_mpirun(folder: Path) -> tuple[list[str], dict[str, str]]:
    hosts, program = folder / "hosts", folder / "bin" / "mpirun"
    hosts.write_text("localhost slots=2\n")
    program.parent.mkdir()
    program.write_text(MPIRUN.format(python=sys.executable))
    program.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    path = os.pathsep.join([str(program.parent), os.environ.get("PATH", os.defpath)])
    return ["--cpu", "--mpirun_hostfile", str(hosts), "--main_process_port", str(port)], {"PATH": path}


WAYS = {"torch's launcher": _by_torch, "mpirun": _by_mpirun}
_GIVEN = {"num_processes": 2, "num_machines": 1, "machine_rank": 0, "mixed_precision": "no", "dynamo_backend": "no"}


def launch(code: str, folder: Path, way: str, *behind: str) -> list[Any]:
    """Runs a script by ``accelerate launch``, and returns what each of two ranks told.

    Args:
        code: the script's.
        folder: where it is written.
        way: in which two processes are started.
        behind: what stands between the launcher's options and the script.
    """
    folder.mkdir()
    options, variables = WAYS[way](folder)
    given = [word for name, value in _GIVEN.items() for word in (f"--{name}", str(value))]
    launcher = ["-m", "accelerate.commands.launch", *given, *options, *behind]
    return run_ranks(code, folder, 2, PATIENCE, launcher, variables)


PREPARED = """
    import torch.distributed
    from accelerate import PartialState
    from tests.frameworks import accelerated
    from tests.frameworks.support import tell

    def main():
        process = PartialState(cpu=True)
        differences = accelerated.differences(("shuffled", "dispatched", "a stream"))
        tell([process.num_processes, torch.distributed.get_backend(), differences])
        process.destroy_process_group()

    main()
"""

# Knows nothing of this library, but to tell who has read.
UNCHANGED = """
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from tests.frameworks.support import Numbers, Seeing, tell

    def main():
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        torch.manual_seed(5)
        model = Seeing()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = DataLoader(Numbers(), batch_size=3, shuffle=True, num_workers=2, persistent_workers=True)
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        gathered = []
        for _ in range(2):
            for batch in loader:
                with accelerator.accumulate(prepared):
                    accelerator.backward(prepared(**batch)["loss"])
                    optimizer.step()
                    optimizer.zero_grad()
                gathered += accelerator.gather_for_metrics(batch["index"]).tolist()
        tell([*model.told(), gathered])
        accelerator.end_training()

    if __name__ == "__main__":
        main()
"""
BOTH_WAYS = ["torch's launcher", pytest.param("mpirun", marks=pytest.mark.slow)]


@pytest.mark.parametrize("way", BOTH_WAYS)
def test_each_rank_sees_what_accelerates_own_gives(way: str, tmp_path: Path) -> None:
    assert launch(PREPARED, tmp_path / "ranks", way) == [[2, "gloo", []]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_unchanged_script_sees_and_learns_the_same(way: str, tmp_path: Path) -> None:
    plain = launch(UNCHANGED, tmp_path / "plain", way)
    run = launch(UNCHANGED, tmp_path / "run", way, "-m", "shmloader", "run")
    for rank in range(2):
        (plain_readers, *seen_plain), (readers, *seen) = plain[rank], run[rank]
        assert (plain_readers, readers) == ([STOCKS], [OUR])
        assert seen == seen_plain
    assert plain[0][-1] == plain[1][-1]
    assert sorted(plain[0][-1]) == sorted([*range(22), *range(22)])
    assert plain[0][1] != plain[1][1]
