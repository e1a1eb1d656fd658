"""Faults that a worker can meet, the moments at which it can, and a dataset that brings the two together.

Everything here can be pickled, so that spawned workers can have it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from shmloader import PoolMemoryError, ShmDataLoader, WorkerDiedError, WorkerTimeoutError
from shmloader.workers import wire
from tests.helpers.support import bits

BATCHES = 40
CAP = 2 << 20  # max_pool_bytes of loaders that meet a fault
VICTIM = 1  # the worker that does


class Kind(Enum):
    """What a fault is to the loop."""

    ERROR = "an exception in its batch's place"
    RESULT = "the same, of something that was returned and cannot travel"
    DEATH = "the end of the worker"
    HANG = "silence"


class Unforeseen(BaseException):
    """What no ``except Exception`` catches."""


@dataclass(frozen=True)
class Fault:
    """What a worker meets.

    Attributes:
        meet: called in the worker. What it returns, if it does, becomes part of the batch.
        kind: what it is to the loop.
        error: what the loop gets.
        texts: what is said in that, wherever the fault was met; patterns.
    """

    meet: Callable[[Trap], Any]
    kind: Kind
    error: type[Exception]
    texts: tuple[str, ...]


def raise_error(trap: Trap) -> None:
    raise ValueError("a fault")


def run_out_of_memory(trap: Trap) -> None:
    raise MemoryError("a fault")


def return_a_lock(trap: Trap) -> Any:
    return threading.Lock()


def return_too_much(trap: Trap) -> Any:
    return torch.zeros(2 * CAP, dtype=torch.uint8)


def raise_base_exception(trap: Trap) -> None:
    raise Unforeseen("a fault")


def leave(trap: Trap) -> None:
    raise SystemExit(3)


def leave_at_once(trap: Trap) -> None:
    os._exit(4)


def read_from_nowhere(trap: Trap) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def kill(number: signal.Signals) -> Callable[[Trap], None]:
    def kill(trap: Trap) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)

    return kill


def hang(trap: Trap) -> None:
    trap.tell()
    os.read(trap.hold.fd, 1)


def hang_deaf_to_sigterm(trap: Trap) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(trap)


def stop(trap: Trap) -> None:
    trap.tell()
    os.kill(os.getpid(), signal.SIGSTOP)


FAULTS = {
    "exception": Fault(raise_error, Kind.ERROR, ValueError, ("a fault", f"DataLoader worker process {VICTIM}")),
    "MemoryError": Fault(run_out_of_memory, Kind.ERROR, MemoryError, ("a fault",)),
    "a result that cannot be pickled": Fault(return_a_lock, Kind.RESULT, TypeError, ("cannot pickle '_thread.lock'",)),
    "a result over the cap": Fault(return_too_much, Kind.RESULT, PoolMemoryError, (f"max_pool_bytes={CAP}",)),
    "BaseException": Fault(raise_base_exception, Kind.DEATH, WorkerDiedError, (r"\(pid\(s\) PID\).*exit code 1\.",)),
    "sys.exit": Fault(leave, Kind.DEATH, WorkerDiedError, (r"\(pid\(s\) PID\) exited unexpectedly.*exit code 3\.",)),
    "os._exit": Fault(leave_at_once, Kind.DEATH, WorkerDiedError, (r"\(pid\(s\) PID\).*exit code 4\.",)),
    "segfault": Fault(
        read_from_nowhere, Kind.DEATH, WorkerDiedError, (r"\(pid PID\) is killed by signal: Segmentation fault\.",)
    ),
    "SIGKILL": Fault(
        kill(signal.SIGKILL),
        Kind.DEATH,
        WorkerDiedError,
        (r"\(pid PID\) is killed by signal: Killed\.", "out-of-memory killer"),
    ),
    "SIGTERM": Fault(
        kill(signal.SIGTERM), Kind.DEATH, WorkerDiedError, (r"\(pid PID\) is killed by signal: Terminated\.",)
    ),
    "SIGBUS": Fault(
        kill(signal.SIGBUS),
        Kind.DEATH,
        WorkerDiedError,
        (r"\(pid PID\) is killed by signal: Bus error\.", "lower max_pool_bytes"),
    ),
    "hang": Fault(
        hang,
        Kind.HANG,
        WorkerTimeoutError,
        (r"worker 1 \(pid PID\) is waiting, and ", r"\n    File \"[^\"]*faults\.py\", line \d+ in hang\n"),
    ),
    "hang, deaf to SIGTERM": Fault(hang_deaf_to_sigterm, Kind.HANG, WorkerTimeoutError, (" in hang_deaf_to_sigterm",)),
    "SIGSTOP": Fault(
        stop, Kind.HANG, WorkerTimeoutError, (r"worker 1 \(pid PID\) is stopped by a signal, and (?!.*\n    File)",)
    ),
}


@dataclass(frozen=True)
class Moment:
    """When a worker meets a fault.

    Attributes:
        lost: the first batch that does not come because of it.
        is_begun: whether the worker has begun that batch.
        returns: whether code of the user's returns something then.
        is_users: whether code of the user's runs then, whose exceptions are caught.
        is_in_a_pass: whether the worker meets it on its own, in the middle of a pass.
    """

    lost: int = 21
    is_begun: bool = True
    returns: bool = False
    is_users: bool = True
    is_in_a_pass: bool = True

    def allows(self, kind: Kind) -> bool:
        """Whether there can be a fault of that kind at this moment."""
        return self.is_in_a_pass and {Kind.ERROR: self.is_users, Kind.RESULT: self.returns}.get(kind, True)

    @property
    def place(self) -> str:
        """What is said of where the worker was when it died; a pattern."""
        batch = rf"batch {self.lost}: indices \[{self.lost}\]"
        if self.is_begun:
            return rf"It was worker 1 of 2, and at {batch}, for [0-9.e-]+ s\."
        # The last may not have been sent yet.
        nothing = "|owed nothing" if self.lost > LATER else ""
        return rf"It was worker 1 of 2, and (owed {batch}, which it had not begun{nothing})\."


FIRST, LATER, AFTER = 1, 21, 23

MOMENTS = {
    "init function": Moment(lost=FIRST, is_begun=False),
    "first sample": Moment(lost=FIRST, returns=True),
    "later sample": Moment(returns=True),
    "collating": Moment(returns=True),
    "writing": Moment(),
    "before the token": Moment(is_users=False),
    "after the token": Moment(lost=AFTER, is_begun=False, is_users=False),
    "unpickling": Moment(lost=0, is_begun=False, is_in_a_pass=False),
    "closing": Moment(is_in_a_pass=False),
}


def cells(*kinds: Kind) -> list[tuple[str, str]]:
    """Returns the faults of some kinds with every moment at which they can be met."""
    return [
        (fault, moment)
        for fault in FAULTS
        for moment in MOMENTS
        if FAULTS[fault].kind in kinds and MOMENTS[moment].allows(FAULTS[fault].kind)
    ]


class Trap:
    """One fault at one moment.

    Args:
        fault: which.
        moment: when.
        armed: a file; while it is there the trap works.
        once: whether it works once only.

    Attributes:
        holds: whether the worker waits for `release` in batch LATER, before whatever it meets.
    """

    def __init__(self, fault: str, moment: str, armed: Path, once: bool = False) -> None:
        self.fault, self.moment, self.armed, self.once = fault, moment, armed, once
        self.holds = moment == "closing"
        armed.touch()
        self.hold, self._release = wire.pipe(1)
        self._met, self._tell = wire.pipe(1)

    def at(self, moment: str) -> Any:
        """Meets the fault if this is the moment. Used in the worker."""
        if moment == self.moment and self._is_armed():
            return FAULTS[self.fault].meet(self)
        return None

    def _is_armed(self) -> bool:
        if not self.once:
            return self.armed.exists()
        try:
            self.armed.unlink()
        except FileNotFoundError:
            return False
        return True

    def tell(self) -> None:
        """Says that the fault is being met. Used in the worker."""
        os.write(self._tell.fd, b"x")

    def wait(self, pid: int) -> None:
        """Blocks until a worker hangs, or is stopped, or is about to meet the fault while it is told to end."""
        os.read(self._met.fd, 1)
        if self.fault == "SIGSTOP" and self.moment != "closing":
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    def release(self) -> None:
        """Lets a worker that hangs go on."""
        os.write(self._release.fd, b"x")

    def disarm(self) -> None:
        """From now on nothing is met."""
        self.armed.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the pipes, which ends every hang."""
        for end in (self.hold, self._release, self._met, self._tell):
            end.close()

    # -- what a loader is given ----------------------------------------------------------------------------------

    def init(self, worker: int) -> None:
        """An init function, which also makes the moments around a token out of the writing of it."""
        if worker == VICTIM:
            self.at("init function")
        write = wire.Outbox.write

        def write_and_meet(end: wire.Outbox, fields: wire.Fields) -> None:
            token = wire.Token._make(fields)
            is_watched = token.kind == wire.BATCH and token.seq == LATER
            if is_watched:
                self.at("before the token")
            write(end, token)
            if is_watched:
                self.at("after the token")

        setattr(wire.Outbox, "write", write_and_meet)  # noqa: B010

    def sample(self, index: int) -> Sample:
        """Makes a sample, of its index and from the random stream."""
        extra = None
        if index == FIRST:
            extra = self.at("first sample")
        if index == LATER:
            if self.holds and self.armed.exists():
                self.tell()
                os.read(self.hold.fd, 1)
            extra = self.at("closing" if self.moment == "closing" else "later sample")
        return Sample(index, torch.cat([torch.full((1000,), float(index)), torch.rand(2)]), extra)

    def collate(self, samples: list[Sample]) -> Any:
        """Makes a batch, most of it right in the slot."""
        extra = self.at("collating") if samples[0].index == LATER else None
        tensor = default_collate([sample.tensor for sample in samples])
        trap = self if samples[0].index == LATER else None
        return tensor, samples[0].index, Stubborn(trap), samples[0].extra, extra


@dataclass
class Sample:
    """One sample, and what a fault has put beside it."""

    index: int
    tensor: torch.Tensor
    extra: Any


class Stubborn:
    """Something that meets the fault while it is pickled: its batch is half written then."""

    def __init__(self, trap: Trap | None) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        if self.trap is not None:
            self.trap.at("writing")
        return Stubborn, (None,)


class Trapped(Dataset[Any]):
    """Batch i is sample i, which worker i % 2 makes."""

    def __init__(self, trap: Trap) -> None:
        self.trap = trap

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> Sample:
        return self.trap.sample(index)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.trap.at("unpickling")


class TrappedStream(IterableDataset[Any]):
    """The same samples, as two workers' streams."""

    def __init__(self, trap: Trap) -> None:
        self.trap = trap

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        assert info is not None
        for index in range(info.id, BATCHES, 2):
            yield self.trap.sample(index)


def make(trap: Trap, dataset: type[Trapped | TrappedStream] = Trapped, **arguments: Any) -> ShmDataLoader[Any]:
    """Returns a loader with two workers, the second of which walks into ``trap``."""
    return ShmDataLoader(
        dataset(trap),
        **{
            "num_workers": 2,
            "worker_init_fn": trap.init,
            "collate_fn": trap.collate,
            "max_pool_bytes": CAP,
            "timeout": 60,
            **arguments,
        },
    )


def checked(batch: Any) -> int:
    """Returns the number of a batch whose content is right."""
    tensor, index, stubborn, *extras = batch
    assert (tensor[0, :1000] == index).all()
    assert isinstance(stubborn, Stubborn)
    assert extras == [None, None]
    assert isinstance(index, int)
    return index


class Held:
    """Batches in the hands of a loop, that must not change."""

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._batches: list[tuple[torch.Tensor, bytes]] = []

    def take(self, batch: Any) -> int:
        """Holds a batch, if it is one of the first, and returns its number."""
        if len(self._batches) < self._most:
            self._batches.append((batch[0], bits(batch[0])))
        return checked(batch)

    def check(self, least: int = 0) -> None:
        """Asserts that nothing has changed, and that at least so many batches are held."""
        assert len(self._batches) >= least
        for tensor, content in self._batches:
            assert bits(tensor) == content


def pids(iterator: Any) -> list[int]:
    """Returns the processes of an iterator's workers."""
    return [process.pid for process in iterator._workers]


def contents(iterator: Any) -> list[tuple[int, bytes]]:
    """Returns what comes: the batches' numbers and bits, those from the random streams among them."""
    return [(checked(batch), bits(batch[0])) for batch in iterator]
