"""Ideas for making the loader faster, those that it uses and those that it does not, against what they would replace.

The variants of an idea take turns, so that both see the same machine; a figure is the median of the rounds. What became
of each idea, and why, docs/performance.md says.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import select
import sys
import time
from collections.abc import Callable, Collection, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch

from shmloader import ShmDataLoader
from shmloader.batches.dtypes import CODES
from shmloader.batches.place import Place, lender, small_ranges
from shmloader.cli.bench.measure import Track, calibrate
from shmloader.cli.machine import machine_line
from shmloader.workers import cpu_policy

from .cells import CELLS

_ROUNDS = 9
_TOKEN = bytes(36)
_BATCH_BYTES = 64 * 3 * 224 * 224
_MADV_HUGEPAGE, _MADV_POPULATE_WRITE = 14, 23

# From the name of a variant to what runs it once and returns seconds.
Variants = dict[str, Callable[[], float]]


def main() -> int:
    """Prints a table and returns the exit code. Blocks for about a minute."""
    print(f"{machine_line()}; medians of {_ROUNDS} rounds in turn\n\n| idea | variant | us |\n| --- | --- | ---: |")
    for idea, make in _IDEAS.items():
        with make() as variants:
            rounds = [{name: run() for name, run in variants.items()} for _ in range(1 + _ROUNDS)][1:]
        for name in variants:
            print(f"| {idea} | {name} | {median(took[name] for took in rounds) * 1e6:.1f} |", flush=True)
    return 0


def _each(act: Callable[[], Any], times: int) -> Callable[[], float]:
    """Returns what times ``act``, in seconds each."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(times):
            act()
        return (time.perf_counter() - start) / times

    return run


# -- waking ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _echoing(serve: Callable[[], None], processors: Collection[int] = ()) -> Iterator[None]:
    """Runs a process that calls ``serve`` over and over, on some ``processors`` or any, and ends with the block."""
    pid = os.fork()
    if not pid:
        if processors:
            os.sched_setaffinity(0, processors)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                serve()
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _echo(source: int, sink: int) -> Callable[[], None]:
    """Returns what sends back what has come."""

    def serve() -> None:
        os.write(sink, os.read(source, 4096))

    return serve


@contextlib.contextmanager
def _on_first_processor() -> Iterator[None]:
    """Keeps this process on one processor, which leaves the others to those that it forks."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _wake_by_eventfd() -> Iterator[Variants]:
    """To wake a processor that rests costs ten times what waking a process does: here it is one with both."""
    others = os.sched_getaffinity(0) - {min(os.sched_getaffinity(0))}
    (down, to_pipe), (from_pipe, up) = os.pipe(), os.pipe()
    to_event, from_event = os.eventfd(0), os.eventfd(0)

    def echo_event() -> None:
        os.eventfd_read(to_event)
        os.eventfd_write(from_event, 1)

    def ask() -> None:
        os.write(to_pipe, _TOKEN)
        os.read(from_pipe, 4096)

    def ask_event() -> None:
        os.eventfd_write(to_event, 1)
        os.eventfd_read(from_event)

    with _on_first_processor(), _echoing(_echo(down, up), others), _echoing(echo_event, others):
        yield {"pipe, there and back": _each(ask, 2000), "eventfd": _each(ask_event, 2000)}
    for fd in (down, to_pipe, from_pipe, up, to_event, from_event):
        os.close(fd)


@contextlib.contextmanager
def _spin() -> Iterator[Variants]:
    """The worker looks again and again for the next job, instead of sleeping; beside it another works."""
    (down, to_child), (from_child, up) = os.pipe(), os.pipe()
    (spun, to_spinner), (from_spinner, spun_up) = os.pipe(), os.pipe()
    os.set_blocking(spun, False)
    work = np.zeros(1 << 14)

    def echo_spinning() -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(spun_up, os.read(spun, 4096))

    def ask() -> None:
        os.write(to_child, _TOKEN)
        work.sum()
        os.read(from_child, 4096)

    def ask_spinner() -> None:
        os.write(to_spinner, _TOKEN)
        work.sum()
        os.read(from_spinner, 4096)

    def alone(serve: Callable[[], None], act: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            with _echoing(serve), _echoing(lambda: None):
                return _each(act, 2000)()

        return run

    yield {"asleep": alone(_echo(down, up), ask), "spinning": alone(echo_spinning, ask_spinner)}
    for fd in (down, to_child, from_child, up, spun, to_spinner, from_spinner, spun_up):
        os.close(fd)


@contextlib.contextmanager
def _waits() -> Iterator[Variants]:
    """A token's way there and back on one processor, to a process that also waits for the end of others."""
    (down, to_child), (from_child, up) = os.pipe(), os.pipe()
    first = {min(os.sched_getaffinity(0))}

    def asks(wait: Callable[[], Any]) -> Callable[[], float]:
        def ask() -> None:
            os.write(to_child, _TOKEN)
            wait()
            os.read(from_child, 4096)

        return _each(ask, 2000)

    with contextlib.ExitStack() as undo:
        undo.enter_context(_on_first_processor())
        undo.enter_context(_echoing(_echo(down, up), first))
        variants = {}
        for workers in (2, 64):
            ends = [os.pidfd_open(os.getpid()) for _ in range(workers)]
            poll, epoll = select.poll(), undo.enter_context(select.epoll())
            for fd in (from_child, *ends):
                poll.register(fd, select.POLLIN)
                epoll.register(fd, select.EPOLLIN)
            variants[f"poll, {workers} workers"] = asks(poll.poll)
            variants[f"epoll, {workers} workers"] = asks(epoll.poll)
            for fd in ends:
                undo.callback(os.close, fd)
        yield variants
    for fd in (down, to_child, from_child, up):
        os.close(fd)


@contextlib.contextmanager
def _two_tokens() -> Iterator[Variants]:
    reader, writer = os.pipe()

    def one_by_one() -> None:
        os.write(writer, _TOKEN)
        os.write(writer, _TOKEN)
        os.read(reader, 4096)

    def together() -> None:
        os.write(writer, _TOKEN + _TOKEN)
        os.read(reader, 4096)

    yield {"two writes": _each(one_by_one, 2000), "one write": _each(together, 2000)}
    os.close(reader)
    os.close(writer)


@contextlib.contextmanager
def _policy() -> Iterator[Variants]:
    """A whole loader: 28 x 28 in batches of 64, two workers; microseconds a batch."""
    cell = next(cell for cell in CELLS if cell.name == "gray28")
    processors = sorted(os.sched_getaffinity(0))

    def policy(name: int) -> Callable[[int], None]:
        def choose(worker: int) -> None:
            cpu_policy._QUICK_SECONDS = 0  # a worker would choose for itself
            os.sched_setscheduler(0, name, os.sched_param(0))

        return choose

    inits: dict[str, Any] = {
        "SCHED_OTHER": None,
        "SCHED_BATCH": policy(os.SCHED_BATCH),
        "SCHED_IDLE": policy(os.SCHED_IDLE),
        "nice 5": lambda worker: os.nice(5),
        "a processor for each": lambda worker: os.sched_setaffinity(0, {processors[worker % len(processors)]}),
    }
    tracks = [
        Track(ShmDataLoader(cell.dataset(), cell.batch_size, num_workers=2, worker_init_fn=init))
        for init in inits.values()
    ]
    runs = [(track, calibrate(track, 0.3)) for track in tracks]
    yield {
        name: lambda track=track, count=count: track.run(count).per_batch  # type: ignore[misc]
        for name, (track, count) in zip(inits, runs, strict=True)
    }
    for track in tracks:
        track.stop()


# -- memory ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _memory() -> Iterator[Variants]:
    """One batch of 9.6 MB written to shared memory."""
    source = np.random.default_rng(0).integers(0, 256, _BATCH_BYTES, dtype=np.uint8)
    fd = os.memfd_create("ideas")
    nbytes = -(-_BATCH_BYTES // (1 << 21)) << 21
    os.ftruncate(fd, 2 * nbytes)
    memory, huge = mmap.mmap(fd, nbytes), mmap.mmap(fd, nbytes, offset=nbytes)
    with contextlib.suppress(OSError):  # where the kernel has none
        huge.madvise(_MADV_HUGEPAGE)
    out, out_of_huge = (np.ndarray(_BATCH_BYTES, np.uint8, place) for place in (memory, huge))

    def write(place: Any) -> Callable[[], None]:
        return lambda: np.copyto(place, source)

    def populate_and_write() -> None:
        memory.madvise(_MADV_POPULATE_WRITE)
        np.copyto(out, source)

    def anew(act: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            memory.madvise(mmap.MADV_REMOVE)
            return _each(act, 1)()

        return run

    yield {
        "new memory": anew(write(out)),
        "new memory, populated ahead": anew(populate_and_write),
        "memory used again": _each(write(out), 20),
        "the same, huge pages asked for": _each(write(out_of_huge), 20),
    }
    os.close(fd)


@contextlib.contextmanager
def _freeze() -> Iterator[Variants]:
    """A forked process's first collection, which writes to every object that it looks at."""

    def collect(freeze: bool) -> Callable[[], float]:
        def run() -> float:
            reader, writer = os.pipe()
            pid = os.fork()
            if not pid:
                if freeze:
                    gc.freeze()
                os.write(writer, str(_each(gc.collect, 1)()).encode())
                os._exit(0)
            took = float(os.read(reader, 64))
            os.waitpid(pid, 0)
            os.close(reader)
            os.close(writer)
            return took

        return run

    yield {"all objects": collect(freeze=False), "gc.freeze() first": collect(freeze=True)}


@contextlib.contextmanager
def _labels() -> Iterator[Variants]:
    """A batch in the loop's hands: 64 images of 28 x 28, and their labels, which would hold them."""
    block = np.zeros(64 * 28 * 28 + 64 * 8, np.uint8)
    places = [
        Place(0, CODES[torch.uint8], (64, 28, 28), None),
        Place(64 * 28 * 28, CODES[torch.int64], (64,), None),
    ]
    view, lend = lender(places, []), lender(places, small_ranges([(place.offset, place.nbytes) for place in places]))
    yield {"lent": _each(lambda: view(block), 5000), "labels copied": _each(lambda: lend(block), 5000)}


@contextlib.contextmanager
def _forking() -> Iterator[Variants]:
    """A fork with nothing in the loop's hands, and with batches of 9.6 MB."""
    cell = next(cell for cell in CELLS if cell.name == "rgb224")
    loader = ShmDataLoader(cell.dataset(), cell.batch_size, num_workers=2, persistent_workers=True)
    iterator = iter(loader)

    def fork(held: int) -> Callable[[], float]:
        def run() -> float:
            batches = [next(iterator) for _ in range(held)]
            start = time.perf_counter()
            pid = os.fork()
            if not pid:
                os._exit(0)
            took = time.perf_counter() - start
            os.waitpid(pid, 0)
            del batches
            return took

        return run

    yield {"nothing held": fork(0), "a batch of 9.6 MB held": fork(1), "four of them": fork(4)}


# -- collating -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _stacking() -> Iterator[Variants]:
    """64 images of 28 x 28 to one array."""
    images = np.random.default_rng(0).integers(0, 256, (2048, 28, 28), dtype=np.uint8)
    samples = [np.array(image) for image in images[:64]]
    out, rows = np.empty((64, 28, 28), np.uint8), np.arange(64)
    flat = out.data.cast("B")

    def join() -> None:
        flat[:] = b"".join(samples)  # type: ignore[arg-type]

    yield {
        "np.stack": _each(lambda: np.stack(samples, out=out), 1000),
        "np.concatenate": _each(lambda: np.concatenate(samples, out=out.reshape(-1, 28)), 1000),
        "bytes.join": _each(join, 1000),
        "np.take, of rows of one array": _each(lambda: np.take(images, rows, 0, out, "clip"), 1000),
    }


_IDEAS: dict[str, Callable[[], contextlib.AbstractContextManager[Variants]]] = {
    "what wakes": _wake_by_eventfd,
    "a worker that waits": _spin,
    "a main process that waits": _waits,
    "two tokens": _two_tokens,
    "a worker's scheduling policy": _policy,
    "memory": _memory,
    "collecting garbage after a fork": _freeze,
    "labels beside images": _labels,
    "a fork": _forking,
    "stacking": _stacking,
}

if __name__ == "__main__":
    sys.exit(main())
