"""Every private name of torch that the library uses, in one place.

None of these is promised by torch, so any release may rename or remove one. Each is declared here once, with what it is
for and what is done without it:

- `_needed`: without it there is no telling whether batches would be torch's. The import works all the same, with a
  stand-in that nothing calls; `difference` says what is missing, and the loader is torch's own, with a warning.
- `_optional`: without it something is slower or plainer, and no batch is different. The stand-in does its work.

The other modules import from here and name nothing private of torch. They bind the names at import, so that a batch
pays nothing for it.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from operator import attrgetter
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing
import torch.utils.data
from torch.utils.data import DataLoader

from .version import __version__


class PrivateName(NamedTuple):
    """A name of torch's that is not promised.

    Attributes:
        path: where it is; in braces, what an object of that class has.
        purpose: what it is used for.
        without: what is done where it is missing.
    """

    path: str
    purpose: str
    without: str


NAMES: list[PrivateName] = []  # all of them
_STOCK = "torch's own loader"
_missing: list[str] = []


def _look_up(path: str) -> Any:
    return attrgetter(path.removeprefix("torch."))(torch)


def _needed(path: str, purpose: str, stand_in: Any = None) -> Any:
    NAMES.append(PrivateName(path, purpose, _STOCK))
    try:
        return _look_up(path)
    except AttributeError:
        _missing.append(path)
        return stand_in


def _optional(path: str, purpose: str, stand_in: Any, without: str) -> Any:
    NAMES.append(PrivateName(path, purpose, without))
    try:
        return _look_up(path)
    except AttributeError:
        return stand_in


# -- classes that ours are derived from ------------------------------------------------------------------------------


class _Nothing:
    """What has no instances, and can be a base class."""


if TYPE_CHECKING:
    BaseIterator = torch.utils.data.dataloader._BaseDataLoaderIter
    InProcessIterator = torch.utils.data.dataloader._SingleProcessDataLoaderIter
    ExceptionWrapper = torch._utils.ExceptionWrapper
else:
    BaseIterator = _needed(
        "torch.utils.data.dataloader._BaseDataLoaderIter", "the class of what iter() of a loader returns", _Nothing
    )
    InProcessIterator = _needed(
        "torch.utils.data.dataloader._SingleProcessDataLoaderIter", "num_workers=0 with declared shapes", _Nothing
    )
    ExceptionWrapper = _needed("torch._utils.ExceptionWrapper", "the type and the text of a worker's error", _Nothing)


# -- what those, and loaders, are used by ----------------------------------------------------------------------------

_LOADER = {
    "_get_iterator": "where a loader begins a pass: overridden",
    "check_worker_number_rationality": "the warning about more workers than processors: called",
    "_index_sampler": "what it draws indices from: read",
    "_auto_collation": "whether samples are collated: read",
    "_iterator": "persistent workers' iterator: read, and reset to None",
}
_BASE_ITERATOR = {
    "_next_data": "a step: overridden",
    "_reset": "begins a pass: overridden",
    "_next_index": "the sampler's next indices: called",
    "_num_yielded": "counts batches for the warning about a length that is wrong: written",
    "_IterableDataset_len_called": "the length that was told: read",
    "_base_seed": "what workers' seeds are made from: read",
    "_shared_seed": "what datapipes shuffle by: read",
    "_dataset": "read",
    "_dataset_kind": "read",
    "_auto_collation": "whether samples are collated: read",
    "_collate_fn": "read",
    "_drop_last": "read",
    "_num_workers": "read",
    "_persistent_workers": "read",
    "_timeout": "read",
    "_pin_memory": "whether batches are page-locked: read",
    "_pin_memory_device": "for which accelerator: read",
    "_world_size": "for the sharding of datapipes: read",
    "_rank": "for the sharding of datapipes: read",
}
_IN_PROCESS_ITERATOR = {
    "_dataset_fetcher": "fetches batches in the loop's process: its collate_fn is replaced",
}
_FETCHER = {
    "fetch": "reads the samples of a batch, and collates them: called",
    "collate_fn": "replaced",
}
_FETCHER_OF_STREAM = {
    "dataset_iter": "the iterator of an iterable dataset: asked for its state",
    "ended": "whether it has ended: read, written",
}
NAMES.extend(
    PrivateName(
        f"torch.utils.data._DatasetKind.create_fetcher(...).{{{name}}}", purpose, "iterators' states are not asked for"
    )
    for name, purpose in _FETCHER_OF_STREAM.items()
)
_WRAPPER = {
    "exc_type": "the type of a worker's error: read, written",
    "exc_msg": "its text: read, written",
    "reraise": "raises it in the loop: overridden",
}
for _owner, _attributes in {
    "torch.utils.data.DataLoader": _LOADER,
    "torch.utils.data.dataloader._BaseDataLoaderIter": _BASE_ITERATOR,
    "torch.utils.data.dataloader._SingleProcessDataLoaderIter": _IN_PROCESS_ITERATOR,
    "torch.utils.data._DatasetKind.create_fetcher(...)": _FETCHER,
    "torch._utils.ExceptionWrapper": _WRAPPER,
}.items():
    NAMES.extend(PrivateName(f"{_owner}.{{{name}}}", purpose, _STOCK) for name, purpose in _attributes.items())


# -- the parent ------------------------------------------------------------------------------------------------------

sharding_worker_init_fn: Any = _needed(
    "torch.utils.data.dataloader._sharding_worker_init_fn", "deals a datapipe's elements to the workers"
)
pin_memory: Callable[..., Any] = _needed(
    "torch.utils.data._utils.pin_memory.pin_memory", "page-locks what a batch is made of"
)
profiler_enabled: Callable[[], bool] = _optional(
    "torch.autograd._profiler_enabled",
    "whether a step needs a profiler's label",
    lambda: True,
    "each step is labelled, which costs time and changes nothing",
)


# -- a worker --------------------------------------------------------------------------------------------------------

DatasetKind: Any = _needed("torch.utils.data._DatasetKind", "map-style or iterable, and what fetches from either")
_needed("torch.utils.data._DatasetKind.Iterable", "which of the two it is")
_needed("torch.utils.data._DatasetKind.create_fetcher", "what fetches")
_worker: Any = _needed("torch.utils.data._utils.worker", "the module that get_worker_info() reads")
_needed("torch.utils.data._utils.worker._worker_info", "what get_worker_info() returns in a worker: written")
_worker_info: Any = _needed("torch.utils.data._utils.worker.WorkerInfo", "the class of what it returns")
numpy_seed: Callable[[int, int], Any] = _needed(
    "torch.utils.data._utils.worker._generate_state", "makes numpy's seed of the base seed and a worker's number"
)
set_signal_handlers: Callable[[], None] = _optional(
    "torch.utils.data._utils.signal_handling._set_worker_signal_handlers",
    "has a worker that crashes print what became of it",
    lambda: None,
    "it prints nothing; the loop's error says which signal it was",
)
set_thread_name: Callable[[str], None] = _optional(
    "torch.multiprocessing._set_thread_name",
    "the name of a worker in ps and top",
    lambda name: None,
    "workers have their parent's name there",
)


def set_worker_info(worker: int, num_workers: int, seed: int, dataset: Any) -> None:
    """Makes `get_worker_info` of this process return what it returns in a worker."""
    _of_thread.info = None  # a thread of another loader's, where the process was forked from that
    _worker._worker_info = _worker_info(id=worker, num_workers=num_workers, seed=seed, dataset=dataset)


NAMES.append(
    PrivateName(
        "torch.Generator.{_cdata}",
        "where a generator lies, to see whether it has moved without copying its state",
        "the state is copied for each batch",
    )
)


def address_of(generator: torch.Generator) -> int | None:
    """Returns where torch's object of a generator lies, or None where torch does not say."""
    address = getattr(generator, "_cdata", None)
    return address if type(address) is int and address else None


def iterates_as_torchs(kind: type[DataLoader[Any]]) -> bool:
    """Whether a class of loaders begins its passes as torch's does."""
    names = "__iter__", "_get_iterator"
    return all(getattr(kind, name, None) is getattr(DataLoader, name, None) for name in names)


def index_sampler_of(loader: Any) -> Any:
    """Returns what a loader draws indices from: its batch sampler, or its sampler where it makes no batches."""
    return loader._index_sampler


def auto_collates(loader: Any) -> bool:
    """Whether a loader makes batches of samples."""
    return bool(loader._auto_collation)


def kept_iterator(loader: Any) -> Any:
    """Returns the iterator that a loader with persistent workers keeps, or None."""
    return loader._iterator


def renew_iterator(loader: Any) -> None:
    """Has a loader with persistent workers keep another iterator, which begins a pass."""
    loader._iterator = loader._get_iterator()


KEPT_ITERATOR = "_iterator"


def forget_iterator(loader: Any) -> None:
    """Has a loader with persistent workers make another iterator."""
    loader._iterator = None


# What is replaced so that loaders of torch's class, and of classes derived from it, have workers of ours: where a pass
# begins, where it gets its iterator, and where whatever makes iterators by itself can be told from that.
PASS_SEAM = DataLoader, "__iter__"
ITERATOR_SEAM = DataLoader, "_get_iterator"
OWN_ITERATOR_SEAM = BaseIterator, "__init__"
STEP_SEAM = BaseIterator, "__next__"
ITERATOR_MAKER = "_get_iterator"


InfiniteSampler: Any = _optional(
    "torch.utils.data.dataloader._InfiniteConstantSampler",
    "the sampler of a loader of an iterable dataset",
    _Nothing,
    "a loader's state holds random states that it need not hold",
)


def stream_of(fetcher: Any) -> tuple[Any, bool]:
    """Returns the iterator that a fetcher reads, None of a map-style dataset, and whether it has found its end."""
    return getattr(fetcher, "dataset_iter", None), bool(getattr(fetcher, "ended", False))


def end_fetcher(fetcher: Any) -> None:
    """Has a fetcher of an iterable dataset do as if it had found the end."""
    fetcher.ended = True


# -- a worker that is a thread ---------------------------------------------------------------------------------------

# torch's function reads a variable of its module, which all threads have in common. User code has imported the function
# by its name, so it is not replaced: it gets other code, which looks for the thread's own answer first.
_get_worker_info: Any = torch.utils.data.get_worker_info
NAMES.append(
    PrivateName(
        "torch.utils.data.get_worker_info.{__code__}",
        "replaced, where worker_type is 'thread': it returns what is true of the thread that asks",
        f"{_STOCK}, where worker_type is 'thread'",
    )
)


class _OfThread(threading.local):
    info: Any = None


_of_thread = _OfThread()
_OF_THREAD = "_shmloader_of_thread"  # what torch's module knows it by


def _answer() -> Any:  # with the global variables of torch's module
    return _shmloader_of_thread.info or _worker_info  # type: ignore[name-defined]  # noqa: F821


def thread_difference() -> str:
    """Says why `get_worker_info` cannot be made to tell threads apart in this torch; empty if it can."""
    if isinstance(_get_worker_info, FunctionType) and _get_worker_info.__globals__ is vars(_worker):
        code = _get_worker_info.__code__
        reads_the_variable = code.co_names == ("_worker_info",) and not (code.co_freevars or code.co_argcount)
        if reads_the_variable or code is _answer.__code__:
            return ""
    return f"torch {torch.__version__} has another get_worker_info, which does not tell threads apart"


def tell_threads_apart() -> None:
    """Makes `get_worker_info` return what `set_thread_info` said in the thread that asks. Safe to call again.

    In all other threads it returns what it returned before.
    """
    setattr(_worker, _OF_THREAD, _of_thread)
    _get_worker_info.__code__ = _answer.__code__


def set_thread_info(worker: int, num_workers: int, seed: int, dataset: Any) -> None:
    """Makes `get_worker_info` return in this thread what it returns in a worker; see `tell_threads_apart`."""
    _of_thread.info = _worker_info(id=worker, num_workers=num_workers, seed=seed, dataset=dataset)


def forget_thread_info() -> None:
    """Undoes `set_thread_info`."""
    _of_thread.info = None


# -- datapipes, which have public names, and are deprecated ----------------------------------------------------------

_PIPES = "a dataset that shuffles and shards itself by graph_settings"
IterDataPipe: Any = _optional("torch.utils.data.IterDataPipe", _PIPES, _Nothing, "no dataset is one")
MapDataPipe: Any = _optional("torch.utils.data.MapDataPipe", _PIPES, _Nothing, "no dataset is one")
graph_settings: Any = _optional("torch.utils.data.graph_settings", _PIPES, None, "no dataset is one")


# -- collation -------------------------------------------------------------------------------------------------------

_COLLATE = "torch.utils.data._utils.collate"
collate_fn_map: dict[Any, Callable[..., Any]] = _needed(
    f"{_COLLATE}.default_collate_fn_map", "where workers put functions that stack into slots", {}
)
collate_tensor_fn: Any = _needed(f"{_COLLATE}.collate_tensor_fn", "the map's entry for tensors")
collate_numpy_array_fn: Any = _needed(f"{_COLLATE}.collate_numpy_array_fn", "the map's entry for arrays")
collate_float_fn: Any = _needed(f"{_COLLATE}.collate_float_fn", "the map's entry for floats")
collate_int_fn: Any = _needed(f"{_COLLATE}.collate_int_fn", "the map's entry for ints")

_new_shared: Any = _optional(
    "torch.UntypedStorage._new_shared",
    "the shared memory that collate functions of torch's and of other libraries' stack into",
    None,
    "what they stack there is copied into the slot",
)


def lend_storages(lend: Callable[[int], torch.UntypedStorage | None]) -> None:
    """Makes whoever asks for a storage in shared memory get what ``lend`` returns, if it is not None.

    Safe to call again with the same function.

    Args:
        lend: is given a size in bytes, in the thread that asks.
    """

    def new_shared(cls: Any, /, size: int, *others: Any, device: Any = "cpu", **options: Any) -> Any:
        storage = None
        if not others and not options and size and torch.device(device).type == "cpu":
            storage = lend(size)
        if storage is None:
            return _new_shared.__func__(cls, size, *others, device=device, **options)
        return storage

    if _new_shared is not None:
        setattr(torch.UntypedStorage, _new_shared.__name__, classmethod(new_shared))


# torch's keys. With any other there is an entry of the user's, perhaps for a base class of what samples are.
COLLATE_KEYS = frozenset({torch.Tensor, np.ndarray, (np.bool_, np.number, np.object_), float, int, str, bytes})
_COLLATE_FUNCTIONS = {
    torch.Tensor: collate_tensor_fn,
    np.ndarray: collate_numpy_array_fn,
    float: collate_float_fn,
    int: collate_int_fn,
}


def _differing_entries() -> list[str]:
    """Names the entries of torch's map that are torch's and not those that `collate` knows."""
    found = [f"no {_text(key)}" for key in COLLATE_KEYS - collate_fn_map.keys()]
    for key, function in collate_fn_map.items():
        if key in COLLATE_KEYS:
            is_other = function is not _COLLATE_FUNCTIONS.get(key, function)
        else:
            is_other = all(_is_of_torch_or_python(kind) for kind in _types(key))
        if is_other and getattr(function, "__module__", "").startswith("torch."):
            found.append(_text(key))
    return sorted(found)


def _is_of_torch_or_python(kind: type) -> bool:
    package = kind.__module__.split(".")[0]
    return package in ("torch", "numpy") or package in sys.stdlib_module_names


def _types(key: Any) -> Iterable[type]:
    return key if isinstance(key, tuple) else (key,)


def _text(key: Any) -> str:
    return ", ".join(kind.__qualname__ for kind in _types(key))


# -- tensors and storages as pickles ---------------------------------------------------------------------------------

_REDUCTIONS = "torch.multiprocessing.reductions"
reduce_tensor: Any = _needed(f"{_REDUCTIONS}.reduce_tensor", "tensors of devices; and what torch registers for tensors")
reduce_storage: Any = _needed(f"{_REDUCTIONS}.reduce_storage", "what torch registers for storages")
reduce_typed_storage: Any = _needed(f"{_REDUCTIONS}.reduce_typed_storage", "what torch registers for typed storages")
reduce_typed_storage_child: Any = _needed(f"{_REDUCTIONS}.reduce_typed_storage_child", "what torch registers for those")
storage_classes: Iterable[type] = _needed("torch._storage_classes", "all classes of storages", ())
_needed("torch.Tensor._indices", "what a sparse tensor is made of")
_needed("torch.Tensor._values", "what a sparse tensor is made of")
NAMES.append(PrivateName("torch.storage.TypedStorage.{_untyped_storage}", "what a typed storage is over", _STOCK))
NAMES.append(PrivateName("torch.storage.TypedStorage(_internal=True)", "makes one with no warning", _STOCK))


def sparse_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices and the values of a sparse tensor, coalesced or not."""
    return tensor._indices(), tensor._values()


def typed_storage(untyped: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    """Makes a typed storage of what it is over."""
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def untyped_storage(storage: torch.storage.TypedStorage) -> torch.UntypedStorage:
    """Returns what a typed storage is over, with no warning about typed storages."""
    return storage._untyped_storage


# Methods that give a storage other memory.
MOVER_TO_A_NAME = "_share_filename_cpu_"
STORAGE_MOVERS = "_share_fd_cpu_", MOVER_TO_A_NAME
_needed("torch.UntypedStorage._share_fd_cpu_", "moves a storage to memory of its own: hooked into, to hold its slot")
_needed("torch.UntypedStorage._share_filename_cpu_", "the same, where file descriptors are not sent")
_storage_of_descriptor: Any = _optional(
    "torch.UntypedStorage._new_shared_fd_cpu",
    "shared tensors in a memfd, which torch itself sends by descriptor",
    None,
    "they lie in torch's own shared memory, which takes of /dev/shm",
)


def storage_of_descriptor(fd: int, nbytes: int) -> Any:
    """Returns a storage over a file, which torch takes for shared memory of its own, or a copy in such memory."""
    if _storage_of_descriptor is not None:
        return _storage_of_descriptor(fd, nbytes)
    memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        file.readinto(memory.numpy().data)
    return memory.share_memory_().untyped_storage()


# -- the compiler ----------------------------------------------------------------------------------------------------

_eval_frame: Any = _optional(
    "torch._C._dynamo.eval_frame",
    "stops compiled code from compiling the library too",
    None,
    "compiled code that steps a loader is right, and slower",
)
COMPILER_MARK = "_torchdynamo_disable"
NAMES.append(PrivateName(f"(function).{{{COMPILER_MARK}}}", "the same, of calls that are traced", "the same"))


def compiler_skip() -> Callable[[CodeType], object]:
    """Returns what marks code for the compiler to leave alone, or what does nothing."""
    try:
        action = _eval_frame._FrameAction.SKIP
        strategy = _eval_frame._FrameExecStrategy(action, action)  # for the frame, and for what it calls
        set_strategy = _eval_frame.set_code_exec_strategy
        return lambda code: set_strategy(code, strategy)
    except AttributeError:  # before torch 2.8, where a mark covers the frame only
        return getattr(_eval_frame, "skip_code", lambda code: None)


# -- whether all is there --------------------------------------------------------------------------------------------

_entries = _differing_entries() if collate_fn_map else []


@functools.cache
def difference() -> str:
    """Says how this torch differs from those that the library knows, as in "torch lacks ..."; empty if it does not.

    What only objects have is looked for in objects that are made for it, with a generator of their own: no random
    stream moves.
    """
    missing = _missing or _missing_attributes()
    said = [f"lacks {', '.join(missing)}"] if missing else []
    if _entries:
        said.append(f"collates differently: default_collate_fn_map has {'; '.join(_entries)}")
    return f"torch {torch.__version__} {' and '.join(said)} (shmloader {__version__})" if said else ""


def _missing_attributes() -> list[str]:
    try:
        with warnings.catch_warnings(), torch.device("cpu"):
            warnings.simplefilter("ignore")
            return _probe()
    except Exception as error:
        return [f"what a loader is made of ({type(error).__name__}: {error})"]


class _ProbeLoader(DataLoader[int]):
    def _get_iterator(self) -> BaseIterator:
        return BaseIterator(self)


def a_loader(kind: type[DataLoader[Any]]) -> DataLoader[Any]:
    """Makes a loader of one number, with a generator of its own.

    A program may have replaced torch's constructor by one that refuses this: then none is called.
    """
    numbers: Any = range(1)
    try:
        return kind(numbers, generator=torch.Generator())
    except Exception:
        if _has_torchs_constructor():
            raise
    loader = kind.__new__(kind)
    vars(loader).update(_as_made_of(numbers))
    return loader


def _has_torchs_constructor() -> bool:
    code = getattr(DataLoader.__init__, "__code__", None)
    return code is not None and code.co_filename == sys.modules[DataLoader.__module__].__file__


def _as_made_of(numbers: Any) -> dict[str, Any]:
    """Returns what torch's constructor puts into a loader."""
    sampler = torch.utils.data.SequentialSampler(numbers)
    return {
        "dataset": numbers,
        "_dataset_kind": DatasetKind.Map,
        "sampler": sampler,
        "batch_sampler": torch.utils.data.BatchSampler(sampler, 1, drop_last=False),
        "generator": torch.Generator(),
        "collate_fn": torch.utils.data.default_collate,
        "batch_size": 1,
        "num_workers": 0,
        "timeout": 0,
        "in_order": True,
        "pin_memory_device": "",
        **dict.fromkeys(("pin_memory", "drop_last", "persistent_workers"), False),
        **dict.fromkeys(("prefetch_factor", "worker_init_fn", "_DataLoader__multiprocessing_context")),
        **dict.fromkeys(("_IterableDataset_len_called", KEPT_ITERATOR)),
        "_DataLoader__initialized": True,
    }


def _probe() -> list[str]:
    loader = a_loader(_ProbeLoader)
    iterator = iter(loader)
    if type(iterator) is not BaseIterator:  # that is not where a pass begins any more
        return ["DataLoader._get_iterator"]
    in_process = InProcessIterator(loader)
    fetcher = DatasetKind.create_fetcher(loader._dataset_kind, loader.dataset, True, list, False)
    untyped_storage(typed_storage(torch.UntypedStorage(0), torch.uint8))
    return [
        f"{owner}.{name}"
        for owner, found, names in (
            ("DataLoader", loader, _LOADER),
            ("_BaseDataLoaderIter", iterator, _BASE_ITERATOR),
            ("_SingleProcessDataLoaderIter", in_process, _IN_PROCESS_ITERATOR),
            ("create_fetcher(...)", fetcher, _FETCHER),
            ("ExceptionWrapper", ExceptionWrapper((ValueError, ValueError(), None)), _WRAPPER),
        )
        for name in names
        if not hasattr(found, name)
    ]
