"""What tests share: batches compared bit by bit, streams through both loaders, and what a process has open."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from shmloader import ShmDataLoader


def assert_same(ours: Any, stock: Any, place: str = "batch") -> None:
    """Asserts that two batches are of the same types, structure, shapes, strides, dtypes and bits."""
    assert type(ours) is type(stock), f"{place}: {type(ours)} and {type(stock)}"
    if isinstance(stock, torch.Tensor):
        _assert_same_tensor(ours, stock, place)
    elif isinstance(stock, np.ndarray):
        assert (ours.dtype, ours.shape) == (stock.dtype, stock.shape), place
        if stock.dtype.hasobject or stock.dtype == np.longdouble:  # which has padding
            assert_same(ours.tolist(), stock.tolist(), place)
        else:
            assert ours.tobytes() == stock.tobytes(), place
    elif isinstance(stock, Mapping):
        assert list(ours) == list(stock), place
        for key in stock:
            assert_same(ours[key], stock[key], f"{place}[{key!r}]")
    elif isinstance(stock, Sequence) and not isinstance(stock, (str, bytes)):
        assert len(ours) == len(stock), place
        for position, (one, other) in enumerate(zip(ours, stock, strict=True)):
            assert_same(one, other, f"{place}[{position}]")
    elif isinstance(stock, float) and math.isnan(stock):
        assert math.isnan(ours), place
    elif hasattr(stock, "__dict__"):
        assert_same(vars(ours), vars(stock), place)
    else:
        assert ours == stock, f"{place}: {ours!r} and {stock!r}"


def _assert_same_tensor(ours: torch.Tensor, stock: torch.Tensor, place: str) -> None:
    assert ours.dtype is stock.dtype, f"{place}: {ours.dtype} and {stock.dtype}"
    assert ours.layout is stock.layout, place
    if stock.is_sparse:
        assert ours.shape == stock.shape, place
        assert ours.is_coalesced() == stock.is_coalesced(), place
        _assert_same_tensor(ours._indices(), stock._indices(), place)
        _assert_same_tensor(ours._values(), stock._values(), place)
        return
    if stock.layout is not torch.strided and not stock.is_nested:
        _assert_same_tensor(ours.values(), stock.values(), place)
        _assert_same_tensor(ours.to_dense(), stock.to_dense(), place)
        return
    if stock.is_nested:
        for one, other in zip(ours.unbind(), stock.unbind(), strict=True):
            _assert_same_tensor(one, other, place)
        return
    assert ours.shape == stock.shape, f"{place}: {ours.shape} and {stock.shape}"
    assert ours.stride() == stock.stride() or not stock.numel(), f"{place}: {ours.stride()} and {stock.stride()}"
    assert ours.requires_grad == stock.requires_grad, place
    assert bits(ours) == bits(stock), f"{place}: {ours} and {stock}"


def bits(tensor: torch.Tensor) -> bytes:
    """Returns a tensor's elements as bytes, so that NaNs are equal and -0.0 is not 0.0."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def seed_everything(seed: int) -> None:
    """Seeds the random streams of this process."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def random_states() -> tuple[bytes, Any, Any]:
    """Returns the state of this process's random streams."""
    name, keys, *rest = np.random.get_state()
    return bits(torch.get_rng_state()), random.getstate(), (name, bytes(keys), *rest)  # type: ignore[arg-type]


def detached(batch: Any) -> Any:
    """Returns a batch that does not hold a slot."""
    if isinstance(batch, torch.Tensor) and batch.is_nested:  # which cannot be copied deeply
        return torch.nested.nested_tensor([part.clone() for part in batch.unbind()])
    return copy.deepcopy(batch)


Outcome = tuple[list[list[Any]], list[BaseException], Any]


def stream(loader: DataLoader[Any], epochs: int = 1, stop_after: int | None = None) -> Outcome:
    """Returns the batches of each epoch, the errors that came instead of some, and the random states after."""
    batches: list[list[Any]] = []
    errors: list[BaseException] = []
    for _ in range(epochs):
        batches.append([])
        iterator = iter(loader)
        while stop_after is None or len(batches[-1]) < stop_after:
            try:
                batches[-1].append(detached(next(iterator)))
            except StopIteration:
                break
            except Exception as error:
                errors.append(error.with_traceback(None))  # whose frames hold the iterator
                if len(errors) > 500:
                    raise
        del iterator
    return batches, errors, random_states()


def assert_same_stream(
    make_dataset: Callable[[], Any], *, epochs: int = 1, stop_after: int | None = None, seed: int = 7, **arguments: Any
) -> Outcome:
    """Runs the same dataset and arguments through stock and ours, asserts that all is equal, and returns ours."""
    ours_only = {name: arguments.pop(name) for name in list(arguments) if name in OWN_ARGUMENTS}
    seed_everything(seed)
    stock = stream(DataLoader(make_dataset(), **_fresh(arguments)), epochs, stop_after)
    let_stock_end()
    seed_everything(seed)
    ours = stream(ShmDataLoader(make_dataset(), **_fresh(arguments), **ours_only), epochs, stop_after)
    assert_same(ours[0], stock[0], "epochs")
    assert [type(error) for error in ours[1]] == [type(error) for error in stock[1]]
    assert [first_line(error) for error in ours[1]] == [first_line(error) for error in stock[1]]
    assert ours[2] == stock[2], "the main process's random states differ after the last epoch"
    return ours


OWN_ARGUMENTS = ("sample_shapes", "sample_dtypes", "max_pool_bytes", "num_slots")


def _fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments with their factories called: samplers and generators must not be shared by two loaders."""
    return {
        name: value() if name in ("sampler", "batch_sampler", "generator") else value
        for name, value in arguments.items()
    }


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text; what follows is a traceback with line numbers of either library."""
    return str(error).split("\n", 1)[0]


def run_file(code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code as a script of its own, which spawned workers can import, and returns what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(textwrap.dedent(code))
        return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)


def children() -> set[int]:
    """Returns the processes that this one has started and not reaped."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found.update(map(int, (task / "children").read_text().split()))
    return found


def descriptors() -> Counter[str]:
    """Returns what this process has open, by kind."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own descriptor is gone when paths are read
        try:
            kinds[os.readlink(f"/proc/self/fd/{fd}").split(":")[0]] += 1  # noqa: PTH115
        except FileNotFoundError:
            continue
    return kinds


def mappings() -> int:
    """Returns how many arenas this process maps."""
    return sum("memfd:shmloader" in line for line in Path("/proc/self/maps").read_text().splitlines())


def let_stock_end() -> None:
    """Blocks until the threads that feed stock's queues have ended, which stock itself does not wait for."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(5)


def holdings() -> dict[str, Any]:
    """Returns all that a loader could leave behind in this process."""
    gc.collect()
    return {
        "children": children(),
        "descriptors": descriptors(),
        "threads": {thread.name for thread in threading.enumerate()},
        "mappings": mappings(),
    }


def checksum(batch: Iterable[torch.Tensor]) -> int:
    """Returns a number that changes when any bit of the tensors does."""
    return hash(tuple(bits(tensor) for tensor in batch))
