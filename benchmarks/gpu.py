"""What a device gets: ``python -m benchmarks.gpu``, on a machine with CUDA.

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

import json
import mmap
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from shmloader.cli.console import Parser, positive
from shmloader.cli.machine import machine, machine_line
from shmloader.device import cuda

from .cells import Samples

_CLASSES = 1000
_LARGE_COPY = 1 << 28
_SIZES = [1 << 20, 1 << 24, 1 << 26, 1 << 28]

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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code: 1 where there is no CUDA device. Blocks for some minutes."""
    parser = Parser(prog="python -m benchmarks.gpu", description="Times loading to a CUDA device.")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    parser.add_argument("--batches", type=positive, default=60, metavar="N", help="batches a round; default: 60")
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N", help="default: 256")
    parser.add_argument("--num-workers", type=positive, default=8, metavar="N", help="default: 8")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    args = parser.parse_args(argv)
    if not cuda.is_available():
        print("benchmarks.gpu needs a CUDA device, and torch finds none", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    large = large_copy(device)
    found = {
        "machine": {**machine(), "device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda},
        "arguments": vars(args),
        "large_copy_bytes_per_s": large,
        "bandwidth": compare(device, lambda images, labels: None, 224, args.batch_size, args.num_workers, args),
        "step": compare(device, training_step(device), 224, args.batch_size, args.num_workers, args, with_limit=True),
        "registration_s": {nbytes: registration(nbytes).as_dict() for nbytes in _SIZES},
    }
    print(json.dumps(found, indent=2) if args.json else "\n".join(report(found)))
    return 0


def compare(
    device: torch.device, step: Step, side: int, batch_size: int, num_workers: int, args: Any, with_limit: bool = False
) -> dict[str, Any]:
    """Times a step behind each loader, in turn; see `Timed` and the module's docstring.

    Returns:
        By contestant its figures; bytes and images of a batch.
    """
    tracks = contestants(device, side, batch_size, num_workers)
    if with_limit:
        (resident,) = [next(iterator) for name, iterator in tracks.items() if name == "ours"]
        tracks["on the device already"] = forever(resident)
    for iterator in tracks.values():
        run(device, iterator, step, 3 * args.batches)  # workers get into step, and algorithms are chosen
    rounds: dict[str, list[Timed]] = {name: [] for name in tracks}

    def one(name: str) -> Callable[[], Round]:
        def turn() -> Round:
            run(device, tracks[name], step, 4 * num_workers)  # what was loaded ahead while others had their turn
            rounds[name].append(run(device, tracks[name], step, args.batches))
            return rounds[name][-1]

        return turn

    interleave([one(name) for name in tracks], args.rounds)
    return {
        "images": batch_size,
        "nbytes": batch_size * (3 * side * side + 8),
        "contestants": {name: summary(timed) for name, timed in rounds.items()},
    }


def summary(timed: Sequence[Timed]) -> dict[str, Any]:
    """Returns the figures of one contestant's rounds."""
    return {
        "batch_s": figure([round_.per_batch for round_ in timed]).as_dict(),
        "cpu_s": figure([round_.cpu_per_batch for round_ in timed]).as_dict(),
        "slow_wait_s": figure([round_.slow_wait for round_ in timed]).as_dict(),
    }


def contestants(device: torch.device, side: int, batch_size: int, num_workers: int) -> dict[str, Batches]:
    """Returns endless batches on the device, by loader."""
    draw = np.random.default_rng(0)
    samples = [(draw.integers(0, 256, (3, side, side), np.uint8), index % _CLASSES) for index in range(512)]
    arguments: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": True}
    dataset = Samples(samples)
    return {
        "stock": moved(DataLoader(dataset, **arguments), device),
        "ours": moved(ShmDataLoader(dataset, **arguments), device),
        "ours, device=": iter(ShmDataLoader(dataset, **arguments, device=device)),
    }


def moved(loader: DataLoader[Any], device: torch.device) -> Batches:
    """Yields a loader's batches as most training loops move them."""
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def forever(batch: tuple[Tensor, Tensor]) -> Batches:
    """Yields the same batch, which no loader can be faster than."""
    while True:
        yield batch


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
    """Returns the seconds that it takes to page-lock shared memory that is there already, as a slot is."""
    memory = mmap.mmap(-1, nbytes)
    array = np.ndarray(nbytes, np.uint8, memory)
    array[:] = 1
    address, driver, seconds = int(array.__array_interface__["data"][0]), cuda.driver(), []
    for _ in range(7):
        start = time.perf_counter()
        failure = driver.register(address, nbytes)
        seconds.append(time.perf_counter() - start)
        if failure or not driver.unregister(address):
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


def report(found: dict[str, Any]) -> list[str]:
    """Returns the figures as Markdown."""
    arguments = found["arguments"]
    setting = f"{arguments['num_workers']} workers, batches of {arguments['batch_size']}, {arguments['rounds']} rounds"
    lines = [
        f"{found['machine']['device']}, CUDA {found['machine']['cuda']}; {machine_line()}; {setting}",
        "",
        f"One large copy: {size(found['large_copy_bytes_per_s'])}/s.",
    ]
    bandwidth, step = found["bandwidth"], found["step"]
    lines += table(
        "nothing but copies",
        "of one large copy",
        bandwidth,
        lambda seconds: f"{bandwidth['nbytes'] / seconds / found['large_copy_bytes_per_s']:.2f}",
    )
    lines += table("training step", "images/s", step, lambda seconds: f"{step['images'] / seconds:.0f}")
    costs = (f"{size(nbytes)} {duration(cost['median'])}" for nbytes, cost in found["registration_s"].items())
    return [*lines, "", f"Page-locking: {', '.join(costs)}."]


def table(what: str, unit: str, found: dict[str, Any], rate: Callable[[float], str]) -> list[str]:
    """Returns a comparison's figures as a table: medians, and in brackets the spread of the rate."""
    rows = ["", f"| {what} | {unit} | CPU a batch | p99 of next() |", "|---|---:|---:|---:|"]
    for name, figures in found["contestants"].items():
        batch = figures["batch_s"]
        spread = f"{rate(batch['median'])} ({rate(batch['high'])} to {rate(batch['low'])})"
        cpu, wait = duration(figures["cpu_s"]["median"]), duration(figures["slow_wait_s"]["median"])
        rows.append(f"| {name} | {spread} | {cpu} | {wait} |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
