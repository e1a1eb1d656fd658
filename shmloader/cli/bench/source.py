"""From MODULE:CALLABLE to the arguments that both loaders are made with."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, IterableDataset

from shmloader import ShmDataLoader
from shmloader.cli.console import UsageError

_DEFAULTS: dict[str, Any] = {"batch_size": 32, "num_workers": 2}

_ALL = frozenset(inspect.signature(ShmDataLoader).parameters)
_OURS = _ALL - frozenset(inspect.signature(DataLoader).parameters)

# Arguments that exclude each other: which of them a loader was made with does not follow from its attributes alone.
_BATCHING = frozenset(("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"))

LoaderClass = Callable[..., "DataLoader[Any]"]


class SyntheticImages(Dataset[Any]):
    """What is measured when the user names nothing: small colour images, 3x64x64 bytes, each with an int.

    A sample costs next to nothing to make, so that what is measured is the loader.

    Args:
        length: how many samples there are; they repeat.
    """

    _DISTINCT = 256

    def __init__(self, length: int = 1_000_000) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (self._DISTINCT, 3, 64, 64), dtype=np.uint8)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._images[index % self._DISTINCT], index % 10


def loader_arguments(name: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments, dataset included, that both loaders are made with.

    Args:
        name: MODULE:CALLABLE, or None for the synthetic dataset.
        options: what the command line says of DataLoader's arguments; None: nothing.

    Raises:
        UsageError: there is no such thing, it is or returns something else, or it and the command line disagree.
        Exception: what the user's module or callable raises.
    """
    arguments = {"dataset": SyntheticImages()} if name is None else _named_arguments(name)
    for option, value in options.items():
        if value is None:
            continue
        if option in arguments:
            raise UsageError(f"{name} sets {option} itself, so --{option.replace('_', '-')} cannot be given")
        arguments[option] = value
    if "batch_sampler" not in arguments:
        arguments.setdefault("batch_size", _DEFAULTS["batch_size"])
    arguments.setdefault("num_workers", _DEFAULTS["num_workers"])
    return arguments


def build(loader_class: LoaderClass, arguments: Mapping[str, Any]) -> DataLoader[Any]:
    """Makes a loader; torch's own does not get the arguments that only ours has.

    Raises:
        UsageError: the loader refuses its arguments.
    """
    if loader_class is DataLoader:
        arguments = {name: value for name, value in arguments.items() if name not in _OURS}
    try:
        return loader_class(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the loader refuses its arguments: {error}") from error


def _named_arguments(name: str) -> dict[str, Any]:
    found = _find(name)
    arguments = _arguments_of(found)
    if arguments is None:
        if not callable(found):
            raise UsageError(f"{name} cannot be called and is {_neither(found)}")
        _check_no_arguments(name, found)
        made = found()
        arguments = _arguments_of(made)
        if arguments is None:
            raise UsageError(f"{name} returned {_neither(made)}")
    _check_dataset(name, arguments)
    _check_others(name, arguments)
    return arguments


def _neither(thing: Any) -> str:
    return f"neither a dataset, nor a DataLoader, nor a dict of its arguments, but {type(thing).__qualname__}"


def _find(name: str) -> Any:
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path) or module_name.startswith("."):
        raise UsageError(f"{name!r} is not MODULE:CALLABLE")
    if module_name.endswith(".py") or "/" in module_name:
        raise UsageError(f"{name!r} is not MODULE:CALLABLE; a module is named as in an import, with no path and no .py")
    found: Any = _import(module_name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise UsageError(f"module {module_name} has no {path}")
        found = getattr(found, attribute)
    return found


def _import(module_name: str) -> Any:
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own one imports in vain is the user's error, with its traceback.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"there is no module {module_name}") from None
        raise


def _check_no_arguments(name: str, found: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(found)
    except ValueError:
        return
    try:
        signature.bind()
    except TypeError as error:
        raise UsageError(f"{name} is called without arguments, but: {error}") from None


def _arguments_of(thing: Any) -> dict[str, Any] | None:
    """Returns the arguments that a loader, a dict or a dataset stands for; None where it is none of these."""
    if isinstance(thing, DataLoader):
        return _arguments_of_loader(thing)
    if isinstance(thing, dict) and not isinstance(thing, Dataset):
        return dict(thing)
    return {"dataset": thing} if _is_dataset(thing) else None


def _arguments_of_loader(loader: DataLoader[Any]) -> dict[str, Any]:
    """Returns the arguments that make another loader like this one, of whichever of the two classes."""
    arguments = {name: getattr(loader, name) for name in sorted(_ALL - _BATCHING) if hasattr(loader, name)}
    if loader.batch_size is None and loader.batch_sampler is not None:
        return {**arguments, "batch_sampler": loader.batch_sampler}
    arguments |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    # A stream's sampler is torch's own stopgap, which cannot be given. Any other says in which order, shuffled or not.
    return arguments if isinstance(loader.dataset, IterableDataset) else {**arguments, "sampler": loader.sampler}


def _is_dataset(thing: Any) -> bool:
    is_sequence = hasattr(thing, "__getitem__") and hasattr(thing, "__len__") and not isinstance(thing, str | bytes)
    return isinstance(thing, Dataset) or (is_sequence and not isinstance(thing, type))


def _check_dataset(name: str, arguments: Mapping[str, Any]) -> None:
    if "dataset" not in arguments:
        raise UsageError(f"{name} gives a dict without 'dataset'")
    dataset = arguments["dataset"]
    needs_length = arguments.get("sampler") is None and arguments.get("batch_sampler") is None
    if isinstance(dataset, IterableDataset) or (hasattr(dataset, "__getitem__") and not needs_length):
        return
    if not _is_dataset(dataset):
        raise UsageError(f"{name} gives a 'dataset' that is none, but of type {type(dataset).__qualname__}")
    if not hasattr(dataset, "__len__"):
        raise UsageError(f"{name} gives a dataset without a length, which needs a sampler of yours")


def _check_others(name: str, arguments: Mapping[str, Any]) -> None:
    """Finds what torch's loader takes, and fails with in the middle of a pass."""
    for argument in ("sampler", "batch_sampler"):
        value = arguments.get(argument)
        if value is not None and not hasattr(value, "__iter__"):
            raise UsageError(f"{name} gives a {argument} that cannot be iterated over: {value!r}")
    for argument in ("collate_fn", "worker_init_fn"):
        value = arguments.get(argument)
        if value is not None and not callable(value):
            raise UsageError(f"{name} gives a {argument} that cannot be called: {value!r}")
