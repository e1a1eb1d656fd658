"""Producers: what targets in processes fill reaches consumers once, whole and unchanged, and then everything ends."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from shmloader import (
    HeldBatchesWarning,
    PoolMemoryError,
    Producer,
    ProducerEndedError,
    TensorSpec,
    WorkerDiedError,
    WorkerRestartWarning,
)
from shmloader.workers import interface
from tests.helpers.support import PATIENCE, assert_same, checksum, children, in_threads, run_file

INT = torch.int64
NUMBERS = {"all": TensorSpec((1000,), INT), "worker": TensorSpec((), INT), "number": TensorSpec((), INT)}


def number_items(slots: Any, count: int | None = None) -> None:
    """Fills items with numbers that tell whose they are; so many, or endlessly."""
    info = get_worker_info()
    assert info is not None
    for number, slot in enumerate(slots, 1):
        with slot as arrays:
            arrays["all"][:] = 1_000_000 * info.id + number - 1
            arrays["worker"][...] = info.id
            arrays["number"][...] = number - 1
        if number == count:
            return


def finite(count: int, num_workers: int = 2, **arguments: Any) -> Producer:
    return Producer(number_items, NUMBERS, args=(count,), num_workers=num_workers, **arguments)


def endless(**arguments: Any) -> Producer:
    return Producer(number_items, NUMBERS, **{"num_workers": 2, **arguments})


def name_of(item: Any) -> tuple[int, int]:
    """Returns whose an item is, having looked at all of it."""
    worker, number = item["worker"].item(), item["number"].item()
    assert bool((item["all"] == 1_000_000 * worker + number).all())
    return worker, number


def copies(producer: Producer) -> int:
    return producer._delivery.pool.copies


# -- items -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_each_item_comes_once_and_those_of_a_worker_in_their_order(num_workers: int) -> None:
    found = [name_of(item) for item in finite(30, num_workers)]
    assert sorted(found) == [(worker, number) for worker in range(num_workers) for number in range(30)]
    for worker in range(num_workers):
        assert [number for one, number in found if one == worker] == list(range(30))


class Pair(NamedTuple):
    image: Any
    label: Any


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ((2, 3), torch.full((2, 3), 1.0)),
        (TensorSpec((), torch.bool), torch.tensor(True)),
        ([(2,), {"b": (1,)}], [torch.ones(2), {"b": torch.ones(1)}]),
        (((2,), TensorSpec((0, 4))), (torch.ones(2), torch.ones(0, 4))),
        (
            Pair(TensorSpec((3,), torch.uint8), TensorSpec((), INT)),
            Pair(torch.ones(3, dtype=torch.uint8), torch.tensor(1)),
        ),
        ({"x": TensorSpec((3,), torch.bfloat16)}, {"x": torch.ones(3, dtype=torch.bfloat16)}),
    ],
    ids=repr,
)
def test_items_have_the_structure_of_specs(specs: Any, expected: Any) -> None:
    (item,) = Producer(one_of_ones, specs)
    assert_same(item, expected)


def one_of_ones(slots: Any) -> None:
    def fill(part: Any) -> None:
        if isinstance(part, (np.ndarray, torch.Tensor)):
            part[...] = 1
        else:
            for one in part.values() if isinstance(part, dict) else part:
                fill(one)

    with next(slots) as arrays:
        fill(arrays)


def tell_addresses(slots: Any) -> None:
    for slot in slots:
        with slot as array:
            array[0] = array.__array_interface__["data"][0]


def test_an_item_lies_where_the_target_has_written_it() -> None:
    """A forked worker has the arena at the parent's addresses, so equal ones mean that nothing was copied."""
    places = set()
    with Producer(tell_addresses, TensorSpec((5000,), INT), num_workers=2) as producer:
        for _ in range(200):
            item = producer.get()
            assert item[0].item() == item.data_ptr()
            places.add(item.data_ptr())
        assert copies(producer) == 0
    assert len(places) <= 4 + 2 + 2  # under way, held until a worker's next, the consumer's and the one before


@pytest.mark.parametrize("how", ["next", "get"])
@pytest.mark.parametrize("held", [10, 200])
def test_items_that_are_held_stay_as_they_are(held: int, how: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with endless() as producer:
            items = [producer.get() if how == "get" else next(producer) for _ in range(held)]
            sums = [checksum(item.values()) for item in items]
            for _ in range(100):
                name_of(producer.get())
            assert (copies(producer) > 0) == (held > 20)
    del producer
    assert [checksum(item.values()) for item in items] == sums
    assert len({name_of(item) for item in items}) == held
    assert [(one.category, one.filename) for one in caught] == [(HeldBatchesWarning, __file__)] * (held > 20)


def test_what_the_consumer_writes_changes_no_other_item() -> None:
    for item in finite(50):
        name_of(item)
        for tensor in item.values():
            tensor.zero_()


def keep_and_check(slots: Any, count: int) -> None:
    """Keeps some items, and finds them as they were, whatever is written later, and cannot change them."""
    kept: list[tuple[Any, int]] = []
    draw = random.Random(get_worker_info().id)  # type: ignore[union-attr]
    for number, slot in zip(range(count), slots, strict=False):
        with slot as array:
            array[:] = number
            if draw.random() < 0.1:
                kept.append((array, number))
        for one, its_number in kept:
            assert (one == its_number).all()
            with pytest.raises(ValueError, match="read-only"):
                one[0] = -1
    assert kept


@pytest.mark.parametrize("held", [0, 7])
def test_what_targets_keep_stays_as_it_was(held: int) -> None:
    last: list[Any] = []
    numbers: Counter[int] = Counter()
    for item in Producer(keep_and_check, TensorSpec((2000,), INT), args=(150,), num_workers=2):
        numbers[item.unique().item()] += 1
        last = [*last, item][-held:] if held else []
        assert all(len(one.unique()) == 1 for one in last)
    assert numbers == Counter(dict.fromkeys(range(150), 2))


# -- consumers ---------------------------------------------------------------------------------------------------------


def test_several_consumers_iterate_and_all_end() -> None:
    producer = finite(400, num_workers=3)
    found: list[tuple[int, int]] = []
    in_threads(*[lambda: found.extend(name_of(item) for item in producer)] * 4)
    assert sorted(found) == [(worker, number) for worker in range(3) for number in range(400)]


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
def test_several_consumers_that_hold_and_get_in_all_ways() -> None:
    producer = finite(500, num_workers=2)
    found: list[tuple[int, int]] = []

    def consume() -> None:
        draw = random.Random(threading.get_ident())
        held: list[Any] = []
        while True:
            try:
                item = producer.get(draw.random() < 0.5, draw.choice([None, 0, 1e-4, PATIENCE]))
            except queue.Empty:
                continue
            except ProducerEndedError:
                return
            found.append(name := name_of(item))
            held.append((name, item))
            if len(held) > draw.randrange(6):
                name, one = held.pop(draw.randrange(len(held)))
                assert name_of(one) == name

    in_threads(*[consume] * 4)
    assert sorted(found) == [(worker, number) for worker in range(2) for number in range(500)]


def wait_for(slots: Any, pipe: int) -> None:
    os.read(pipe, 1)
    number_items(slots, 1)


def test_get_does_not_wait_longer_than_it_is_told() -> None:
    ours, theirs = os.pipe()
    with Producer(wait_for, NUMBERS, args=(ours,)) as producer:
        with pytest.raises(queue.Empty):
            producer.get(block=False)
        with pytest.raises(queue.Empty):
            producer.get(timeout=0)
        with pytest.raises(queue.Empty):
            producer.get(timeout=0.01)
        with pytest.raises(ValueError, match="timeout must be 0 or more"):
            producer.get(timeout=-1)
        os.write(theirs, b"x")
        assert name_of(producer.get(timeout=PATIENCE)) == (0, 0)
        with pytest.raises(ProducerEndedError, match="all targets of this producer have returned"):
            producer.get()
    os.close(ours)
    os.close(theirs)


class Alarm(Exception):
    pass


def test_an_alarm_doubles_nothing() -> None:
    producer = finite(300)
    producer.start()
    found = []
    is_armed = has_ended = False

    def ring(*_: object) -> None:
        if is_armed:
            raise Alarm

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    try:
        while not has_ended:
            with contextlib.suppress(Alarm):
                try:
                    is_armed = True
                    found.append(name_of(producer.get()))
                except ProducerEndedError:
                    has_ended = True
                finally:
                    is_armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    # An alarm that comes between `get` and the list loses what `get` has returned.
    assert len(found) == len(set(found))
    for worker in range(2):
        numbers = [number for one, number in found if one == worker]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("take", [Producer.get, next])
def test_an_interrupt_within_any_call_loses_nothing(take: Callable[[Producer], Any]) -> None:
    """Also one that comes behind the item, while what the call has entered is left."""
    producer = finite(1000, num_workers=1, worker_type="thread")
    producer.start()
    found: list[int] = []

    def ring(*_: object) -> None:
        raise Alarm

    def take_one(moment: int) -> bool:
        """Returns whether it was interrupted, as the so many-th function began."""
        left = [moment]

        def count(frame: FrameType, event: str, argument: Any) -> None:
            if event == "call":
                left[0] -= 1
                if left[0] == 0:
                    signal.raise_signal(signal.SIGUSR1)

        try:
            sys.setprofile(count)
            try:
                item = take(producer)
            finally:
                sys.setprofile(None)
        except Alarm:
            return True
        found.append(int(item["number"]))
        return False

    previous = signal.signal(signal.SIGUSR1, ring)
    try:
        # Items that are there already, and those that are waited for, come by ways of different lengths.
        interrupted = [take_one(moment) for _ in range(3) for moment in range(1, 250)]
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert sum(interrupted) > 100
    found += [int(item["number"]) for item in producer]
    assert found == list(range(1000))


# -- life --------------------------------------------------------------------------------------------------------------


def test_workers_start_with_the_first_use() -> None:
    for use in (Producer.get, iter, Producer.start, Producer.__enter__):
        producer = endless()
        assert not children()
        assert not producer.is_alive()
        use(producer)
        assert len(children()) == 2
        assert producer.is_alive()
        producer.start()
        assert len(children()) == 2
        producer.stop()
        assert not producer.is_alive()
        assert not children()


def test_a_producer_that_is_dropped_ends_its_workers() -> None:
    producer = endless()
    item = producer.get()
    del producer
    assert not children()
    name_of(item)


def test_the_end_ends_the_workers() -> None:
    producer = finite(3)
    assert len(list(producer)) == 6
    assert not children()
    assert not producer.is_alive()
    assert list(producer) == []
    for get in (producer.get, lambda: producer.get(block=False), producer.start):
        with pytest.raises(ProducerEndedError, match="have returned"):
            get()
    producer.join()
    producer.stop()
    with pytest.raises(ProducerEndedError):
        producer.__enter__()


def test_targets_that_return_at_once() -> None:
    producer = Producer(lambda slots: None, NUMBERS, num_workers=3)
    assert list(producer) == []
    with pytest.raises(ProducerEndedError):
        producer.get()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_join_waits_for_the_targets_and_leaves_their_items(count: int) -> None:
    producer = finite(count, num_workers=1, num_slots=4)
    with pytest.raises(RuntimeError, match="was not started"):
        producer.join()
    producer.start()
    producer.join()
    assert not producer.is_alive()
    assert [name_of(item) for item in producer] == [(0, number) for number in range(count)]
    producer.join()


def test_join_while_others_take_items() -> None:
    producer = finite(200)
    producer.start()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(map(name_of, producer)))
    thread.start()
    producer.join()
    assert not producer.is_alive()
    thread.join(PATIENCE)
    assert len(found) == 400


def test_join_gives_up_after_its_timeout() -> None:
    with endless() as producer:
        producer.join(0.01)
        producer.join(0)
        assert producer.is_alive()
        name_of(producer.get())
    producer.join()


def test_a_stop_is_for_good_and_drops_what_was_not_taken() -> None:
    producer = endless()
    held = producer.get()
    producer.stop()
    producer.stop()
    name_of(held)
    assert list(producer) == []
    for use in (producer.get, producer.start):
        with pytest.raises(ProducerEndedError, match="stopped"):
            use()
    never = endless()
    never.stop()
    with pytest.raises(ProducerEndedError, match="stopped"):
        never.start()


def test_a_stop_in_another_thread_ends_those_who_wait() -> None:
    ours, theirs = os.pipe()
    producer = Producer(wait_for, NUMBERS, args=(ours,), num_workers=1)
    producer.start()
    ends: list[Any] = []

    def get() -> None:
        try:
            producer.get()
        except ProducerEndedError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=act) for act in (get, get, lambda: ends.append(list(producer)))]
    for thread in threads:
        thread.start()
    os.write(theirs, b"x")
    threads.append(threading.Thread(target=producer.stop))
    threads[-1].start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(ends) >= 2  # one of the others may have had the item
    producer.stop()
    os.close(ours)
    os.close(theirs)


def clean_up(slots: Any, folder: Path) -> None:
    try:
        number_items(slots)
        (folder / "ended").touch()
    finally:
        (folder / "cleaned").touch()


def test_a_stop_lets_targets_clean_up(tmp_path: Path) -> None:
    with Producer(clean_up, NUMBERS, args=(tmp_path,)) as producer:
        for _ in range(10):
            name_of(producer.get())
    assert {path.name for path in tmp_path.iterdir()} == {"ended", "cleaned"}


def hang(slots: Any) -> None:
    number_items(slots, 2)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def test_a_target_that_waits_elsewhere_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "GRACE_SECONDS", 0.05)
    with Producer(hang, NUMBERS) as producer:
        for number in range(2):
            assert name_of(producer.get()) == (0, number)
    assert not children()


def test_one_target_may_end_before_another() -> None:
    def target(slots: Any) -> None:
        number_items(slots, 2 if get_worker_info().id == 0 else 100)  # type: ignore[union-attr]

    found = [name_of(item) for item in Producer(target, NUMBERS, num_workers=2, num_slots=6)]
    assert Counter(worker for worker, _ in found) == {0: 2, 1: 100}


# -- what targets raise, and how they die ------------------------------------------------------------------------------


class Odd(Exception):
    def __init__(self, number: int, more: str) -> None:
        super().__init__(number, more)
        self.number = number


def raise_later(slots: Any, error: Exception) -> None:
    number_items(slots, 3)
    if get_worker_info().id == 0:  # type: ignore[union-attr]
        raise error
    number_items(slots, 3)


@pytest.mark.parametrize("error", [ValueError("no more"), KeyError("a", "b"), OSError(2, "none", "file"), Odd(5, "x")])
def test_what_a_target_raises_comes_behind_its_items_and_the_others_go_on(error: Exception) -> None:
    producer = Producer(raise_later, NUMBERS, args=(error,), num_workers=2)
    found, raised = [], []
    while True:
        try:
            found.append(name_of(producer.get()))
        except ProducerEndedError:
            break
        except Exception as one:
            raised.append((one, Counter(worker for worker, _ in found)[0]))
    assert Counter(worker for worker, _ in found) == {0: 3, 1: 6}
    ((caught, before),) = raised
    assert before == 3
    if type(error) is ValueError:
        assert type(caught) is ValueError
    else:
        origin = caught.__cause__
        assert type(origin) is type(error)
        assert origin.args == error.args
    assert "in Producer worker process 0" in str(caught)
    assert "raise_later" in str(caught)
    del raised, caught


def test_iteration_goes_on_after_what_a_target_has_raised() -> None:
    producer = Producer(raise_later, NUMBERS, args=(ValueError("once"),), num_workers=2)
    found: list[Any] = []
    with pytest.raises(ValueError, match="once"):
        found.extend(map(name_of, producer))
    assert len(found) + len(list(producer)) == 9


def test_an_init_function_that_raises() -> None:
    def fail(worker: int) -> None:
        raise LookupError(worker)

    with Producer(number_items, NUMBERS, worker_init_fn=fail) as producer, pytest.raises(LookupError):
        producer.get()


def die(slots: Any, how: str) -> None:
    number_items(slots, 3)
    if how == "exit":
        os._exit(5)
    if how == "sys.exit":
        raise SystemExit(0)
    with next(slots):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "text"), [("kill", "killed by signal"), ("exit", "exit code 5"), ("sys.exit", "exit code 0")]
)
def test_a_death_is_an_error_behind_what_was_delivered(how: str, text: str) -> None:
    producer = Producer(die, NUMBERS, args=(how,))
    held = [producer.get() for _ in range(3)]
    with pytest.raises(WorkerDiedError, match=rf"^Producer worker \(pid.*{text}"):
        producer.get(timeout=PATIENCE)
    assert not producer.is_alive()
    with pytest.raises(WorkerDiedError, match=text):
        producer.get()
    assert [name_of(item) for item in held] == [(0, number) for number in range(3)]
    assert not children()


def test_a_death_ends_all_consumers() -> None:
    producer = Producer(die, NUMBERS, args=("kill",), num_workers=2)
    deaths = []

    def consume() -> None:
        with pytest.raises(WorkerDiedError):
            list(map(name_of, producer))
        deaths.append(1)

    in_threads(*[consume] * 3)
    assert len(deaths) == 3


def live_three_times(slots: Any, folder: Path) -> None:
    info = get_worker_info()
    assert info is not None
    life = len(list(folder.iterdir()))
    (folder / str(life)).touch()
    for number, slot in enumerate(slots):
        with slot as array:
            array[:] = [
                life,
                number,
                info.seed,
                torch.initial_seed(),
                np.random.randint(1 << 62),
                random.getrandbits(62),
            ]
            if life < 2 and number == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        if number == 9:
            return


def test_a_worker_that_dies_is_replaced_with_another_seed(tmp_path: Path) -> None:
    producer = Producer(live_three_times, TensorSpec((6,), INT), args=(tmp_path,), worker_restarts=2)
    with pytest.warns(WorkerRestartWarning) as caught:
        rows = [item.tolist() for item in producer]
    assert [one.filename for one in caught] == [__file__] * 2
    assert [row[:2] for row in rows] == [[0, n] for n in range(4)] + [[1, n] for n in range(4)] + [
        [2, n] for n in range(10)
    ]
    assert len({row[2] for row in rows}) == 3
    assert len({row[4] for row in rows}) == len({row[5] for row in rows}) == len(rows)
    assert all((row[2] - row[3]) % (1 << 64) == 0 for row in rows)


def test_a_worker_that_dies_more_often_is_not_replaced(tmp_path: Path) -> None:
    producer = Producer(live_three_times, TensorSpec((6,), INT), args=(tmp_path,), worker_restarts=1)
    with pytest.warns(WorkerRestartWarning), pytest.raises(WorkerDiedError, match="All 1 of worker_restarts"):
        list(producer)


def die_before_anything(slots: Any, folder: Path) -> None:
    life = len(list(folder.iterdir()))
    (folder / str(life)).touch()
    if life < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    number_items(slots, 2)


def test_restarts_count_also_where_nothing_was_made(tmp_path: Path) -> None:
    with pytest.warns(WorkerRestartWarning):
        found = [name_of(item) for item in Producer(die_before_anything, NUMBERS, args=(tmp_path,), worker_restarts=3)]
    assert found == [(0, 0), (0, 1)]


def keep_and_die(slots: Any, folder: Path) -> None:
    kept = []
    for number, slot in enumerate(slots):
        with slot as arrays:
            arrays["all"][:] = number
            arrays["worker"][...] = 0
            arrays["number"][...] = number
            kept.append(arrays)
        if number == 5 and not list(folder.iterdir()):
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 20:
            return


def test_what_a_dead_worker_held_is_free_again(tmp_path: Path) -> None:
    producer = Producer(keep_and_die, NUMBERS, args=(tmp_path,), worker_restarts=1)
    with pytest.warns(WorkerRestartWarning):
        items = [name_of(item)[1] for item in producer]
    assert items[-21:] == list(range(21))
    assert items[:-21] == list(range(len(items) - 21))


def fork_and_return(slots: Any) -> None:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    number_items(slots, 3)


def test_a_process_that_the_target_forks_and_lets_come_back_delivers_nothing() -> None:
    assert [name_of(item) for item in Producer(fork_and_return, NUMBERS)] == [(0, number) for number in range(3)]


# -- seeds -------------------------------------------------------------------------------------------------------------


def tell_seeds(slots: Any) -> None:
    info: Any = get_worker_info()
    assert info.dataset is tell_seeds
    with next(slots) as array:
        array[:] = [info.id, info.num_workers, info.seed, torch.randint(1 << 62, ()), np.random.randint(1 << 62),
                    random.getrandbits(62)]  # fmt: skip


def seeds(**arguments: Any) -> list[list[int]]:
    rows: list[list[int]] = [item.tolist() for item in Producer(tell_seeds, TensorSpec((6,), INT), **arguments)]
    return sorted(rows)


def test_workers_have_random_numbers_of_their_own() -> None:
    rows = seeds(num_workers=3)
    assert [row[:2] for row in rows] == [[worker, 3] for worker in range(3)]
    assert [row[2] - rows[0][2] for row in rows] == [0, 1, 2]
    assert all(len({row[column] for row in rows}) == 3 for column in (3, 4, 5))
    assert seeds(num_workers=3) != rows


def test_the_base_seed_comes_from_the_generator() -> None:
    one, other = (seeds(num_workers=2, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert one == other
    torch.manual_seed(7)
    assert seeds(num_workers=2) == one


def test_the_init_function_is_called_first() -> None:
    def init(worker: int) -> None:
        random.seed(worker)

    rows = seeds(num_workers=2, worker_init_fn=init)
    assert [row[5] for row in rows] == [random.Random(worker).getrandbits(62) for worker in range(2)]


# -- arguments ---------------------------------------------------------------------------------------------------------


def generator_target(slots: Any) -> Iterator[int]:
    yield 1


class Sides(NamedTuple):
    left: Any
    right: Any


class Swapped(Sides):
    def __new__(cls, left: Any, right: Any) -> Any:
        return super().__new__(cls, right, left)


async def coroutine_target(slots: Any) -> None: ...


async def generating_coroutine_target(slots: Any) -> Any:
    yield 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"target": 5}, TypeError, "target must be callable"),
        ({"target": generator_target}, TypeError, "target must be a plain function"),
        ({"target": coroutine_target}, TypeError, "target must be a plain function"),
        ({"target": generating_coroutine_target}, TypeError, "target must be a plain function"),
        ({"specs": None}, TypeError, "specs must be a shape"),
        ({"specs": {"a": None}}, TypeError, r"specs\['a'\]"),
        ({"specs": {}}, ValueError, "specs must have"),
        ({"specs": (-1,)}, ValueError, "specs: .*negative"),
        ({"specs": {"a": TensorSpec((2,), torch.quint8)}}, TypeError, r"specs\['a'\]: .*torch\.quint8.*torch\.uint8"),
        ({"specs": [(2,), TensorSpec((), torch.qint32)]}, TypeError, r"specs\[1\]: .*torch\.qint32.*torch\.int32"),
        ({"specs": TensorSpec((2,), torch.bits16)}, TypeError, r"specs: .*torch\.bits16.*torch\.int16"),
        ({"specs": [Swapped((2,), ())]}, TypeError, r"specs\[0\] is of type Swapped"),
        ({"args": 5}, TypeError, r"args must be a tuple.*write \(5,\)"),
        ({"args": "text"}, TypeError, "args must be a tuple"),
        ({"kwargs": [1]}, TypeError, "kwargs must be a mapping"),
        ({"kwargs": {1: 2}}, TypeError, "kwargs must be a mapping"),
        ({"num_workers": 0}, ValueError, "num_workers must be positive"),
        ({"num_workers": 1.5}, TypeError, "num_workers must be an int"),
        ({"num_slots": 0}, ValueError, "num_slots must be positive"),
        ({"num_slots": 1}, ValueError, "num_slots=1 must be more than num_workers=1"),
        ({"num_slots": 3, "num_workers": 3}, ValueError, "num_slots=3 must be more than num_workers=3"),
        ({"worker_restarts": -1}, ValueError, "worker_restarts must be"),
        ({"worker_init_fn": 5}, TypeError, "worker_init_fn must be callable"),
        ({"worker_type": "genie"}, ValueError, "worker_type must be"),
        ({"multiprocessing_context": "genie"}, ValueError, "multiprocessing_context must be"),
        ({"multiprocessing_context": 5}, TypeError, "multiprocessing_context must be"),
        ({"max_pool_bytes": 0}, ValueError, "max_pool_bytes must be"),
        ({"generator": 5}, TypeError, "generator must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Producer(**{"target": number_items, "specs": NUMBERS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"max_pool_bytes": 1 << 16}, ValueError, "max_pool_bytes=65536 is too small"),
        ({"max_pool_bytes": 4 << 20, "specs": TensorSpec((1 << 20,), torch.uint8)}, PoolMemoryError, "max_pool_bytes"),
        ({"num_slots": 1 << 28}, ValueError, "num_slots|max_pool_bytes|pipe"),
    ],
)
def test_pools_that_cannot_be(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    producer = Producer(**{"target": number_items, "specs": NUMBERS, **arguments})
    with pytest.raises(error, match=text):
        producer.start()
    with pytest.raises(error, match=text):  # and again
        producer.get()


@pytest.mark.parametrize("num_slots", [2, 3, 4, 7])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_slots_beyond_the_workers_will_do(num_workers: int, num_slots: int) -> None:
    if num_slots > num_workers:
        found = Counter(name_of(item)[0] for item in finite(20, num_workers, num_slots=num_slots))
        assert found == dict.fromkeys(range(num_workers), 20)


def test_keyword_arguments_reach_the_target() -> None:
    assert len(list(Producer(number_items, NUMBERS, kwargs={"count": 3}))) == 3


@pytest.mark.filterwarnings("ignore::shmloader.HeldBatchesWarning")
def test_a_pool_with_hardly_any_room() -> None:
    specs = TensorSpec((1 << 20,), torch.uint8)

    def target(slots: Any) -> None:
        for number, slot in zip(range(40), slots, strict=False):
            with slot as array:
                array[:] = number

    held = []
    for number, item in enumerate(Producer(target, specs, max_pool_bytes=6 << 20)):
        held.append(item)
        assert [one[0].item() for one in held[-7:]] == list(range(max(0, number - 6), number + 1))
    assert [one.unique().tolist() for one in held] == [[number] for number in range(40)]


@pytest.mark.long
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_other_start_methods(method: str) -> None:
    producer = finite(3, num_workers=1, multiprocessing_context=method)
    assert [name_of(item) for item in producer] == [(0, number) for number in range(3)]


@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("part", ["target", "args", "kwargs", "worker_init_fn"])
def test_what_cannot_be_pickled_is_named(part: str) -> None:
    arguments: dict[str, Any] = {"target": number_items, "specs": NUMBERS}
    bad: Any = lambda *slots: None  # noqa: E731
    arguments[part] = {"args": (bad,), "kwargs": {"count": bad}}.get(part, bad)
    producer = Producer(**arguments, multiprocessing_context="spawn")
    with pytest.raises(Exception, match=rf"^{part} \(a .*\) cannot be pickled.*'spawn'"):
        producer.start()


# -- other processes ---------------------------------------------------------------------------------------------------


def test_a_forked_process_cannot_use_it() -> None:
    with endless() as producer:
        item = producer.get()
        pid = os.fork()
        if pid == 0:
            code = 0
            try:
                producer.get()
                code = 1
            except RuntimeError as error:
                code = 0 if "belongs to the process" in str(error) else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        name_of(item)
        name_of(producer.get())


def test_a_program_that_ends_while_its_producer_runs_is_silent() -> None:
    result = run_file(
        """
        import torch
        from shmloader import Producer, TensorSpec

        def target(slots):
            for slot in slots:
                with slot as array:
                    array[:] = 1

        producer = Producer(target, TensorSpec((100,), torch.uint8), num_workers=2)
        print(producer.get().sum().item())
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "100\n", "")
