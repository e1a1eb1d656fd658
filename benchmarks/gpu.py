"""Measures what a CUDA device gets.

Four figures, for torch's loader with ``pin_memory=True`` and ``.to(non_blocking=True)``, for ours with the same, and
for ours with ``device=``, which take turns:

- *bandwidth*: bytes of batches that arrive on the device, with no computing there, as a share of the bandwidth of one
  large page-locked copy;
- *a training step* of a network like ResNet-50 in bfloat16, in images a second, beside the same steps on a batch that
  is on the device already, which no loader can exceed;
- the processor time that a batch costs this process, and the slowest hundredth of ``next()``, in those steps;
- what it costs to page-lock memory, by size.

The device is waited for at a round's beginning and end only.
"""

from __future__ import annotations

import argparse
import functools
import mmap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from shmloader import ShmDataLoader
from shmloader.cli.bench.figures import Figure, duration, figure, size
from shmloader.cli.bench.measure import Round, interleave
from shmloader.cli.console import UsageError, positive

from .cells import Samples
from .output import Found, as_dicts, markdown

_CLASSES = 1000
_SIDE = 224
_LARGE_COPY = 1 << 28
_SIZES = (1 << 20, 1 << 24, 1 << 26, 1 << 28)
# For all contexts, as slots are: CUDA's cudaHostRegisterPortable.
_PORTABLE = 1

_RESIDENT = "on the device already"

Step = Callable[[Tensor, Tensor], object]
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass
class Timed(Round):
    """A round, with the seconds that each ``next()`` took."""

    waits: tuple[float, ...] = ()

    @property
    def slow_wait(self) -> float:
        """Seconds that one ``next()`` of a hundred exceeds."""
        return float(np.percentile(self.waits, 99))


@dataclass(frozen=True)
class Comparison:
    """Rounds of one step behind several loaders, by name.

    Attributes:
        images: of a batch.
        nbytes: of a batch.
        rounds: of each contestant.
    """

    images: int
    nbytes: int
    rounds: dict[str, list[Timed]]

    @property
    def times(self) -> dict[str, Figure]:
        """Seconds a batch."""
        return {name: figure([took.per_batch for took in rounds]) for name, rounds in self.rounds.items()}

    @property
    def cpu(self) -> dict[str, Figure]:
        """Seconds of this process's processor time a batch."""
        return {name: figure([took.cpu_per_batch for took in rounds]) for name, rounds in self.rounds.items()}

    @property
    def slow_waits(self) -> dict[str, Figure]:
        """Seconds that one ``next()`` of a hundred exceeds."""
        return {name: figure([took.slow_wait for took in rounds]) for name, rounds in self.rounds.items()}

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "images": self.images,
            "nbytes": self.nbytes,
            "batch_s": as_dicts(self.times),
            "cpu_s": as_dicts(self.cpu),
            "slow_wait_s": as_dicts(self.slow_waits),
        }

    def lines(self, what: str, unit: str, rate: Callable[[float], str]) -> list[str]:
        """Returns a table: medians, and in brackets the spread of the rate."""
        rows = [
            (
                name,
                f"{rate(took.median)} ({rate(took.high)} to {rate(took.low)})",
                duration(self.cpu[name].median),
                duration(self.slow_waits[name].median),
            )
            for name, took in self.times.items()
        ]
        return markdown((what, unit, "CPU a batch", "p99 of next()"), rows)


@dataclass(frozen=True)
class OnDevice(Found):
    """What was measured.

    Attributes:
        device: its name, and CUDA's version.
        arguments: of the command.
        large_copy: bytes a second of one large copy.
        bandwidth: with nothing but copies.
        step: with training steps.
        registration: seconds to page-lock memory, by its size.
    """

    device: str
    arguments: dict[str, int]
    large_copy: float
    bandwidth: Comparison
    step: Comparison
    registration: dict[int, Figure]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        return {
            "device": self.device,
            "arguments": self.arguments,
            "large_copy_bytes_per_s": self.large_copy,
            "bandwidth": self.bandwidth.as_dict(),
            "step": self.step.as_dict(),
            "registration_s": as_dicts(self.registration),
        }

    def lines(self) -> list[str]:
        """Returns two tables, and sentences with what stands alone."""
        arguments = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.arguments.items())
        costs = ", ".join(f"{size(nbytes)} {duration(cost.median)}" for nbytes, cost in self.registration.items())
        copies = self.bandwidth.lines("nothing but copies", "of one large copy", self._share)
        steps = self.step.lines("training step", "images/s", lambda seconds: f"{self.step.images / seconds:.0f}")
        head = [f"{self.device}; {arguments}", "", f"One large copy: {size(self.large_copy)}/s."]
        return [*head, "", *copies, "", *steps, "", f"Page-locking: {costs}."]

    def _share(self, seconds: float) -> str:
        return f"{self.bandwidth.nbytes / seconds / self.large_copy:.2f}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    add("--batches", type=positive, default=60, metavar="N", help="batches a round; default: 60")
    add("--batch-size", type=positive, default=256, metavar="N", help="default: 256")
    add("--num-workers", type=positive, default=8, metavar="N", help="default: 8")


def measure(args: argparse.Namespace) -> OnDevice:
    """Measures on torch's current CUDA device. Blocks for some minutes.

    Raises:
        UsageError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise UsageError("this needs a CUDA device, and torch finds none")
    device = torch.device("cuda", torch.cuda.current_device())
    make = functools.partial(contestants, device, _SIDE, args.batch_size, args.num_workers)
    time_them = functools.partial(
        compare, device, count=args.batches, num_rounds=args.rounds, ahead=4 * args.num_workers
    )
    return OnDevice(
        f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}",
        {name: getattr(args, name) for name in ("num_workers", "batch_size", "batches", "rounds")},
        large_copy(device),
        time_them(make(), lambda images, labels: None),
        time_them(with_resident(make()), training_step(device)),
        {nbytes: registration(nbytes) for nbytes in _SIZES},
    )


def compare(
    device: torch.device, batches: Mapping[str, Batches], step: Step, *, count: int, num_rounds: int, ahead: int
) -> Comparison:
    """Times a step behind each loader, in turn, in rounds of ``count`` batches. Blocks meanwhile.

    What was loaded while others had their turn, ``ahead`` batches at most, is not in a round.
    """
    rounds: dict[str, list[Timed]] = {name: [] for name in batches}
    for iterator in batches.values():
        run(device, iterator, step, 3 * count)  # workers get into step, and algorithms are chosen

    def turn(name: str) -> None:
        run(device, batches[name], step, ahead)
        rounds[name].append(run(device, batches[name], step, count))

    interleave([functools.partial(turn, name) for name in batches], num_rounds)
    images, labels = next(batches["ours"])
    return Comparison(len(images), images.nbytes + labels.nbytes, rounds)


def contestants(device: torch.device, side: int, batch_size: int, num_workers: int) -> dict[str, Batches]:
    """Returns endless batches on the device, by loader."""
    draw = np.random.default_rng(0)
    samples = [(draw.integers(0, 256, (3, side, side), np.uint8), index % _CLASSES) for index in range(512)]
    arguments: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": True}
    dataset = Samples(samples)
    # Stock's last: it starts threads, beside which forking is not safe.
    return {
        "ours": moved(ShmDataLoader(dataset, **arguments), device),
        "ours, device=": iter(ShmDataLoader(dataset, **arguments, device=device)),
        "stock": moved(DataLoader(dataset, **arguments), device),
    }


def with_resident(batches: Mapping[str, Batches]) -> dict[str, Batches]:
    """Adds one that gives the same batch for ever, which no loader can be faster than."""
    resident = next(batches["ours"])
    return {**batches, _RESIDENT: iter(lambda: resident, None)}


def moved(loader: DataLoader[Any], device: torch.device) -> Batches:
    """Yields a loader's batches as most training loops move them."""
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def run(device: torch.device, batches: Batches, step: Step, count: int) -> Timed:
    """Times ``count`` batches and the steps with them, and blocks until the device is done with them."""
    waits = []
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        asked = time.perf_counter()
        images, labels = next(batches)
        waits.append(time.perf_counter() - asked)
        step(images, labels)
    cpu = time.process_time() - cpu
    synchronize(device)
    return Timed(count, time.perf_counter() - wall, cpu, waits=tuple(waits))


def synchronize(device: torch.device) -> None:
    """Blocks until a CUDA device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def large_copy(device: torch.device) -> float:
    """Returns the bytes a second of one large copy from page-locked memory: the best of ten."""
    source = torch.zeros(_LARGE_COPY, dtype=torch.uint8)
    source = source.pin_memory() if device.type == "cuda" else source
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        source.to(device, non_blocking=True, copy=True)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return _LARGE_COPY / best


def registration(nbytes: int) -> Figure:
    """Returns the seconds that it takes to page-lock shared memory that is there already, as a slot is.

    Raises:
        RuntimeError: CUDA refuses it.
    """
    array = np.ndarray(nbytes, np.uint8, mmap.mmap(-1, nbytes))
    array[:] = 1
    runtime: Any = torch.cuda.cudart()
    address, seconds = int(array.__array_interface__["data"][0]), []
    for _ in range(7):
        start = time.perf_counter()
        failure = runtime.cudaHostRegister(address, nbytes, _PORTABLE)
        seconds.append(time.perf_counter() - start)
        if int(failure) or int(runtime.cudaHostUnregister(address)):
            raise RuntimeError(f"{nbytes} bytes cannot be page-locked: {failure}")
    return figure(seconds)


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *convolution(inputs, width, 1), nn.ReLU(), *convolution(width, width, 3, stride), nn.ReLU(),
            *convolution(width, 4 * width, 1),
        )  # fmt: skip
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(inputs, 4 * width, 1, stride))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns what the block makes of its inputs."""
        return functional.relu(self.path(inputs) + self.shortcut(inputs))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Returns a convolution and the normalisation behind it."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def network(depths: Sequence[int] = (3, 4, 6, 3)) -> nn.Module:
    """Returns a network with ResNet-50's layers and shapes."""
    layers: list[nn.Module] = [*convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layers.append(Bottleneck(inputs, 64 << stage, 2 if stage and not block else 1))
            inputs = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, _CLASSES))


def training_step(device: torch.device, depths: Sequence[int] = (3, 4, 6, 3)) -> Step:
    """Returns a function that trains a network by one batch, in bfloat16, and waits for nothing."""
    model: Any = network(depths)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> None:
        inputs = images.to(memory_format=torch.channels_last).float().div_(255)
        with torch.autocast(device.type, torch.bfloat16):
            loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
