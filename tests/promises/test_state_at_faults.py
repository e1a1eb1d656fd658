"""A pass that is taken up where something goes wrong: nothing is lost, and no batch comes twice."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from shmloader import ShmDataLoader, WorkerDiedError, WorkerTimeoutError
from tests.helpers import resuming

LENGTH = 24


class Troubled(resuming.Counting):
    """Does what a file says as it is read first: ends its worker, or takes longer than anybody waits."""

    def __init__(self, orders: Path) -> None:
        super().__init__(LENGTH, draws=False)
        self.orders = orders
        self.is_first = True

    def __getitem__(self, index: int) -> torch.Tensor:
        is_first, self.is_first = self.is_first, False
        if is_first and self.orders.exists():
            if self.orders.read_text() == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(30)
        return super().__getitem__(index)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("order", "error"), [("die", WorkerDiedError), ("sleep", WorkerTimeoutError)])
@pytest.mark.filterwarnings("ignore::shmloader.ResumeWarning")
def test_what_cannot_be_made_again_is_an_error_and_taken_up_later(
    tmp_path: Path, order: str, error: type[Exception]
) -> None:
    orders = tmp_path / "orders"

    def loader(timeout: float = 0) -> ShmDataLoader[Any]:
        return ShmDataLoader(Troubled(orders), 2, num_workers=1, snapshot_every_n_steps=4, timeout=timeout)

    first = loader()
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    state = first.state_dict()
    assert state["since"] == 3
    rest = [batch.tolist() for batch in iterator]

    orders.write_text(order)
    second = loader(timeout=1 if order == "sleep" else 0)
    second.load_state_dict(state)
    with pytest.raises(error):
        iter(second)
    assert second.state_dict() == state
    orders.unlink()
    second.timeout = 0
    assert [batch.tolist() for batch in second] == rest


class Failing(resuming.Counting):
    """Each sixth sample is an error; the others of its worker take a while."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index % 6 == 0:
            raise ValueError(index)
        time.sleep(index % 3 / 500)
        return super().__getitem__(index)


def numbers(iterator: Any, count: int | None = None) -> list[int]:
    """Returns the samples that come next, and those that errors name."""
    found: list[int] = []
    while count is None or len(found) < count:
        try:
            found.append(int(next(iterator)[0, 0]))
        except StopIteration:
            break
        except ValueError as error:
            found.append(int(re.findall(r"ValueError: (\d+)", str(error))[-1]))
    return found


@pytest.mark.parametrize("given", [1, 7, 13])
def test_without_order_no_batch_is_dropped_for_an_exception(given: int) -> None:
    def loader() -> ShmDataLoader[Any]:
        return ShmDataLoader(Failing(LENGTH, draws=False), 1, num_workers=2, in_order=False)

    first = loader()
    iterator = iter(first)
    before = numbers(iterator, given)
    state = first.state_dict()
    del iterator
    assert state["since"] == 0
    second = loader()
    second.load_state_dict(state)
    assert sorted(before + numbers(iter(second))) == list(range(LENGTH))
