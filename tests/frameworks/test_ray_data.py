"""A Ray Dataset's blocks as chunks: the rows that Ray gives, from threads; refusals of workers that cannot read them.

All run in one script, since a cluster takes seconds to start.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmloader.integrations.ray_blocks import Blocks
from shmloader.workers.threads import crews
from tests.frameworks.support import needs, run_ranks

READS = """
    import os
    import warnings

    os.environ["RAY_AUTH_MODE"] = "disabled"
    import numpy as np
    import ray
    import ray.data
    import torch
    from shmloader import ChunkedDataset, ShmDataLoader
    from shmloader.integrations.ray import chunks
    from tests.frameworks.support import tell
    from tests.helpers.support import assert_same

    warnings.filterwarnings("error", "The given NumPy array is not writ", UserWarning)
    warnings.filterwarnings("error", module="shmloader")

    def loader(source, batch_size=16, **others):
        if "num_workers" in others:
            others = {"worker_type": "thread", "num_slots": 60, **others}
        return ShmDataLoader(ChunkedDataset(source), batch_size=batch_size, **others)

    def numbers(batches):
        return [int(number) for batch in batches for number in batch["number"]]

    def refusal(act):
        try:
            act()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def with_batches_of_ray(rows):
        expected = list(rows.iter_torch_batches(batch_size=16))
        for number_of_workers in (0, 1):
            ours = loader(chunks(rows), **({"num_workers": 1} if number_of_workers else {}))
            for _ in range(2):
                got = list(ours)
                assert_same(got, expected)
                for batch in got:
                    batch["volume"] += 1  # it is the loop's own memory
            rest = [batch for batch in loader(chunks(rows), drop_last=True, num_workers=1)]
            assert_same(rest, expected[:-1])
        return len(expected)

    def shared_by_threads(rows):
        ours = loader(chunks(rows), num_workers=3, persistent_workers=True)
        found = [sorted(numbers(ours)) for _ in range(2)]
        iterator = iter(ours)
        next(iterator)
        found.append(sorted(numbers(ours)))  # which begins again
        del iterator, ours
        source = chunks(rows)
        seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
        one, other = (loader(source, num_workers=2, generator=generator) for generator in seeded)
        both = list(zip(one, other))
        found += [sorted(numbers(first for first, _ in both)), sorted(numbers(second for _, second in both))]
        return found

    def streams_for_each(rows):
        ours = loader(chunks(rows.streaming_split(2)), num_workers=2)
        return [sorted(numbers(ours)) for _ in range(2)]

    def refusals(rows):
        def fails(row):
            if row["number"] == 40:
                raise ValueError("a bad row")
            return row

        pair = chunks(rows.streaming_split(2))
        return {
            "forked": refusal(lambda: list(loader(chunks(rows), num_workers=2, worker_type="process"))),
            "spawned": refusal(lambda: list(
                loader(chunks(rows), num_workers=1, worker_type="process", multiprocessing_context="spawn")
            )),
            "three of two": refusal(lambda: list(loader(pair, num_workers=3))),
            "none of two": refusal(lambda: list(loader(pair))),
            "failed": refusal(lambda: list(loader(chunks(rows.map(fails)), num_workers=1))),
            "empty": refusal(lambda: chunks([])),
            "no dataset": refusal(lambda: chunks([rows, range(3)])),
            "no buffer": refusal(lambda: chunks(rows, local_shuffle_buffer_size=10)),
            "no size": refusal(lambda: chunks(rows, batch_size=0)),
        }

    def in_an_actor(rows):
        # As a worker in an actor would be: another process, with a connection of its own.
        @ray.remote
        def read(source):
            return numbers(loader(source))

        return ray.get(read.remote(chunks(rows)))

    def main():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.execution_options.preserve_order = True
            rows = ray.data.range(101, override_num_blocks=7)
            rows = rows.map(lambda row: {
                "number": row["id"], "volume": np.full((3, 4), row["id"], np.float32), "flag": row["id"] % 3 == 0,
            }).filter(lambda row: not 15 <= row["number"] < 30).materialize()  # a block is empty
            lazy = ray.data.range(50).rename_columns({"id": "number"})
            words = ray.data.from_items([{"number": one, "text": "abc" * one} for one in range(10)])
            shuffled = chunks(rows, batch_size=25, local_shuffle_buffer_size=50, local_shuffle_seed=1)
            found = {
                "batches": with_batches_of_ray(rows),
                "lazy": sorted(numbers(loader(chunks(lazy), num_workers=1))),
                "threads": shared_by_threads(rows),
                "streams": streams_for_each(rows),
                "words": [batch["text"] for batch in loader(chunks(words), 4, num_workers=1)],
                "shuffled": numbers(loader(shuffled, num_workers=1)),
                "refused": refusals(rows),
                "actor": in_an_actor(rows),
            }
            kept = chunks(rows)
        finally:
            ray.shutdown()
        found["refused"]["apart"] = refusal(lambda: list(loader(kept, num_workers=1)))
        tell(found)

    if __name__ == "__main__":
        main()
"""

ROWS = [number for number in range(101) if not 15 <= number < 30]


@needs("ray")
def test_rows_of_a_ray_dataset(tmp_path: Path) -> None:
    (found,) = run_ranks(READS, tmp_path, ranks=1)
    refused = found.pop("refused")
    shuffled = found.pop("shuffled")
    assert found == {
        "batches": 6,
        "lazy": list(range(50)),
        "threads": [ROWS] * 5,
        "streams": [ROWS] * 2,
        "words": [["abc" * number for number in batch] for batch in (range(4), range(4, 8), range(8, 10))],
        "actor": ROWS,
    }
    assert shuffled != ROWS
    assert sorted(shuffled) == ROWS
    for name, text in {
        "forked": "RuntimeError: Caught RuntimeError in DataLoader worker process 0",
        "spawned": "RuntimeError: a Ray Dataset cannot be sent to a worker process that is spawned; use worker_type=",
        "three of two": "set num_workers to the number of streams",
        "none of two": "RuntimeError: there are 2 streams of a Ray Dataset, and they would be read by 1;",
        "failed": "a bad row",
        "empty": "ValueError: dataset is an empty list",
        "no dataset": "TypeError: dataset must be a ray.data.Dataset, an iterator of one, or a list of iterators, got ",
        "no buffer": "ValueError: local_shuffle_buffer_size needs batch_size",
        "no size": "ValueError: batch_size must be positive",
        "apart": "this process is not connected to Ray",
    }.items():
        assert text in refused[name], refused[name]
    assert "use worker_type='thread', whose workers read blocks" in refused["forked"]


class Source:
    """Gives blocks as Ray does."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def iter_batches(self, **options: Any) -> Iterator[dict[str, Any]]:
        assert options == {"batch_format": "numpy", "batch_size": None}
        for number in range(self.blocks):
            yield {"number": np.array([number])}


class Crew:
    """Stands for an iterator."""


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from shmloader.integrations import needed

    monkeypatch.setattr(needed, "module", lambda name, extra: SimpleNamespace(is_initialized=lambda: True))


def begin_in_thread(blocks: Blocks, crew: object, worker: int, workers: int) -> Any:
    """Returns what a worker thread gets that begins a pass, or what it raises."""
    from shmloader import torch_private

    got: list[Any] = []

    def run() -> None:
        torch_private.tell_threads_apart()
        torch_private.set_thread_info(worker, workers, 0, None)
        crews.join(crew)
        try:
            got.append(iter(blocks))
        except RuntimeError as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return got.pop()


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("seed", range(20))
def test_each_pass_of_each_iterator_has_one_stream(seed: int) -> None:
    random = np.random.default_rng(seed)
    blocks = Blocks([Source(6)], {"batch_size": None})
    crew_list = [Crew() for _ in range(3)]
    copies = {(crew, worker): copy.deepcopy(blocks) for crew in range(3) for worker in range(2)}
    moves = [(crew, worker) for crew in range(3) for worker in range(2)] * 4  # passes that each of them begins
    random.shuffle(moves)
    passes: dict[tuple[int, int], int] = {}
    given: dict[tuple[int, int], list[int]] = {}
    for crew, worker in map(tuple, moves):
        number = passes[crew, worker] = passes.get((crew, worker), -1) + 1
        stream = begin_in_thread(copies[crew, worker], crew_list[crew], worker, 2)
        taken = given.setdefault((crew, number), [])
        for _ in range(random.integers(0, 5)):
            taken += [int(block["number"][0]) for block in [next(stream, None)] if block is not None]
        if worker == 1:
            taken += [int(block["number"][0]) for block in stream]
    assert len(given) == 12
    assert all(taken == list(range(6)) for taken in given.values())


@pytest.mark.usefixtures("connected")
def test_a_worker_in_anothers_place_is_refused() -> None:
    blocks = Blocks([Source(6)], {"batch_size": None})
    crew = Crew()
    first = copy.deepcopy(blocks)
    assert len(list(begin_in_thread(first, crew, 0, 1))) == 6
    assert len(list(begin_in_thread(first, crew, 0, 1))) == 6
    error = begin_in_thread(copy.deepcopy(blocks), crew, 0, 1)
    assert "worker 0 was replaced" in str(error)


@pytest.mark.usefixtures("connected")
def test_a_copy_by_value_reads_by_itself() -> None:
    other = pickle.loads(pickle.dumps(Blocks([Source(3)], {"batch_size": None})))
    assert [int(block["number"][0]) for block in other] == [0, 1, 2]
