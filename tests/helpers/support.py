"""What tests share: batches compared bit by bit, streams through both loaders, and what a process has open."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import reductions
from torch.utils.data import DataLoader

from shmloader import ShmDataLoader

# For what depends on it: (2, 13), say.
TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])

ROOT = Path(__file__).parents[2]

# Seconds that a test waits for what comes at once on a machine that has nothing else to do: so long only where it never
# comes. Less than the suite gives a test, which would end it without a word of what it waits for.
PATIENCE = 100.0

# Of these, one object is as good as another that is equal to it.
_VALUES = (bool, int, float, complex, str, bytes, tuple, frozenset, range, type, type(None), np.generic)


def assert_same(ours: Any, stock: Any, place: str = "batch", seen: dict[int, tuple[Any, Any]] | None = None) -> None:
    """Asserts that two batches are of the same types, structure, shapes, strides, dtypes and bits.

    What is one object in several places of the one is one object in the other, too.

    Args:
        ours: one batch.
        stock: what it should be.
        place: how errors call the batch.
        seen: which object of either belongs to which of the other, as far as they were compared.
    """
    assert type(ours) is type(stock), f"{place}: {type(ours)} and {type(stock)}"
    seen = {} if seen is None else seen
    if not isinstance(stock, _VALUES):
        if id(ours) in seen or id(stock) in seen:
            pairs = [seen.get(id(one), (None, None)) for one in (ours, stock)]
            assert pairs[0][1] is stock, f"{place}: one object in one of them, and several in the other"
            assert pairs[1][1] is ours, f"{place}: one object in one of them, and several in the other"
            return
        seen[id(ours)], seen[id(stock)] = (ours, stock), (stock, ours)
    if isinstance(stock, torch.Tensor):
        _assert_same_tensor(ours, stock, place)
    elif isinstance(stock, (np.ndarray, np.generic)):
        _assert_same_array(ours, stock, place)
    elif isinstance(stock, (float, complex)):
        assert repr(ours) == repr(stock), f"{place}: {ours!r} and {stock!r}"  # -0.0 is not 0.0, and nan is nan
    elif not _has_parts(stock):
        assert ours == stock, f"{place}: {ours!r} and {stock!r}"
    our_parts, stock_parts = _parts(ours), _parts(stock)
    names = [name for name, _ in stock_parts]
    assert [name for name, _ in our_parts] == names, f"{place}: {[name for name, _ in our_parts]} and {names}"
    for (name, one), (_, other) in zip(our_parts, stock_parts, strict=True):
        assert_same(one, other, place + name, seen)


def _has_parts(value: Any) -> bool:
    is_object = hasattr(value, "__dict__") or dataclasses.is_dataclass(value)
    return (is_object or _is_sequence(value) or isinstance(value, Mapping)) and not isinstance(value, type)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, range))


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Returns what a container or an object consists of, and how one writes that behind its name."""
    if not _has_parts(value) or (isinstance(value, torch.Tensor) and value.is_nested):
        return []
    parts: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        parts += [(f"[{key!r}]", value[key]) for key in value]
    elif _is_sequence(value):
        parts += [(f"[{position}]", part) for position, part in enumerate(value)]
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    names += ["default_factory", "maxlen"] if isinstance(value, (defaultdict, deque)) else []
    names += getattr(value, "__dict__", ())
    return parts + [(f".{name}", getattr(value, name, None)) for name in dict.fromkeys(names)]


def _assert_same_array(ours: Any, stock: Any, place: str) -> None:
    assert (ours.dtype, ours.shape) == (stock.dtype, stock.shape), place
    if stock.dtype.hasobject or stock.dtype.type is np.longdouble:  # which has padding
        assert repr(ours.tolist()) == repr(stock.tolist()), place
    else:
        assert ours.tobytes() == stock.tobytes(), f"{place}: {ours} and {stock}"


def _assert_same_tensor(ours: torch.Tensor, stock: torch.Tensor, place: str) -> None:
    assert ours.dtype is stock.dtype, f"{place}: {ours.dtype} and {stock.dtype}"
    assert ours.layout is stock.layout, place
    assert ours.requires_grad == stock.requires_grad, place
    if stock.is_nested:
        assert ours.size(0) == stock.size(0), place
        for one, other in zip(ours.unbind(), stock.unbind(), strict=True):
            _assert_same_tensor(one, other, place)
        return
    assert ours.shape == stock.shape, f"{place}: {ours.shape} and {stock.shape}"
    if stock.is_sparse:
        assert ours.is_coalesced() == stock.is_coalesced(), place
        _assert_same_tensor(ours._indices(), stock._indices(), place)
        _assert_same_tensor(ours._values(), stock._values(), place)
        return
    if stock.layout is not torch.strided:
        _assert_same_tensor(ours.values(), stock.values(), place)
        _assert_same_tensor(ours.to_dense(), stock.to_dense(), place)
        return
    assert ours.stride() == stock.stride() or (_has_wide_gaps(stock) and ours.is_contiguous()), (
        f"{place}: {ours.stride()} and {stock.stride()}"
    )
    assert ours.is_meta == stock.is_meta, place
    if not stock.is_meta:
        assert bits(ours) == bits(stock), f"{place}: {ours} and {stock}"


def _has_wide_gaps(tensor: torch.Tensor) -> bool:
    """Whether the elements are less than half of what they extend over: then they arrive contiguous."""
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return extent > 2 * tensor.numel() > 0


def bits(tensor: torch.Tensor) -> bytes:
    """Returns a tensor's elements as bytes, so that NaNs are equal and -0.0 is not 0.0."""
    flat = tensor.detach().as_subclass(torch.Tensor).contiguous().reshape(-1)
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
    """Returns a copy of a batch, which does not hold a slot."""
    # Those that torch cannot copy deeply itself.
    copies = {id(tensor): _clone(tensor) for tensor in tensors_in(batch) if not _is_plain(tensor)}
    return copy.deepcopy(batch, copies)


def tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    """Yields every tensor of a batch, as often as it occurs."""
    if isinstance(batch, torch.Tensor):
        yield batch
    for _, part in _parts(batch):
        yield from tensors_in(part)


def _is_plain(tensor: torch.Tensor) -> bool:
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return strided and type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_leaf


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_nested:
        return torch.nested.nested_tensor([part.clone() for part in tensor.unbind()], layout=tensor.layout)
    clone = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    vars(clone).update(vars(tensor))
    return clone


_IN_A_PROCESS = "in DataLoader worker process"

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
    found = [first_line(error).replace("in DataLoader worker thread", _IN_A_PROCESS) for error in ours[1]]
    assert found == [first_line(error) for error in stock[1]]
    assert ours[2] == stock[2], "the main process's random states differ after the last epoch"
    return ours


OWN_ARGUMENTS = (
    "sample_shapes",
    "sample_dtypes",
    "max_pool_bytes",
    "num_slots",
    "worker_restarts",
    "device",
    "device_prefetch",
    "worker_type",
    "seeding",
    "epoch_size",
    "name",
    "forward_logs",
    "ray_options",
)


def _fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments with their factories called: samplers and generators must not be shared by two loaders."""
    return {
        name: value() if name in ("sampler", "batch_sampler", "generator") else value
        for name, value in arguments.items()
    }


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text; what follows is a traceback with line numbers of either library.

    Of several arguments, or of a KeyError's one, ``str`` makes a single line.
    """
    text = next((text for text in error.args if isinstance(text, str) and "\n" in text), str(error))
    return text.split("\n", 1)[0]


def run_file(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code as a script of its own, which spawned workers can import, and returns what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(textwrap.dedent(code))
        command = [sys.executable, str(script), *arguments]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # it may import from the tests
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)


def in_threads(*acts: Callable[[], object]) -> None:
    """Runs all at once, each in a thread, and raises what the first of them to fail raised."""
    raised: list[BaseException] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


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
    feeders = [thread for thread in threading.enumerate() if thread.name == "QueueFeederThread"]
    if feeders:
        gc.collect()
    for thread in feeders:
        thread.join(PATIENCE)


def holdings() -> dict[str, Any]:
    """Returns all that a loader could leave behind in this process."""
    gc.collect()
    if TORCH < (2, 13):
        # In older releases what was set on a storage lives until torch looks for dead ones among those that were sent.
        reductions.shared_cache.free_dead_references()
    return {
        "children": children(),
        "descriptors": descriptors(),
        "threads": {thread.name for thread in threading.enumerate()},
        "mappings": mappings(),
    }


def checksum(batch: Iterable[torch.Tensor]) -> int:
    """Returns a number that changes when any bit of the tensors does."""
    return hash(tuple(bits(tensor) for tensor in batch))
