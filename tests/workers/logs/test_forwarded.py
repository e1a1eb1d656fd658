"""What workers log arrives at the handlers of the loop's process: once, in time, and also what is said last."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, default_collate

from shmloader import JobQueue, Producer, ShmDataLoader, TensorSpec, WorkerDiedError, WorkerRestartWarning
from shmloader.workers.logs import forwarded
from shmloader.workers.logs.records import unpacked
from tests.helpers.support import PATIENCE, run_file

log = logging.getLogger("tests.forwarded")
METHODS = ["fork", "spawn", "forkserver"]


class Keeping(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Keeping]:
    handler = Keeping()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


class Talking(Dataset[int]):
    """Logs each index; and what a function does at index 5, it does there."""

    def __init__(self, at_5: Callable[[], object] | None = None) -> None:
        self.at_5 = at_5

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        log.info("sample %d", index)
        log.debug("not at this level")
        if index == 5 and self.at_5 is not None:
            log.warning("last words")
            self.at_5()
        return index


def collate(samples: list[int]) -> Any:
    log.info("collating %s", samples)
    return default_collate(samples)


def begin(worker: int) -> None:
    log.info("worker %d begins", worker)


def leave() -> None:
    os._exit(9)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    ctypes.string_at(0)


def complain() -> None:
    raise LookupError("no sample")


def fork() -> None:
    if (child := os.fork()) == 0:
        log.warning("from a grandchild")  # by the inherited handlers, which keep it for themselves there
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", METHODS)
def test_each_record_arrives_once_and_before_its_batch(kept: Keeping, method: str) -> None:
    loader = ShmDataLoader(
        Talking(),
        batch_size=2,
        num_workers=2,
        forward_logs=True,
        collate_fn=collate,
        worker_init_fn=begin,
        multiprocessing_context=method,
    )
    for number, _ in enumerate(loader):
        assert f"collating [{2 * number}, {2 * number + 1}]" in kept.texts
    samples = [f"sample {index}" for index in range(8)]
    batches = [f"collating [{index}, {index + 1}]" for index in range(0, 8, 2)]
    assert sorted(kept.texts) == sorted([*samples, *batches, "worker 0 begins", "worker 1 begins"])
    of = {record.getMessage(): vars(record)["shmloader_worker"] for record in kept.records}
    assert [of[text] for text in batches] == [0, 1, 0, 1]
    assert all(record.process != os.getpid() for record in kept.records)
    for worker in (0, 1):
        times = [record.created for record in kept.records if vars(record)["shmloader_worker"] == worker]
        assert times == sorted(times)


def test_without_it_nothing_arrives(kept: Keeping) -> None:
    list(ShmDataLoader(Talking(), num_workers=2))
    assert kept.records == []


def test_threads_log_as_they_do(kept: Keeping) -> None:
    list(ShmDataLoader(Talking(), num_workers=2, worker_type="thread", forward_logs=True))
    assert sorted(kept.texts) == [f"sample {index}" for index in range(8)]


@pytest.mark.parametrize("end", [leave, kill, crash])
def test_last_words_arrive_before_the_error(kept: Keeping, end: Callable[[], object]) -> None:
    iterator = iter(ShmDataLoader(Talking(end), num_workers=1, forward_logs=True))
    with pytest.raises(WorkerDiedError):
        list(iterator)
    assert kept.texts[-2:] == ["sample 5", "last words"]


def test_last_words_of_each_one_that_is_replaced(kept: Keeping) -> None:
    loader = ShmDataLoader(Talking(leave), num_workers=1, forward_logs=True, worker_restarts=1)
    with pytest.warns(WorkerRestartWarning), pytest.raises(WorkerDiedError):
        list(loader)
    assert kept.texts.count("last words") == 2


def test_what_was_logged_arrives_before_an_error_of_the_dataset(kept: Keeping) -> None:
    with pytest.raises(LookupError):
        list(ShmDataLoader(Talking(complain), num_workers=1, forward_logs=True))
    assert "last words" in kept.texts


class Counted(Talking):
    """Counts its samples in memory that all processes share."""

    def __init__(self) -> None:
        super().__init__()
        self.made = torch.zeros(8, dtype=torch.int64).share_memory_()

    def __getitem__(self, index: int) -> int:
        super().__getitem__(index)
        self.made[index] += 1
        return index


@pytest.mark.parametrize("persistent", [False, True])
def test_a_loop_that_is_left_gets_what_was_said(kept: Keeping, persistent: bool) -> None:
    dataset = Counted()
    loader = ShmDataLoader(
        dataset, batch_size=2, num_workers=2, forward_logs=True, persistent_workers=persistent, prefetch_factor=2
    )
    for _ in loader:
        break
    del loader
    assert sorted(kept.texts) == [f"sample {index}" for index in range(8) if dataset.made[index]]


class Slow(Dataset[int]):
    """Its sample is made when somebody has written to a pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        log.info("waiting")
        os.read(self.fd, 1)
        return index


def test_a_loop_that_waits_hears_at_once(kept: Keeping) -> None:
    reader, writer = os.pipe()

    class Answering(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os.write(writer, b"x")  # without which the loop would wait for ever

    handler = Answering()
    log.addHandler(handler)
    try:
        assert len(list(ShmDataLoader(Slow(reader), num_workers=1, forward_logs=True, timeout=PATIENCE))) == 1
    finally:
        log.removeHandler(handler)
        os.close(reader)
        os.close(writer)


class Flooding(Talking):
    """Says much more than there is room for, and then so through a pipe."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def __getitem__(self, index: int) -> int:
        for number in range(3000):
            log.info("%d %s", number, "x" * 1000)
        os.write(self.fd, b"x")
        return index


def test_no_worker_waits_and_what_is_lost_is_counted(kept: Keeping, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    log.propagate = False
    try:
        loader = ShmDataLoader(Flooding(writer), batch_size=4, num_workers=1, forward_logs=True, name="train")
        for _ in loader:
            pass
        iterator = iter(loader)
        os.read(reader, 8)
        os.read(reader, 1)  # nobody reads the ring meanwhile
        next(iterator)
        list(iterator)
    finally:
        log.propagate = True
        os.close(reader)
        os.close(writer)
    told = [record for record in caplog.records if record.name == "shmloader"]
    lost = sum(record.args[0] for record in told)  # type: ignore[index, misc]
    assert lost > 0
    assert lost + len(kept.records) == 2 * 8 * 3000
    assert all("worker 0 of this DataLoader 'train'" in record.getMessage() for record in told)
    assert all(text.endswith("x" * 1000) for text in kept.texts)


def test_levels_filters_and_disabling(kept: Keeping) -> None:
    seen: list[int] = []

    def first_only(record: logging.LogRecord) -> bool:
        seen.append(os.getpid())
        return record.getMessage() == "sample 1"

    log.addFilter(first_only)
    try:
        list(ShmDataLoader(Talking(), num_workers=1, forward_logs=True))
        assert kept.texts == ["sample 1"]
        assert seen == [os.getpid()] * 8, "filters run here, once"
        log.disabled = True
        list(ShmDataLoader(Talking(), num_workers=1, forward_logs=True))
        assert len(seen) == 8
    finally:
        log.disabled = False
        log.removeFilter(first_only)


def test_handlers_that_raise_do_not_stop_the_loop(kept: Keeping, capsys: pytest.CaptureFixture[str]) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the disk is full")

    handler = Raising()
    log.addHandler(handler)
    try:
        assert len(list(ShmDataLoader(Talking(), num_workers=1, forward_logs=True))) == 8
    finally:
        log.removeHandler(handler)
    assert "the disk is full" in capsys.readouterr().err


def test_a_record_that_cannot_be_made_here_does_not_stop_the_loop(
    kept: Keeping, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, made = os.getpid(), logging.LogRecord

    def factory(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        if os.getpid() == parent:
            raise ValueError(f"no record of {name}")
        return made(name, *args, **kwargs)

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        assert len(list(ShmDataLoader(Talking(), num_workers=1, forward_logs=True))) == 8
    finally:
        logging.setLogRecordFactory(before)
    assert kept.records == []
    assert "no record of None" in capsys.readouterr().err


def own_handler(path: str, worker: int) -> None:
    log.addHandler(logging.FileHandler(path))


def test_handlers_of_an_init_function_stay(kept: Keeping, tmp_path: Any) -> None:
    import functools

    path = str(tmp_path / "own.log")
    init = functools.partial(own_handler, path)
    list(ShmDataLoader(Talking(), num_workers=1, forward_logs=True, worker_init_fn=init))
    expected = [f"sample {index}" for index in range(8)]
    assert (tmp_path / "own.log").read_text().splitlines() == expected
    assert kept.texts == expected


def test_a_logger_that_passes_nothing_on(kept: Keeping) -> None:
    log.propagate = False
    try:
        list(ShmDataLoader(Talking(), num_workers=1, forward_logs=True))
    finally:
        log.propagate = True
    assert len(kept.texts) == 8


class Warning_(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        warnings.simplefilter("always")
        warnings.warn("mind this", stacklevel=1)
        return index


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_resource_tracker")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_warnings_that_are_captured(kept: Keeping, method: str) -> None:
    captured = logging.getLogger("py.warnings")
    captured.addHandler(kept)
    before = warnings.showwarning
    logging.captureWarnings(True)
    try:
        list(ShmDataLoader(Warning_(), num_workers=1, forward_logs=True, multiprocessing_context=method))
    finally:
        logging.captureWarnings(False)
        captured.removeHandler(kept)
    assert warnings.showwarning is before
    assert any("mind this" in text for text in kept.texts)


def test_a_grandchild_has_the_handlers_that_it_would_have(kept: Keeping) -> None:
    list(ShmDataLoader(Talking(fork), num_workers=1, forward_logs=True))
    assert "from a grandchild" not in kept.texts  # it kept that itself
    assert kept.texts.count("last words") == 1


class Writing(logging.Handler):
    """Appends lines to a file, in whatever process it is called."""

    def __init__(self, path: str, label: str) -> None:
        super().__init__()
        self.path, self.label = path, label

    def emit(self, record: logging.LogRecord) -> None:
        with Path(self.path).open("a") as file:
            file.write(f"{self.label}: {record.getMessage()}\n")


def speak(index: int) -> int:
    log.info("for %d", index)
    log.info("not for %d", index)
    logging.getLogger("tests.forwarded.child").warning("below")
    return index


def speak_in_a_child(index: int) -> int:
    if (child := os.fork()) == 0:
        speak(index)
        os._exit(0)
    os.waitpid(child, 0)
    return index


@pytest.mark.parametrize("forward_logs", [False, True])
def test_a_grandchild_has_each_loggers_own_handlers_and_filters(
    kept: Keeping, tmp_path: Any, forward_logs: bool
) -> None:
    path = str(tmp_path / "lines")
    child, other = logging.getLogger("tests.forwarded.child"), logging.getLogger("tests.elsewhere")
    handlers = [(log, Writing(path, "log")), (child, Writing(path, "child")), (other, Writing(path, "elsewhere"))]

    def wanted(record: logging.LogRecord) -> bool:
        return record.getMessage() != "not for 7"

    log.addFilter(wanted)
    for logger, handler in handlers:
        logger.addHandler(handler)
    try:
        with JobQueue(speak_in_a_child, num_workers=1, forward_logs=forward_logs) as queue:
            queue.put(7)
            queue.get()
    finally:
        log.removeFilter(wanted)
        for logger, handler in handlers:
            logger.removeHandler(handler)
    assert Path(path).read_text().splitlines() == ["log: for 7", "child: below", "log: below"]


def begin_anew(path: str, worker: int) -> None:
    logging.basicConfig(force=True, handlers=[Writing(path, "anew")])


def test_a_grandchild_of_a_worker_with_its_own_set_up_keeps_that(kept: Keeping, tmp_path: Any) -> None:
    path = str(tmp_path / "lines")
    before = Writing(path, "before")
    logging.root.addHandler(before)
    try:
        init = functools.partial(begin_anew, path)
        with JobQueue(speak_in_a_child, num_workers=1, forward_logs=True, worker_init_fn=init) as queue:
            queue.put(7)
            queue.get()
    finally:
        logging.root.removeHandler(before)
    assert {line.partition(":")[0] for line in Path(path).read_text().splitlines()} == {"anew"}


@pytest.mark.usefixtures("_resource_tracker")
def test_a_grandchild_without_handlers_speaks_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with JobQueue(speak_in_a_child, num_workers=1, forward_logs=True, multiprocessing_context="spawn") as queue:
        queue.put(7)
        queue.get()
    assert capfd.readouterr().err == "below\n"


def replay(index: int) -> int:
    for number, created in enumerate([None, 1e9, "long ago", 5.0, float("nan"), 7]):
        fields = {"name": log.name, "levelno": logging.INFO, "msg": "%d", "args": (number,), "created": created}
        log.handle(logging.makeLogRecord(fields))
    return index


def test_times_of_any_kind_leave_records_in_their_workers_order(kept: Keeping) -> None:
    with JobQueue(replay, num_workers=1, forward_logs=True) as queue:
        for index in range(3):
            queue.put(index)
            assert queue.get() == index
    assert [int(text) for text in kept.texts] == list(range(6)) * 3


def say_much(index: int) -> int:
    log.info("much", extra={"small": index, "large": "x" * 100_000, "list": list(range(50_000))})
    log.info("many", extra={f"name{number}": "x" * 4000 for number in range(40)})
    log.info("%s", "y" * 200_000, extra={"small": index, "large": "z" * 1000})
    return index


def test_attributes_are_there_whatever_the_size_of_a_record(kept: Keeping) -> None:
    with JobQueue(say_much, num_workers=1, forward_logs=True) as queue:
        queue.put(7)
        queue.get()
    much, many, long = (vars(record) for record in kept.records)
    assert much["small"] == 7
    assert much["large"].startswith("x" * 1000)
    assert much["list"].startswith("[0, 1, 2, 3")
    assert all(many[f"name{number}"].startswith("x") for number in range(40))
    assert long["small"] == 7
    assert long["large"].startswith("z" * 100)


def test_an_interrupt_in_a_handler_loses_no_record(kept: Keeping) -> None:
    class Interrupted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "sample 2":
                raise KeyboardInterrupt

    handler = Interrupted()
    log.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(iter(ShmDataLoader(Talking(), num_workers=1, batch_size=8, forward_logs=True)))
    finally:
        log.removeHandler(handler)
    assert kept.texts[:3] == ["sample 0", "sample 1", "sample 2"]
    assert kept.texts == [f"sample {index}" for index in range(len(kept.texts))]


def say(index: int) -> int:
    log.info("sample %d", index)
    return index


@pytest.mark.parametrize("moment", ["the turn", "a record"])
def test_an_interrupt_while_records_are_read_loses_none(
    kept: Keeping, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue goes on after it, and so do its workers' records."""
    due = [moment]

    def interrupted(act: Callable[..., Any], at: str) -> Callable[..., Any]:
        def act_then(*args: Any, **kwargs: Any) -> Any:
            done = act(*args, **kwargs)
            if at in due:
                due.remove(at)
                signal.raise_signal(signal.SIGINT)
            return done

        return act_then

    with JobQueue(say, num_workers=1, forward_logs=True) as jobs:
        logs = jobs._delivery._running.workers._logs  # type: ignore[attr-defined]
        turn = logs._in_turn
        logs._in_turn = SimpleNamespace(acquire=interrupted(turn.acquire, "the turn"), release=turn.release)
        monkeypatch.setattr(forwarded, "unpacked", interrupted(unpacked, "a record"))
        for index in range(8):
            jobs.put(index)
        select.select([logs.bell_fd], [], [], PATIENCE)
        with pytest.raises(KeyboardInterrupt):
            logs.hear()
        for _ in range(8):
            jobs.get()
    assert not due
    assert kept.texts == [f"sample {index}" for index in range(8)]


def from_threads(index: int) -> int:
    def talk(name: int) -> None:
        for number in range(200):
            log.info("%d %d %d", index, name, number)

    threads = [threading.Thread(target=talk, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return index


def test_threads_of_a_worker(kept: Keeping) -> None:
    with JobQueue(from_threads, num_workers=2, forward_logs=True) as queue:
        for index in range(4):
            queue.put(index)
        for index in range(4):
            assert queue.get() == index
            assert sum(text.startswith(f"{index} ") for text in kept.texts) == 600
    assert len(set(kept.texts)) == len(kept.texts) == 2400


def produce(slots: Any) -> None:
    for number, slot in zip(range(5), slots, strict=False):
        with slot as array:
            array[...] = number
            log.info("item %d", number)


def test_producers(kept: Keeping) -> None:
    with Producer(produce, TensorSpec((1,), torch.int64), forward_logs=True) as producer:
        for item in producer:
            assert f"item {item.item()}" in kept.texts
    assert len(kept.texts) == 5


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_what_is_no_flag(value: Any) -> None:
    with pytest.raises(TypeError, match="forward_logs must be True or False"):
        ShmDataLoader(Talking(), forward_logs=value)


@pytest.mark.long
def test_modules_that_are_imported_in_a_spawned_worker_may_log() -> None:
    done = run_file(
        """
        import logging, sys, types
        from pathlib import Path

        folder = Path(__file__).parent
        sys.path.insert(0, str(folder))
        if __name__ == "__main__":
            (folder / "samples.py").write_text(
                "import logging, os\\n"
                "logging.getLogger('samples').warning('imported')\\n"
                "class Samples:\\n"
                "    def __len__(self): return 2\\n"
                "    def __getitem__(self, index): return index\\n"
            )
            from samples import Samples
            from shmloader import ShmDataLoader

            logging.basicConfig(stream=sys.stdout, format="%(processName)s: %(message)s", level=logging.INFO)
            list(ShmDataLoader(Samples(), num_workers=1, forward_logs=True, multiprocessing_context="spawn"))
        """
    )
    assert done.stdout.splitlines() == ["SpawnProcess-1: imported"], done.stderr
    assert done.stderr.splitlines() == ["imported"]  # in the loop's process, before logging was set up


def test_files_are_written_once_and_whole() -> None:
    """A forked worker does not write what the parent's handlers have in their buffers."""
    done = run_file(
        """
        import logging, sys
        from logging.handlers import MemoryHandler
        from shmloader import ShmDataLoader

        class Samples:
            def __len__(self): return 6
            def __getitem__(self, index):
                logging.info("sample %d", index)
                return index

        target = logging.StreamHandler(sys.stdout)
        logging.basicConfig(handlers=[MemoryHandler(1000, target=target)], level=logging.INFO, format="%(message)s")
        logging.info("begin")
        list(ShmDataLoader(Samples(), num_workers=2, forward_logs=True))
        logging.info("end")
        """
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("begin", "end")
    assert sorted(lines[1:-1]) == [f"sample {index}" for index in range(6)]


def test_at_exit_with_an_iterator_alive() -> None:
    done = run_file(
        """
        import logging, sys
        from shmloader import ShmDataLoader

        class Samples:
            def __len__(self): return 6
            def __getitem__(self, index):
                logging.info("sample %d", index)
                return index

        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
        iterator = iter(ShmDataLoader(Samples(), batch_size=6, num_workers=1, forward_logs=True))
        with_its_batch = next(iterator)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"sample {index}" for index in range(6)]


class Curious(logging.Handler):
    """Does something to an iterator for each record."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def emit(self, record: logging.LogRecord) -> None:
        self.act()


class Waiting(Talking):
    """Logs each index, and reads a byte of a pipe then."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self.pipe = pipe

    def __getitem__(self, index: int) -> int:
        super().__getitem__(index)
        os.read(self.pipe, 1)
        return index


def test_a_handler_that_takes_what_the_loop_waits_for(kept: Keeping) -> None:
    """What is handed over while a handler runs is not handed over within it, and the loop goes on."""
    pipe = os.pipe()
    iterator: Any = iter(ShmDataLoader(Waiting(pipe[0]), num_workers=1, prefetch_factor=1, forward_logs=True))

    def let_it_come() -> None:
        os.write(pipe[1], b"1")
        while not iterator.is_ready():
            pass

    handler = Curious(let_it_come)
    log.addHandler(handler)
    try:
        assert [batch.item() for batch in iterator] == list(range(8))
    finally:
        log.removeHandler(handler)
        for end in pipe:
            os.close(end)
    assert len(kept.texts) == 8
    assert sys.exc_info() == (None, None, None)


def test_a_handler_that_takes_batches(kept: Keeping, capsys: pytest.CaptureFixture[str]) -> None:
    iterator = iter(ShmDataLoader(Talking(), num_workers=1, forward_logs=True))
    handler = Curious(lambda: next(iterator))
    log.addHandler(handler)
    try:
        assert [batch.tolist() for batch in iterator] == [[index] for index in range(8)]
    finally:
        log.removeHandler(handler)
    said = capsys.readouterr().err
    assert said.count("RuntimeError: next() of this iterator was called by a handler") == 8
