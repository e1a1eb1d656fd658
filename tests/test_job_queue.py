"""JobQueue: first in, first out, whatever comes in between, and each result for whoever asked for it."""

from __future__ import annotations

import collections
import contextlib
import copy
import itertools
import mmap
import os
import pickle
import queue
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate, get_worker_info

from shmloader import HeldBatchesWarning, IdleWorkersWarning, JobQueue, PoolMemoryError, WorkerDiedError, share
from shmloader.passes.dispatcher import Dispatcher
from tests.helpers.support import PATIENCE, assert_same, checksum, children, in_threads, run_file, tensors_in

# Most tests put one job and get it, which is what it warns of.
pytestmark = pytest.mark.filterwarnings("ignore::shmloader.IdleWorkersWarning")

Pair = collections.namedtuple("Pair", "array tensor")  # noqa: PYI024


@contextlib.contextmanager
def job_queue(function: Callable[..., Any], **arguments: Any) -> Iterator[JobQueue]:
    with contextlib.closing(JobQueue(function, **{"num_workers": 2, **arguments})) as opened:
        yield opened


def identity(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def made(seed: int) -> Any:
    """Returns a structure whose parts, shapes and dtypes differ from seed to seed."""
    draw = random.Random(seed)
    shape = tuple(draw.choice([0, 1, 2, 5, 17]) for _ in range(draw.randrange(4)))
    array = np.random.default_rng(seed).integers(0, 100, shape).astype(draw.choice(["u1", "i8", "f4", "f8", "?"]))
    tensor = torch.arange(draw.choice([0, 3, 5000]), dtype=draw.choice([torch.bfloat16, torch.int16, torch.float64]))
    parts = [array, tensor, {"a": array.copy(), "b": [tensor + 1, "text", None]}, Pair(array * 2, tensor.clone()), seed]
    return draw.choice([*parts, parts, tuple(parts)])


# -- order and content ---------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(6))
def test_a_random_walk_of_all_callers(seed: int) -> None:
    """put and get, several maps and repeats in any order, left at any time: each gets what it asked for, in order."""
    draw = random.Random(seed)
    numbers = itertools.count()
    put: collections.deque[int] = collections.deque()
    maps: list[tuple[Iterator[Any], Iterator[int]]] = []
    repeats: list[tuple[Iterator[Any], int]] = []
    with job_queue(made, num_workers=draw.randint(1, 3), prefetch_factor=draw.randint(1, 3)) as jobs:
        for _ in range(250):
            action = draw.choice(
                ["put", "put", "get", "get", "map", "next", "next", "next", "repeat", "again", "leave"]
            )
            if action == "put":
                put.append(next(numbers))
                jobs.put(put[-1])
            elif action == "get" and put:
                assert_same(jobs.get(), made(put.popleft()))
            elif action == "get":
                with pytest.raises(queue.Empty):
                    jobs.get()
            elif action == "map" and len(maps) < 3:
                seeds = [next(numbers) for _ in range(draw.randrange(9))]
                maps.append((jobs.map((one,) for one in seeds), iter(seeds)))
            elif action == "next" and maps:
                results, seeds_left = draw.choice(maps)
                expected = next(seeds_left, None)
                if expected is None:
                    assert next(results, "end") == "end"
                else:
                    assert_same(next(results), made(expected))
            elif action == "repeat" and len(repeats) < 2:
                repeats.append((jobs.repeat(one := next(numbers)), one))
            elif action == "again" and repeats:
                results, one = draw.choice(repeats)
                assert_same(next(results), made(one))
            elif action == "leave" and draw.random() < 0.5:
                left: list[Any] = draw.choice([maps, repeats])
                if left:
                    left.pop(draw.randrange(len(left)))
            assert len(jobs) == len(put)
        while put:
            assert_same(jobs.get(), made(put.popleft()))


def test_many_more_jobs_than_may_be_under_way() -> None:
    """put does not block, though nobody takes; what is over the look-ahead waits, and is sent."""
    with job_queue(lambda number: number * 2) as jobs:
        for number in range(500):
            jobs.put(number)
        assert len(jobs) == 500
        assert list(jobs.map((number,) for number in range(7))) == [2 * number for number in range(7)]
        assert [jobs.get() for _ in range(500)] == [2 * number for number in range(500)]


def test_map_reads_no_further_ahead_than_may_be_under_way() -> None:
    read: list[int] = []

    def arguments() -> Iterator[tuple[int]]:
        for number in range(20):
            read.append(number)
            yield (number,)

    with job_queue(int, prefetch_factor=3) as jobs:
        results = jobs.map(arguments())
        assert len(read) == 6
        for taken, result in enumerate(results, start=1):
            assert result == taken - 1
            assert len(read) == min(20, 6 + taken)


def test_no_arguments_no_jobs_and_empty_results() -> None:
    with job_queue(lambda: None, num_workers=1) as jobs:
        assert list(jobs.map([])) == []
        assert list(jobs.map([(), ()])) == [None, None]
        jobs.put()
        assert jobs.get(timeout=PATIENCE) is None
        assert next(jobs.repeat()) is None
        assert bool(jobs)
        assert len(jobs) == 0


def test_arguments_may_have_any_name() -> None:
    with job_queue(identity, num_workers=1) as jobs:
        jobs.put(self=1, job=2)
        assert jobs.get() == ((), {"self": 1, "job": 2})
        assert next(jobs.repeat(self=3)) == ((), {"self": 3})


def test_arguments_are_what_they_were_when_they_were_put() -> None:
    with job_queue(identity, num_workers=1, prefetch_factor=1) as jobs:
        array, values = np.arange(5), [1]
        for number in range(5):
            jobs.put(array, values=values)
            array += 1
            values.append(number)
        for number in range(5):
            (got,), kwargs = jobs.get()
            assert got.tolist() == [element + number for element in range(5)]
            assert kwargs == {"values": [1, *range(number)]}


class OwnTensor(torch.Tensor):
    pass


SENT_BY_DESCRIPTOR_ELSEWHERE: dict[str, Callable[[], Any]] = {
    "requires grad": lambda: torch.arange(3.0).requires_grad_(),
    "own class": lambda: torch.arange(3).as_subclass(OwnTensor),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "quantized": lambda: torch.quantize_per_tensor(torch.arange(3.0), 0.5, 0, torch.qint8),
    "storage": lambda: torch.arange(3).untyped_storage(),
    "shared array": lambda: share(np.arange(3))[1:],
    "shared sequence": lambda: share(["torch", 1, None])[:2],
    "shared tensor": lambda: share(torch.arange(3)),
}


@pytest.mark.filterwarnings("ignore:.*[Qq]uantize", "ignore:TypedStorage")
@pytest.mark.parametrize("kind", SENT_BY_DESCRIPTOR_ELSEWHERE)
def test_arguments_go_by_value_and_may_be_read_many_times_or_never(kind: str) -> None:
    """No descriptor is left open for a job that is dropped, and what was put is not moved to shared memory."""
    argument = SENT_BY_DESCRIPTOR_ELSEWHERE[kind]()
    was_shared = kind == "shared tensor"
    with job_queue(lambda value, beside: (repr(value), type(value).__name__), num_workers=1) as jobs:
        results = jobs.repeat(argument, torch.arange(2))
        found = [next(results) for _ in range(5)]
        for _ in range(50):
            jobs.put(argument, torch.arange(2))
    plain = {"shared array": np.arange(3)[1:], "shared sequence": ["torch", 1]}.get(kind, argument)
    assert found == [(repr(plain), type(plain).__name__)] * 5
    if isinstance(argument, torch.Tensor):
        assert argument.is_shared() == was_shared


def test_under_fork_nothing_is_copied_but_arguments_and_results() -> None:
    class Owner:
        def __init__(self) -> None:
            self.pid = os.getpid()
            self.data = np.arange(10)

        def __reduce__(self) -> Any:
            raise AssertionError("it is pickled")

        def take(self, index: int) -> Any:
            return self.pid, os.getpid(), self.data[index]

    with job_queue(Owner().take) as jobs:
        jobs.put(3)
        owner, worker, element = jobs.get()
        assert (owner, element) == (os.getpid(), 3)
        assert worker != os.getpid()


# -- memory --------------------------------------------------------------------------------------------------------


def test_results_lie_in_slots_and_are_never_overwritten() -> None:
    """A result's memory is the pool's, with no copy; what is held stays as it was, however many follow."""
    with job_queue(lambda number: (torch.full((5000,), number), np.full(5000, number)), num_slots=12) as jobs:
        results = jobs.map((number,) for number in range(40))
        held = [next(results) for _ in range(3)]
        sums = [checksum([tensor, torch.from_numpy(array)]) for tensor, array in held]
        arena = jobs._delivery.pool.arena
        begin = arena.start(0)
        base = np.frombuffer(arena.memory, np.uint8).ctypes.data + begin
        assert all(base <= tensor.data_ptr() < base + arena.slots * arena.stride for tensor, _ in held)
        assert all(base <= array.ctypes.data < base + arena.slots * arena.stride for _, array in held)
        for number, (tensor, array) in enumerate(results, start=3):
            assert tensor[0] == array[-1] == number
            held.append((tensor[:1], array[:1])) if number < 6 else None
        assert sums == [checksum([tensor, torch.from_numpy(array)]) for tensor, array in held[:3]]
        assert [int(tensor[0]) for tensor, _ in held] == list(range(6))


def test_who_holds_many_results_gets_copies_and_one_warning() -> None:
    with (  # noqa: PT031
        job_queue(lambda number: torch.full((100,), number), num_slots=6) as jobs,
        pytest.warns(HeldBatchesWarning) as told,
    ):
        held = list(jobs.map((number,) for number in range(30)))
        assert [int(tensor[99]) for tensor in held] == list(range(30))
    assert [one.filename for one in told] == [__file__]


def test_results_of_any_size_and_what_does_not_fit() -> None:
    """Sizes from nothing to megabytes in any order; one that cannot be had is an error in its place."""
    sizes = [1, 3_000_000, 0, 50_000, 12_000_000, 7, 2_000_000, 1] * 2
    with job_queue(lambda size: np.arange(size, dtype=np.uint8), max_pool_bytes=8_000_000, num_slots=6) as jobs:
        results = jobs.map((size,) for size in sizes)
        for size in sizes:
            if size > 8_000_000:
                with pytest.raises(PoolMemoryError, match="max_pool_bytes"):
                    next(results)
            else:
                assert np.array_equal(next(results), np.arange(size, dtype=np.uint8))
        jobs.put(1)
        assert jobs.get().shape == (1,)


def test_arguments_that_do_not_fit_are_an_error_in_their_place() -> None:
    with job_queue(len, max_pool_bytes=4_000_000, num_slots=6) as jobs:
        for size in (10, 9_000_000, 20):
            jobs.put(bytes(size))
        assert jobs.get() == 10
        with pytest.raises(PoolMemoryError, match=r"arguments of one job.* max_pool_bytes=4000000 "):
            jobs.get()
        assert jobs.get() == 20


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_arguments_that_do_not_fit_beside_others_wait(worker_type: str) -> None:
    """As results do; and what they take counts for the cap, though results are small and held."""
    cap = 16_000_000
    with (  # noqa: PT031
        job_queue(lambda data: np.array(data[::10000]), max_pool_bytes=cap, worker_type=worker_type) as jobs,
        pytest.warns(HeldBatchesWarning, match="max_pool_bytes"),
    ):
        sizes = [4_000_000, 7_000_000, 100, 4_000_000, 3_000_000] * 5
        results = jobs.map((np.full(size, number, np.uint8),) for number, size in enumerate(sizes))
        other = jobs.map((np.full(size, number, np.uint8),) for number, size in enumerate(sizes))
        held: list[Any] = []
        for pair in zip(results, other, strict=True):
            held += pair
            pool = jobs._delivery.pool
            whole_pages = cap + pool.arena.slots * mmap.PAGESIZE
            assert os.fstat(pool.arena._fd).st_blocks * 512 <= pool.arena.start(0) + whole_pages
        for number, result in enumerate(held):
            assert np.array_equal(result, np.full(-(-sizes[number // 2] // 10000), number // 2))


def test_what_the_function_collates_lies_in_the_slot() -> None:
    with job_queue(lambda count: default_collate([torch.full((100,), one) for one in range(count)])) as jobs:
        for count in (3, 1, 40):
            jobs.put(count)
        for count in (3, 1, 40):
            assert_same(jobs.get(), default_collate([torch.full((100,), one) for one in range(count)]))


def test_a_result_that_the_worker_keeps_is_a_copy() -> None:
    kept = torch.zeros(1000)

    def count() -> torch.Tensor:
        kept.add_(1)
        return kept

    with job_queue(count, num_workers=1) as jobs:
        results = list(itertools.islice(jobs.repeat(), 12))
        assert [int(result[0]) for result in results] == list(range(1, 13))


def test_results_outlive_the_queue() -> None:
    with job_queue(lambda: torch.arange(1000)) as jobs:
        jobs.put()
        result = jobs.get()
    assert torch.equal(result, torch.arange(1000))
    assert next(tensors_in(result)) is result


# -- workers -------------------------------------------------------------------------------------------------------


def draws() -> Any:
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random(), get_worker_info().id  # type: ignore[union-attr]


def seeded_draws(seed: int) -> list[Any]:
    generator = torch.Generator()
    generator.manual_seed(seed)
    with job_queue(draws, num_workers=1, generator=generator) as jobs:
        return list(itertools.islice(jobs.repeat(), 5))


def test_random_numbers() -> None:
    """Workers do not repeat each other's, and the same seed gives the same."""
    assert seeded_draws(1) == seeded_draws(1) != seeded_draws(2)
    torch.manual_seed(3)
    with job_queue(draws, num_workers=3) as jobs:
        found = list(itertools.islice(jobs.repeat(), 60))
    for kind in range(3):
        assert len({str(one[kind]) for one in found}) == 60
    torch.manual_seed(3)
    assert torch.empty((), dtype=torch.int64).random_().item() != torch.empty((), dtype=torch.int64).random_().item()


def test_torchs_default_device_does_not_matter() -> None:
    with torch.device("meta"), job_queue(lambda: 5) as jobs:
        jobs.put()
        assert jobs.get() == 5


def test_the_init_function_and_the_worker_info() -> None:
    def initialise(number: int) -> None:
        told.append(number)

    told: list[int] = []
    with job_queue(lambda: (told, get_worker_info().num_workers), worker_init_fn=initialise) as jobs:  # type: ignore[union-attr]
        for numbers, count in itertools.islice(jobs.repeat(), 6):
            assert numbers in ([0], [1])
            assert count == 2
    assert told == []


def test_jobs_go_to_whoever_is_free(tmp_path: Any) -> None:
    """While one worker is at a long job, the other does all that may be sent."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)

    def work(number: int) -> int:
        if number == 0:
            with open(gate, "rb") as file:  # noqa: PTH123
                file.read()
        return os.getpid()

    with job_queue(work, prefetch_factor=4) as jobs:
        jobs.start()
        for number in range(4):
            jobs.put(number)
        with open(gate, "wb"):  # noqa: PTH123 - the long job has begun, and ends with this block
            rest = jobs._delivery
            with rest.booking() as dispatcher:
                loads = sorted(len(dispatcher._schedule.outstanding(worker)) for worker in range(2))
            assert loads[0] <= 2 <= loads[0] + loads[1] <= 4
            for number in range(4, 8):
                jobs.put(number)
            with rest.booking() as dispatcher:
                assert max(len(dispatcher._schedule.outstanding(worker)) for worker in range(2)) <= 5
        assert len({jobs.get() for _ in range(8)}) == 2


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.usefixtures("_resource_tracker")
def test_other_start_methods(method: str) -> None:
    with job_queue(made, multiprocessing_context=method) as jobs:
        for seed in range(6):
            jobs.put(seed)
        for seed in range(6):
            assert_same(jobs.get(), made(seed))


@pytest.mark.usefixtures("_resource_tracker")
def test_a_lambda_that_has_to_be_pickled() -> None:
    with job_queue(lambda: 1, multiprocessing_context="spawn") as jobs:
        for _ in range(2):
            with pytest.raises(Exception, match=r"function \(a function\) cannot be pickled, which the start method"):
                jobs.put()
            assert len(jobs) == 0


# -- errors --------------------------------------------------------------------------------------------------------


class OwnError(Exception):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)


def test_a_job_that_raises_raises_at_its_own_get() -> None:
    def work(number: int) -> int:
        if number % 3 == 1:
            raise KeyError(number)
        if number % 3 == 2:
            raise OwnError(number, "why")
        return number

    with job_queue(work) as jobs:
        results = jobs.map((number,) for number in range(9))
        for number in range(9):
            jobs.put(number)
        for get in (jobs.get, results.__next__):
            for number in range(9):
                if number % 3 == 0:
                    assert get() == number
                    continue
                with pytest.raises(KeyError if number % 3 == 1 else RuntimeError, match="in work") as caught:
                    get()
                expected: tuple[Any, ...] = (number,) if number % 3 == 1 else (number, "why")
                assert caught.value.__cause__ is not None
                assert caught.value.__cause__.args == expected
        assert next(results, "end") == "end"


def unpicklable(kind: str) -> Any:
    return {"lock": threading.Lock(), "generator": (one for one in [1]), "lambda": lambda: 1, "fine": 1}[kind]


def test_results_that_cannot_be_pickled() -> None:
    with job_queue(unpicklable) as jobs:
        for kind in ("lock", "generator", "lambda", "fine"):
            jobs.put(kind)
        for _ in range(3):
            with pytest.raises(
                Exception, match=r"in JobQueue worker .*, sending what function \(unpicklable\) returned"
            ):
                jobs.get()
        assert jobs.get() == 1


def test_arguments_that_cannot_be_pickled() -> None:
    with job_queue(identity) as jobs:
        jobs.put(1)
        with pytest.raises(TypeError, match=r"an argument of the job cannot be sent: the generator .*at \[1\]"):
            jobs.put(2, unpicklable("generator"))
        with pytest.raises(TypeError, match=r"at \['key'\] cannot be pickled"):
            jobs.put(key=unpicklable("lock"))
        with pytest.raises(TypeError, match="cannot be sent"):
            jobs.repeat(unpicklable("lambda"))
        jobs.put(3)
        assert [jobs.get(), jobs.get()] == [((1,), {}), ((3,), {})]
        assert len(jobs) == 0


def test_errors_of_an_iterable_come_in_their_turn() -> None:
    class Arguments:
        def __init__(self) -> None:
            self.numbers = iter(range(8))

        def __iter__(self) -> Arguments:
            return self

        def __next__(self) -> Any:
            number = next(self.numbers)
            if number == 2:
                raise OSError("no more of this")
            return {3: 3, 5: (unpicklable("lock"),)}.get(number, (number,))

    expected = [0, 1, OSError, TypeError, 4, TypeError, 6, 7]
    with job_queue(int) as jobs:
        results = jobs.map(Arguments())
        for one in expected:
            if isinstance(one, int):
                assert next(results) == one
            else:
                with pytest.raises(one):  # type: ignore[call-overload]
                    next(results)
        assert next(results, "end") == "end"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"function": 3}, TypeError, "function must be callable"),
        ({"function": None}, TypeError, "function must be callable"),
        ({"num_workers": 0}, ValueError, "num_workers must be positive"),
        ({"num_workers": -1}, ValueError, "num_workers must be positive"),
        ({"num_workers": 1.5}, TypeError, "num_workers must be an int"),
        ({"num_workers": True}, TypeError, "num_workers must be an int"),
        ({"prefetch_factor": 0}, ValueError, "prefetch_factor must be positive"),
        ({"worker_type": "fibre"}, ValueError, "worker_type must be 'process'"),
        ({"worker_type": ["process"]}, ValueError, "worker_type must be 'process'"),
        ({"multiprocessing_context": "clone"}, ValueError, "multiprocessing_context must be one of"),
        ({"multiprocessing_context": 5}, TypeError, "multiprocessing_context must be a start method or"),
        ({"worker_init_fn": 5}, TypeError, "worker_init_fn must be callable"),
        ({"worker_restarts": -1}, ValueError, "worker_restarts must be 0 or more"),
        ({"max_pool_bytes": 0}, ValueError, "max_pool_bytes must be positive"),
        ({"num_slots": 5}, ValueError, "num_slots=5 is too small"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        JobQueue(**{"function": identity, "num_workers": 2, **arguments})


def test_too_little_memory_is_said_when_workers_start() -> None:
    jobs = JobQueue(identity, num_workers=2, max_pool_bytes=10)
    with pytest.raises(ValueError, match="max_pool_bytes=10 is too small"):
        jobs.put(1)


@pytest.mark.parametrize(
    ("timeout", "error"), [("1", TypeError), (True, TypeError), (-1, ValueError), (float("nan"), ValueError)]
)
def test_timeouts_that_cannot_be(timeout: Any, error: type[Exception]) -> None:
    with job_queue(identity) as jobs, pytest.raises(error, match="timeout must be"):
        jobs.get(timeout)


@pytest.mark.parametrize("arguments", [5, None])
def test_what_cannot_be_mapped(arguments: Any) -> None:
    with job_queue(identity) as jobs, pytest.raises(TypeError, match="map takes an iterable"):
        jobs.map(arguments)


def test_it_cannot_be_copied() -> None:
    with job_queue(identity) as jobs:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="a JobQueue cannot be pickled or copied"):
                attempt(jobs)


# -- deaths --------------------------------------------------------------------------------------------------------


def endings(kind: str) -> int:
    if kind == "exit":
        os._exit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise SystemExit(4)
    if kind == "fork":
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return os.getpid()
    return 1


@pytest.mark.parametrize("kind", ["exit", "kill", "raise"])
def test_a_worker_that_dies(kind: str) -> None:
    """It is an error that says so, and the queue is closed; another worker's long job does not hold it up."""
    with job_queue(lambda ending: time.sleep(600) if ending == "wait" else endings(ending)) as jobs:
        jobs.put("fine")
        assert jobs.get() == 1
        jobs.put("wait")
        jobs.put(kind)
        told = rf"^JobQueue worker \(pid.*(unexpectedly|killed).* at job 2: arguments \(\('{kind}',\), {{}}\), for "
        with pytest.raises(WorkerDiedError, match=told):
            jobs.get()
        assert not children()
        for attempt in (jobs.get, lambda: jobs.put("fine"), jobs.start, lambda: jobs.repeat("fine")):
            with pytest.raises(WorkerDiedError, match="this JobQueue is closed, since a worker died: "):
                attempt()


def test_workers_that_die_are_replaced(tmp_path: Any) -> None:
    marks = str(tmp_path)

    def work(number: int) -> Any:
        if number % 7 == 3:
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{marks}/{number}")  # noqa: PTH102 - one call that tells whether it is the first
                os.kill(os.getpid(), signal.SIGKILL)
        return number, torch.full((100,), number)

    with job_queue(work, worker_restarts=10) as jobs, pytest.warns(UserWarning, match="It is replaced"):  # noqa: PT031
        for expected, (number, tensor) in enumerate(jobs.map((number,) for number in range(40))):
            assert (number, int(tensor[99])) == (expected, expected)


def test_a_job_that_ends_two_workers_is_not_tried_again() -> None:
    with job_queue(endings, worker_restarts=10, num_workers=1) as jobs, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jobs.put("exit")
        with pytest.raises(WorkerDiedError, match="second worker that job 0 has ended"):
            jobs.get()


def test_a_function_that_forks() -> None:
    with job_queue(endings) as jobs:
        for _ in range(4):
            jobs.put("fork")
        before = [jobs.get() for _ in range(4)]
        assert len(set(before)) <= 2


# -- waiting -------------------------------------------------------------------------------------------------------


class Gate:
    """What workers wait at until this process opens it."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def wait(self, value: Any = None) -> Any:
        os.read(self._reader, 1)
        return value

    def open(self, count: int = 1) -> None:
        os.write(self._writer, b"x" * count)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@pytest.fixture
def gate() -> Iterator[Gate]:
    with contextlib.closing(Gate()) as made_gate:
        yield made_gate


def test_large_arguments_find_room_again_when_their_worker_is_replaced(gate: Gate) -> None:
    """Also if a job before them had less than its share of the pool, since there was no more when it was sent."""
    with contextlib.closing(Gate()) as begun, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def work(kind: str, what: Any) -> Any:
            if kind == "make":
                return np.full(what, 7, np.uint8)
            if kind == "wait":
                begun.open()
                gate.wait()
            return len(what)

        with job_queue(work, num_workers=1, max_pool_bytes=1 << 22, worker_restarts=1) as jobs:
            jobs.put("make", 1_200_000)
            held = [jobs.get()]
            jobs.put("make", 2_000_000)
            jobs.put("wait", b"")
            held.append(jobs.get())
            begun.wait()
            held.clear()
            jobs._delivery.pool.collect()
            jobs.put("length", bytes(3_200_000))
            os.kill(min(children()), signal.SIGKILL)
            gate.open(2)
            assert [jobs.get(), jobs.get()] == [0, 3_200_000]


@pytest.mark.parametrize(("first", "second", "fits"), [(10, 2_600_000, True), (1_200_000, 1_500_000, False)])
def test_arguments_that_find_no_room_again_are_an_error_in_their_place(first: int, second: int, fits: bool) -> None:
    """Since code in the thread that has ended holds its slot."""
    kept: list[Any] = []
    begun, goes_on = threading.Event(), threading.Event()

    def work(data: bytes, keeps: bool = False) -> int:
        if keeps and not kept:
            kept.append(default_collate([torch.ones(900_000, dtype=torch.uint8)]))
            begun.set()
            goes_on.wait()
            raise SystemExit
        return len(data)

    arguments = {"num_workers": 1, "worker_type": "thread", "max_pool_bytes": 1 << 22, "worker_restarts": 1}
    with job_queue(work, **arguments) as jobs, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jobs.put(bytes(first), keeps=True)
        begun.wait()
        jobs.put(bytes(second))
        goes_on.set()
        jobs.put(b"123")
        assert jobs.get() == first
        with contextlib.nullcontext() if fits else pytest.raises(PoolMemoryError, match="arguments of one job"):
            assert jobs.get() == second
        assert jobs.get() == 3
        assert kept[0].sum() == 900_000


def test_timeouts(gate: Gate) -> None:
    """A result that does not come in time can be asked for again."""
    with job_queue(gate.wait, num_workers=1) as jobs:
        with pytest.raises(queue.Empty, match="nothing is under way"):
            jobs.get(PATIENCE)
        for number in range(2):
            jobs.put(number)
        for timeout in (0, 0.001, 0):
            with pytest.raises(queue.Empty):
                jobs.get(timeout)
        gate.open()
        assert jobs.get(PATIENCE) == 0
        assert len(jobs) == 1
        gate.open()
        assert jobs.get() == 1


def test_too_few_jobs_under_way_is_said_once(gate: Gate) -> None:
    with job_queue(gate.wait) as jobs:
        for number in range(3):  # as many as workers, and one is drained: nothing to be said
            jobs.put(number)
        gate.open(3)
        assert [jobs.get(), jobs.get(), jobs.get()] == [0, 1, 2]
        jobs.put(1)
        with warnings.catch_warnings(), pytest.raises(IdleWorkersWarning, match="Put jobs further ahead"):  # noqa: PT012
            warnings.simplefilter("error")
            jobs.get(PATIENCE)
        gate.open()
        assert jobs.get() == 1  # it was not lost, and it is not said again
        jobs.put(2)
        gate.open()
        assert jobs.get() == 2


def test_the_warning_is_of_the_callers_line(gate: Gate) -> None:
    with job_queue(gate.wait) as jobs, pytest.warns(IdleWorkersWarning) as told:  # noqa: PT031
        jobs.put(1)
        with pytest.raises(queue.Empty):
            jobs.get(0.001)
        gate.open()
        jobs.get()
    assert [one.filename for one in told] == [__file__]


# -- threads -------------------------------------------------------------------------------------------------------


def test_many_threads_put_and_get() -> None:
    """Nothing twice, nothing lost; what each thread got is in the order in which it was put."""
    count = 900
    got: list[list[int]] = []
    is_over = threading.Event()

    def put(first: int) -> None:
        for number in range(first, count, 3):
            jobs.put(number)

    def get() -> None:
        mine = []
        while True:
            try:
                mine.append(int(jobs.get()[0]))
            except queue.Empty:
                if is_over.is_set():
                    break
        got.append(mine)

    def put_all() -> None:
        in_threads(*(lambda first=first: put(first) for first in range(3)))
        is_over.set()

    with job_queue(lambda number: np.full(100, number)) as jobs:
        in_threads(put_all, get, get, get)
    for first in range(3):  # of what one thread has put
        for mine in got:
            of_one = [number for number in mine if number % 3 == first]
            assert of_one == sorted(of_one)
    assert sorted(itertools.chain(*got)) == list(range(count))


def test_threads_with_iterators_of_their_own() -> None:
    def step_through(first: int) -> None:
        numbers = range(first, first + 150)
        assert [int(one[0]) for one in jobs.map((number,) for number in numbers)] == list(numbers)

    with job_queue(lambda number: np.full(100, number)) as jobs:
        in_threads(*(lambda first=first: step_through(first) for first in (0, 1000, 2000, 3000)))


def test_a_put_while_another_thread_waits_goes_out_at_once(gate: Gate) -> None:
    """The one that waits has the only job; the other's would never be made, were it sent only when that is over."""
    second = Gate()
    with contextlib.closing(second), job_queue(lambda one: [gate, second][one].wait(one)) as jobs:
        jobs.put(0)
        waiter = threading.Thread(target=jobs.get)
        waiter.start()
        results = jobs.map([(1,)])
        second.open()
        with jobs._delivery.booking() as dispatcher:
            state = dispatcher._shared_state
        deadline = time.monotonic() + PATIENCE
        while state.begun(1) is None and time.monotonic() < deadline:  # the other worker has begun
            time.sleep(0.001)
        assert state.begun(1) is not None
        gate.open()
        assert next(results) == 1
        waiter.join()


def test_close_while_others_wait(gate: Gate) -> None:
    started = threading.Barrier(4)

    def get_until_closed() -> None:
        started.wait()
        with pytest.raises(RuntimeError, match="this JobQueue is closed"):  # noqa: PT012
            while True:
                with contextlib.suppress(queue.Empty):  # what there is may have come before
                    jobs.get()

    def close() -> None:
        started.wait()
        gate.open(2)  # so that workers can end
        jobs.close()

    with job_queue(gate.wait) as jobs:
        for _ in range(2):
            jobs.put()
        in_threads(get_until_closed, get_until_closed, get_until_closed, close)


# -- interrupts ----------------------------------------------------------------------------------------------------


class Alarm(BaseException):
    pass


@contextlib.contextmanager
def alarms(seconds: float) -> Iterator[None]:
    """Has a handler raise again and again, in this thread."""

    def ring(number: int, frame: Any) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def uninterrupted(act: Callable[[], None]) -> int:
    """Calls until it is through, and returns how often it was interrupted."""
    for count in itertools.count():
        try:
            with alarms(0.0007):
                act()
            return count
        except Alarm:
            continue
    raise AssertionError


@pytest.mark.sampled(2)
@pytest.mark.parametrize("work", ["get", "map", "threads"])
def test_interrupts_lose_nothing_and_double_nothing(work: str) -> None:
    count = 1500
    got: list[Any] = []
    others: list[Any] = []
    with job_queue(lambda number: np.full(10, number), num_slots=40) as jobs, warnings.catch_warnings():
        warnings.simplefilter("ignore", HeldBatchesWarning)
        if work == "map":
            results = jobs.map(zip(range(count)))

            def step() -> None:
                while len(got) < count:
                    got.append(results.__next__())  # `next` is C, and handlers may run when it returns
        else:
            for number in range(count):
                jobs.put(number)

            def step() -> None:
                with contextlib.suppress(queue.Empty):
                    while len(jobs):
                        got.append(jobs.get())

        def help_out() -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    others.append(jobs.get())

        helpers = [threading.Thread(target=help_out) for _ in range(2 if work == "threads" else 0)]
        for helper in helpers:
            helper.start()
        hits = uninterrupted(step)
        for helper in helpers:
            helper.join()
        while len(jobs):  # what was put back when the others were through
            got.append(jobs.get())
        numbers = [int(one[0]) for one in got + others]
        assert sorted(numbers) == list(range(count))
        if work != "threads":
            assert numbers == list(range(count))
            assert hits > 0


def test_an_interrupt_while_it_waits(gate: Gate) -> None:
    """The handler runs at once, also where another thread waits for the workers; and nothing is lost."""

    def interrupt() -> None:
        is_waiting.wait()
        os.kill(os.getpid(), signal.SIGINT)

    is_waiting = threading.Event()
    for has_other in (False, True):
        with job_queue(gate.wait) as jobs:
            jobs.put(1)
            jobs.put(2)
            is_waiting.clear()
            got: list[Any] = []
            other = threading.Thread(target=lambda got=got, jobs=jobs: got.append(jobs.get()))
            if has_other:
                other.start()
            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                is_waiting.set()
                jobs.get()
            thread.join()
            gate.open(2)
            if has_other:
                other.join()
            while len(jobs):
                got.append(jobs.get())
            assert sorted(got) == [1, 2]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("worker_type", ["process", "thread"])
@pytest.mark.parametrize("has_other", [False, True])
def test_a_signal_that_the_kernel_gives_to_another_thread(gate: Gate, worker_type: str, has_other: bool) -> None:
    """It interrupts no wait of the main thread's, and nor does one that comes just before the wait begins."""

    def ring(number: int, frame: Any) -> None:
        raise Alarm

    def signal_when_it_waits() -> None:
        is_waiting.wait()
        main = threading.main_thread().native_id
        while Path(f"/proc/self/task/{main}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGUSR1)

    is_waiting = threading.Event()
    before = signal.signal(signal.SIGUSR1, ring)
    try:
        with job_queue(gate.wait, worker_type=worker_type) as jobs:
            jobs.put(1)
            jobs.put(2)
            got: list[Any] = []
            others = [threading.Thread(target=lambda: got.append(jobs.get())) for _ in range(has_other)]
            threads = [*others, threading.Thread(target=signal_when_it_waits)]
            for thread in threads:
                thread.start()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            with pytest.raises(Alarm):  # noqa: PT012
                is_waiting.set()
                jobs.get()
            gate.open(2)
            for thread in threads:
                thread.join()
            while len(jobs):
                got.append(jobs.get())
            assert sorted(got) == [1, 2]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_a_handler_while_workers_are_started_or_dropped_runs_when_they_are(
    worker_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may raise, and nothing is left behind; and it may use the queue."""
    uses: list[Callable[[], object]] = []

    def ring(number: int, frame: Any) -> None:
        uses.pop()()
        raise Alarm

    def ringing(act: Callable[..., Any]) -> Callable[..., Any]:
        def ring_then(*args: Any, **kwargs: Any) -> Any:
            done = act(*args, **kwargs)
            if uses:
                signal.raise_signal(signal.SIGUSR1)
            return done

        return ring_then

    monkeypatch.setattr(Dispatcher, "start", ringing(Dispatcher.start))
    monkeypatch.setattr(Dispatcher, "close", ringing(Dispatcher.close))
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)  # of what is raised in a destructor
    before = signal.signal(signal.SIGUSR1, ring)
    try:
        jobs = [JobQueue(identity, num_workers=2, worker_type=worker_type)]
        uses.append(lambda: jobs[0].put(2))
        with pytest.raises(Alarm):
            jobs[0].put(1)
        assert [jobs[0].get() for _ in range(len(jobs[0]))] == [((2,), {})]
        uses.append(list)
        jobs.clear()
        assert not uses
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_does_not_raise_does_not_end_a_wait(gate: Gate) -> None:
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        gate.open()

    before = signal.signal(signal.SIGUSR1, note)
    try:
        with job_queue(gate.wait, num_workers=1) as jobs:  # of two, the second job's might have what the gate gives
            jobs.put(1)
            jobs.put(2)
            thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
            thread.start()
            assert jobs.get() == 1
            thread.join()
            assert came == [signal.SIGUSR1]
            gate.open()
            assert jobs.get() == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- the end -------------------------------------------------------------------------------------------------------


def test_a_closed_queue() -> None:
    with JobQueue(identity, num_workers=2) as jobs:
        results = jobs.repeat(1)
        next(results)
        jobs.put(1)
        assert len(children()) == 2
    assert not children()
    jobs.close()
    for attempt in (jobs.get, jobs.put, jobs.start, results.__next__, lambda: jobs.map([])):
        with pytest.raises(RuntimeError, match="this JobQueue is closed"):
            attempt()
    unused = JobQueue(identity, num_workers=2)
    assert not children()  # workers start with the first job
    unused.close()


def test_a_queue_that_is_dropped_ends_its_workers() -> None:
    jobs = JobQueue(identity, num_workers=2)
    jobs.put(1)
    results = jobs.repeat(1)
    assert len(children()) == 2
    del jobs
    next(results)
    assert len(children()) == 2  # an iterator is enough to hold it
    del results
    assert not children()


def test_an_iterator_that_is_closed() -> None:
    with job_queue(int) as jobs:
        results = jobs.repeat(3)
        assert next(results) == 3
        results.close()
        results.close()
        assert list(results) == []
        jobs.put(4)
        assert jobs.get() == 4


def test_a_forked_process_cannot_use_it() -> None:
    with job_queue(identity) as jobs:
        jobs.put(1)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                said = []
                for attempt in (jobs.get, jobs.put):
                    try:
                        attempt()
                    except RuntimeError as error:
                        said.append(str(error))
                jobs.close()
                os.write(writer, "|".join(said).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        said_there = os.read(reader, 1000).decode()
        os.close(reader)
        os.close(writer)
        assert said_there.count("this JobQueue belongs to the process that made it") == 2
        assert jobs.get() == ((1,), {})


def test_it_cannot_be_used_by_what_it_calls() -> None:
    """A result's own code that uses the queue would wait for itself: it is told."""
    with job_queue(lambda: Reentrant()) as jobs:
        Reentrant.jobs = jobs
        jobs.put()
        with pytest.raises(RuntimeError, match="in use by this thread"):
            jobs.get()
        Reentrant.jobs = None


class Reentrant:
    jobs: JobQueue | None = None

    def __setstate__(self, state: Any) -> None:
        if Reentrant.jobs is not None:
            Reentrant.jobs.put()

    def __getstate__(self) -> Any:
        return {"some": "state"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("ending", ["pass", "sys.exit(0)", "threading.Thread(target=get, daemon=True).start()"])
def test_a_program_ends_in_silence(ending: str) -> None:
    result = run_file(
        f"""
        import sys, threading, time
        from shmloader import JobQueue
        def get():
            while True:
                jobs.get()
        jobs = JobQueue(lambda number: time.sleep(number), num_workers=2)
        for number in (0, 0, 0.5, 0.5):
            jobs.put(number)
        jobs.get()
        {ending}
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
