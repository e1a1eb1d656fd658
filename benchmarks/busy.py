"""Loaders on a machine whose processors all have other work: ``python -m benchmarks.busy``.

First, how long a process that is woken waits for a processor that another one uses: by the scheduling policy, the
ordinary one or `SCHED_BATCH`. Then, while other processes work without end, torch's loader takes turns with ours, whose
workers have either policy, and with bare processes that make the same samples and hand nothing over. Which of them gets
a processor when, the kernel decides anew at each turn: so the figures spread far more than those of a quiet machine,
and only the ratios of many rounds say something.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, figure, ratio, times
from shmloader.cli.bench.measure import Track, calibrate, interleave
from shmloader.cli.bench.memory import Loader
from shmloader.cli.console import Parser, positive, shown
from shmloader.cli.machine import machine, machine_line
from shmloader.workers import cpu_policy

from .cells import CELLS, Samples
from .output import chosen, command, markdown, micros, options

_NUM_WORKERS = 2

# Rounds that are not counted: workers come into step.
_WARM_UP = 1

# About a millisecond of a processor that does nothing else.
_ADDITIONS = 20_000

# How often a process is woken, and for how many seconds the one that wakes it works before.
_WAKES, _BETWEEN = 200, 0.002

_POLICIES = {"SCHED_OTHER": os.SCHED_OTHER, "SCHED_BATCH": os.SCHED_BATCH}
_CONTESTANTS = (*_POLICIES, "stock", "bare")


def work(milliseconds: int) -> int:
    """Keeps a processor busy in Python for about so long, and returns a number."""
    total = 0
    for number in range(milliseconds * _ADDITIONS):
        total += number
    return total


# -- what is loaded --------------------------------------------------------------------------------------------------


class Laborious(Samples):
    """Small samples, each of which takes about a millisecond of Python."""

    def __getitem__(self, index: int) -> Any:
        work(1)
        return super().__getitem__(index)


def _laborious() -> Dataset[Any]:
    return Laborious([(np.full(16, number, np.float32), number % 10) for number in range(64)])


def _rows(shards: list[int]) -> Iterator[dict[str, Any]]:
    for number in itertools.cycle(range(512)):
        yield {"pixels": [float(number)] * 64, "label": number % 10}


def _stream() -> Dataset[Any]:
    """An endless stream of tensors from the library `datasets`, a part of it for each worker."""
    datasets = importlib.import_module("datasets")  # which only this job needs
    stream = datasets.IterableDataset.from_generator(_rows, gen_kwargs={"shards": list(range(_NUM_WORKERS))})
    return stream.with_format("torch")  # type: ignore[no-any-return]


def _gray28() -> Dataset[Any]:
    return next(cell for cell in CELLS if cell.name == "gray28").dataset()


@dataclass(frozen=True)
class Job:
    """What a loader is for.

    Attributes:
        name: what the command line and the table call it.
        dataset: makes what is loaded.
        batch_size: samples a batch.
        step: milliseconds of Python that the loop spends on each batch.
        needs: a module that has to be importable.
    """

    name: str
    dataset: Callable[[], Dataset[Any]]
    batch_size: int
    step: int = 0
    needs: str = "torch"


JOBS = (
    Job("python", _laborious, 8),
    Job("python-loop", _laborious, 8, step=4),
    Job("stream", _stream, 32, needs="datasets"),
    Job("gray28", _gray28, 64),
    Job("gray28-loop", _gray28, 64, step=4),
)


class _Trained:
    """A loader whose loop works on each batch before it asks for the next one."""

    def __init__(self, loader: Loader, step: int) -> None:
        self.num_workers, self.prefetch_factor = loader.num_workers, loader.prefetch_factor
        self._loader = loader
        self._step = step

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            work(self._step)
            yield batch


# -- what else the machine does --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What else has use for the processors.

    Attributes:
        name: what the command line and the table call it.
        loops: processes that only calculate.
        loaders: processes that load laborious samples with torch's loader, each with two workers.
        is_apart: whether it runs in a session of its own. Linux can share the processors out to sessions first, and
            does so on most desktops.
    """

    name: str
    loops: int = 0
    loaders: int = 0
    is_apart: bool = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Runs it beside the block, and ends it with the block or with this process."""
        until, end = os.pipe()
        acts = [_calculate] * self.loops + [_load] * self.loaders
        pids = [self._start(act, until, end) for act in acts]
        try:
            yield
        finally:
            os.close(end)
            for pid in pids:
                os.waitpid(pid, 0)
            os.close(until)

    def _start(self, act: Callable[[Callable[[], bool]], None], until: int, end: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            os.close(end)
            if self.is_apart:
                os.setsid()
            act(lambda: not select.select([until], [], [], 0)[0])
        finally:
            os._exit(0)


def _calculate(goes_on: Callable[[], bool]) -> None:
    while goes_on():
        work(10)


def _load(goes_on: Callable[[], bool]) -> None:
    for _batch in DataLoader(_laborious(), 8, num_workers=_NUM_WORKERS):
        if not goes_on():
            break


LOADS = (
    Load("nothing"),
    Load("2-loops", loops=2),
    Load("4-loops", loops=4),
    Load("2-loops-apart", loops=2, is_apart=True),
    Load("2-loaders", loaders=2),
)

# -- measuring -------------------------------------------------------------------------------------------------------


def wakes() -> dict[str, Figure]:
    """Returns the seconds from waking a process until it runs, by policy, beside a loop on the same processor.

    Blocks for some seconds; no process is left. This process works meanwhile on another processor, where there is one.
    """
    allowed = os.sched_getaffinity(0)
    own, shared = min(allowed), max(allowed)
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, allowed)
        os.sched_setaffinity(0, {shared})  # which those that are started inherit
        stack.enter_context(Load("a loop", loops=1).running())
        sleepers = {name: stack.enter_context(_answering(functools.partial(_sleeper, name))) for name in _POLICIES}
        os.sched_setaffinity(0, {own})
        rounds = interleave([functools.partial(_wake, *ends) for ends in sleepers.values()], _WAKES)
    return {name: figure(took) for name, took in zip(sleepers, rounds, strict=True)}


def _wake(to_sleeper: int, from_sleeper: int) -> float:
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + _BETWEEN:
        pass
    os.write(to_sleeper, b"x")
    return float(os.read(from_sleeper, 64)) - now


@contextlib.contextmanager
def _answering(prepare: Callable[[], Callable[[], bytes]]) -> Iterator[tuple[int, int]]:
    """Runs a process that answers each byte with what ``prepare`` has returned there; yields the ends of its pipes."""
    (inbox, to_process), (from_process, outbox) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(to_process)
            answer = prepare()
            while os.read(inbox, 1):
                os.write(outbox, answer())
        finally:
            os._exit(0)
    try:
        yield to_process, from_process
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in (inbox, to_process, from_process, outbox):
            os.close(fd)


def _sleeper(policy: str) -> Callable[[], bytes]:
    _run_as(policy, 0)
    return lambda: repr(time.perf_counter()).encode()


class _Bare:
    """Processes that make batches, in turn and as far ahead as loaders do, and keep them to themselves."""

    def __init__(self, job: Job, ends: Sequence[tuple[int, int]]) -> None:
        self._job = job
        self._ends = ends

    @staticmethod
    def prepare(job: Job) -> Callable[[], bytes]:
        """Returns what makes a batch. Used in a process."""
        batches = iter(DataLoader(job.dataset(), job.batch_size))
        return lambda: b"x" if next(batches) is not None else b""

    def run(self, count: int) -> float:
        """Returns the seconds of a batch. Blocks until so many are made."""
        ahead = 2 * len(self._ends)
        start = 0.0
        for number in range(-2 * ahead, count + ahead):
            to_process, from_process = self._ends[number % len(self._ends)]
            if number == 0:
                start = time.perf_counter()
            if number >= -ahead:
                os.read(from_process, 1)
            if number == count:
                took = time.perf_counter() - start
            if number < count:
                os.write(to_process, b"x")
                work(self._job.step if number >= -ahead else 0)
        return took / count


@dataclass(frozen=True)
class Found:
    """One job beside one load: seconds a batch, by contestant, round by round."""

    job: str
    load: str
    rounds: dict[str, list[float]]

    @property
    def times(self) -> dict[str, Figure]:
        """Seconds a batch."""
        return {name: figure(rounds) for name, rounds in self.rounds.items()}

    @property
    def ratios(self) -> dict[str, Figure]:
        """Stock's time a batch over ours, by policy, and over that of bare processes."""
        return {name: ratio(self.rounds["stock"], self.rounds[name]) for name in (*_POLICIES, "bare")}

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "job": self.job,
            "load": self.load,
            "seconds_per_batch": {name: found.as_dict() for name, found in self.times.items()},
            "stock_to_others": {name: found.as_dict() for name, found in self.ratios.items()},
        }


def measure(job: Job, load: Load, rounds: int, seconds: float, done: Callable[[], None] = lambda: None) -> Found:
    """Measures one job beside one load. Blocks meanwhile; no process is left.

    Args:
        job: what is loaded.
        load: what else the machine does.
        rounds: how many rounds are counted.
        seconds: about how long a contestant's turn takes.
        done: called after each turn.
    """
    with load.running(), contextlib.ExitStack() as stack:
        prepare = functools.partial(_Bare.prepare, job)
        bare = _Bare(job, [stack.enter_context(_answering(prepare)) for _ in range(_NUM_WORKERS)])
        # Stock's last: it starts threads, beside which forking is not safe.
        loaders: dict[str, DataLoader[Any]] = {
            name: ShmDataLoader(
                job.dataset(), job.batch_size, num_workers=_NUM_WORKERS, worker_init_fn=functools.partial(_run_as, name)
            )
            for name in _POLICIES
        }
        loaders["stock"] = DataLoader(job.dataset(), job.batch_size, num_workers=_NUM_WORKERS)
        tracks = [Track(_Trained(loader, job.step) if job.step else loader) for loader in loaders.values()]
        for track in tracks:
            stack.callback(track.stop)
        counts = [calibrate(track, seconds) for track in tracks]
        contestants: list[Callable[[], float]] = [
            functools.partial(_round, track, count) for track, count in zip(tracks, counts, strict=True)
        ]
        contestants.append(functools.partial(bare.run, counts[0]))
        took = interleave(contestants, _WARM_UP + rounds, done)
    return Found(job.name, load.name, dict(zip(_CONTESTANTS, (each[_WARM_UP:] for each in took), strict=True)))


def _round(track: Track, count: int) -> float:
    return track.run(count).per_batch


def _run_as(policy: str, worker: int) -> None:
    cpu_policy._QUICK_SECONDS = 0  # a worker would choose for itself
    os.sched_setscheduler(0, _POLICIES[policy], os.sched_param(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit code. Blocks for some ten minutes."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(argv)
    jobs, loads = chosen(parser, "job", args.jobs, JOBS), chosen(parser, "load", args.loads, LOADS)
    found = []
    woken = wakes()
    with shown(len(jobs) * len(loads) * len(_CONTESTANTS) * (_WARM_UP + args.rounds)) as progress:
        for job, load in itertools.product(filter(_is_possible, jobs), loads):
            progress.begin(f"{job.name}, {load.name}")
            found.append(measure(job, load, args.rounds, args.milliseconds / 1e3, progress.step))
    if args.json:
        facts = {
            "command": command("benchmarks.busy", argv),
            "machine": machine(),
            "seconds_until_a_woken_process_runs": {name: one.as_dict() for name, one in woken.items()},
            "found": [one.as_dict() for one in found],
        }
        print(json.dumps(facts, indent=2))
    else:
        head = ("policy", "us until a woken process runs, on a processor that a loop uses")
        waits = markdown(head, [(name, micros(one)) for name, one in woken.items()])
        print("\n".join([machine_line(), "", *waits, "", *_lines(found)]))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.busy",
        description="Times torch's DataLoader and ours while other processes have use for the processors.",
        parents=[options()],
    )
    parser.add_argument("--jobs", metavar="A,B", help=f"of {', '.join(job.name for job in JOBS)}; default: all")
    parser.add_argument("--loads", metavar="A,B", help=f"of {', '.join(load.name for load in LOADS)}; default: all")
    parser.add_argument("--rounds", type=positive, default=9, metavar="N", help="default: 9")
    parser.add_argument(
        "--milliseconds", type=positive, default=1000, metavar="N", help="about how long each takes; default: 1000"
    )
    return parser


def _is_possible(job: Job) -> bool:
    """Whether what it needs is installed; says so where it is not."""
    is_installed = importlib.util.find_spec(job.needs) is not None
    if not is_installed:
        print(f"{job.name} is left out: {job.needs} is not installed", file=sys.stderr)
    return is_installed


def _lines(found: Sequence[Found]) -> list[str]:
    others = (*_POLICIES, "bare")
    head = ("job", "beside it", "stock us/batch", *(f"{name} us/batch, stock / it" for name in others))
    rows = []
    for one in found:
        ours = [f"{micros(one.times[name])}, {one.ratios[name].text(times)}" for name in others]
        rows.append((one.job, one.load, micros(one.times["stock"]), *ours))
    return markdown(head, rows)


if __name__ == "__main__":
    sys.exit(main())
