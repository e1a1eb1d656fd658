"""Ranks that are killed in the middle of a pass, and come back as fewer or more, go on as if nothing had happened.

The ranks are processes of a gloo group, which meet at each step. Each step's samples, with all that was drawn for them,
are written down, and so is the state of one rank after another: what is killed goes on from the last that is whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.support import run_file

RANKS = """
    import json, os, random, signal, sys
    import torch
    import torch.distributed as dist
    from shmloader import PermutationSampler, ShmDataLoader
    from tests.helpers import resuming

    LENGTH, GLOBAL, EPOCHS = 65, 12, 3
    folder, plan = sys.argv[1], json.loads(sys.argv[2])

    def saved():
        with open(f"{folder}/state.json") as file:
            return json.load(file)

    def save(rank, **what):
        name = f"{folder}/{rank}.json"
        with open(name, "w") as file:
            json.dump(what, file)
        os.replace(name, f"{folder}/state.json")

    def die_at(moment, at):
        if at == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(rank, launch, ranks, workers, fatal):
        meeting = f"file://{folder}/meeting{launch}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
        sampler = PermutationSampler(LENGTH, 7, ranks, rank, drop_last=True)
        loader = ShmDataLoader(
            resuming.Augmented(LENGTH), GLOBAL // ranks, sampler=sampler, seeding="sample", num_workers=workers[rank],
            generator=torch.Generator().manual_seed(3), drop_last=True,
        )
        state = saved()
        loader.load_state_dict(state["loader"])
        step = state["step"]
        for epoch in range(state["epoch"], EPOCHS):
            sampler.set_epoch(epoch)
            for batch in loader:
                at = [rank, epoch, step]
                die_at(fatal, [*at, "with a batch"])
                found = [None] * ranks
                dist.all_gather_object(found, batch.tolist())
                step += 1
                if rank == 0:
                    with open(f"{folder}/log", "a") as file:
                        print(json.dumps([epoch, step, sorted(sample for part in found for sample in part)]), file=file)
                if rank == step % ranks:
                    save(rank, epoch=epoch, step=step, loader=loader.state_dict())
                die_at(fatal, [*at, "behind a step"])
            step = 0
        dist.destroy_process_group()

    if __name__ == "__main__":
        save("first", epoch=0, step=0, loader={})
        for launch, (ranks, workers, fatal) in enumerate(plan):
            pids = []
            for rank in range(ranks):
                pids.append(os.fork())
                if not pids[-1]:
                    code = 1
                    try:
                        run(rank, launch, ranks, workers, fatal)
                        code = 0
                    except RuntimeError as error:  # mostly that the group has lost a rank
                        print(error, file=sys.stderr)
                    finally:
                        sys.stdout.flush(); sys.stderr.flush()
                        os._exit(code)
            if fatal:  # as a cluster does where one has died
                assert os.waitpid(pids[fatal[0]], 0)[1] == signal.SIGKILL
                for rank, pid in enumerate(pids):
                    if rank != fatal[0]:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
            else:
                assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * ranks
        print("done")
"""
# Ranks, the workers of each, and who dies when.
Launch = tuple[int, list[int], list[Any] | None]
WHOLE: list[Launch] = [(1, [1], None)]
PLANS: dict[str, list[Launch]] = {
    "fewer": [(2, [1, 0], [1, 1, 2, "with a batch"]), (1, [2], None)],
    "more": [(1, [0], [0, 0, 3, "behind a step"]), (4, [1, 0, 3, 2], [2, 1, 1, "behind a step"]), (2, [3, 1], None)],
    "again and again": [
        (4, [1, 1, 1, 1], [3, 0, 1, "with a batch"]),
        (2, [0, 3], [0, 0, 4, "behind a step"]),  # behind the last step of a pass
        (1, [2], [0, 1, 0, "with a batch"]),
        (2, [2, 2], [1, 2, 4, "with a batch"]),
        (4, [0, 0, 0, 1], None),
    ],
}


def steps_of(folder: Path, plan: list[Launch]) -> dict[tuple[int, int], list[list[int]]]:
    """Returns the samples of each step, by epoch and step; where a step was made twice, they are the same."""
    folder.mkdir()
    done = run_file(RANKS, str(folder), json.dumps(plan))
    assert done.stdout == "done\n", done.stderr
    found: dict[tuple[int, int], list[list[int]]] = {}
    for line in (folder / "log").read_text().splitlines():
        epoch, step, samples = json.loads(line)
        assert found.setdefault((epoch, step), samples) == samples
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], list[list[int]]]:
    found = steps_of(tmp_path_factory.mktemp("whole") / "ranks", WHOLE)
    assert sorted(found) == [(epoch, step) for epoch in range(3) for step in range(1, 6)]
    for epoch in range(3):
        indices = [sample[0] for step in range(1, 6) for sample in found[epoch, step]]
        assert len(set(indices)) == 60
    return found


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["fewer", "more", pytest.param("again and again", marks=pytest.mark.slow)])
def test_killed_ranks_come_back_as_others(
    name: str, tmp_path: Path, whole: dict[tuple[int, int], list[list[int]]]
) -> None:
    assert steps_of(tmp_path / "ranks", PLANS[name]) == whole
