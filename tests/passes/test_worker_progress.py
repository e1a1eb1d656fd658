"""What the successor of a dead worker goes on from, against a record of all that happened."""

from __future__ import annotations

import random

import pytest

from shmloader.passes.worker_progress import WorkerProgress


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("is_stream", [False, True])
def test_random_walks(is_stream: bool, seed: int) -> None:
    draw = random.Random(seed)
    workers = range(draw.randrange(1, 4))
    progress = WorkerProgress(len(workers), is_stream)
    delivered: list[list[int]] = [[] for _ in workers]  # the pass that each batch belongs to
    passes = [0 for _ in workers]
    ended = [False for _ in workers]
    for _ in range(200):
        worker = draw.choice(workers)
        if progress.is_complete and draw.random() < 0.1:
            progress.begin_pass()
        elif passes[worker] < progress.generation and draw.random() < 0.5:
            progress.resume(worker)
            passes[worker] += 1
            ended[worker] = False
        elif draw.random() < 0.1:
            progress.end(worker)
            ended[worker] = True
        else:
            progress.deliver(worker)
            delivered[worker].append(passes[worker])
        assert [progress.generation_of(one) for one in workers] == passes
        assert progress.is_complete == (set(passes) == {progress.generation})
        of_this_pass = delivered[worker].count(passes[worker])
        expected = (passes[worker], of_this_pass + ended[worker]) if is_stream else (len(delivered[worker]), 0)
        assert progress.takeover(worker) == expected


def test_a_pass_that_is_left_to_be_finished_is_finished_first() -> None:
    progress = WorkerProgress(num_workers=1, is_stream=False)
    assert not progress.may_skip_to_the_pass(0, owes=False)  # which it is in
    progress.begin_pass()
    assert not progress.may_skip_to_the_pass(0, owes=True)
    assert progress.may_skip_to_the_pass(0, owes=False)


def test_a_stream_is_always_finished_first() -> None:
    progress = WorkerProgress(num_workers=1, is_stream=True)
    progress.begin_pass()
    assert not progress.may_skip_to_the_pass(0, owes=False)
