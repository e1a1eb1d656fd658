"""What is rare, and has to be as in torch's loader all the same; drawn in families, and compared with torch's."""

from __future__ import annotations

import collections
import copy
import copyreg
import dataclasses
import pickle
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing import reductions
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torch.utils.data._utils.collate import default_collate_fn_map

from shmloader import ShmDataLoader
from tests.helpers.datasets import Mapped
from tests.helpers.samples import Marked, warn_once
from tests.helpers.support import (
    TORCH,
    assert_same,
    assert_same_stream,
    detached,
    first_line,
    let_stock_end,
    run_file,
    stream,
)

Loader = Callable[..., DataLoader[Any]]
LOADERS: list[Loader] = [DataLoader, ShmDataLoader]


@pytest.fixture(autouse=True, scope="module")
def _torchs_warnings_are_over() -> None:
    warn_once()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy.copy(torch.quantize_per_tensor(torch.ones(1), 1, 0, torch.quint8))


class Made(Dataset[Any]):
    """A dataset of what functions make, each in the worker."""

    def __init__(self, makers: Sequence[Callable[[], Any]]) -> None:
        self.makers = makers

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, index: int) -> Any:
        return self.makers[index]()


def only(samples: list[Any]) -> Any:
    return samples[0]


def from_both(
    makers: Sequence[Callable[[], Any]], see: Callable[[Any], Any], **arguments: Any
) -> tuple[list[Any], ...]:
    """Returns what ``see`` finds in each batch, or the type of the error in its place: first torch's, then ours."""
    found: tuple[list[Any], ...] = ([], [])
    arguments = {"collate_fn": only, "batch_size": 1, **arguments}
    for loader, seen in zip(LOADERS, found, strict=True):
        iterator = iter(loader(Made(makers), num_workers=1, timeout=10, **arguments))
        for _ in range(len(makers)):
            try:
                seen.append(see(next(iterator)))
            except StopIteration:
                break
            except Exception as error:
                seen.append((type(error), first_line(error)))
        del iterator
        let_stock_end()
    return found


# -- dtypes --------------------------------------------------------------------------------------------------------

DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
VIEWS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda whole: whole,
    lambda whole: whole[1],
    lambda whole: whole.t(),
    lambda whole: whole[:, ::2],
    lambda whole: whole[:, 1:],
    lambda whole: whole[:, :0].t(),
    lambda whole: whole[0, 0],
    lambda whole: whole[0, :1].expand(5),
    lambda whole: whole.reshape(-1)[::5],  # with wide gaps
]


def of_bits(dtype: torch.dtype, seed: int, view: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    data = random.Random(seed).randbytes(4 * 3 * dtype.itemsize)
    return view(torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(4, 3))


def as_integers(tensor: torch.Tensor) -> Any:
    """Returns a tensor's dtype, shape, strides and bits."""
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    steps = None if tensor.numel() and extent > 2 * tensor.numel() else tensor.stride()
    if tensor.dtype is torch.complex128:
        return tensor.dtype, tensor.shape, steps, torch.view_as_real(tensor).view(torch.int64).tolist()
    return tensor.dtype, tensor.shape, steps, tensor.view(INTEGERS[tensor.dtype.itemsize]).tolist()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("view", VIEWS)
def test_every_dtype_that_torch_has_arrives_bit_by_bit(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    makers = [partial(of_bits, dtype, seed, view) for seed, dtype in enumerate(DTYPES)]
    makers = [make for make in makers if _can_be_made(make)]  # torch refuses some views of quantized dtypes
    assert len(makers) > 40
    stock, ours = from_both(makers, lambda tensor: as_integers(tensor)[:2] + as_integers(tensor)[3:])
    assert ours == stock
    assert not any(isinstance(part[0], type) for part in ours)
    if view is not VIEWS[-1]:  # those with wide gaps arrive contiguous
        stock, ours = from_both(makers, as_integers)
        assert ours == stock


def _can_be_made(make: Callable[[], Any]) -> bool:
    try:
        as_integers(make())
    except RuntimeError:
        return False
    return True


QUANTIZED = [torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4]


@pytest.mark.parametrize("shape", [(4, 3), (3, 0), ()])
def test_quantized_tensors_without_a_scale(shape: tuple[int, ...]) -> None:
    def make(dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        data = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        data.copy_(torch.arange(data.numel()))
        return tensor

    def see(tensor: torch.Tensor) -> Any:
        return tensor.dtype, tensor.shape, tensor.is_quantized, tensor.untyped_storage().tolist()

    stock, ours = from_both([partial(make, dtype) for dtype in QUANTIZED], see)
    assert ours == stock


def test_quantized_tensors_keep_their_scale() -> None:
    scales, points = torch.tensor([0.1, 0.2]), torch.tensor([1, 2])
    numbers = torch.arange(6.0).reshape(2, 3)
    makers: list[Callable[[], torch.Tensor]] = [
        lambda: torch.quantize_per_tensor(numbers, 0.1, 3, torch.quint8),
        lambda: torch.quantize_per_channel(numbers, scales, points, 0, torch.qint8),
    ]
    for make, ours in zip(makers, ShmDataLoader(Made(makers), collate_fn=only, num_workers=1), strict=True):
        one = make()
        assert ours.qscheme() == one.qscheme()
        assert torch.equal(ours.dequantize(), one.dequantize())


# -- structures ----------------------------------------------------------------------------------------------------


def nested(kind: str, depth: int, leaf: Any) -> Any:
    draw = random.Random(f"{kind}{depth}")
    for _ in range(depth):
        wrap = draw.choice(["list", "tuple", "dict", "pair"]) if kind == "mixed" else kind
        leaf = {"list": [leaf], "tuple": (leaf,), "dict": {"deeper": leaf}, "pair": [leaf, torch.ones(1)]}[wrap]
    return leaf


def unwrapped(whole: Any) -> Any:
    """Returns the types on the way to the innermost leaf, and that."""
    kinds = []
    while isinstance(whole, (list, tuple, dict)):
        kinds.append((type(whole), len(whole)))
        whole = whole["deeper"] if isinstance(whole, dict) else whole[0]
    return kinds, whole.tolist()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "mixed"])
@pytest.mark.parametrize("collate_fn", [only, None])
def test_structures_that_are_nested_deep(kind: str, collate_fn: Any) -> None:
    depths = [1, 15, 16, 17, 18, 50, 200, 350, 350, 400, 400]
    makers = [partial(nested, kind, depth, torch.arange(3) + number) for number, depth in enumerate(depths)]
    stock, ours = from_both(makers, unwrapped, collate_fn=collate_fn)
    assert ours == stock
    assert [len(kinds) for kinds, _ in ours] == depths


def test_structures_that_are_nested_deep_in_a_loop_that_is_deep_in_the_stack() -> None:
    def from_below(frames: int) -> Any:
        if frames:
            return from_below(frames - 1)
        return from_both([lambda: nested("list", 400, torch.ones(1))], unwrapped)

    stock, ours = from_below(sys.getrecursionlimit() // 3)
    assert ours == stock
    assert len(ours[0][0]) == 400


def test_structures_that_are_nested_too_deep_for_pickle() -> None:
    makers = [lambda: nested("dict", 100_000, torch.ones(1)), lambda: [torch.ones(1)]]
    iterator = iter(ShmDataLoader(Made(makers), batch_size=1, collate_fn=only, num_workers=1))
    with pytest.raises(RecursionError, match=r"what collate_fn \(only\) returned: the dict is nested too deep"):
        next(iterator)
    assert next(iterator)[0].tolist() == [1.0]


# -- reducers of the user's ----------------------------------------------------------------------------------------


class Other(torch.Tensor):
    """A tensor subclass for which nothing is registered."""


class Weights(torch.nn.Parameter):
    """A parameter class of the user's."""


class Rows(np.ndarray[Any, Any]):
    """An array class of the user's."""


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024 - one that default_collate knows


def rebuilt(kind: str, value: Any) -> tuple[str, str, Any]:
    return "rebuilt", kind, value


def by_value(obj: Any) -> Any:
    return rebuilt, (type(obj).__name__, np.asarray(obj.detach() if isinstance(obj, torch.Tensor) else obj).tolist())


def by_tensor(obj: Any) -> Any:
    return rebuilt, ("tensor", obj.as_subclass(torch.Tensor))


def by_first(pair: Any) -> Any:
    return rebuilt, ("pair", pair[0].tolist())


REGISTRATIONS = {
    "tensors": (torch.Tensor, by_value),
    "a subclass": (Marked, by_tensor),
    "a subclass as torch's own tensors": (Marked, reductions.reduce_tensor),
    "parameters": (torch.nn.Parameter, by_value),
    "a parameter class": (Weights, by_value),
    "arrays": (np.ndarray, by_value),
    "an array class": (Rows, by_value),
    "named tuples": (Pair, by_first),
    "what pickle does not look up": (dict, by_value),
}
PLACES = {
    "ForkingPickler": lambda kind, reducer: ForkingPickler.register(kind, reducer),
    "copyreg": lambda kind, reducer: copyreg.pickle(kind, reducer),
}


@pytest.fixture
def _registrations() -> Iterator[None]:
    tables = [ForkingPickler._extra_reducers, copyreg.dispatch_table]  # type: ignore[attr-defined]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def things() -> list[Callable[[], Any]]:
    return [
        lambda: torch.arange(3.0),
        lambda: [torch.arange(4.0)[1:], torch.arange(3, dtype=torch.float16)],
        lambda: torch.arange(3.0).as_subclass(Marked),
        lambda: torch.arange(3.0).as_subclass(Other),
        lambda: torch.nn.Parameter(torch.arange(3.0)),
        lambda: Weights(torch.arange(3.0)),
        lambda: np.arange(3),
        lambda: np.arange(3, dtype=">i4"),
        lambda: np.arange(3).view(Rows),
        lambda: {"pair": Pair(torch.arange(2), 1)},
    ]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("is_early", [True, False])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", REGISTRATIONS)
@pytest.mark.usefixtures("_registrations")
def test_what_the_user_has_registered_counts(name: str, place: str, is_early: bool) -> None:
    kind, reducer = REGISTRATIONS[name]
    makers = things()
    if name == "tensors" and place == "ForkingPickler":
        # Sent by torch's functions that take them apart into tensors, of which the reducer makes something else: these
        # cannot be put together again.
        makers = [make for make in makers if type(make()) not in (Marked, Other, Weights)]

    def register(worker: int = 0) -> None:
        PLACES[place](kind, reducer)

    if is_early:
        register()
    init = {} if is_early else {"worker_init_fn": register}
    stock, ours = from_both(makers, detached, **init)
    assert_same(ours, stock)


@pytest.mark.parametrize("make_dataset", [lambda: TensorDataset(torch.arange(12.0)), lambda: list(range(12))])
@pytest.mark.usefixtures("_registrations")
def test_what_is_registered_for_tensors_sees_each_batch(make_dataset: Callable[[], Any]) -> None:
    ForkingPickler.register(torch.Tensor, by_value)
    batches, _, _ = assert_same_stream(make_dataset, batch_size=3, num_workers=2)
    assert len({str(batch) for batch in batches[0]}) == 4


@pytest.mark.usefixtures("_registrations")
def test_torchs_own_registrations_leave_tensors_in_the_slot() -> None:
    reductions.init_reductions()
    loader = ShmDataLoader(Made([lambda: 1] * 8), batch_size=4, num_workers=1)
    assert [batch.is_shared() for batch in loader] == [False, False]


# -- nested tensors, and those without elements --------------------------------------------------------------------


def ragged(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "wrap", [lambda one: one, lambda one: (one, 1), lambda one: {"a": one}, lambda one: [torch.ones(2), one]]
)
def test_nested_tensors_are_refused_by_the_default_collate_function(
    wrap: Callable[[Any], Any], batch_size: int, layout: torch.layout
) -> None:
    makers = [lambda: wrap(torch.ones(2)), lambda: wrap(torch.ones(2)), *[lambda: wrap(ragged(layout))] * 2]
    _, errors, _ = assert_same_stream(lambda: Made(makers), batch_size=batch_size, num_workers=1)
    assert errors
    assert all("nested tensors" in str(error) for error in errors)


EMPTY: list[Callable[[], torch.Tensor]] = [
    lambda: torch.empty(3, 0),
    lambda: torch.empty(3, 0).t(),
    lambda: torch.empty(0, 3).t(),
    lambda: torch.empty(0).expand(5, 0),
    lambda: torch.empty(1, 0).expand(4, 0),
    lambda: torch.empty(2, 0, 3).permute(2, 0, 1),
    lambda: torch.empty(1, 0, 1).permute(1, 0, 2),
    lambda: torch.empty(2, 3, 0, 5).contiguous(memory_format=torch.channels_last),
    lambda: torch.empty((0, 3, 4, 5), memory_format=torch.channels_last),
    lambda: torch.empty((2, 0, 3, 4, 5), memory_format=torch.channels_last_3d),
    lambda: torch.ones(4, 5)[2:2],
    lambda: torch.ones(4, 5)[:, 3:3],
    lambda: torch.ones(4, 5)[::2, 3:3].t(),
    lambda: torch.empty_strided((2, 0, 3), (7, 5, 9)),
    lambda: torch.empty(3, 0, dtype=torch.bfloat16).t(),
    lambda: torch.empty(3, 0, dtype=torch.bool).t(),
    lambda: torch.from_numpy(np.empty((3, 0, 2))),
]


@pytest.mark.parametrize("collate_fn", [only, None])
@pytest.mark.parametrize("hold", [False, True])
def test_strides_of_tensors_without_elements(collate_fn: Any, hold: bool) -> None:
    held: list[Any] = []

    def see(batch: torch.Tensor) -> Any:
        held.extend([batch] if hold else [])  # then some are private copies
        return batch.dtype, batch.shape, batch.stride()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shmloader.slots.held_batches.CopyNotice.announce", lambda notice: None)
        stock, ours = from_both(EMPTY, see, collate_fn=collate_fn)
    assert ours == stock


# -- what cannot be sent -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Held:
    thing: Any


class Refusing:
    def __reduce__(self) -> Any:
        raise KeyError("nothing")


class Unnameable:
    def __repr__(self) -> str:
        raise ValueError("no name")


def a_local_object() -> Any:
    class Local: ...

    return Local()


def a_cycle() -> Any:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    return [1, cycle, threading.Lock()]


# Python's own errors, in either of its ways.
LOCAL: type[Exception] = pickle.PicklingError if sys.version_info >= (3, 14) else AttributeError
UNNAMED: type[Exception] = ValueError if sys.version_info >= (3, 14) else TypeError

UNSENDABLE: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a lambda": (lambda: lambda: 0, LOCAL, "the function <lambda>"),
    "a generator": (lambda: (n for n in range(3)), TypeError, "the generator <lambda>"),
    "a lock": (threading.Lock, TypeError, "the _thread.lock cannot"),
    "a file": (lambda: open("/dev/null"), TypeError, "the _io.TextIOWrapper cannot"),  # noqa: PTH123, SIM115
    "a local object": (a_local_object, LOCAL, "Local cannot"),
    "nested": (
        lambda: {"x": torch.ones(2), "more": (1, [2, {"k": threading.Lock()}])},
        TypeError,
        "the _thread.lock at ['more'][1][1]['k'] cannot",
    ),
    "in an object": (lambda: [Held({"k": threading.Lock()})], TypeError, "the _thread.lock at [0].thing['k'] cannot"),
    "in a named tuple": (lambda: Pair(1, threading.Lock()), TypeError, "the _thread.lock at [1] cannot"),
    "in a set": (lambda: [{1, threading.Lock()}], TypeError, "the set at [0] cannot"),
    "in an array": (lambda: np.array([threading.Lock()]), TypeError, "the numpy.ndarray cannot"),
    "under a key without a name": (lambda: {Unnameable(): threading.Lock()}, UNNAMED, "the dict cannot"),
    "beside a cycle": (a_cycle, TypeError, "the _thread.lock at [2] cannot"),
    "what refuses": (lambda: [Refusing()], KeyError, "Refusing at [0] cannot"),
    "with a graph": (lambda: [torch.ones(2, requires_grad=True) * 2], RuntimeError, "the torch.Tensor at [0] cannot"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", UNSENDABLE)
def test_what_cannot_be_sent_is_named(name: str) -> None:
    make, kind, culprit = UNSENDABLE[name]
    iterator = iter(ShmDataLoader(Made([make, lambda: 3, make]), batch_size=1, collate_fn=only, num_workers=1))
    with pytest.raises(kind) as caught:
        next(iterator)
    line = first_line(caught.value)
    assert line.startswith(f"Caught {kind.__name__} in DataLoader worker process 0, sending what collate_fn (only) ")
    assert culprit in line
    assert "\nOriginal " in str(caught.value)
    assert "\nTraceback (most recent call last):" in str(caught.value).replace("Original ", "")
    assert next(iterator) == 3
    with pytest.raises(kind):
        next(iterator)


# -- compiled functions --------------------------------------------------------------------------------------------

COMPILED = """
    import multiprocessing
    import sys
    import torch
    from torch.utils.data import DataLoader
    from shmloader import ShmDataLoader
    assert "torch._dynamo" not in sys.modules

    import shmloader.torch_compile
    from torch._dynamo.utils import counters

    multiprocessing.set_start_method("fork")
    torch.set_num_threads(1)
    graphs = []

    def backend(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes if node.op.startswith("call")])
        return module.forward

    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 24
        def __getitem__(self, index):
            return torch.full((4,), index), index

    def train_step(iterator, weights):
        x, y = next(iterator)
        return (x.float() * weights).sum() + y.sum()

    def train(loader, weights):
        total = torch.zeros(())
        for x, y in loader:
            total = total + (x.float() * weights).sum() + y.sum()
        return total

    def steps(loader, step):
        iterator, found = iter(loader), []
        while True:
            try:
                found.append(step(iterator, torch.ones(4)).item())
            except StopIteration:
                return found

    def run(make_loader, function, act):
        torch._dynamo.reset()
        counters.clear()
        graphs.clear()
        torch._dynamo.config.error_on_recompile = make_loader is ShmDataLoader
        loader = make_loader(Numbers(), batch_size=4, num_workers=2)
        found = act(loader, torch.compile(function, backend=backend))
        assert found == act(loader, function), found
        print(graphs, sum(counters["graph_break"].values()), counters["frames"]["total"])
        return list(graphs), sum(counters["graph_break"].values()), counters["frames"]["total"]

    passes = lambda loader, function: [function(loader, torch.ones(4)).item() for _ in range(3)]
    one = lambda loader, function: [function(iter(loader), torch.ones(4)).item() for _ in range(3)]
    for function, act in [(train_step, steps), (train, passes), (train, one)]:
        stock, ours = [run(make_loader, function, act) for make_loader in (DataLoader, ShmDataLoader)]
        assert ours[0] == stock[0], (ours, stock)
        assert ours[1] <= stock[1], (ours, stock)
        assert ours[2] <= stock[2], (ours, stock)

    entries = torch._C._dynamo.eval_frame._debug_get_cache_entry_list
    for name, module in list(sys.modules.items()):
        if name.startswith("shmloader."):
            for function in shmloader.torch_compile._functions(module):
                for code in shmloader.torch_compile._codes(function.__code__):
                    assert not entries(code), code
    print("equal")
"""


@pytest.mark.long
@pytest.mark.skipif(TORCH < (2, 8), reason="this torch compiles what a function that is left alone calls")
def test_compiled_functions_leave_the_loader_alone() -> None:
    done = run_file(COMPILED)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["equal"]), done.stdout + done.stderr


# -- memory --------------------------------------------------------------------------------------------------------


def test_a_tensor_is_resized_within_its_memory_only() -> None:
    def see(tensor: torch.Tensor) -> Any:
        found: list[Any] = [
            tensor.resize_(2).tolist(),
            tensor.resize_(4).tolist(),
            tensor.untyped_storage().resizable(),
        ]
        for grow in (lambda: tensor.resize_(100), lambda: tensor.untyped_storage().resize_(4096)):
            with pytest.raises(RuntimeError) as caught:
                grow()
            found.append(str(caught.value))
        return found

    stock, ours = from_both([lambda: torch.arange(4), lambda: torch.arange(4.0)], see)
    assert ours == stock


def test_an_array_is_not_resized() -> None:
    loader = ShmDataLoader(Made([lambda: np.arange(4)]), batch_size=1, collate_fn=only, num_workers=1)
    for array in loader:
        with pytest.raises(ValueError, match="does not own its data"):
            array.resize(8)
        assert stream(loader)[0][0][0].tolist() == [0, 1, 2, 3]


# -- what a reader of the sources found --------------------------------------------------------------------------------


class Scratch:
    """Pickles itself by way of an array that all of its kind use."""

    array = np.zeros(3)

    def __init__(self, number: float) -> None:
        self.number = number

    def __getstate__(self) -> dict[str, Any]:
        self.array[:] = self.number
        return {"number": self.number, "array": self.array[:]}


@pytest.mark.parametrize("first", [False, True])
def test_objects_that_use_one_array_to_pickle_themselves(first: bool) -> None:
    """What is pickled is what was there at that moment, and not what is when all is laid out."""

    def collate(samples: list[Any]) -> Any:
        return (Scratch.array, samples) if first else (samples, np.arange(3), Scratch.array)

    def state(batch: Any) -> Any:
        return [vars(part) if isinstance(part, Scratch) else part for part in batch]

    streams = [
        [state(batch[first]) for batch in kind(Mapped(Scratch, 8), batch_size=4, num_workers=1, collate_fn=collate)]
        for kind in (ShmDataLoader, DataLoader)
    ]
    assert_same(streams[0], streams[1])
    assert [part["array"][0] for batch in streams[0] for part in batch] == list(range(8))


def as_is(samples: Any) -> Any:
    return samples


READ_ONLY: dict[str, Callable[[int], Any]] = {
    "over bytes": lambda index: np.frombuffer(bytes([index] * 6), np.uint8),
    "in Fortran's order": lambda index: np.frombuffer(bytes([index] * 6), np.uint8).reshape(3, 2).T,
    "a part": lambda index: np.frombuffer(bytes([index] * 6), np.uint8)[::2],
    "of objects": lambda index: locked(np.array([index, None], dtype=object)),
    "without elements": lambda index: locked(np.empty((0, 3))),
}


def locked(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


@pytest.mark.sampled(2)
@pytest.mark.parametrize("what", READ_ONLY)
def test_arrays_that_are_read_only_in_the_worker(what: str) -> None:
    """Up to Python 3.13 they can be written to, as behind stock's queues; from 3.14 on they cannot, as there."""
    dataset = Mapped(READ_ONLY[what], 6)
    assert_same_stream(lambda: dataset, batch_size=2, num_workers=1, collate_fn=as_is)
    ours, stock = (
        [
            array.flags.writeable
            for batch in kind(dataset, batch_size=2, num_workers=1, collate_fn=as_is)
            for array in batch
        ]
        for kind in LOADERS
    )
    assert ours == stock
    assert all(ours) or pickle.DEFAULT_PROTOCOL >= 5


@pytest.mark.parametrize("kind", [TensorDataset, Subset])
@pytest.mark.parametrize("method", ["__getitem__", "__getitems__"])
def test_methods_of_torchs_datasets_that_were_replaced(kind: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(dataset: Any, index: int) -> Any:
        return (torch.tensor(100 * index),)

    def several(dataset: Any, indices: list[int]) -> Any:
        return [one(dataset, index) for index in indices]

    monkeypatch.setattr(kind, method, one if method == "__getitem__" else several, raising=False)
    source = TensorDataset(torch.arange(8))
    dataset = source if kind is TensorDataset else Subset(source, range(7, -1, -1))
    assert_same_stream(lambda: dataset, batch_size=2, num_workers=1)


@pytest.mark.parametrize("key", [int, float, torch.Tensor, list])
def test_an_entry_of_torchs_map_that_is_set_in_the_middle(key: Any) -> None:
    samples: dict[Any, Callable[[int], Any]] = {
        int: int,
        float: float,
        torch.Tensor: torch.tensor,
        list: lambda index: [index],
    }

    def sample(index: int) -> Any:
        if index == 4:
            default_collate_fn_map[key] = lambda batch, **more: ["mine", *batch]
        return samples[key](index)

    assert_same_stream(lambda: Mapped(sample, 12), batch_size=2, num_workers=1)


def test_a_default_device_of_the_loops_is_not_the_batches() -> None:
    square = torch.eye(2)
    parts = [torch.zeros(0, 3), torch.zeros(3, 0).t(), square, square.to_sparse(), square.to_sparse_csr()]
    iterator = iter(ShmDataLoader(Mapped(lambda index: parts, 2), batch_size=None, num_workers=1))
    with torch.device("meta"):
        assert {part.device.type for part in next(iterator)} == {"cpu"}


def test_a_timeout_of_the_users_own_is_not_the_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler may raise it while the loop waits."""
    iterator = iter(ShmDataLoader(Mapped(int, 6), num_workers=1))

    def interrupted(timeout: float | None) -> Any:
        monkeypatch.undo()
        raise TimeoutError("mine")

    monkeypatch.setattr(iterator._dispatcher._workers, "wait", interrupted)  # type: ignore[attr-defined]
    with pytest.raises(TimeoutError, match=r"^mine$"):
        list(iterator)


@pytest.mark.parametrize("of", [torch.from_numpy, torch.as_tensor])
def test_objects_that_use_one_array_under_tensors_to_pickle_themselves(of: Callable[..., torch.Tensor]) -> None:
    class OfTensors(Scratch):
        def __getstate__(self) -> dict[str, Any]:
            self.array[:] = self.number
            return {"number": self.number, "array": of(self.array)}

    def arrays(samples: list[Any]) -> Any:
        return [torch.from_numpy(Scratch.array), *samples]

    globals()["OfTensors"] = OfTensors
    OfTensors.__qualname__ = "OfTensors"
    for kind in (ShmDataLoader, DataLoader):
        batches = list(kind(Mapped(OfTensors, 8), batch_size=4, num_workers=1, collate_fn=arrays))
        found = [float(part.array[0]) for _, *parts in batches for part in map(Stated, parts)]
        assert found == list(range(8)), kind


class Stated:
    """What an object has by its state, whatever its class has under that name."""

    def __init__(self, thing: Any) -> None:
        self.array = vars(thing)["array"]


PERMUTED: dict[str, Callable[[int], Any]] = {
    "channels first": lambda index: np.full((4, 3, 2), index).transpose(2, 0, 1),
    "one of four axes": lambda index: np.arange(120).reshape(2, 3, 4, 5).swapaxes(1, 2) + index,
    "read-only": lambda index: locked(np.full((4, 3, 2), index).transpose(1, 0, 2)),
    "broadcast": lambda index: np.broadcast_to(np.arange(3) + index, (4, 3)),
    "Fortran's": lambda index: np.full((4, 3), index).T,
    "a step": lambda index: (np.arange(24) + index).reshape(4, 6)[:, ::2],
    "backwards": lambda index: (np.arange(24) + index)[::-1],
    "of objects": lambda index: np.full((4, 3, 2), index).astype(object).transpose(2, 0, 1),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", PERMUTED)
def test_arrays_arrive_in_the_order_of_stocks(what: str) -> None:
    def strides(kind: Any) -> Any:
        dataset = Mapped(PERMUTED[what], 4)
        return [
            (array.tolist(), array.strides, array.flags.writeable)
            for batch in kind(dataset, batch_size=2, num_workers=1, collate_fn=as_is)
            for array in batch
        ]

    assert strides(ShmDataLoader) == strides(DataLoader)


MOVES: dict[str, Callable[[torch.Tensor], object]] = {
    "to shared memory": lambda tensor: tensor.share_memory_().fill_(7),
    "by data": lambda tensor: setattr(tensor, "data", torch.full((40,), 7.0)),
    "by set_": lambda tensor: tensor.set_(torch.full((40,), 7.0)),  # type: ignore[call-overload]
}


class Moving(int):
    """An index that moves a dataset's tensor where it is read."""

    dataset: Any
    move: str

    def __reduce__(self) -> Any:
        return moved, (int(self), self.move)


def moved(index: int, how: str) -> int:
    MOVES[how](torch.utils.data.get_worker_info().dataset.tensors[0])  # type: ignore[union-attr]
    return index


@pytest.mark.parametrize("how", MOVES)
def test_a_tensor_datasets_tensor_that_is_moved_in_a_worker(how: str) -> None:
    def indices() -> list[int]:
        drawn = [Moving(index) if index == 20 else index for index in range(40)]
        drawn[20].move = how  # type: ignore[attr-defined]
        return drawn

    dataset = lambda: TensorDataset(torch.arange(40.0))  # noqa: E731
    assert_same_stream(dataset, batch_size=4, num_workers=1, sampler=indices)


# -- arrays that torch makes no tensors of, though their elements lie in a row ---------------------------------------


def odd_step(index: int) -> np.ndarray[Any, Any]:
    return np.ndarray((1, 3), np.float32, np.full(3, index, np.float32), strides=(7, 4))


@pytest.mark.parametrize("worker_type", ["process", "thread"])
@pytest.mark.parametrize("make", [lambda i: np.full((1, 3), i)[::-1], lambda i: np.full(2, i, np.ulonglong), odd_step])
def test_arrays_that_stock_refuses(make: Callable[[int], Any], worker_type: str) -> None:
    samples = [make(index) for index in range(12)]
    with pytest.raises((TypeError, ValueError)):
        next(iter(DataLoader(samples, batch_size=2)))  # type: ignore[arg-type]
    loader = ShmDataLoader(Mapped(make, 12), batch_size=2, num_workers=1, worker_type=worker_type)
    batches = [batch.tolist() for batch in loader]
    assert batches == [[sample.tolist() for sample in samples[i : i + 2]] for i in range(0, 12, 2)]
