"""Loops that wait for their data, each for another reason, and loops that do not.

Each case makes one situation on purpose, with a dataset that sleeps where a real one would read or decode, and a step
that sleeps where a real one would wait for a GPU. It prints the loader's figures and its verdict: what the loop waits
for, and which knob would help. docs/is-it-the-data.md goes through them. Run one with::

    python examples/symptoms.py --case loader-bound

or all of them without ``--case``.
"""

from __future__ import annotations

import argparse
import collections
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from shmloader import HeldBatchesWarning, LoaderStatistics, ShmDataLoader


class Pictures(Dataset[NDArray[np.uint8]]):
    """Pictures that take a given time to read.

    Args:
        length: how many there are.
        seconds: what one takes; or what tells it, of the index.
        side: pixels, of three bytes each, in a row and in a column.
    """

    def __init__(self, length: int, seconds: float | Callable[[int], float] = 0.0, side: int = 64) -> None:
        self._length = length
        self._seconds = seconds
        self._picture = np.zeros((3, side, side), np.uint8)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        seconds = self._seconds(index) if callable(self._seconds) else self._seconds
        if seconds:
            time.sleep(seconds)
        return self._picture


def far_pictures() -> Pictures:
    """Returns pictures that wait for a server: two milliseconds each, in which no processor is needed.

    For ``python -m shmloader bench symptoms:far_pictures --batch-size 16 --num-workers 1,2,4,8 --step 10``, from here.
    """
    return Pictures(4096, seconds=0.002)


def one_is_slow(index: int) -> float:
    """Returns what a sample takes: half a millisecond, but for one, which takes as long as a file that is far away."""
    return 1.0 if index == 650 else 0.0005


def one_worker_is_slow(index: int) -> float:
    """Returns what a sample takes: in one of the workers, four times what it takes in others."""
    worker = get_worker_info()
    return 0.004 if worker is not None and worker.id == 1 else 0.001


def open_files(worker: int) -> None:
    """Stands for what a worker does before its first sample: reading an index, connecting to a server."""
    time.sleep(0.5)


def even(number: int) -> float:
    """Returns what a step takes: always the same."""
    return 1.0


def in_bursts(number: int) -> float:
    """Returns what a step takes: of twelve, one takes it all, as where weights are updated once for twelve batches."""
    return 12.0 if number % 12 == 11 else 0.0


@dataclass(frozen=True)
class Case:
    """A loop over a loader.

    Attributes:
        dataset: what is loaded, with two workers where ``arguments`` do not say otherwise.
        step: seconds that a step takes.
        rhythm: by what that is multiplied, by the number of the step.
        kept: how many of the last batches the loop keeps.
        passes: how many.
        arguments: the loader's others.
    """

    dataset: Dataset[Any]
    step: float
    rhythm: Callable[[int], float] = even
    kept: int = 1
    passes: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)


CASES = {
    "loop-bound": Case(Pictures(1024), step=0.04),
    "loader-bound": Case(Pictures(1024, seconds=0.002), step=0.005),
    "no-workers": Case(Pictures(1024, seconds=0.002), step=0.02, arguments={"num_workers": 0}),
    "start-up": Case(Pictures(320), step=0.002, passes=2, arguments={"worker_init_fn": open_files}),
    "straggling-sample": Case(Pictures(1280, seconds=one_is_slow), step=0.015),
    "slow-worker": Case(Pictures(1024, seconds=one_worker_is_slow), step=0.012),
    "bursts": Case(Pictures(1536, seconds=0.0006), step=0.016, rhythm=in_bursts),
    "held-batches": Case(Pictures(2560, side=256), step=0.004, kept=30, arguments={"num_slots": 8}),
    "memory-cap": Case(Pictures(1024, side=512), step=0.01, kept=2, arguments={"max_pool_bytes": 48 << 20}),
}


def run(case: Case) -> LoaderStatistics:
    """Runs a case, and returns the figures. Blocks for a few seconds."""
    loader = ShmDataLoader(case.dataset, batch_size=16, **{"num_workers": 2, **case.arguments})
    last: collections.deque[Any] = collections.deque(maxlen=case.kept)
    for _ in range(case.passes):
        for number, batch in enumerate(loader):
            last.append(batch)
            time.sleep(case.step * case.rhythm(number))
    return loader.statistics()


def main() -> None:
    """Runs what was asked for, and prints what the loader says of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="which; default: all")
    args = parser.parse_args()
    warnings.simplefilter("ignore", HeldBatchesWarning)  # which says the same
    for name in args.case or CASES:
        print(f"--case {name}")
        print(run(CASES[name]), end="\n\n")


if __name__ == "__main__":
    main()
