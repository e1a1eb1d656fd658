"""Workers that are Ray actors: the stream is torch's, and deaths of actors and nodes are told or change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from shmloader import JobQueue, Producer, ShmDataLoader, TensorSpec
from tests.frameworks.support import needs, run_ranks
from tests.helpers.datasets import Images

Run = Callable[[str], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a scenario of `ray_scenarios` in a process that has a cluster, and raises what it raises."""
    if find_spec("ray") is None:
        pytest.skip("needs ray, of the extra named frameworks")
    folder = tmp_path_factory.mktemp("ray")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        (folder / "stderr").open("w+") as said,
        subprocess.Popen(
            [sys.executable, "-m", "tests.frameworks.ray_scenarios", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(name: str) -> None:
            print(name, file=stdin, flush=True)
            failure = stdout.readline()
            if not failure:
                pytest.fail(f"the process has ended: {(folder / 'stderr').read_text()[-4000:]}")
            if text := json.loads(failure):
                pytest.fail(text)

        try:
            assert stdout.readline() == "ready\n", (folder / "stderr").read_text()
            yield run
        finally:
            stdin.close()
            process.wait()


@pytest.mark.parametrize(
    "name",
    [
        "same_stream_of_samples",
        "classes_of_the_script_come_back",
        "a_death_changes_nothing",
        "what_cannot_be_pickled_is_named",
        "what_cannot_be_is_refused",
    ],
)
def test_promises(run: Run, name: str) -> None:
    run(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "same_stream_of_iterables",
        "stream: new workers",
        "stream: no batches",
        "stream: collate",
        "stream: init",
        "an_init_function_that_fails",
        "stream: stream",
        "stream: declared",
        "stream: more workers than batches",
        "stream: left",
        "stream: left and begun again",
        "stream: iterable, begun again",
        "stream: large",
        "stream: lambdas",
        "chunks_and_sample_seeds",
        "without_order",
        "a_death_is_an_error",
        "a_death_changes_no_stream",
        "an_exit_is_a_death",
        "an_idle_worker_that_dies_is_noticed",
        "what_cannot_be_unpickled_is_named",
        "the_dataset_is_sent_once",
        "pausing_and_timeouts",
        "a_tight_pool",
        "a_collate_function_keeps_its_batches",
        "held_batches_stay",
        "a_state_is_taken_up_by_other_kinds",
        "a_stream_tells_its_state_at_the_end_of_a_pass",
        "figures",
        "a_forked_process_is_refused",
        "an_interrupt_ends_the_workers",
        "ray_is_shut_down",
    ],
)
def test_more_promises(run: Run, name: str) -> None:
    run(name)


NODES = """
    import pickle, warnings
    import ray
    from ray.cluster_utils import Cluster
    from torch.utils.data import DataLoader
    from shmloader import ShmDataLoader, WorkerDiedError, WorkerRestartWarning
    from tests.frameworks.ray_scenarios import alive, until
    from tests.frameworks.support import tell
    from tests.helpers.datasets import Noise
    from tests.helpers.support import assert_same, seed_everything

    class Told(Noise):
        def __len__(self):
            return 400

        def __getitem__(self, index):
            return *super().__getitem__(index), ray.get_runtime_context().get_node_id()

    class Slow(Told):
        def __getitem__(self, index):
            import time
            time.sleep(0.05)
            return super().__getitem__(index)

    def loader(**arguments):
        options = {"scheduling_strategy": "SPREAD"}
        return ShmDataLoader(Slow(), 4, num_workers=4, worker_type="ray", ray_options=options, **arguments)

    def main():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=2) for _ in range(3)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        seed_everything(3)
        expected = list(DataLoader(LongNoise(), 4, num_workers=4))
        seed_everything(3)
        got, seen = [], set()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for number, batch in enumerate(loader(worker_restarts=4)):
                got.append(pickle.loads(pickle.dumps(batch[:-1])))
                seen.update(batch[-1])
                if number == 10:
                    lost = next(node for node in nodes if node.node_id in batch[-1])
                    nodes.remove(lost)
                    cluster.remove_node(lost, allow_graceful=False)
        assert_same(got, expected)
        assert len(seen) > 1
        restarts = [str(one.message) for one in told if isinstance(one.message, WorkerRestartWarning)]
        assert restarts and all("Ray actor" in text for text in restarts), told
        died = lost = ""  # the next pass begins while Ray may still take the node for alive
        try:
            for number, batch in enumerate(loader()):
                if number == 10:
                    lost = batch[-1][0]
                    cluster.remove_node(next(node for node in nodes if node.node_id == lost), allow_graceful=False)
        except WorkerDiedError as error:
            died = str(error)
        assert lost in died, died
        until(lambda: not alive())
        ray.shutdown()
        cluster.shutdown()
        tell(len(restarts))

    class LongNoise(Noise):
        def __len__(self):
            return 400

    main()
"""


@needs("ray")
@pytest.mark.slow
def test_a_node_that_is_killed(tmp_path: Path) -> None:
    (restarts,) = run_ranks(NODES, tmp_path, 1)
    assert restarts


@needs("ray")
def test_ray_is_not_imported_before_it_is_used(tmp_path: Path) -> None:
    code = """
        import sys
        from shmloader import ShmDataLoader
        from tests.frameworks.support import tell

        loader = ShmDataLoader(range(4), num_workers=1, worker_type="ray", ray_options={"num_cpus": 2})
        loader.statistics()
        tell([loader.ray_options, [name for name in sys.modules if name.split(".")[0] == "ray"]])
    """
    assert run_ranks(code, tmp_path, 1) == [[{"num_cpus": 2}, []]]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"worker_type='ray' needs Ray: pip install 'shmloader\[ray\]'"):
        ShmDataLoader(Images(), num_workers=1, worker_type="ray")


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "options of others": ({"worker_type": "process", "ray_options": {}}, ValueError, "ray_options are for worker_type"),
    "no options": ({"ray_options": 3}, TypeError, "ray_options must be a dict"),
    "no names": ({"ray_options": {3: 4}}, TypeError, "ray_options must be a dict"),
    "restarts": ({"ray_options": {"max_restarts": 1}}, ValueError, "'max_restarts': worker_restarts says"),
    "a name": ({"ray_options": {"name": "x"}}, ValueError, "ray_options cannot have 'name'"),
    "concurrency": ({"ray_options": {"max_concurrency": 2}}, ValueError, "'max_concurrency': a worker makes one"),
    "a context": ({"multiprocessing_context": "fork"}, ValueError, "worker_type='ray' starts none"),
    "logs": ({"forward_logs": True}, ValueError, "forward_logs is for worker processes of this machine"),
}


@needs("ray")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    arguments, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        ShmDataLoader(Images(), **{"num_workers": 1, "worker_type": "ray", **arguments})


@needs("ray")
def test_other_front_doors_refuse_ray() -> None:
    with pytest.raises(ValueError, match="worker_type must be 'process' or 'thread', got 'ray': Ray actors make the"):
        JobQueue(abs, num_workers=1, worker_type="ray")
    with pytest.raises(ValueError, match="and not what a Producer has"):
        Producer(print, TensorSpec((2,)), worker_type="ray")
