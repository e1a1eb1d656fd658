"""What is done with Ray's actors in a process of its own: Ray leaves threads and children where it was used.

`serve` runs in that process, connects to one cluster, and does scenarios by name, as the tests ask.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from shmloader import (
    ChunkedDataset,
    PoolMemoryError,
    ShmDataLoader,
    TensorSpec,
    WorkerDiedError,
    WorkerRestartWarning,
    WorkerTimeoutError,
)
from shmloader.slots import orphans
from tests.helpers import resuming
from tests.helpers.datasets import Images, Mapped, Noise, Shards, nest
from tests.helpers.support import PATIENCE, assert_same, assert_same_stream, seed_everything, stream

RAY: dict[str, Any] = {"worker_type": "ray"}

Scenario = Callable[[], Any]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def loader(dataset: Any, **arguments: Any) -> ShmDataLoader[Any]:
    return ShmDataLoader(dataset, **{"batch_size": 4, "num_workers": 2, "worker_type": "ray", **arguments})


def raised(kind: type[BaseException], act: Callable[[], Any]) -> str:
    """Returns the text of what ``act`` raises."""
    try:
        act()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def alive() -> list[str]:
    return [one["ActorID"] for one in ray._private.state.actors().values() if one["State"] != "DEAD"]


def left() -> list[str]:
    """Returns what of loaders there is in this process, and in the cluster."""
    gc.collect()
    orphans.tidy()
    threads = [one.name for one in threading.enumerate() if "shmloader" in one.name]
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:shmloader" in line]
    return threads + maps + alive()


def until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_nothing_left() -> None:
    deadline = time.monotonic() + 20
    while found := left():
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


# -- streams -----------------------------------------------------------------------------------------------------------


class Everything(Dataset[Any]):
    """All kinds of containers, numbers from all random streams, what a worker knows of itself, and errors."""

    def __init__(self) -> None:
        self.array = np.arange(30.0)
        self.tensor = torch.arange(30)
        self.fixed = np.arange(30)
        self.fixed.flags.writeable = False

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        assert info is not None
        assert info.dataset is self
        assert torch.get_num_threads() == 1
        assert not self.fixed.flags.writeable
        self.array[index] += 1  # which is the worker's own
        self.tensor[index] += 1
        if index in (7, 22):
            raise KeyError(index, "no such sample")
        drawn = torch.rand(2), random.random(), np.random.rand()
        return nest(index), drawn, self.array[index], self.tensor[index], (info.id, info.num_workers, info.seed)


@scenario
def same_stream_of_samples() -> None:
    assert_same_stream(Everything, batch_size=4, num_workers=2, shuffle=True, persistent_workers=True, epochs=3, **RAY)


@scenario
def same_stream_of_iterables() -> None:
    assert_same_stream(Shards, batch_size=3, num_workers=3, persistent_workers=True, epochs=2, **RAY)


def ragged(samples: list[Any]) -> Any:
    return torch.nn.utils.rnn.pad_sequence([torch.ones(one[1] + 1) for one in samples]), [one[1] for one in samples]


def begin(worker: int) -> None:
    torch.manual_seed(worker + 3)


def fail(worker: int) -> None:
    raise OSError(5, f"worker {worker}")


STREAMS: dict[str, dict[str, Any]] = {
    "new workers": {"make_dataset": Noise, "epochs": 2, "batch_size": 4},
    "no batches": {"make_dataset": Noise, "batch_size": None},
    "collate": {"make_dataset": Images, "batch_size": 7, "collate_fn": ragged, "drop_last": True},
    "init": {"make_dataset": Noise, "worker_init_fn": begin, "batch_size": 5, "prefetch_factor": 5},
    "stream": {"make_dataset": functools.partial(Shards, (5, 0, 9)), "num_workers": 3, "epochs": 2, "batch_size": 2},
    "declared": {
        "make_dataset": Images,
        "batch_size": 5,
        "sample_shapes": (TensorSpec((3, 4), torch.uint8), None),
    },
    "more workers than batches": {"make_dataset": Images, "batch_size": 30, "num_workers": 3},
    "left": {"make_dataset": Noise, "batch_size": 3, "stop_after": 2, "epochs": 2},
    "left and begun again": {
        "make_dataset": Noise,
        "batch_size": 3,
        "stop_after": 2,
        "epochs": 3,
        "persistent_workers": True,
    },
    "iterable, begun again": {
        "make_dataset": Shards,
        "batch_size": 3,
        "stop_after": 1,
        "epochs": 3,
        "persistent_workers": True,
    },
    "large": {"make_dataset": functools.partial(Images, 12, (512, 1024)), "batch_size": 2},
    "lambdas": {"make_dataset": lambda: Mapped(lambda index: index * 3), "batch_size": 4},
}


def streams(name: str) -> None:
    assert_same_stream(**{"num_workers": 2, **STREAMS[name]}, **RAY)


for _name in STREAMS:
    SCENARIOS[f"stream: {_name}"] = functools.partial(streams, _name)


@scenario
def an_init_function_that_fails() -> None:
    iterator = iter(loader(Noise(), worker_init_fn=fail))
    for worker in (0, 1, 0):
        text = raised(OSError, lambda: next(iterator))
        assert text.startswith(f"Caught OSError in DataLoader worker process {worker}.\n"), text


@scenario
def chunks_and_sample_seeds() -> None:
    rows = [np.arange(n * 3).reshape(n, 3) for n in (5, 9, 2)]
    assert_same_stream(lambda: ChunkedDataset(rows), batch_size=4, num_workers=1, **RAY)
    expected = [one for _ in range(2) for one in _epochs(ShmDataLoader(Noise(), 4, num_workers=0, seeding="sample"))]
    got = _epochs(loader(Noise(), seeding="sample", batch_size=4, persistent_workers=True), 2)
    # What is seeded is the sample, and not the worker.
    assert_same([batch[:3] for batch in got[0]], [batch[:3] for batch in expected[0]])


def _epochs(source: Any, epochs: int = 1) -> Any:
    seed_everything(3)
    return stream(source, epochs)[0]


@scenario
def without_order() -> None:
    source = loader(Images(40), in_order=False, num_workers=3)
    assert sorted(index for _, labels in source for index in labels.tolist()) == list(range(40))


# Runs in the main module, which is what a script is.
SCRIPT = """
import collections, dataclasses, enum
import torch
from torch.utils.data import Dataset

Pair = collections.namedtuple("Pair", "image label")
class Own(Exception): pass
class Color(enum.Enum): RED = 1
class Group(dict): pass
class Outer:
    class Inner(dict): pass
@dataclasses.dataclass
class Sample:
    image: torch.Tensor
    color: Color
def make(number):
    return Made(number)
class Made:
    def __init__(self, number):
        self.number = number
    def __reduce__(self):
        return make, (self.number,)
class Classes(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        if index == 4:
            raise Own("no such sample")
        image = torch.full((3,), index)
        return [
            Pair(image, index),
            Sample(image, Color.RED),
            Group(image=image),
            Outer.Inner(image=image),
            Made(index),
            Made(index),
        ][index]
"""


@scenario
def classes_of_the_script_come_back() -> None:
    main = sys.modules["__main__"]
    exec(SCRIPT, vars(main))
    batches = iter(loader(main.Classes(), batch_size=1, num_workers=1, collate_fn=_first))
    pair, sample, group, inner = got = [next(batches) for _ in range(4)]
    assert [type(one) for one in got] == [main.Pair, main.Sample, main.Group, main.Outer.Inner], got
    images = [pair.image, sample.image, group["image"], inner["image"]]
    assert_same(images, [torch.full((3,), number) for number in range(4)])
    assert pair.label == 0
    assert sample.color is main.Color.RED
    assert "no such sample" in raised(main.Own, lambda: next(batches))
    made = next(batches)
    assert type(made) is main.Made
    assert made.number == 5


def _first(samples: list[Any]) -> Any:
    return samples[0]


# -- the end of workers ------------------------------------------------------------------------------------------------


class Dying(Dataset[Any]):
    """Ends its worker at some index, as long as a file is not there."""

    def __init__(self, at: int, once: Path | None = None) -> None:
        self.at = at
        self.once = once

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        if index == self.at and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.rand(2), random.random(), np.random.rand(), index


@scenario
def a_death_is_an_error() -> None:
    text = raised(WorkerDiedError, lambda: list(loader(Dying(13), name="train")))
    assert text.startswith("DataLoader 'train' worker (Ray actor "), text
    assert f"on node {ray.get_runtime_context().get_node_id()}) has died" in text, text
    assert "It was worker 1 of 2, and at batch 3: indices [12, 13, 14, 15]" in text, text


@scenario
def a_death_changes_nothing() -> None:
    seed_everything(5)
    expected = list(DataLoader(Dying(-1), 4, num_workers=2))
    seed_everything(5)
    once = Path(sys.argv[1], "once")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = [pickle.loads(pickle.dumps(batch)) for batch in loader(Dying(22, once), worker_restarts=1)]
    assert_same(got, expected)
    restarts = [one.message for one in told if isinstance(one.message, WorkerRestartWarning)]
    assert len(restarts) == 1, told
    assert "and at batch 5" in str(restarts[0]), restarts


class DyingStream(IterableDataset[Any]):
    def __init__(self, once: Path | None = None) -> None:
        self.once = once

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        for step in range(14):
            if self.once is not None and info.id and step == 7 and not self.once.exists():
                self.once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield torch.rand(1), info.id, step


@scenario
def a_death_changes_no_stream() -> None:
    seed_everything(5)
    expected = list(DataLoader(DyingStream(), 3, num_workers=2))
    seed_everything(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkerRestartWarning)
        got = list(loader(DyingStream(Path(sys.argv[1], "once of stream")), batch_size=3, worker_restarts=1))
    assert_same(got, expected)


@scenario
def an_exit_is_a_death() -> None:
    assert "has died" in raised(WorkerDiedError, lambda: list(loader(Mapped(sys.exit), num_workers=1)))


@scenario
def an_idle_worker_that_dies_is_noticed() -> None:
    source = loader(Mapped(_pid, 4), batch_size=2, persistent_workers=True)
    pids = {pid for batch in source for pid in batch.tolist()}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    raised(WorkerDiedError, lambda: list(source))
    assert {pid for batch in source for pid in batch.tolist()}.isdisjoint(pids)


def _pid(index: int) -> int:
    return os.getpid()


@scenario
def what_cannot_be_unpickled_is_named() -> None:
    class Opaque(Dataset[Any]):
        def __reduce__(self) -> Any:
            return _raise, (ImportError("no module named 'there'"),)

        def __len__(self) -> int:
            return 3

    text = raised(WorkerDiedError, lambda: list(loader(Opaque())))
    assert "no module named 'there'" in text, text


def _raise(error: BaseException) -> Any:
    raise error


@scenario
def what_cannot_be_pickled_is_named() -> None:
    dataset = Images()
    dataset.lock = threading.Lock()  # type: ignore[attr-defined]
    text = raised(TypeError, lambda: iter(loader(dataset)))
    assert text.startswith("dataset (a Images) cannot be pickled, which worker_type='ray' needs"), text
    text = raised(TypeError, lambda: iter(loader(Images(), collate_fn=functools.partial(print, threading.Lock()))))
    assert text.startswith("collate_fn (a partial) cannot be pickled"), text


# -- what else a loader does -------------------------------------------------------------------------------------------


@scenario
def the_dataset_is_sent_once() -> None:
    source = loader(Counted(), batch_size=10)
    refs = []
    for _ in range(2):
        assert torch.cat([batch[:, 0] for batch in source]).tolist() == [0.0] * 20
        refs.append(source._lifetime.sent._ref)
    source.dataset.large[3] = 5  # type: ignore[attr-defined]
    assert next(iter(source))[3, 0] == 5  # which the next pass sees
    refs.append(source._lifetime.sent._ref)
    assert refs[0] is refs[1]
    assert refs[1] != refs[2]
    names = [ref.hex() for ref in refs]
    del source, refs
    gc.collect()
    until(lambda: not set(names) & set(ray._private.worker.global_worker.core_worker.get_all_reference_counts()))


class Counted(Dataset[Any]):
    def __init__(self) -> None:
        self.large = np.zeros((20, 1 << 16))

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return self.large[index]


@scenario
def pausing_and_timeouts() -> None:
    source = loader(Mapped(_slow, 400), batch_size=8, persistent_workers=True, timeout=60)
    iterator = iter(source)
    assert next(iterator).tolist() == list(range(8))
    source.pause()
    for number in (1, 2, 3):
        assert next(iterator).tolist() == list(range(8 * number, 8 * number + 8))
    source.resume()
    rest = list(itertools.islice(iterator, 10))
    assert [batch[0].item() for batch in rest] == list(range(32, 112, 8))
    source.pause()
    iterator._shutdown_workers()  # type: ignore[attr-defined]
    stuck = iter(loader(Mapped(_hang, 8), num_workers=2, batch_size=2))
    assert next(stuck).tolist() == [0, 1]
    until(lambda: stuck._dispatcher.workers._actors[1].hello)  # type: ignore[attr-defined]
    stuck._timeout = 0.5
    text = raised(WorkerTimeoutError, lambda: next(stuck))
    assert "of worker 1" in text, text
    assert "worker 1 (Ray actor " in text, text
    assert "in _hang" in text, text
    assert "and at batch 1: indices [2, 3]" in text, text


def _slow(index: int) -> int:
    time.sleep(0.002)
    return index


def _hang(index: int) -> int:
    if index == 3:
        threading.Event().wait()
    return index


@scenario
def a_tight_pool() -> None:
    sizes = [30_000, 3_000_000, 100_000, 2_000_000, 10, 3_500_000]
    source = loader(Mapped(lambda index: np.full(sizes[index % 6], index, np.uint8), 18), batch_size=None)
    source.max_pool_bytes = 5 << 20
    for number, batch in enumerate(source):
        assert (
            batch.numpy().tobytes() == bytes([number]) * sizes[number % 6]
            if isinstance(batch, torch.Tensor)
            else (batch.tobytes() == bytes([number]) * sizes[number % 6])
        )
    source.max_pool_bytes = 2 << 20
    text = raised(PoolMemoryError, lambda: list(source))
    assert "max_pool_bytes" in text, text


_kept: list[Any] = []


def keep(samples: list[Any]) -> Any:
    batch = default_collate(samples)
    _kept.append((batch, batch.clone()))
    assert all(torch.equal(one, other) for one, other in _kept)
    return batch


@scenario
def a_collate_function_keeps_its_batches() -> None:
    got = [batch.clone() for batch in loader(Mapped(lambda index: torch.full((1000,), index), 40), collate_fn=keep)]
    assert torch.equal(torch.cat(got)[:, 0], torch.arange(40))


@scenario
def held_batches_stay() -> None:
    held = [(batch, int(batch[0].sum())) for batch in loader(Images(24, (100, 200)), batch_size=2)]
    assert all(int(batch[0].sum()) == total for batch, total in held)
    expected = torch.cat([batch[0] for batch in DataLoader(Images(24, (100, 200)), 2)])
    assert torch.equal(torch.cat([batch[0] for batch, _ in held]), expected)


@scenario
def a_state_is_taken_up_by_other_kinds() -> None:
    seed_everything(1)
    expected = [list(one) for one in DataLoader(Noise(), 3, shuffle=True, num_workers=2)]
    for first, then in (("ray", "process"), ("process", "ray")):
        seed_everything(1)
        source = loader(Noise(), batch_size=3, shuffle=True, worker_type=first)
        iterator = iter(source)
        got = [list(next(iterator)) for _ in range(4)]
        state = json.loads(json.dumps(source.state_dict()))
        del iterator
        other = loader(Noise(), batch_size=3, shuffle=True, worker_type=then)
        other.load_state_dict(state)
        assert_same(got + [list(one) for one in other], expected)


@scenario
def a_stream_tells_its_state_at_the_end_of_a_pass() -> None:
    """Also one that told another when the pass began."""
    source, again = (loader(resuming.SetBack(), batch_size=3, persistent_workers=True) for _ in range(2))
    expected = [batch.tolist() for batch in source]
    for _ in range(2):
        state = source.state_dict()
        assert [worker["data"][0] for worker in state["workers"]] == [{"position": 0}] * 2
        again.load_state_dict(state)
        assert [batch.tolist() for batch in again] == expected
        assert [batch.tolist() for batch in source] == expected
    seed_everything(1)
    source = loader(Noise(), batch_size=3, persistent_workers=True)
    list(source)
    state = source.state_dict()
    expected = [list(one) for one in source]
    again = loader(Noise(), batch_size=3, persistent_workers=True)
    again.load_state_dict(state)
    assert_same([list(one) for one in again], expected)


@scenario
def figures() -> None:
    source = loader(Mapped(_slow, 400), batch_size=4, persistent_workers=True)
    for _ in range(2):
        list(source)
    said = source.statistics()
    assert (said.batches, said.samples) == (200, 800)
    assert [worker.batches for worker in said.workers] == [100, 100]
    assert all(worker.fetch_seconds > 0.75 for worker in said.workers), said
    path = Path(sys.argv[1], "trace.json")
    with source.trace(path):
        list(source)
    assert "worker 1" in path.read_text()
    from shmloader.workers import kinds

    assert kinds.processors("ray") == ray.cluster_resources()["CPU"]


@scenario
def an_interrupt_ends_the_workers() -> None:
    source = loader(Mapped(_hang, 8), batch_size=2)
    iterator = iter(source)
    next(iterator)
    threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
    with contextlib.suppress(KeyboardInterrupt):
        next(iterator)
        raise AssertionError("no interrupt")
    until(lambda: not alive())
    assert "is closed" in raised(RuntimeError, lambda: next(iterator))


@scenario
def a_forked_process_is_refused() -> None:
    source = loader(Images(), num_workers=1, persistent_workers=True)
    batches = iter(source)
    first = next(batches)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            signal.alarm(int(PATIENCE))
            os.write(writer, raised(RuntimeError, lambda: iter(loader(Images()))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    os.waitpid(child, 0)
    assert "forked from one that is connected to Ray" in text, text
    assert_same([first, *batches], list(DataLoader(Images(), 4)))
    assert_same(list(source), list(DataLoader(Images(), 4)))


@scenario
def what_cannot_be_is_refused() -> None:
    assert "ray_options {'num_gpuss': 1} cannot be" in _refused(ValueError, "num_gpuss", 1)
    placed: Any = PlacementGroupSchedulingStrategy
    for kind, name, value in (
        (ValueError, "scheduling_strategy", "NOWHERE"),
        (TypeError, "scheduling_strategy", 3),
        (AssertionError, "scheduling_strategy", placed("no group")),
    ):
        assert f"ray_options {{{name!r}: {value!r}}} cannot be: " in _refused(kind, name, value)
    assert "num_workers=2 Ray actors of 1000 CPU" in _refused(RuntimeError, "num_cpus", 1000)
    assert "'nose' in ray_options" in _refused(RuntimeError, "resources", {"nose": 1})


def _refused(kind: type[BaseException], name: str, value: Any) -> str:
    return raised(kind, lambda: iter(loader(Images(), ray_options={name: value})))


@scenario
def ray_is_shut_down() -> None:
    source = loader(Mapped(_hang, 8), batch_size=2)
    iterator = iter(source)
    next(iterator)
    ray.shutdown()
    assert "Ray was shut down" in raised(WorkerDiedError, lambda: next(iterator))
    connect()
    assert len(list(loader(Images()))) == 13


# -- the process -------------------------------------------------------------------------------------------------------


def connect() -> None:
    # Each actor takes a processor, by Ray's count; this machine may have fewer.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")


def serve() -> None:
    """Does what is asked for on stdin, line by line, and says on stdout how each ended."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    connect()
    print("ready", file=told, flush=True)
    for line in sys.stdin:
        failure = ""
        try:
            SCENARIOS[line.strip()]()
            assert_nothing_left()
        except BaseException:
            failure = traceback.format_exc()
        print(json.dumps(failure), file=told, flush=True)
    ray.shutdown()


if __name__ == "__main__":
    serve()
